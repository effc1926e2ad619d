"""Repairs captions: the words that an image speaks against give way to what it shows."""

import functools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from dataset_webperson import DataError

from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns, read_row, stable_hash
from ..tokenization_gadms import clean_caption
from .patch_evidence import HIDDEN, PatchEvidence, refuse_unfit
from .rewriting import AS_FOUND, POSTERIOR, as_cleaned, repaired
from .value_evidence import ValueEvidence
from .word_families import Family, SaidWord, said_words
from .word_posteriors import FamilyCalibration, calibrate, share_of_false, true_probabilities

LEAST = 0.01  # a value less likely than this is left out
CALIBRATION_ROWS = 10_000  # rows that the numbers of the families are estimated from
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
class Calibrated:
    """The families, what was estimated of each, how often each word is said, and the share of false words."""

    families: Mapping[str, Family]
    numbers: Mapping[str, FamilyCalibration]
    word_counts: Mapping[tuple[str, str], int]
    share_false: float

    def spoken(self, family: str, value: str, place: str) -> str:
        """The word that says a value: each as often as the captions use it, drawn by the place."""
        words = self.families[family].values[value]
        counts = [self.word_counts.get((family, word), 0) + 1 for word in words]
        return random.Random(stable_hash(place)).choices(words, counts)[0]


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


def calibrate_families(
    evidence: PatchEvidence,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    families: Mapping[str, Family],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
) -> Calibrated:
    """Estimate what [`add_posteriors`] needs, from at most `CALIBRATION_ROWS` rows drawn by the seed.

    Raises:
        DataError: no caption names a value of any family; says which families were looked for.
    """
    refuse_unfit(dataset)
    if len(dataset) > CALIBRATION_ROWS:
        dataset = dataset.select(sorted(random.Random(seed).sample(range(len(dataset)), CALIBRATION_ROWS)))
    places: dict[str, tuple[list[np.ndarray], list[int]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    numbers = {name: {value: n for n, value in enumerate(family.values)} for name, family in families.items()}
    options = (evidence, processor, dataset, families, batch_size, num_workers, "Calibrating families")
    for batch in scored_captions(*options):
        for one in batch:
            for word, nats in one.words:
                found, said = places.setdefault(word.family, ([], []))
                found.append(nats)
                said.append(numbers[word.family][word.value])
                counts[word.family, one.caption[word.start : word.end].lower()] += 1
    if not places:
        raise DataError(_unnamed(dataset, families))
    calibrations = {
        name: calibrate(np.stack(found).astype(np.float64), np.array(said)) for name, (found, said) in places.items()
    }
    return Calibrated(families, calibrations, counts, share_of_false(calibrations))


def add_posteriors(
    evidence: PatchEvidence,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    calibrated: Calibrated,
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
    options = (evidence, processor, dataset, calibrated.families, batch_size, num_workers, "Looking for what is true")
    for batch in scored_captions(*options):
        found = _posteriors(batch, calibrated)
        for one, posteriors in zip(batch, found, strict=True):
            columns[f"{one.column}_{POSTERIOR}"].append(posteriors)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values, feature=FEATURE)
    return dataset


@dataclass(frozen=True)
class ScoredCaption:
    """A caption as the tokenizer cleans it, and the evidence of the values in the place of each of its words."""

    image_path: str
    column: str
    caption: str
    words: list[tuple[SaidWord, np.ndarray]]


def _posteriors(batch: Sequence[ScoredCaption], calibrated: Calibrated) -> list[list[dict[str, Any]]]:
    """What could be true in the place of each word, caption by caption; the words of a family are judged at once."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, one in enumerate(batch):
        for position, (word, _) in enumerate(one.words):
            if word.family in calibrated.numbers:
                places.setdefault(word.family, []).append((number, position))
    found: list[dict[int, dict[str, Any]]] = [{} for _ in batch]
    for name, members in places.items():
        values = list(calibrated.families[name].values)
        pairs = [batch[number].words[position] for number, position in members]
        evidence = np.stack([nats for _, nats in pairs]).astype(np.float64)
        said = np.array([values.index(word.value) for word, _ in pairs])
        rows = true_probabilities(evidence, said, calibrated.numbers[name], calibrated.share_false)
        for (number, position), (word, _), value, row in zip(members, pairs, said, rows, strict=True):
            found[number][position] = _alternatives(batch[number], word, int(value), row, calibrated)
    return [[one[position] for position in sorted(one)] for one in found]


def _alternatives(
    one: ScoredCaption, word: SaidWord, said: int, probabilities: np.ndarray, calibrated: Calibrated
) -> dict[str, Any]:
    values = list(calibrated.families[word.family].values)
    kept = [said, *(n for n in np.argsort(-probabilities, kind="stable") if n != said and probabilities[n] >= LEAST)]
    place = f"{one.image_path} {one.column} {word.start}"
    texts = [one.caption[word.start : word.end]]
    texts += [calibrated.spoken(word.family, values[n], place) for n in kept[1:]]
    shares = probabilities[kept] / probabilities[kept].sum()
    return {
        "start": word.start,
        "end": word.end,
        "family": word.family,
        "words": texts,
        "probabilities": shares.tolist(),
    }


def scored_captions(
    evidence: PatchEvidence,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    families: Mapping[str, Family],
    batch_size: int,
    num_workers: int,
    title: str,
) -> Iterator[list[ScoredCaption]]:
    """The captions of a batch of rows, row after row; words that the tokenizer cuts off are left out."""
    names = caption_columns(dataset.column_names)
    score, device = ValueEvidence(evidence, processor, families), evidence.reference_keys.device
    prepare = functools.partial(_prepare, processor, dataset, names, families)
    indices = cast(Dataset[int], range(len(dataset)))  # a loader takes any sequence
    loader = DataLoader(indices, batch_size, num_workers=num_workers, collate_fn=prepare)
    for pixel_values, paths, captions, words in tqdm(loader, title):
        with torch.no_grad():
            keys = evidence.keys(pixel_values.to(device))
        found = {name: score(keys, captions[name], words[name]) for name in names}
        yield [
            ScoredCaption(
                path,
                name,
                captions[name][number],
                [
                    (word, nats)
                    for word, nats in zip(words[name][number], found[name][number], strict=True)
                    if nats is not None
                ],
            )
            for number, path in enumerate(paths)
            for name in names
        ]


def _prepare(
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    names: Sequence[str],
    families: Mapping[str, Family],
    indices: Sequence[int],
) -> tuple[torch.Tensor, list[str], dict[str, list[str]], dict[str, list[list[SaidWord]]]]:
    rows = [read_row(dataset, index) for index in indices]
    pixel_values = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    cleaned = [row | {name: clean_caption(row[name]) for name in names} for row in rows]
    captions = {name: [row[name] for row in cleaned] for name in names}
    words = {name: [said_words(row, name, families) for row in cleaned] for name in names}
    return pixel_values, [row["image_path"] for row in rows], captions, words


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
