"""Repairs captions: the words that an image speaks against give way to what it shows."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from dataset_webperson import DataError

from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns, stable_hash
from .patch_evidence import HIDDEN
from .rewriting import AS_FOUND, POSTERIOR, as_cleaned, repaired
from .value_reader import ValueReader, read_values
from .word_families import Family, SaidWord, said_words

LEAST = 0.01  # a value less likely than this is left out
COUNTED_ROWS = 10_000  # rows whose words are counted
FEATURE = datasets.List(
    {
        "start": datasets.Value("int32"),
        "end": datasets.Value("int32"),
        "family": datasets.Value("string"),
        "words": datasets.List(datasets.Value("string")),
        "probabilities": datasets.List(datasets.Value("float32")),
    }
)


@dataclass(frozen=True)
class Vocabulary:
    """The families, and how often captions use each of their words."""

    families: Mapping[str, Family]
    word_counts: Mapping[tuple[str, str], int]

    def spoken(self, family: str, value: str, place: str) -> str:
        """The word that says a value: each as often as the captions use it, drawn by the place."""
        words = self.families[family].values[value]
        counts = [self.word_counts.get((family, word), 0) + 1 for word in words]
        return random.Random(stable_hash(place)).choices(words, counts)[0]


def count_words(dataset: datasets.Dataset, families: Mapping[str, Family], seed: int = 0) -> Vocabulary:
    """Count the words of families in the captions of at most `COUNTED_ROWS` rows, drawn by the seed."""
    texts = dataset.select_columns([name for name in dataset.column_names if name.startswith("caption")])
    if len(texts) > COUNTED_ROWS:
        texts = texts.select(sorted(random.Random(seed).sample(range(len(texts)), COUNTED_ROWS)))
    names, counts = caption_columns(dataset.column_names), Counter[tuple[str, str]]()
    for row in texts:
        for name in names:
            for word in said_words(row, name, families):
                counts[word.family, row[name][word.start : word.end].lower()] += 1
    return Vocabulary(families, counts)


def refuse_repaired(columns: list[str]) -> None:
    """Refuse a data set whose captions were judged already.

    Raises:
        DataError: names the columns.
    """
    if taken := [name for name in columns if name.endswith((f"_{POSTERIOR}", f"_{AS_FOUND}"))]:
        raise DataError(f"the data set already has {', '.join(taken)}: start from the captions as they were found")


def refuse_unnamed(dataset: datasets.Dataset, families: Mapping[str, Family]) -> None:
    """Refuse families that no caption speaks of, before anything is learnt.

    Raises:
        DataError: says which families were looked for.
    """
    names = caption_columns(dataset.column_names)
    texts = dataset.select_columns([one for one in dataset.column_names if one.startswith("caption")])
    if not any(said_words(row, name, families) for row in texts for name in names):
        raise DataError(_unnamed(dataset, families))


def _unnamed(dataset: datasets.Dataset, families: Mapping[str, Family]) -> str:
    problem = f"no caption names a value of the families {', '.join(families)}: give families of its words"
    if "caption1_words" in dataset.column_names:
        listed = sorted({word["attribute"] for words in dataset[:100]["caption1_words"] for word in words})
        problem += f"; words are listed here, so families have the names of their attributes: {', '.join(listed)}"
    return problem


def with_same_columns(dataset: datasets.Dataset, mode: str) -> datasets.Dataset:
    """A split that is left alone, with the columns that `mode` adds to the training split: both load as one."""
    spans = datasets.List(datasets.List(datasets.Value("int32")))
    for name in caption_columns(dataset.column_names):
        nothing: list[list] = [[] for _ in range(len(dataset))]
        if mode == "hide":
            dataset = dataset.add_column(f"{name}_{HIDDEN}", nothing, feature=spans)
        else:
            dataset = dataset.add_column(f"{name}_{POSTERIOR}", nothing, feature=FEATURE)
        if mode == "repair":
            dataset = dataset.add_column(f"{name}_{AS_FOUND}", dataset[name][:])
    return dataset


def add_posteriors(
    reader: ValueReader,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    vocabulary: Vocabulary,
    batch_size: int = 64,
    num_workers: int = 0,
) -> datasets.Dataset:
    """List for each caption the words of families, with what could be true in their place.

    Returns:
        `datasets.Dataset` with columns `caption1_posterior`, ...: `start`, `end` (characters of the caption as the
        tokenizer cleans it, end excluded), `family`, `words` and their `probabilities`, the word as it is said first.
        Values less likely than 1 % are left out; those that stay sum to 1.
    """
    names = caption_columns(dataset.column_names)
    columns: dict[str, list[list[dict[str, Any]]]] = {f"{name}_{POSTERIOR}": [] for name in names}
    options = (reader, processor, dataset, vocabulary.families, batch_size, num_workers)
    for batch, probabilities in read_values(*options):
        found: dict[str, list[list[dict[str, Any]]]] = {name: [[] for _ in batch.image_paths] for name in names}
        for (row, name, word), shares in zip(batch.places.words, probabilities, strict=True):
            place = f"{batch.image_paths[row]} {name} {word.start}"
            said = batch.captions[name][row][word.start : word.end]
            found[name][row].append(_alternatives(word, said, shares, place, vocabulary))
        for name, values in found.items():
            columns[f"{name}_{POSTERIOR}"] += values
    for name, values in columns.items():
        dataset = dataset.add_column(name, values, feature=FEATURE)
    return dataset


def _alternatives(
    word: SaidWord, text: str, probabilities: np.ndarray, place: str, vocabulary: Vocabulary
) -> dict[str, Any]:
    values = list(vocabulary.families[word.family].values)
    said = values.index(word.value)
    kept = [said, *(n for n in np.argsort(-probabilities, kind="stable") if n != said and probabilities[n] >= LEAST)]
    texts = [text, *(vocabulary.spoken(word.family, values[n], place) for n in kept[1:])]
    shares = probabilities[kept] / probabilities[kept].sum()
    return {
        "start": word.start,
        "end": word.end,
        "family": word.family,
        "words": texts,
        "probabilities": shares.tolist(),
    }


def repair_captions(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set of [`add_posteriors`] with its captions repaired, and the old ones in `caption1_as_found`, ..."""
    names = caption_columns(dataset.column_names)
    texts = dataset.select_columns([column for name in names for column in (name, f"{name}_{POSTERIOR}")])
    found: dict[str, list[str]] = {name: [] for name in names}
    for row in texts:
        for name in names:
            found[name].append(repaired(as_cleaned(row[name]), row[f"{name}_{POSTERIOR}"]))
    for name, values in found.items():
        dataset = dataset.rename_column(name, f"{name}_{AS_FOUND}").add_column(name, values)
    return dataset
