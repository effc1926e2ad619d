"""Sources of images: the output of img2dataset (tars, parquet, folders), or any folder or tars of images.

| in the folder | shards |
|---|---|
| `*.tar`: img2dataset's `webdataset`, or any tars of images | each tar; failures are in the `.parquet` beside it |
| `*.parquet` with image bytes: img2dataset's `parquet` | each file; failed downloads are rows without bytes |
| image files, in sub-folders too: img2dataset's `files` | lists of files; `a.json` beside `a.jpg` may have its `url` |
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from ..files import write_json
from ..findings import DataError
from ..rows.local_source import TarSource
from ..safe_paths import SafeRoot, UnsafePathError
from .public_names import public_name
from .shards import read_rows

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_IMAGE_COLUMNS = ("jpg", "png", "webp", "image")
IMAGES_PER_LIST = 1_000


@dataclass(slots=True)
class SourceImage:
    """An image as downloaded: its bytes, or why there are none (`not_downloaded`, `image_missing`)."""

    source_id: str
    url: str | None
    data: bytes | None
    problem: str = ""


def find_shards(folder: str, lists: str) -> tuple[list[str], list[str]]:
    """The shards of a folder of images, sorted.

    Args:
        folder: the output of img2dataset, or images.
        lists: where to write lists of files if the folder holds plain images.

    Returns:
        The shards, and those that img2dataset has not finished (it writes `_stats.json` last), which are left out.

    Raises:
        `DataError`: no such folder, nothing in it, tars mixed with parquet files of images, or images added or
            removed since the lists were written.
    """
    root = SafeRoot(folder).root
    names = sorted(os.listdir(root))
    tars = [os.path.join(root, name) for name in names if name.endswith(".tar")]
    parquets = [os.path.join(root, name) for name in names if name.endswith(".parquet")]
    parquets = [path for path in parquets if _image_column(path)]
    if tars and parquets:
        raise DataError(f"{root}: holds both tars and parquet files of images; move one kind to another folder")
    if not tars and not parquets:
        return list_images(root, lists), []
    shards: list[str] = []
    unfinished: list[str] = []
    counted = any(name.endswith("_stats.json") for name in names)
    for path in tars or parquets:
        finished = not counted or os.path.exists(os.path.splitext(path)[0] + "_stats.json")
        (shards if finished else unfinished).append(path)
    return shards, unfinished


def list_images(root: str, lists: str) -> list[str]:
    """Write lists of a folder's image files, `IMAGES_PER_LIST` in each. Raises the errors of `find_shards`."""
    files = []
    for place, folders, names in os.walk(root):
        folders.sort()
        files += [os.path.relpath(os.path.join(place, name), root) for name in names if name.lower().endswith(ENDINGS)]
    files.sort()
    if not files:
        raise DataError(f"{root}: no tars, no parquet with images and no image files in it; check `source`")
    shards = []
    for number, start in enumerate(range(0, len(files), IMAGES_PER_LIST)):
        path = os.path.join(lists, f"{number:05d}.json")
        content = {"root": root, "images": files[start : start + IMAGES_PER_LIST]}
        if not os.path.exists(path):
            write_json(path, content)
        else:
            with open(path, encoding="utf-8") as file:
                if json.load(file) != content:
                    raise DataError(
                        f"{root}: holds other images than when the work began; start over in another `work` folder"
                    )
        shards.append(path)
    return shards


def read_images(shard: str) -> Iterator[SourceImage]:
    """The images of a shard, in order, one in memory at a time. Raises `DataError` for a broken shard."""
    if shard.endswith(".tar"):
        yield from _tar_images(shard)
    elif shard.endswith(".parquet"):
        yield from _parquet_images(shard)
    else:
        yield from _listed_images(shard)


def _tar_images(shard: str) -> Iterator[SourceImage]:
    for row in TarSource({"train": (shard,)}).rows(shard):
        key = str(row.extra.get("key") or os.path.splitext(row.image_path)[0])
        yield SourceImage(_plain(key), row.extra.get("url"), row.data, "image_missing" if row.problem else "")
    beside = os.path.splitext(shard)[0] + ".parquet"
    if os.path.exists(beside) and "status" in pq.read_schema(beside).names:
        for facts in read_rows(beside, ["key", "url", "status"]):
            if facts["status"] != "success":
                yield SourceImage(_plain(facts["key"]), facts["url"], None, "not_downloaded")


def _parquet_images(shard: str) -> Iterator[SourceImage]:
    column, present = _image_column(shard), pq.read_schema(shard).names
    stem = os.path.splitext(os.path.basename(shard))[0]
    wanted = [column, *(name for name in ("key", "url") if name in present)]
    for number, row in enumerate(read_rows(shard, wanted)):
        image = row[column]
        data = image.get("bytes") if isinstance(image, dict) else image
        key = str(row.get("key") or f"{stem}_{number:06d}")
        yield SourceImage(_plain(key), row.get("url"), data, "" if data else "not_downloaded")


def _listed_images(shard: str) -> Iterator[SourceImage]:
    with open(shard, encoding="utf-8") as file:
        content = json.load(file)
    safe = SafeRoot(content["root"])
    for name in content["images"]:
        image = SourceImage(_plain(os.path.splitext(name)[0]), None, None)
        try:
            path = safe.resolve(name)
            with open(path, "rb") as file:
                image.data = file.read()
            beside = os.path.splitext(path)[0] + ".json"
            if os.path.exists(beside):
                with open(beside, encoding="utf-8") as file:
                    described = json.load(file)
                url = described.get("url") if isinstance(described, dict) else None
                image.url = url if isinstance(url, str) else None
        except (OSError, UnsafePathError):
            image.problem = "image_missing"
        except ValueError:  # the file beside it is not JSON, which does not harm the image
            pass
        yield image


def _image_column(path: str) -> str:
    try:
        names = pq.read_schema(path).names
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole parquet file ({error}); download it again") from error
    return next((name for name in _IMAGE_COLUMNS if name in names), "")


def _plain(key: str) -> str:
    """The name of a source, made fit for a file name. It is published, so of a path on a machine the end is left."""
    key = public_name(key)
    return key.replace("\\", "/").strip("/").replace("/", "_")
