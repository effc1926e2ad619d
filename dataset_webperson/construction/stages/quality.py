"""Stage `quality`: a GA-DMS model estimates which captions and words are made up.

Two figures per caption. `caption1_score` is the cosine of image and caption. `caption1_word_score` comes from its
attribute words (`find_attributes`), each of which has the drop of that cosine when the word is masked, as
`model.word_contributions` computes it: a word is doubtful below `doubtful_below`, by default 0, where the caption
matches its image better without it. The caption's figure is the share of its attribute words that are not doubtful.
Each attribute word costs a pass of its caption through the text tower.

How well either detects false captions depends on the model; `auc` measures it where the truth is known, and
`examples/demo_webperson.py` prints it for drawn pedestrians. Rows are judged by the cosine; the words are only shown.

With a reader of values, words that the picture speaks against are replaced first (`repair.py`), and the scores are
those of the captions that result.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ...findings import DataError
from ...images import decode_rgb
from ...reading_ahead import ahead
from ...rows.joined_parquet import without_images
from ..captions.repeated import caption_hash, load_repeated
from ..captions.words import find_attributes
from ..shards import CHANGEABLE, EDITABLE, read_rows, shard_writer
from .repair import REPAIR_COLUMNS, open_repairer

if TYPE_CHECKING:  # the other stages need not wait for this import
    import torch

MARKED = ("keep", "drop")
LOW_SCORE, REPEATED = "low-score", "repeated"
_WORD = pa.struct({"start": pa.int32(), "end": pa.int32(), "kind": pa.string(), "score": pa.float32()})
NEW_COLUMNS = {
    "caption1_score": pa.float32(),
    "caption2_score": pa.float32(),
    "caption1_word_score": pa.float32(),
    "caption2_word_score": pa.float32(),
    "caption1_words": pa.list_(_WORD),
    "caption2_words": pa.list_(_WORD),
}


@dataclass(frozen=True)
class QualityOptions:
    """What is measured, and what is left out as a result.

    Args:
        model: folder or Hub id of a GA-DMS model with its processor; "" leaves scores null.
        reader: `OUTPUT_DIR-reader.safetensors` of `examples/repair_captions.py`, learnt on `model`: captions are
            repaired by it. "" leaves them as they are.
        families: JSON of the words that the reader was given, `""` for those that it takes by default.
        doubtful_below: a word is doubtful if masking it lowers the cosine by less.
        min_score: captions with a lower cosine are marked `low-score`; by default none are. The scale depends on the
            model: look at the report first.
        max_same_caption: captions that stand on more images than this are marked `repeated`; 0 marks none.
        marked: "keep" leaves every row and caption. "drop" replaces a marked caption by the row's other one, and
            leaves out rows of which both are marked.
        batch_size: rows per call of the model.
        plan: folder that `find_repeated` writes; "" leaves repeated captions unmarked.

    Raises:
        ValueError: a limit out of range, an unknown value of `marked`, or `min_score` or `reader` without a model.
    """

    model: str = ""
    reader: str = field(default="", metadata=EDITABLE)
    families: str = field(default="", metadata=EDITABLE)
    doubtful_below: float = 0.0
    min_score: float | None = None
    max_same_caption: int = 20
    marked: str = "drop"
    batch_size: int = field(default=32, metadata=CHANGEABLE)
    plan: str = field(default="", metadata=CHANGEABLE)

    def __post_init__(self) -> None:
        if not -2 <= self.doubtful_below <= 2 or not -1 <= (self.min_score or 0) <= 1:
            raise ValueError(
                f"doubtful_below must be in -2..2, min_score in -1..1, not {self.doubtful_below} and {self.min_score}"
            )
        if self.marked not in MARKED:
            raise ValueError(f"marked must be one of {', '.join(MARKED)}, not {self.marked!r}")
        if self.min_score is not None and not self.model:
            raise ValueError(f"min_score={self.min_score} needs a model that gives scores")
        if self.reader and not self.model:
            raise ValueError(f"reader={self.reader} needs the model that it was learnt on")
        if self.families and not self.reader:
            raise ValueError(f"families={self.families} are of a reader, and none is given")
        if self.batch_size < 1 or self.max_same_caption < 0:
            raise ValueError(
                f"batch_size must be at least 1 and max_same_caption at least 0, not {self.batch_size} and "
                f"{self.max_same_caption}"
            )


def tokens_of_words(spans: list[list[int]], words: list[tuple[str, str, int, int]]) -> np.ndarray:
    """Which tokens touch each word: bool of shape `(words, tokens)`, no token for a word that was cut off.

    Args:
        spans: start and end of each token in the caption; equal if the token is not text.
        words: as `find_attributes` returns them.
    """
    low, high = np.array(spans).T
    start, end = np.array([word[2:] for word in words], dtype=int).reshape(-1, 2, 1).transpose(1, 0, 2)
    return (low < high) & (low < end) & (start < high)


def share_of_sure_words(scores: list[float], doubtful_below: float) -> float:
    """The share of attribute words that are not doubtful, among those that the model read; 0 if there are none.

    >>> share_of_sure_words([0.09, -0.05, 0.0, float("nan")], 0.0)
    0.6666666666666666
    """
    read = [score for score in scores if score == score]
    return sum(score >= doubtful_below for score in read) / len(read) if read else 0.0


def auc(false_scores: np.ndarray, true_scores: np.ndarray) -> float:
    """The probability that a true item outscores a false one, a tie counting half; NaN if either side is empty.

    >>> auc(np.array([0.1, 0.5]), np.array([0.5, 0.9]))
    0.875
    """
    if not len(false_scores) or not len(true_scores):
        return float("nan")
    ordered = np.sort(false_scores)
    below = np.searchsorted(ordered, true_scores, "left")
    equal = np.searchsorted(ordered, true_scores, "right") - below
    return float((below + equal / 2).mean() / len(ordered))


@dataclass(frozen=True)
class Inputs:
    """What the model is given for some images and their captions.

    Attributes:
        pixels: `(images, 3, height, width)`.
        ids: int64 of shape `(captions, tokens)`.
        image_of_caption, caption_of_word: index of each caption's image, of each attribute word's caption.
        hidden: bool of shape `(words, tokens)`, the tokens that are masked with a word.
    """

    pixels: "torch.Tensor"
    ids: "torch.Tensor"
    image_of_caption: list[int]
    caption_of_word: list[int]
    hidden: "torch.Tensor"


class CaptionScorer:
    """A GA-DMS model that scores captions and their words.

    Args:
        path: folder or Hub id.
    """

    def __init__(self, path: str):
        import torch

        from modeling_gadms import GADMSModel, GADMSProcessor

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = GADMSModel.from_pretrained(path).eval().to(self._device)
        self._processor = GADMSProcessor.from_pretrained(path)

    def prepare(
        self, images: list[Image.Image], captions: list[str], image_of_caption: list[int], words: list[list]
    ) -> Inputs:
        """The model's inputs; may be made in any thread.

        Args:
            images: RGB pictures.
            captions: texts.
            image_of_caption: index of each caption's image.
            words: attribute words of each caption, as `find_attributes` returns them.
        """
        import torch

        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"]
        tokens = self._processor.tokenizer(
            captions, padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt"
        )
        hidden = map(tokens_of_words, tokens["offset_mapping"].tolist(), words)
        return Inputs(
            pixels,
            tokens["input_ids"],
            image_of_caption,
            [caption for caption, found in enumerate(words) for _ in found],
            torch.from_numpy(np.concatenate(list(hidden))),
        )

    def __call__(self, inputs: Inputs) -> tuple[list[list[float]], list[float]]:
        """Each caption's word contributions, NaN for a word that was cut off, and its cosine with its image."""
        drops, cosines = self.forward(inputs)
        drops[~inputs.hidden.any(dim=1)] = float("nan")
        found: list[list[float]] = [[] for _ in inputs.ids]
        for caption, drop in zip(inputs.caption_of_word, drops.tolist(), strict=True):
            found[caption].append(drop)
        return found, cosines.tolist()

    def forward(self, inputs: Inputs) -> "tuple[torch.Tensor, torch.Tensor]":
        """The model alone: how far the cosine drops without each word, `(words,)`, and the cosines, `(captions,)`.

        As `model.word_contributions`, but for attribute words only, and without encoding an image for each of its
        captions.
        """
        import torch

        from modeling_gadms.evaluation.encoding import image_features

        where: dict[str, Any] = {"dtype": torch.long, "device": self._device}
        image_of_caption = torch.tensor(inputs.image_of_caption, **where)
        caption_of_word = torch.tensor(inputs.caption_of_word, **where)
        ids, hidden = inputs.ids.to(self._device), inputs.hidden.to(self._device)
        with torch.no_grad():
            images = image_features(self._model, {"pixel_values": inputs.pixels})
            drops, cosines = self._model.drops_without(images[image_of_caption], ids, caption_of_word, hidden)
        return drops.cpu(), cosines.cpu()


