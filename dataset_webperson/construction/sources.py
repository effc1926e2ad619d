"""Sources of images: the output of img2dataset (tars, parquet, folders), or any folder or tars of images.

| in the folder | shards |
|---|---|
| `*.tar`: img2dataset's `webdataset`, or any tars of images | each tar; failures are in the `.parquet` beside it |
| `*.parquet` with image bytes: img2dataset's `parquet` | each file; failed downloads are rows without bytes |
| image files, in sub-folders too: img2dataset's `files` | lists of files; `a.json` beside `a.jpg` may have its `url` |

A file that is not taken for a picture is named with its reason, here or by the scan (`source_scan`).
"""

import json
import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import write_json
from ..findings import DataError
from ..rows.cleaning import is_unicode
from ..safe_paths import SafeRoot, UnsafePathError, end_of_path
from .file_names import file_problem, readable
from .hosts import failure
from .reservations import reserved_by
from .shards import read_rows
from .tar_images import BadShardError, SourceImage, described, read_tar

_IMAGE_COLUMNS = ("jpg", "png", "webp", "image")
_COMPANIONS = ("json", "txt")  # of a picture of the same name
# Lists of plain files: enough of them to share among workers, each so small that a kill loses little. They depend on
# the number of files alone, for pictures are named by their place in a list, however many processes work.
SHARED_AMONG, LEAST_PER_LIST, MOST_PER_LIST = 64, 32, 256


def find_shards(folder: str, lists: str) -> tuple[list[str], list[str]]:
    """The shards of a folder of images, sorted.

    Args:
        folder: the output of img2dataset, or images.
        lists: where to write lists of files if the folder holds plain images.

    Returns:
        The shards, and those that img2dataset has not finished (it writes `_stats.json` last), which are left out.

    Raises:
        `DataError`: no such folder, nothing in it, or tars mixed with parquet files of images.
    """
    root = SafeRoot(folder).root
    names = sorted(os.listdir(root))
    tars = [os.path.join(root, name) for name in names if name.endswith(".tar")]
    stems = {os.path.splitext(path)[0] for path in tars}
    parquets = [os.path.join(root, name) for name in names if name.endswith(".parquet")]
    parquets = [path for path in parquets if os.path.splitext(path)[0] not in stems and _may_hold_images(path)]
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


def stray_files(folder: str, shards: list[str]) -> Iterator[tuple[str, str]]:
    """`(name, reason)` of every file of a source that no shard reads, but for texts and lists that belong to others.

    Args:
        folder: the source.
        shards: of it, as `find_shards` returns them.
    """
    root = SafeRoot(folder).root
    kind = os.path.splitext(shards[0])[1] if shards else ".json"
    for place, _, names in _walk(root):
        stems = {os.path.splitext(name)[0] for name in names if not file_problem(name)}
        for name in sorted(names):
            reason = file_problem(name) or _unreadable_name(name)
            if not reason and kind != ".json":
                reason = f"beside_{kind[1:]}s"
            ending = os.path.splitext(name)[1].lower()
            if ending in (".tar", ".parquet") and place != root:
                reason = f"{ending[1:]}_in_subfolder"
            elif ending in (".tar", ".parquet") or name.endswith("_stats.json"):
                continue  # shards, and what img2dataset writes about them
            elif ending[1:] in _COMPANIONS and os.path.splitext(name)[0] in stems:
                continue
            if reason:
                yield readable(os.path.relpath(os.path.join(place, name), root)), reason


def _walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for place, folders, names in os.walk(root):
        folders.sort()
        yield place, folders, names


def _unreadable_name(name: str) -> str:
    return "" if is_unicode(name) else "name_not_utf8"


