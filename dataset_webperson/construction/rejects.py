"""Pictures of what each rule left out, for the report: a bounded number, from shards that lie evenly over all."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape, glob

import pyarrow.compute as pc
import pyarrow.parquet as pq

from .caption_statistics import row_at
from .shards import read_rows, read_table

SHOWN = 12  # pictures of each rule
_SHARDS = 24  # that are looked at
_OF_SHARD = 2  # pictures of each rule and shard


@dataclass(frozen=True)
class Reject:
    """A picture that is not in the data: `data`, a JPEG; `name` says where it lies, `text` what was wrong with it."""

    data: bytes
    name: str
    text: str = ""


def sample_rejects(folders: dict[str, str]) -> dict[str, list[Reject]]:
    """By rule, pictures of the boxes, crops and captioned rows that it left out.

    Args:
        folders: of the stages, by name.
    """
    found: dict[str, list[Reject]] = {}
    crops = folders.get("crop", "")
    shards = sorted(glob(os.path.join(escape(crops), "*.parquet"))) if crops else []
    for shard in shards[:: max(1, len(shards) // _SHARDS)][:_SHARDS]:
        name = os.path.basename(shard)
        of_shard: dict[str, int] = {}
        for reason, reject in (
            *_boxes(os.path.join(crops, "rejected_boxes", name)),
            *_copies(shard, os.path.join(folders.get("dedup", ""), "plan", name)),
            *_captioned(shard, os.path.join(folders.get("caption", ""), name), folders.get("quality", "")),
        ):
            of_shard[reason] = of_shard.get(reason, 0) + 1
            if of_shard[reason] <= _OF_SHARD and len(found.setdefault(reason, [])) < SHOWN:
                found[reason].append(reject)
    return found


def _boxes(path: str) -> Iterator[tuple[str, Reject]]:
    """The boxes of which the crop stage kept a picture."""
    if os.path.exists(path) and "picture" in pq.read_schema(path).names:
        for row in read_rows(path, ["image", "box_score", "reason", "picture"]):
            if row["picture"]:
                yield row["reason"], Reject(row["picture"], row["image"], f"score {row['box_score']:.2f}")


def _copies(crops: str, plan: str) -> Iterator[tuple[str, Reject]]:
    """The first near-duplicates of a crop shard by each reason."""
    if not os.path.exists(plan):
        return
    places = {name: place for place, name in enumerate(read_table(crops, ["image_path"])["image_path"].to_pylist())}
    taken: dict[str, int] = {}
    for row in read_rows(plan):
        taken[row["reason"]] = taken.get(row["reason"], 0) + 1
        if taken[row["reason"]] <= _OF_SHARD and row["image_path"] in places:  # it may have opted out since
            image = row_at(crops, places[row["image_path"]])["image"]["bytes"]
            yield row["reason"], Reject(image, row["image_path"])


def _captioned(crops: str, captioned: str, quality: str) -> Iterator[tuple[str, Reject]]:
    """The first captioned rows that the quality stage left out, with their captions."""
    kept = os.path.join(quality, os.path.basename(crops))
    if not os.path.exists(captioned) or not os.path.exists(kept):
        return
    names = read_table(captioned, ["image_path"])["image_path"]
    gone = pc.invert(pc.is_in(names, read_table(kept, ["image_path"])["image_path"].combine_chunks()))
    places = [place for place, is_gone in enumerate(gone.to_pylist()) if is_gone][:_OF_SHARD]
    for place in places:
        row = row_at(captioned, place)
        told = [f"{row[f'caption{n}']} ({', '.join(row[f'caption{n}_problems'])})" for n in (1, 2)]
        source = read_table(crops, ["image_path"])["image_path"].to_pylist().index(row["image_path"])
        image = row_at(crops, source)["image"]["bytes"]
        yield "both_captions_marked", Reject(image, row["image_path"], " / ".join(told))