open_scorer = lru_cache(maxsize=1)(CaptionScorer)  # a process opens its model once, however many shards it works on


@dataclass
class Batch:
    """Rows, ready for the model."""

    rows: list[dict[str, Any]]
    words: list[list]  # attribute words, of each row's first and second caption
    captioned: list[int]  # places in `words` of captions that are not empty
    inputs: Inputs | None = None


def assess_shard(source: str, target: str, options: QualityOptions) -> dict[str, int]:
    """Score both captions of every row, and leave out rows as the options say.

    Adds these columns for both captions: `caption1_score` and `caption1_word_score` (see above; null without a model
    or a caption), and `caption1_words`: attribute words with their places, kinds and scores, their contributions.

    Counts, beside `rows_in` and `rows_out`: `captions_scored`, `captions_low-score`, `captions_repeated` (on more than
    `max_same_caption` images), `captions_replaced` (by the row's
    other one), `both_captions_marked` (rows left out). With a reader, also the columns of
    `CaptionRepairer.__call__`, and `captions_repaired` and `words_repaired` of the rows that are written.
    """
    schema = without_images(source, target)
    columns = NEW_COLUMNS | (REPAIR_COLUMNS if options.reader else {})
    for column, kind in columns.items():
        schema = schema.append(pa.field(column, kind))
    scorer = open_scorer(options.model) if options.model else None
    repair = None
    if options.reader:
        repairer = open_repairer(options.model, options.reader, options.families)
        repair = partial(repairer, vocabulary=repairer.count(source))
    repeated = load_repeated(options.plan) if options.plan and options.max_same_caption else frozenset()
    with shard_writer(target, schema) as shard:
        for name in ("captions_scored", f"captions_{LOW_SCORE}", "captions_replaced", "both_captions_marked"):
            shard.counts[name] = 0
        rows = read_rows(source)
        for batch in ahead(iter(partial(read_batch, rows, scorer, options.batch_size, repair), None)):
            assert batch is not None  # the end, which `iter` keeps to itself
            shard.counts["rows_in"] += len(batch.rows)
            _assess(batch, scorer, options, shard.counts)
            for row in batch.rows:
                _mark_repeated(row, repeated, shard.counts)
                if options.marked == "keep" or _settle(row, shard.counts):
                    if options.reader:
                        _count_repairs(row, shard.counts)
                    shard.write(row)
    return dict(shard.counts)


