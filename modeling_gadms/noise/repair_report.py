"""What was changed in captions: counts, and a page of examples with their images."""

import io
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from dataset_webperson.pages import embed, write_page

from ..rows import caption_columns
from ..tokenization_gadms import clean_caption
from .patch_evidence import HIDDEN
from .repaired_captions import FALSE_SPANS, LISTED
from .rewriting import AS_FOUND, POSTERIOR, as_cleaned, certain, chosen_word, repaired_with_places, true_shares

SHOWN = 24  # images on the page


def doubts(row: dict[str, Any], name: str) -> Iterator[tuple[int, int, str, float]]:
    """The words of a caption as it was found that were doubted: start, end, the likeliest word, its probability.

    Hidden words have "" in the place of another word, and 0.
    """
    for start, end in row.get(f"{name}_{HIDDEN}") or []:
        yield start, end, "", 0.0
    for one in row.get(f"{name}_{AS_FOUND}_{POSTERIOR}") or row.get(f"{name}_{POSTERIOR}") or []:
        best = chosen_word(one)
        if best:
            yield one["start"], one["end"], one["words"][best], true_shares(one)[best]


def summarize(files: list[str]) -> dict[str, Any]:
    """How often each word is doubted, and the share of characters; where false words are known, how rightly."""
    words: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for file in files:
        columns = [name for name in pq.read_schema(file).names if name.startswith("caption")]
        for row in pq.read_table(file, columns=columns).to_pylist():
            for name in caption_columns(row):
                caption = clean_caption(row.get(f"{name}_{AS_FOUND}") or row[name])
                found = list(doubts(row, name))
                words.update(caption[start:end] + (f" > {word}" if word else "") for start, end, word, _ in found)
                doubted = _characters_in([[start, end] for start, end, _, _ in found])
                spans = row.get(f"{name}_{FALSE_SPANS}") or []  # of the caption as it is now
                known = _characters_in(row.get(f"{name}_{AS_FOUND}_{FALSE_SPANS}", spans))
                characters.update(all=len(caption), doubted=len(doubted), false=len(known), both=len(doubted & known))
                if f"{name}_{AS_FOUND}" in row:
                    characters.update(repaired=len(row[name]), still_false=len(_characters_in(spans)))
                    listed = row.get(f"{name}_{LISTED}")
                    characters.update(untold=listed is None or any(word["is_false"] is None for word in listed))
    found_all: dict[str, Any] = {
        "doubted": characters["doubted"] / characters["all"],
        "most_doubted": dict(words.most_common(20)),
    }
    if characters["false"]:
        found_all["false"] = characters["false"] / characters["all"]
        if characters["doubted"]:
            found_all["precision"] = characters["both"] / characters["doubted"]
        found_all["recall"] = characters["both"] / characters["false"]
        if characters["repaired"] and not characters["untold"]:  # or words that may be false would count as true
            found_all["still_false"] = characters["still_false"] / characters["repaired"]
    return found_all


def write_repair_page(path: str, files: list[str], summary: dict[str, Any]) -> None:
    """A page of the first images of files whose captions have a doubted word, the words coloured."""
    shown = []
    batches = itertools.chain.from_iterable(pq.ParquetFile(file).iter_batches(100) for file in files)
    for row in itertools.chain.from_iterable(batch.to_pylist() for batch in batches):
        captions = [_pieces(row, name) for name in caption_columns(row)]
        if any(piece["doubted"] for pieces in captions for piece in pieces):
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
            shown.append({"picture": embed(image, row["image_path"]), "captions": captions})
        if len(shown) == SHOWN:
            break
    write_page(path, "repaired.html", title="Doubted words in captions", shown=shown, summary=summary)


def _pieces(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A caption as it was found, cut at its doubted words."""
    caption = as_cleaned(row.get(f"{name}_{AS_FOUND}") or row[name])
    pieces, place = [], 0
    for start, end, word, probability in sorted(doubts(row, name)):
        if word:  # with the capitals that it has in the caption
            text, [(first, last)] = repaired_with_places(caption, [certain(start, end, word)])
            word = text[first:last]
        pieces.append({"text": caption[place:start], "doubted": False, "word": "", "probability": 0.0})
        pieces.append({"text": caption[start:end], "doubted": True, "word": word, "probability": probability})
        place = end
    return [*pieces, {"text": caption[place:], "doubted": False, "word": "", "probability": 0.0}]


def _characters_in(spans: list[list[int]]) -> set[int]:
    return {place for start, end in spans for place in range(start, end)}
