"""Repairs captions: the words that an image speaks against give way to what it shows."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from dataset_webperson import DataError
from dataset_webperson.drawn.attributes import WORDS

from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns, some_places, stable_hash, told_attributes
from .patch_evidence import HIDDEN
from .rewriting import AS_FOUND, POSTERIOR, as_cleaned, repaired, repaired_with_places, shares_letters
from .value_reader import ValueReader, read_values
from .word_families import Family, SaidWord, lists_attributes, said_words
from .word_places import SaidBatch

LISTED, FALSE_SPANS = "words", "false_spans"  # suffixes of columns of drawn captions
TOLD = LISTED, FALSE_SPANS, POSTERIOR, "score", "word_score"  # of columns that tell of a caption's text
LEAST = 0.01  # a value less likely than this is left out
COUNTED_ROWS = 10_000  # rows whose words are counted
FEATURE = datasets.List(
    {
        "start": datasets.Value("int32"),
        "end": datasets.Value("int32"),
        "family": datasets.Value("string"),
        "words": datasets.List(datasets.Value("string")),
        "probabilities": datasets.List(datasets.Value("float32")),
        "absent": datasets.Value("float32"),
    }
)


@dataclass(frozen=True)
class Vocabulary:
    """The families, and how often captions use each of their words."""

    families: Mapping[str, Family]
    word_counts: Mapping[tuple[str, str], int]

    def spoken(self, family: str, value: str, place: str) -> str:
        """The word that says a value: each as often as captions use it, drawn by the place; any if they use none."""
        words = self.families[family].values[value]
        uses = [self.word_counts.get((family, word), 0) for word in words]
        counts = [count + 1 if count or not any(uses) else 0 for count in uses]
        return random.Random(stable_hash(place)).choices(words, counts)[0]


def count_words(dataset: datasets.Dataset, families: Mapping[str, Family], seed: int = 0) -> Vocabulary:
    """Count the words of families in the captions of at most `COUNTED_ROWS` rows, drawn by the seed."""
    texts = dataset.select_columns([name for name in dataset.column_names if name.startswith("caption")])
    texts = texts.select(some_places(len(texts), COUNTED_ROWS, seed))
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
        raise DataError(f"no caption names a value of the families {', '.join(families)}: give families of its words")


def refuse_untold(dataset: datasets.Dataset) -> None:
    """Refuse listed words whose truth cannot be read, before anything is learnt.

    Raises:
        DataError: names the image, and what its `attributes` hold.
    """
    if any(_tells_truth(dataset.column_names, name) for name in caption_columns(dataset.column_names)):
        for row in dataset.select_columns(["image_path", "attributes"]):
            told_attributes(row)


def with_same_columns(dataset: datasets.Dataset, mode: str) -> datasets.Dataset:
    """A split that is left alone, with the columns that `mode` adds to the training split: both load as one."""
    spans = datasets.List(datasets.List(datasets.Value("int32")))
    for name in caption_columns(dataset.column_names):
        nothing: list[list] = [[] for _ in range(len(dataset))]
        if mode == "hide":
            dataset = dataset.add_column(f"{name}_{HIDDEN}", nothing, feature=spans)
        else:
            dataset = dataset.add_column(f"{name}_{POSTERIOR}", nothing, feature=FEATURE)
    return repair_captions(dataset) if mode == "repair" else dataset


def add_posteriors(
    reader: ValueReader,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    vocabulary: Vocabulary,
    batch_size: int = 64,
    num_workers: int = 0,
) -> datasets.Dataset:
    """List for each caption the words of families that the images show, with what could be true in their place.

    Words of other families are not listed: however many of them are false, no image says which, and others drawn in
    their place would be true no more often. Where images show whether a thing is there, but not of which kind, the
    word that is said is all that is listed.

    Returns:
        `datasets.Dataset` with columns `caption1_posterior`, ...: `start`, `end` (characters of the caption as the
        tokenizer cleans it, end excluded), `family`, `words` and their `probabilities`, the word as it is said first,
        if something of the family is there at all, and `absent`, the probability that nothing is. Values less likely
        than 1 % are left out; the probabilities of those that stay sum to 1.
    """
    columns: dict[str, list] = {f"{name}_{POSTERIOR}": [] for name in caption_columns(dataset.column_names)}
    options = (reader, processor, dataset, vocabulary.families, batch_size, num_workers)
    shown = reader.shown(vocabulary.families)
    for batch, probabilities in read_values(*options):
        for name, values in posteriors_of(batch, probabilities, vocabulary, shown).items():
            columns[f"{name}_{POSTERIOR}"] += values
    for name, values in columns.items():
        dataset = dataset.add_column(name, values, feature=FEATURE)
    return dataset


def posteriors_of(
    batch: SaidBatch, probabilities: Sequence[np.ndarray], vocabulary: Vocabulary, shown: Sequence[str]
) -> dict[str, list[list[dict[str, Any]]]]:
    """For each caption column of a batch what [`add_posteriors`] lists for its rows.

    Args:
        probabilities: of each word, from [`ValueReader`].
        shown: the families of whose values the images say something.
    """
    found: dict[str, list[list[dict[str, Any]]]] = {
        name: [[] for _ in texts] for name, texts in batch.captions.items()
    }
    for (row, name, word), (*values, absent) in zip(batch.places.words, probabilities, strict=True):
        said = batch.captions[name][row][word.start : word.end]
        place: dict[str, Any] = {"start": word.start, "end": word.end, "family": word.family}
        if word.family in shown:
            seed = f"{batch.image_paths[row]} {name} {word.start}"
            place |= alternatives(word, said, np.array(values), seed, vocabulary)
        elif absent >= LEAST:
            place |= {"words": [said], "probabilities": [1.0]}
        else:
            continue
        found[name][row].append({**place, "absent": float(absent)})
    return found


def alternatives(
    word: SaidWord, text: str, shares: np.ndarray, place: str, vocabulary: Vocabulary
) -> dict[str, list[Any]]:
    """`words` and `probabilities` of a place, as [`add_posteriors`] lists them.

    Args:
        text: the word as it is said.
        shares: how likely each value of the word's family is, in parts of any sum.
        place: decides which of its words says a value.
    """
    values = list(vocabulary.families[word.family].values)
    said, probabilities = values.index(word.value), shares / shares.sum()
    kept = [said, *(n for n in np.argsort(-probabilities, kind="stable") if n != said and probabilities[n] >= LEAST)]
    texts = [text, *(vocabulary.spoken(word.family, values[n], place) for n in kept[1:])]
    return {"words": texts, "probabilities": (probabilities[kept] / probabilities[kept].sum()).tolist()}


def repair_captions(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set of [`add_posteriors`] with its captions repaired, and the old ones in `caption1_as_found`, ...

    What else the data set says of a caption is of the old one, and gets names to match: `caption1_as_found_posterior`.
    Words listed with their attributes, and which of them are false, are listed of the new one too where the data set
    tells the truth (drawn captions): whether a word is false is null where that is not told of its attribute.
    """
    names = caption_columns(dataset.column_names)
    changed: dict[str, list] = {name: [] for name in names}
    judged = [name for name in names if _tells_truth(dataset.column_names, name)]
    changed |= {f"{name}_{part}": [] for name in judged for part in (LISTED, FALSE_SPANS)}
    for row in dataset.remove_columns([name for name in dataset.column_names if name == "image"]):
        for name in names:
            caption, posterior = as_cleaned(row[name]), row[f"{name}_{POSTERIOR}"]
            if name not in judged:
                text = repaired(caption, posterior)
                changed[name].append(row[name] if text == caption else text)
                continue
            text, words = repaired_listed(caption, posterior, row[f"{name}_{LISTED}"], told_attributes(row))
            changed[name].append(row[name] if text == caption else text)
            changed[f"{name}_{LISTED}"].append(words)
            changed[f"{name}_{FALSE_SPANS}"].append(
                [[word["start"], word["end"]] for word in words if word["is_false"]]
            )
    features = dataset.features
    dataset = dataset.rename_columns(_as_found(dataset.column_names))
    for column, values in changed.items():
        dataset = dataset.add_column(column, values, feature=features[column])
    return dataset