def read_batch(
    rows: Iterator[dict[str, Any]],
    scorer: CaptionScorer | None,
    size: int,
    repair: Callable[[list[Image.Image], list[dict[str, Any]]], None] | None = None,
) -> Batch | None:
    """Up to `size` rows, repaired and ready for the model; `None` at the end."""
    chunk = list(islice(rows, size))
    if not chunk:
        return None
    images = []
    if scorer and any(row[f"caption{number}"] for row in chunk for number in (1, 2)):
        images = [decode_rgb(row["image"]["bytes"], row["image_path"]) for row in chunk]
        if repair:
            repair(images, chunk)
    captions = [row[f"caption{number}"] for row in chunk for number in (1, 2)]
    captioned = [place for place, caption in enumerate(captions) if caption]
    batch = Batch(chunk, list(map(find_attributes, captions)), captioned)
    if scorer and captioned:
        texts, words = [captions[place] for place in captioned], [batch.words[place] for place in captioned]
        # each image has two captions
        batch.inputs = scorer.prepare(images, texts, [place // 2 for place in captioned], words)
    return batch


def _assess(batch: Batch, scorer: CaptionScorer | None, options: QualityOptions, counts: Counter[str]) -> None:
    """Add `NEW_COLUMNS` to the rows of a batch, and mark captions below `min_score`."""
    captions = [(row, f"caption{number}") for row in batch.rows for number in (1, 2)]

    # Captions that are empty, or that no model has read, keep NaN.
    scores: list[list[float]] = [[float("nan")] * len(words) for words in batch.words]
    cosines = [float("nan")] * len(captions)
    if scorer and batch.inputs:
        found_words, found_cosines = scorer(batch.inputs)
        for place, found, cosine in zip(batch.captioned, found_words, found_cosines, strict=True):
            scores[place] = found
            cosines[place] = cosine

    for (row, caption), words, found, cosine in zip(captions, batch.words, scores, cosines, strict=True):
        row[f"{caption}_words"] = [
            {"start": start, "end": end, "kind": kind, "score": None if score != score else score}  # NaN -> null
            for (kind, _, start, end), score in zip(words, found, strict=True)
        ]
        if not scorer or not row[caption]:
            row[f"{caption}_score"] = None
            row[f"{caption}_word_score"] = None
            continue
        row[f"{caption}_score"] = cosine
        row[f"{caption}_word_score"] = share_of_sure_words(found, options.doubtful_below)
        counts["captions_scored"] += 1
        if options.min_score is not None and cosine < options.min_score:
            row[f"{caption}_problems"] = [*row[f"{caption}_problems"], LOW_SCORE]
            counts[f"captions_{LOW_SCORE}"] += 1


def _count_repairs(row: dict[str, Any], counts: Counter[str]) -> None:
    """Count the repairs of a row that is written, as its columns list them."""
    for number in (1, 2):
        row.setdefault(f"caption{number}_as_found", row[f"caption{number}"])  # a batch without captions
        repairs = row.setdefault(f"caption{number}_repairs", [])
        counts.update(captions_repaired=bool(repairs), words_repaired=len(repairs))


def _mark_repeated(row: dict[str, Any], repeated: frozenset[int], counts: Counter[str]) -> None:
    for caption in ("caption1", "caption2") if repeated else ():
        found = row.get(f"{caption}_as_found", row[caption])
        if found and caption_hash(found) in repeated:
            row[f"{caption}_problems"] = [*row[f"{caption}_problems"], REPEATED]
            counts[f"captions_{REPEATED}"] += 1


# The columns that belong to a caption and move with it.
_PARTS = ("", "_problems", "_score", "_word_score", "_words", "_as_found", "_repairs")


def _settle(row: dict[str, Any], counts: Counter[str]) -> bool:
    """Replace a row's marked caption by its fine one. Returns whether there is a fine one."""
    fine = [number for number in (1, 2) if not row[f"caption{number}_problems"]]
    if not fine:
        counts["both_captions_marked"] += 1
        return False
    if len(fine) == 1:
        counts["captions_replaced"] += 1
        marked = 3 - fine[0]
        for part in _PARTS:
            if f"caption{marked}{part}" in row:  # without a reader there are no repairs
                row[f"caption{marked}{part}"] = row[f"caption{fine[0]}{part}"]
        row[f"captioner{marked}"] = row[f"captioner{fine[0]}"]
    return True


def check_scored(path: str) -> None:
    """Raises `DataError` if a parquet file was not written by this stage."""
    if missing := NEW_COLUMNS.keys() - set(pq.read_schema(path).names):
        raise DataError(f"{path}: not a shard of the quality stage: it lacks {', '.join(sorted(missing))}")