def list_images(root: str, lists: str) -> list[str]:
    """Write lists of a folder's image files. Files that came since the last run get lists of their own.

    Raises:
        `DataError`: no image in the folder.
    """
    files = []
    for place, _, names in _walk(root):
        paths = [os.path.relpath(os.path.join(place, name), root) for name in names if not file_problem(name)]
        files += [path for path in paths if is_unicode(path)]
    files.sort()
    shards: list[str] = []
    listed: set[str] = set()
    while os.path.exists(path := os.path.join(lists, f"{len(shards):05d}.json")):
        with open(path, encoding="utf-8") as file:
            listed.update(json.load(file)["images"])
        shards.append(path)
    files = [name for name in files if name not in listed]
    if not files and not shards:
        raise DataError(f"{root}: no tars, no parquet with images and no image files in it; check `source`")
    size = min(MOST_PER_LIST, max(LEAST_PER_LIST, -(-len(files) // SHARED_AMONG)))
    for start in range(0, len(files), size):
        path = os.path.join(lists, f"{len(shards):05d}.json")
        write_json(path, {"root": root, "images": files[start : start + size]})
        shards.append(path)
    return shards


def read_images(shard: str) -> Iterator[SourceImage]:
    """The images of a shard, in order, one in memory at a time. Raises `DataError` for a broken shard."""
    if shard.endswith(".tar"):
        images = _tar_images(shard)
    elif shard.endswith(".parquet"):
        images = _parquet_images(shard)
    else:
        images = _listed_images(shard)
    for image in images:
        image.source_id = _plain(image.source_id)
        yield image


def count_images(shard: str) -> int | None:
    """How many images a shard has where that is known without reading it."""
    if shard.endswith(".json"):
        with open(shard, encoding="utf-8") as file:
            return len(json.load(file)["images"])
    return pq.read_metadata(shard).num_rows if shard.endswith(".parquet") else None


def scan_images(shard: str) -> Iterator[SourceImage]:
    """As `read_images`, without the bytes of the images. Raises `BadShardError`."""
    if shard.endswith(".tar"):
        yield from _tar_images(shard, with_data=False)
    elif shard.endswith(".parquet"):
        yield from _parquet_images(shard, with_data=False)


def _tar_images(shard: str, with_data: bool = True) -> Iterator[SourceImage]:
    yield from read_tar(shard, with_data)
    beside = os.path.splitext(shard)[0] + ".parquet"
    if not os.path.exists(beside):
        return
    try:
        names = pq.read_schema(beside).names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadShardError(
            f"{beside}: not a whole parquet file ({error}); download it again", "parquet_cut"
        ) from error
    if "status" in names:
        columns = [name for name in ("key", "url", "status", "error_message") if name in names]
        for facts in read_rows(beside, columns):
            if facts["status"] != "success":
                note = failure(facts.get("error_message"))
                yield SourceImage(str(facts["key"]), facts["url"], None, "not_downloaded", note=note)


def _parquet_images(shard: str, with_data: bool = True) -> Iterator[SourceImage]:
    try:
        with pq.ParquetFile(shard) as parquet:
            present = parquet.schema_arrow.names
            column = next(name for name in _IMAGE_COLUMNS if name in present)
            texts = [name for name in ("key", "url", "headers", "error_message") if name in present]
            wanted = [*((column,) if with_data else ()), *texts]
            rows = read_rows(shard, wanted) if wanted else ({} for _ in range(parquet.metadata.num_rows))
            stem = os.path.splitext(os.path.basename(shard))[0]
            for number, row in enumerate(rows):
                held = row.get(column)
                data = held.get("bytes") if isinstance(held, dict) else held
                url = row.get("url")
                image = SourceImage(str(row.get("key") or f"{stem}_{number:06d}"), None, data)
                if url is not None and not isinstance(url, str):
                    image.data, image.problem = None, "url_not_text"
                elif with_data and not data:
                    image.problem, image.note = "not_downloaded", failure(row.get("error_message"))
                elif reserved := reserved_by(row.get("headers")):
                    image.data, image.problem = None, reserved
                image.url = url if isinstance(url, str) else None
                yield image
    except (pa.ArrowException, OSError) as error:
        raise BadShardError(
            f"{shard}: not a whole parquet file ({error}); download it again", "parquet_cut"
        ) from error


def _cut(path: str, error: Exception) -> BadShardError:
    return BadShardError(f"{path}: not a whole parquet file ({error}); download it again", "parquet_cut")


def _listed_images(shard: str) -> Iterator[SourceImage]:
    with open(shard, encoding="utf-8") as file:
        content = json.load(file)
    safe = SafeRoot(content["root"])
    for name in content["images"]:
        image = SourceImage(os.path.splitext(name)[0], None, None, name=name)
        try:
            path = safe.resolve(name)
            beside = os.path.splitext(path)[0] + ".json"
            if os.path.exists(beside):
                with open(beside, "rb") as file_beside:
                    facts = described(file_beside.read())
                url = facts.get("url")
                image.url = url if isinstance(url, str) else None
                image.problem = "" if url is None or isinstance(url, str) else "url_not_text"
                image.problem = image.problem or reserved_by(facts.get("headers"))
            if not image.problem:
                with open(path, "rb") as opened:
                    image.data = opened.read()
        except UnsafePathError:
            image.problem = "path_unsafe"
        except OSError:
            image.problem = "image_missing"
        yield image


def _may_hold_images(path: str) -> bool:
    """Whether a parquet has a column of images; a broken one may have had, which the scan says."""
    try:
        return any(name in _IMAGE_COLUMNS for name in pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        return True


def _plain(key: str) -> str:
    """The name of a source, made fit for a file name. It is published, so of a path on a machine the end is left."""
    key = readable(end_of_path(key.removeprefix("./")))
    return key.replace("\\", "/").strip("/").replace("/", "_")
