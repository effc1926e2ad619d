"""Decode every image once, on all cores, and keep the outcome on disk so that a second run continues from it."""

import itertools
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass

from PIL import Image
from tqdm import tqdm

from .files import replacing
from .images import ImageError, load_image, to_rgb
from .near_duplicates import perceptual_hash
from .worker_processes import end_with_parent

_VERSION = 1  # of what a line of the cache holds; raise it when a hash or a check changes
_CHUNK = 64  # images a task: the results of one task are written together
_POOL_FROM = 1000  # fewer images than this are done before the processes of a pool have started


@dataclass(slots=True)
class ImageFacts:
    """What decoding one file showed. `problem` is a code of `findings.KINDS`, "" for a sound image."""

    problem: str = ""
    message: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    rotated: bool = False
    hash: int = 0  # 64-bit perceptual hash


def examine_image(file: str) -> ImageFacts:
    """Decode `file` completely. Nothing is raised for a bad image."""
    try:
        image = load_image(file)
        orientation = image.getexif().get(Image.ExifTags.Base.Orientation, 1)
        facts = ImageFacts("", "", image.width, image.height, _mode(image), orientation not in (0, 1))
        facts.hash = perceptual_hash(to_rgb(image))
        return facts
    except ImageError as error:
        return ImageFacts(error.code, str(error))
    except Exception as error:  # EXIF blocks and colour conversions of hostile files raise nearly every type there is
        return ImageFacts("image-unreadable", f"{file}: {type(error).__name__} {error}"[:200])


def _mode(image: Image.Image) -> str:
    return f"{image.mode} with transparency" if "transparency" in image.info else image.mode


def _examine_chunk(files: list[str]) -> list[ImageFacts]:
    return [examine_image(file) for file in files]


def audit_images(
    images: Iterable[tuple[str, str]], image_root: str, cache_file: str, workers: int, title: str
) -> dict[str, ImageFacts]:
    """Examine images, those in the cache file excepted.

    Args:
        images: pairs of path relative to `image_root`, and absolute path.
        image_root: where they lie; a cache of another root is not used.
        cache_file: a file of one json line per image, known by its path, size and time. Lines are added as the work
            proceeds; a line cut off by a crash is done again.
        workers: processes.
        title: of the progress bar.

    Returns:
        Facts by relative path.
    """
    known = _read_cache(cache_file, image_root)
    facts, todo = {}, []
    for path, file in images:
        try:
            status = os.stat(file)
        except OSError:
            facts[path] = ImageFacts("image-missing", f"{file}: gone since the json was read")
            continue
        key = (path, status.st_size, status.st_mtime_ns)
        if key in known:
            facts[path] = known[key]
        else:
            todo.append((key, file))
    with open(cache_file, "a", encoding="utf-8") as cache, tqdm(total=len(facts) + len(todo), desc=title) as bar:
        bar.update(len(facts))
        for keys, results in _examine_all(todo, workers):
            lines = [json.dumps([*key, *astuple(result)]) for key, result in zip(keys, results, strict=True)]
            cache.write("".join(line + "\n" for line in lines))
            cache.flush()
            facts.update({key[0]: result for key, result in zip(keys, results, strict=True)})
            bar.update(len(keys))
    return facts


def _examine_all(todo: list[tuple[tuple, str]], workers: int) -> Iterator[tuple[list[tuple], list[ImageFacts]]]:
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    keys = [[key for key, _ in chunk] for chunk in chunks]
    files = [[file for _, file in chunk] for chunk in chunks]
    if workers < 2 or len(todo) < _POOL_FROM:
        yield from zip(keys, map(_examine_chunk, files), strict=True)
        return
    # Spawned, not forked: the caller may have threads (progress bars, Arrow), and a fork would copy their locks.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)
    try:
        yield from zip(keys, pool.map(_examine_chunk, files), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_cache(cache_file: str, image_root: str) -> dict[tuple[str, int, int], ImageFacts]:
    """What the cache file knows. A missing, foreign or outdated file is started over."""
    header = json.dumps([_VERSION, image_root])
    known = {}
    try:
        with open(cache_file, encoding="utf-8", errors="replace") as lines:
            if next(lines, "").rstrip("\n") == header:
                for line in lines:
                    try:
                        path, size, time, *values = json.loads(line)
                        known[path, size, time] = ImageFacts(*values)
                    except (ValueError, TypeError):
                        continue
    except FileNotFoundError:
        pass
    # Rewritten, whole and at once: without lines that were cut off, and with the right first line.
    with replacing(cache_file) as part, open(part, "w", encoding="utf-8") as file:
        rows = (json.dumps([*key, *astuple(facts)]) for key, facts in known.items())
        file.writelines(line + "\n" for line in itertools.chain([header], rows))
    return known
