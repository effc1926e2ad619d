"""Where captions name values of families, as tensors: the word itself is left out, the tokens around it stay."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import datasets
import torch
from torch.utils.data import DataLoader, Dataset

from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns, read_row
from ..tokenization_gadms import clean_caption
from .word_families import Family, SaidWord, said_words

REACH = 3  # tokens on each side of a word


@dataclass(frozen=True)
class Places:
    """The words of a batch that belong to families.

    Attributes:
        words (`list[tuple[int, str, SaidWord]]`): row, caption column and word.
        rows, families, said (`torch.Tensor` of shape `(N,)`, int64): row of the batch, number of the family, and of
            the value that the word says.
        near (`torch.Tensor` of shape `(N, 2 * REACH)`, int64): tokens before and after the word; 0 beyond the caption.
    """

    words: list[tuple[int, str, SaidWord]]
    rows: torch.Tensor
    families: torch.Tensor
    said: torch.Tensor
    near: torch.Tensor

    def to(self, device: torch.device) -> "Places":
        tensors = (getattr(self, name).to(device) for name in ("rows", "families", "said", "near"))
        return Places(self.words, *tensors)


@dataclass(frozen=True)
class SaidBatch:
    """Images of a batch of rows, their captions as the tokenizer cleans them, and the words of families."""

    pixel_values: torch.Tensor
    image_paths: list[str]
    captions: dict[str, list[str]]
    places: Places


def said_batches(
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    families: Mapping[str, Family],
    batch_size: int,
    num_workers: int = 0,
    sampler: Iterable[int] | None = None,
) -> DataLoader:
    """Batches of a data set, as [`SaidBatch`]; in order, unless a sampler says which rows."""
    prepare = functools.partial(_prepare, processor, dataset, caption_columns(dataset.column_names), families)
    indices = cast(Dataset[int], range(len(dataset)))  # a loader takes any sequence
    return DataLoader(indices, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=prepare)


def _prepare(
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    names: Sequence[str],
    families: Mapping[str, Family],
    indices: Sequence[int],
) -> SaidBatch:
    return said_batch(processor, [read_row(dataset, index) for index in indices], names, families)


def said_batch(
    processor: GADMSProcessor,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    families: Mapping[str, Family],
) -> SaidBatch:
    """Rows with a decoded image, its path and captions, as [`SaidBatch`]."""
    pixel_values = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    cleaned = [{**row, **{name: clean_caption(row[name]) for name in names}} for row in rows]
    captions = {name: [row[name] for row in cleaned] for name in names}
    paths = [row["image_path"] for row in rows]
    return SaidBatch(pixel_values, paths, captions, find_places(processor, cleaned, names, families))


def find_places(
    processor: GADMSProcessor,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    families: Mapping[str, Family],
) -> Places:
    """The words of cleaned captions, row after row; words that the tokenizer cuts off are left out."""
    order = {name: number for number, name in enumerate(families)}
    values = {name: {value: n for n, value in enumerate(family.values)} for name, family in families.items()}
    words, near = [], []
    encoded = {
        name: processor.tokenizer([row[name] for row in rows], return_offsets_mapping=True, truncation=True)
        for name in names
    }
    for number, row in enumerate(rows):
        for name in names:
            ids, offsets = encoded[name]["input_ids"][number], encoded[name]["offset_mapping"][number]
            for word in said_words(row, name, families):
                inside = [
                    token
                    for token, (start, end) in enumerate(offsets)
                    if word.start <= start < word.end and end > start
                ]
                if not inside or inside[-1] + 1 >= len(ids):
                    continue
                before, after = ids[: inside[0]][-REACH:], ids[inside[-1] + 1 :][:REACH]
                near.append([0] * (REACH - len(before)) + before + after + [0] * (REACH - len(after)))
                words.append((number, name, word))
    return Places(
        words,
        torch.tensor([number for number, _, _ in words], dtype=torch.int64),
        torch.tensor([order[word.family] for *_, word in words], dtype=torch.int64),
        torch.tensor([values[word.family][word.value] for *_, word in words], dtype=torch.int64),
        torch.tensor(near, dtype=torch.int64).reshape(len(words), 2 * REACH),
    )