def _tells_truth(columns: Sequence[str], name: str) -> bool:
    return lists_attributes(columns, name) and {f"{name}_{FALSE_SPANS}", "attributes"} <= set(columns)


def _as_found(columns: Sequence[str]) -> dict[str, str]:
    """The columns that tell of captions as they were found, and their names once these are repaired."""
    names = {name: f"{name}_{AS_FOUND}" for name in caption_columns(columns)}
    told = {f"{name}_{part}": f"{kept}_{part}" for name, kept in names.items() for part in TOLD}
    return {column: kept for column, kept in (names | told).items() if column in columns}


def repaired_listed(
    caption: str, posterior: list[dict[str, Any]], listed: list[dict[str, Any]], truth: Mapping[str, str]
) -> tuple[str, list[dict[str, Any]]]:
    """A repaired caption and its listed words: where they stand now, and whether they are false now.

    Args:
        caption: as it was found.
        posterior: places, words and their probabilities.
        listed: `start`, `end`, `attribute` and `is_false` of every attribute word. What is judged may be more or less
            than one of them, where families were found.
        truth: attribute -> the value that the picture shows.
    """
    words = sorted(listed, key=lambda word: word["start"])
    alone = [word for word in words if not any(shares_letters(one, word["start"], word["end"]) for one in posterior)]
    unchanged = [{**word, "words": [caption[word["start"] : word["end"]]], "probabilities": [1.0]} for word in alone]
    places = sorted([*posterior, *unchanged], key=lambda place: place["start"])
    text, spans = repaired_with_places(caption, places)
    moved = list(zip(places, spans, strict=True))
    found = []
    for word in words:
        inside = [pair for pair in moved if shares_letters(pair[0], word["start"], word["end"])]
        (first, (start, _)), (last, (_, end)) = inside[0], inside[-1]
        start -= max(first["start"] - word["start"], 0)  # a listed word may be longer than what was judged of it
        end += max(word["end"] - last["end"], 0)
        is_false = word["is_false"]
        said = text[start:end].lower()
        if said != caption[word["start"] : word["end"]].lower():
            is_false = _says_otherwise(said, word["attribute"], truth)
        found.append({**word, "start": start, "end": end, "is_false": is_false})
    return text, found


def _says_otherwise(said: str, attribute: str, truth: Mapping[str, str]) -> bool | None:
    """Whether a word of an attribute is false; None where its truth is not told."""
    if attribute not in WORDS or attribute not in truth:
        return None
    return said not in WORDS[attribute].get(truth[attribute], ())
