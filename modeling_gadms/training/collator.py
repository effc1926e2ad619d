"""Rows with an image and captions -> a batch of augmented pairs and the random numbers of their masks."""

import math
from dataclasses import dataclass

import torch

from ..masking_gadms import draw_uniforms
from ..rows import pick_column, stable_hash
from ..token_scores_gadms import valid_tokens


@dataclass
class PairCollator:
    """Collate rows of a captioned image set into what [`GADMSForPreTraining`] takes.

    A row is `{"image": PIL image, "image_path": "train/7.png", "caption1": "a man ...", "caption2": "the person ...",
    "epoch": 3}`; any number of `caption<n>` columns will do. Everything random about a row (its caption, augmentation
    and masks) follows from the seed, the epoch and the row's `image_path`, so it does not depend on the batch, on the
    process or worker that handles the row, or on where training was resumed. Over `n` epochs an image shows each of
    its `n` captions once.

    The batch: `pixel_values` `(B, 3, height, width)` float32, `input_ids` and `attention_mask` `(B, T)` int64, padded
    to the longest caption, `person_ids` `(B,)` int64 (each image its own identity, unless `persons` are given),
    `mask_uniforms` `(B, NUM_DRAWS, context length)` float32, and `image_paths`, a list for error messages.

    Args:
        processor ([`GADMSProcessor`]): tokenizer and image processor.
        seed (`int`): of everything random.
        crop_padding (`int`): black pixels padded on each side before a crop back to size (10 in the paper).
        flip_probability (`float`): of a horizontal flip (0.5).
        erasing_probability (`float`): of filling a random box, 2 to 40 % of the area, with CLIP's mean colour (0.5).
        persons (`dict[int, int]`, *optional*): the class of each `person_id` of the rows, for fine-tuning.
        hidden_spans (`str`, *optional*): ending of the columns that name what is hidden before alignment, whatever
            the masks: `caption1_<ending>` has the `[start, end]` characters, end excluded, of `caption1` as the
            tokenizer cleans it (`tokenization_gadms.clean_caption`).
    """

    processor: object
    seed: int = 0
    crop_padding: int = 10
    flip_probability: float = 0.5
    erasing_probability: float = 0.5
    persons: dict[int, int] | None = None
    hidden_spans: str | None = None

    def __call__(self, rows: list[dict]) -> dict:
        columns = [pick_column(row) for row in rows]
        captions = [row[column] for row, column in zip(rows, columns, strict=True)]
        batch = self.processor(text=captions, images=[row["image"] for row in rows], return_tensors="pt")
        generator = torch.Generator()
        uniforms = []
        for row, pixels in zip(rows, batch["pixel_values"], strict=True):
            generator.manual_seed(stable_hash(self.seed, row["epoch"], row["image_path"]))
            pixels.copy_(self.augment(pixels, generator))
            uniforms.append(draw_uniforms(1, self.processor.tokenizer.model_max_length, generator))
        uniforms = torch.cat(uniforms)
        if self.hidden_spans is not None:
            spans = [row[f"{column}_{self.hidden_spans}"] for row, column in zip(rows, columns, strict=True)]
            # below every probability of a mask
            uniforms[:, 0, : batch["input_ids"].shape[1]].masked_fill_(self.tokens_in(captions, spans), -1.0)
        return {
            **batch,
            "person_ids": torch.tensor([self.identity(row) for row in rows]),
            "mask_uniforms": uniforms,
            "image_paths": [row["image_path"] for row in rows],
        }

    def tokens_in(self, captions: list[str], spans: list[list[list[int]]]) -> torch.Tensor:
        """Which tokens begin within the spans of their caption: bool `(B, T)`; of no span are BOS, EOS and padding."""
        encoded = self.processor.tokenizer(
            captions, padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt", verbose=False
        )
        inside = torch.zeros(encoded["input_ids"].shape, dtype=torch.bool)
        for row, offsets, of_caption in zip(inside, encoded["offset_mapping"], spans, strict=True):
            for start, end in of_caption:
                row |= (offsets[:, 0] >= start) & (offsets[:, 0] < end)
        return inside & valid_tokens(encoded["input_ids"])

    def identity(self, row: dict) -> int:
        """Who a row shows: the class of its person, or else its image."""
        return stable_hash(row["image_path"]) if self.persons is None else self.persons[row["person_id"]]

    def augment(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Flip, pad and crop, and erase one normalised image `(3, height, width)`; always the same count of draws."""
        flip, top, left, erase, area, aspect, y, x = torch.rand(8, generator=generator).tolist()
        if flip < self.flip_probability:
            pixels = pixels.flip(-1)
        pixels = self._shift(pixels, top, left)
        if erase < self.erasing_probability:
            _, height, width = pixels.shape
            area = (0.02 + 0.38 * area) * height * width
            aspect = math.exp((2 * aspect - 1) * math.log(1 / 0.3))  # height / width, log-uniform in [0.3, 1 / 0.3]
            box_height = min(round(math.sqrt(area * aspect)), height)
            box_width = min(round(math.sqrt(area / aspect)), width)
            y, x = int(y * (height - box_height + 1)), int(x * (width - box_width + 1))
            pixels = pixels.clone()
            pixels[:, y : y + box_height, x : x + box_width] = 0  # the mean colour, once normalised
        return pixels

    def _shift(self, pixels, top, left):
        """A crop of the image's own size from the image on black padding."""
        if self.crop_padding == 0:
            return pixels
        mean, std = (
            torch.tensor(getattr(self.processor.image_processor, name)) for name in ("image_mean", "image_std")
        )
        padded = (-mean / std)[:, None, None].repeat(1, *(side + 2 * self.crop_padding for side in pixels.shape[1:]))
        pad, (_, height, width) = self.crop_padding, pixels.shape
        padded[:, pad : pad + height, pad : pad + width] = pixels
        top, left = int(top * (2 * pad + 1)), int(left * (2 * pad + 1))
        return padded[:, top : top + height, left : left + width]
