"""Collates captioned rows into a batch of augmented pairs, with the random numbers of their masks."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dataset_webperson import DataError

from ..masking_gadms import draw_uniforms
from ..matching_gadms import NUM_NEGATIVE_DRAWS
from ..noise.rewriting import POSTERIOR, as_cleaned, repaired
from ..noise.swaps import Swap, beliefs, drawn_words, swaps
from ..noise.word_families import Family, families_for, said_words
from ..processing_gadms import GADMSProcessor
from ..rows import pick_column, stable_hash
from .augmentation import black
from .image_decoding import DEVICE, PILLOW, decoded, for_device, resized, stored_bytes
from .shared_batches import SharedBatches


@dataclass
class PairCollator:
    """Collate rows of a captioned image set into the inputs of [`GADMSForPreTraining`].

    A row is `{"image": PIL image, "image_path": "train/7.png", "caption1": "a man ...", "caption2": "the person ...",
    "epoch": 3}`, with any number of `caption<n>` columns. Everything random about a row (its caption, augmentation and
    masks) follows from the seed, the epoch and the row's `image_path`, so it does not depend on the batch, on the
    process or worker that handles the row, or on where training was resumed. Over `n` epochs an image shows each of
    its `n` captions once.

    The batch: `pixel_values` `(B, 3, height, width)` float32, `input_ids` and `attention_mask` `(B, T)` int64, padded
    to the longest caption, `person_ids` `(B,)` int64 (one identity per image, unless `persons` are given),
    `mask_uniforms` `(B, NUM_DRAWS, context length)` float32, and `image_paths`, a list for error messages.

    Args:
        processor ([`GADMSProcessor`]): tokenizer and image processor.
        seed (`int`): seed of everything random.
        crop_padding (`int`): black pixels added on each side before a random crop to the original size (10).
        flip_probability (`float`): probability of a horizontal flip (0.5).
        erasing_probability (`float`): probability of filling a random box, 2 to 40 % of the area, with CLIP's mean
            colour (0.5).
        persons (`dict[int, int]`, *optional*): class of each `person_id`, for fine-tuning.
        hidden_spans (`str`, *optional*): suffix of the columns that list the words always hidden before alignment:
            `caption1_<suffix>` holds `[start, end]` characters, end excluded, of `caption1` as the tokenizer cleans it
            (`tokenization_gadms.clean_caption`).
        draw_words (`bool`): in each epoch, draw the words of a caption anew from `caption1_posterior`, ..., which list
            places, words and their probabilities (`noise.repaired_captions.add_posteriors`).
        pad_to_multiple_of (`int`): pad captions to a multiple of this, or to the context length if it comes first: of
            each length that occurs, compiled layers might make a graph. Nothing else follows from it.
        num_patches (`int`): patches of an image; needed for `patch_dropout` alone.
        patch_dropout (`float`): share of them to leave out. The batch then has `kept_patches` `(B, K)` int64 too.
        draw_negatives (`bool`): the batch also has `negative_uniforms` `(B, NUM_NEGATIVE_DRAWS)` float32, by which
            image-text matching draws a row's negatives.
        swap_negatives (`int`): the batch also has this many copies of each caption with one word swapped for another
            value of its family: `swap_input_ids` `(B, K, W)` int64, and `swap_weights` `(B, K)` float32, 1 less the
            probability that the new word is true, where `caption1_posterior` tells it. A caption of which nothing is
            swapped has copies of weight 0.
        augment_later (`bool`): leave `pixel_values` as the bytes of the resized images, uint8, and add `augmentation`,
            int64 of shape `(B, 7)`, by which `augmentation.augmented` makes of them what they would have been.
        image_decoding (`str`): one of `image_decoding.WAYS`. By all but `"pillow"` a row's image is
            `{"bytes": ..., "path": ...}`. By `"device"`, with `augment_later`, the batch has `encoded_images` for
            `image_decoding.decoded_on_device` in the place of `pixel_values`.
        shared (`SharedBatches`, *optional*): memory in which workers hand pixels over; the batch then has a
            `shared_place`, which is to be given back when the pixels are not used any more.
    """

    processor: GADMSProcessor
    seed: int = 0
    crop_padding: int = 10
    flip_probability: float = 0.5
    erasing_probability: float = 0.5
    persons: dict[int, int] | None = None
    hidden_spans: str | None = None
    draw_words: bool = False
    pad_to_multiple_of: int = 1
    num_patches: int = 0
    patch_dropout: float = 0.0
    draw_negatives: bool = False
    swap_negatives: int = 0
    augment_later: bool = False
    image_decoding: str = PILLOW
    shared: SharedBatches | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        columns = [pick_column(row) for row in rows]
        captions = [self._caption(row, column) for row, column in zip(rows, columns, strict=True)]
        tokens = self.processor.tokenizer(**self.processor.caption_options(captions), return_tensors="pt")
        batch: dict[str, Any] = dict(tokens)

        height, width = self.image_size
        images = self._images(rows)
        handed_over = self.image_decoding == DEVICE
        if not handed_over:
            batch |= self._memory(len(rows), height, width)
        generator = torch.Generator()
        draws, plans = [], []
        for number, (row, image) in enumerate(zip(rows, images, strict=True)):
            generator.manual_seed(stable_hash(self.seed, row["epoch"], row["image_path"]))
            if self.augment_later:
                plans.append(self.plan(height, width, generator))
            else:
                image = self.augment(image, generator)
            if not handed_over:
                batch["pixel_values"][number] = image
            draws.append(draw_uniforms(1, self.processor.tokenizer.model_max_length, generator))
        uniforms = torch.cat(draws)

        if self.hidden_spans is not None:
            names = [f"{column}_{self.hidden_spans}" for column in columns]
            spans = [self._cell(row, name, list) for row, name in zip(rows, names, strict=True)]
            # a number below every probability, in the draws of the noise mask, hides the token for certain
            noise_draws = uniforms[:, 0, : batch["input_ids"].shape[1]]
            noise_draws.masked_fill_(self.tokens_in(captions, spans), -1.0)
        for name, padding in (("input_ids", self.processor.tokenizer.pad_token_id), ("attention_mask", 0)):
            batch[name] = F.pad(batch[name], (0, self.missing(batch[name].shape[1])), value=padding)
        if self.augment_later:
            batch["augmentation"] = torch.tensor(plans)
        if self.patch_dropout:
            batch["kept_patches"] = torch.stack([self.kept_patches(row) for row in rows])
        if self.draw_negatives:
            draws = [torch.rand(NUM_NEGATIVE_DRAWS, generator=self._stream(row, "negatives")) for row in rows]
            batch["negative_uniforms"] = torch.stack(draws)
        if self.swap_negatives:
            batch |= self.swapped(rows, columns, batch["input_ids"])
        batch = {
            **batch,
            "person_ids": torch.tensor([self.identity(row) for row in rows]),
            "mask_uniforms": uniforms,
            "image_paths": [row["image_path"] for row in rows],
            **({"encoded_images": images} if handed_over else {}),
        }
        return batch if self.shared is None else self.shared.through_pipe(batch)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        size = self.processor.image_processor.size
        return size["height"], size["width"]

    def _images(self, rows: list[dict[str, Any]]) -> list[Any]:
        """Of each row the pixels at training size, normalised or bytes, or what a device decodes."""
        images = [row["image"] for row in rows]
        if self.image_decoding != PILLOW:
            files = [(stored_bytes(row["image"], row["image_path"]), row["image_path"]) for row in rows]
            if self.image_decoding == DEVICE:
                return [for_device(*file) for file in files]
            images = [resized(decoded(*file), self.image_size) for file in files]
            if self.augment_later:
                return images
        as_bytes: Any = {"do_rescale": False, "do_normalize": False} if self.augment_later else {}
        arrays = self.processor.image_processor(images, **as_bytes)["pixel_values"]
        return [torch.from_numpy(array) for array in arrays]

    def _memory(self, count: int, height: int, width: int) -> dict[str, Any]:
        """`pixel_values` to fill and, in memory that is shared, their `shared_place`."""
        # as bytes, the colours of a pixel lie together as in an image, which is then copied in one go
        shape = (count, height, width, 3) if self.augment_later else (count, 3, height, width)
        dtype = torch.uint8 if self.augment_later else torch.float32
        lent: dict[str, Any] = {}
        if self.shared is None:
            pixels = torch.empty(shape, dtype=dtype)
        else:
            pixels, lent["shared_place"] = self.shared.take(shape, dtype)
        return {"pixel_values": pixels.permute(0, 3, 1, 2) if self.augment_later else pixels, **lent}

    def swapped(
        self, rows: list[dict[str, Any]], columns: list[str], input_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`swap_input_ids` and `swap_weights` of rows whose captions, in these columns, are `input_ids`."""
        families = families_for(list(rows[0]))
        found = [self._swaps(row, column, families) for row, column in zip(rows, columns, strict=True)]
        copies = self.processor(text=[swap.caption for of_row in found for swap in of_row], return_tensors="pt")[
            "input_ids"
        ]
        pad = self.processor.tokenizer.pad_token_id
        copies = F.pad(copies, (0, self.missing(copies.shape[1])), value=pad).unflatten(0, (len(rows), -1))
        weights = torch.tensor([[swap.weight for swap in of_row] for of_row in found])
        # what the tokenizer cuts off is no difference
        width = max(copies.shape[2], input_ids.shape[1])
        padded = [F.pad(ids, (0, width - ids.shape[-1]), value=pad) for ids in (copies, input_ids[:, None])]
        weights.masked_fill_((padded[0] == padded[1]).all(dim=-1), 0.0)
        return {"swap_input_ids": copies, "swap_weights": weights}

    def _swaps(self, row: dict[str, Any], column: str, families: dict[str, Family]) -> list[Swap]:
        caption, drawn = as_cleaned(self._cell(row, column, str)), None
        posterior = row.get(f"{column}_{POSTERIOR}") or []
        words = said_words({**row, column: caption}, column, families)
        generator, believed = self._stream(row, "swaps"), beliefs(posterior, words, families)
        if self.draw_words:
            words, drawn = drawn_words(posterior, self._word_draws(row, posterior), words, families)
        return swaps(caption, words, families, self.swap_negatives, generator, drawn, believed)

    def kept_patches(self, row: dict[str, Any]) -> torch.Tensor:
        """Numbers of the patches of a row's image that are not left out, in order: `(K,)`, the same `K` for all."""
        count = max(round(self.num_patches * (1 - self.patch_dropout)), 1)
        return torch.randperm(self.num_patches, generator=self._stream(row, "patches"))[:count].sort().values

    def _stream(self, row: dict[str, Any], purpose: str) -> torch.Generator:
        """A generator of its own for each purpose, so that the image and its masks do not depend on the others."""
        return torch.Generator().manual_seed(stable_hash(self.seed, row["epoch"], row["image_path"], purpose))

    def missing(self, width: int) -> int:
        """Padding that captions padded to `width` lack."""
        multiple = math.ceil(width / self.pad_to_multiple_of) * self.pad_to_multiple_of
        return max(min(multiple, self.processor.tokenizer.model_max_length) - width, 0)

    def _caption(self, row: dict[str, Any], column: str) -> str:
        caption = self._cell(row, column, str)
        if not self.draw_words:
            return caption
        posterior = self._cell(row, f"{column}_{POSTERIOR}", list)
        return repaired(as_cleaned(caption), posterior, self._word_draws(row, posterior))

    def _word_draws(self, row: dict[str, Any], posterior: list) -> list[float]:
        return torch.rand(len(posterior), generator=self._stream(row, "words")).tolist()

    @staticmethod
    def _cell(row: dict[str, Any], column: str, kind: type) -> Any:
        """What a row has in a column.

        Raises:
            DataError: it is not of the kind; names the image.
        """
        value = row[column]
        if not isinstance(value, kind):
            empty = "string" if kind is str else "list"
            raise DataError(f"image {row['image_path']}: {column} is {value!r}; replace it by an empty {empty}")
        return value

    def tokens_in(self, captions: list[str], spans: list[list[list[int]]]) -> torch.Tensor:
        """True at tokens that begin within a span of their caption: bool `(B, T)`; BOS, EOS and padding never do."""
        options = self.processor.caption_options(captions)
        encoded = self.processor.tokenizer(**options, return_offsets_mapping=True, return_tensors="pt", verbose=False)
        inside = torch.zeros(encoded["input_ids"].shape, dtype=torch.bool)
        for row, offsets, of_caption in zip(inside, encoded["offset_mapping"], spans, strict=True):
            for start, end in of_caption:
                row |= (offsets[:, 0] >= start) & (offsets[:, 0] < end)
        first, last = encoded["offset_mapping"].unbind(dim=-1)
        return inside & (first < last)  # special tokens and padding have no characters

    def identity(self, row: dict[str, Any]) -> int:
        """Identity of a row: the class of its person or, without `persons`, a number of its image."""
        return stable_hash(row["image_path"]) if self.persons is None else self.persons[row["person_id"]]

    def plan(self, height: int, width: int, generator: torch.Generator) -> list[int]:
        """How an image is augmented: whether it is flipped, where the crop begins in the padded image (row, column),
        and the box to erase (first row, end, first column, end), four zeros for none."""
        # always eight draws, so that the masks drawn next do not depend on the augmentation
        flip, top, left, erase, area, aspect, y, x = torch.rand(8, generator=generator).tolist()
        box = (0, 0, 0, 0)
        if erase < self.erasing_probability:
            box = self._box(height, width, area, aspect, y, x)
        return [int(flip < self.flip_probability), *self._corner(top, left), *box]

    def augment(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Flip, pad and crop, and erase one normalised image `(3, height, width)`."""
        _, height, width = pixels.shape
        flips, top, left, first_row, end_row, first_column, end_column = self.plan(height, width, generator)
        if flips:
            pixels = pixels.flip(-1)
        pixels = self._shift(pixels, top, left)
        if end_row:
            pixels = pixels.clone()
            pixels[:, first_row:end_row, first_column:end_column] = 0  # the mean colour is 0 once normalised
        return pixels

    @staticmethod
    def _box(height: int, width: int, area: float, aspect: float, y: float, x: float) -> tuple[int, int, int, int]:
        """Rows and columns of the box to erase; the last four numbers are uniform in [0, 1)."""
        box_area = (0.02 + 0.38 * area) * height * width
        # height / width, log-uniform in [0.3, 1 / 0.3]
        ratio = math.exp((2 * aspect - 1) * math.log(1 / 0.3))
        box_height = min(round(math.sqrt(box_area * ratio)), height)
        box_width = min(round(math.sqrt(box_area / ratio)), width)
        top = int(y * (height - box_height + 1))
        left = int(x * (width - box_width + 1))
        return top, top + box_height, left, left + box_width

    def _corner(self, y: float, x: float) -> tuple[int, int]:
        """Where the crop begins in the padded image; `y` and `x` are uniform in [0, 1)."""
        pad = self.crop_padding
        return int(y * (2 * pad + 1)), int(x * (2 * pad + 1))

    def _shift(self, pixels: torch.Tensor, top: int, left: int) -> torch.Tensor:
        """A crop of the image's own size from the image padded with black."""
        pad = self.crop_padding
        if pad == 0:
            return pixels
        _, height, width = pixels.shape
        padded = black(self.processor.image_processor)[:, None, None].repeat(1, height + 2 * pad, width + 2 * pad)
        padded[:, pad : pad + height, pad : pad + width] = pixels
        return padded[:, top : top + height, left : left + width]
