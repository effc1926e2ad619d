"""Puts the right word into a caption where a reader of values sees another in the picture; part of stage `quality`.

The reader is one that `examples/repair_captions.py` has learnt from captions as they are, as of an earlier release. It
judges words of the families alone that it found its images to show; `modeling_gadms/noise/value_reader.py` says how.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from ..shards import read_table

if TYPE_CHECKING:  # the other stages need not wait for this import
    from modeling_gadms.noise.repaired_captions import Vocabulary

CAPTIONS = ("caption1", "caption2")
_REPAIR = pa.struct(
    {
        "start": pa.int32(),
        "end": pa.int32(),
        "family": pa.string(),
        "found": pa.string(),
        "probability": pa.float32(),
        "found_probability": pa.float32(),
    }
)
REPAIR_COLUMNS = {f"{name}_as_found": pa.string() for name in CAPTIONS}
REPAIR_COLUMNS |= {f"{name}_repairs": pa.list_(_REPAIR) for name in CAPTIONS}


class CaptionRepairer:
    """A reader of values that repairs captions.

    Args:
        model: folder or Hub id of a GA-DMS model with the image tower and vocabulary that the reader was learnt on.
        reader: its safetensors file, `OUTPUT_DIR-reader.safetensors` of `examples/repair_captions.py`.
        families: JSON of the families that it was given; "" for those that it takes by default.

    Raises:
        DataError: a file is missing or broken, or they do not belong together; names it.
    """

    def __init__(self, model: str, reader: str, families: str = "") -> None:
        import torch

        from modeling_gadms import GADMSModel, GADMSProcessor
        from modeling_gadms.noise.kept_evidence import load_reader
        from modeling_gadms.noise.word_families import plain_families, read_families

        self.families = read_families(families) if families else plain_families()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        gadms = GADMSModel.from_pretrained(model).eval().to(self._device)
        self._reader = load_reader(gadms, self.families, reader)
        self._processor = GADMSProcessor.from_pretrained(model)

    def count(self, shard: str) -> "Vocabulary":
        """How often the captions of a shard use each word: what is put in is worded as they are."""
        import datasets

        from modeling_gadms.noise.repaired_captions import count_words

        table = read_table(shard, list(CAPTIONS))
        texts = {name: [text or "" for text in table[name].to_pylist()] for name in CAPTIONS}
        return count_words(datasets.Dataset.from_dict(texts), self.families)

    def __call__(
        self, images: Sequence[Image.Image], rows: Sequence[dict[str, Any]], vocabulary: "Vocabulary"
    ) -> None:
        """Repair the captions of rows, and add `REPAIR_COLUMNS` to them.

        `caption1_as_found` has the caption as it was, `caption1_repairs` for each word that was put in: where it
        stands in the new caption (characters, end excluded), its family, the word that stood there, and how likely
        each of them is to be true.
        """
        from modeling_gadms.noise.repaired_captions import posteriors_of
        from modeling_gadms.noise.rewriting import as_cleaned, chosen_word, repaired_with_places, true_shares
        from modeling_gadms.noise.word_places import said_batch

        read = [
            {"image": image, "image_path": row["image_path"], **{name: row[name] or "" for name in CAPTIONS}}
            for image, row in zip(images, rows, strict=True)
        ]
        batch = said_batch(self._processor, read, CAPTIONS, self.families)
        probabilities = self._reader.probabilities(batch.pixel_values.to(self._device), batch.places.to(self._device))
        found = posteriors_of(batch, probabilities, vocabulary, self._reader.shown(self.families))
        for name in CAPTIONS:
            for row, posterior in zip(rows, found[name], strict=True):
                row[f"{name}_as_found"] = row[name]
                text, places = repaired_with_places(as_cleaned(row[name] or ""), posterior)
                row[f"{name}_repairs"] = [
                    _repair(one, place, chosen, true_shares(one))
                    for one, place in zip(posterior, places, strict=True)
                    if (chosen := chosen_word(one))
                ]
                if row[f"{name}_repairs"]:
                    row[name] = text


def _repair(
    one: dict[str, Any], place: tuple[int, int], chosen: int, probabilities: Sequence[float]
) -> dict[str, Any]:
    values = {"start": place[0], "end": place[1], "family": one["family"], "found": one["words"][0]}
    return {**values, "probability": probabilities[chosen], "found_probability": probabilities[0]}


open_repairer = lru_cache(maxsize=1)(CaptionRepairer)  # a process opens it once, however many shards it works on
