"""From rows of a source to rows of a WebPerson: images checked, captions cleaned, what was left out accounted for."""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..files import write_json
from ..findings import KINDS, DataError
from ..removed import NAME as REMOVED
from ..removed import is_removed
from .cleaning import CaptionCleaner, is_unicode, usable_captions
from .images import CheckedImage, check_image
from .local_source import SourceRow, fit

ON_BAD_IMAGES = ("error", "warn", "skip")
_CHUNK = 64  # rows whose images are read before they are checked, together if there are processes for it
_OTHER_TITLES = {"image-small": "image below the minimum side", "removed": "image that was taken down"}


@dataclass(frozen=True)
class RowOptions:
    """What is done with rows. A value that makes no sense raises `ValueError`.

    Args:
        on_bad_images: what happens to a row that cannot be used, because of its image or because none of its captions
            is text: `"error"` stops at the first, `"warn"` leaves it out and says so at the end, `"skip"` leaves it
            out. The last two write its name into a file.
        clean_captions: repair captions as `caption_cleaning.clean_caption` does.
        min_side: leave out images with a shorter side below this many pixels, whatever `on_bad_images`.
        only_jpeg: see `row_images.check_image`.
        cache_size: height and width of a training cache, to which images are resized. Rows then have `image_sha256`,
            which names the picture at its own size: lists of pictures that were taken down and files of captions do.
    """

    on_bad_images: str = "error"
    clean_captions: bool = True
    min_side: int = 0
    only_jpeg: bool = False
    cache_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.on_bad_images not in ON_BAD_IMAGES:
            raise ValueError(f"on_bad_images is one of {', '.join(ON_BAD_IMAGES)}, not {self.on_bad_images!r}")
        if isinstance(self.min_side, bool) or not isinstance(self.min_side, int) or self.min_side < 0:
            raise ValueError(f"min_side is a whole number of pixels, not {self.min_side!r}")
        if self.cache_size is not None and min(self.cache_size) < 1:
            raise ValueError(f"cache_size is a height and a width of at least 1 pixel, not {self.cache_size!r}")


class RowReport:
    """Counts of rows read, kept and left out, and of captions changed.

    `<path>.tsv` lists the rows left out, one `image_path, kind, message` per line, `<path>.json` holds the counts and
    examples. Both appear when the report is closed without an error, whole.
    """

    def __init__(self, path: str):
        self.path = path
        self.counts: Counter[str] = Counter()  # read, kept, converted, resized, captions
        self.left_out: Counter[str] = Counter()
        self.unfit: Counter[str] = Counter()  # further columns whose value was left out, by name
        self.cleaner = CaptionCleaner()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._names = open(path + ".tsv.part", "w", encoding="utf-8")  # closed in `__exit__`

    def leave_out(self, row: SourceRow, code: str, message: str) -> None:
        self.left_out[code] += 1
        line = "\t".join(" ".join(str(part).split()) for part in (row.image_path or row.where, code, message))
        self._names.write(line.encode("utf-8", "backslashreplace").decode() + "\n")

    def summary(self) -> dict[str, Any]:
        return {
            "rows": dict(self.counts),
            "left_out": dict(self.left_out),
            "caption_repairs": dict(self.cleaner.counts),
            "repair_examples": self.cleaner.examples,
            "unfit_values": dict(self.unfit),
        }

    def __enter__(self) -> "RowReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._names.close()
        if kind is None:
            os.replace(self.path + ".tsv.part", self.path + ".tsv")
            write_json(self.path + ".json", self.summary())


def prepare_rows(
    rows: Iterable[SourceRow],
    extra: dict[str, Any],
    options: RowOptions,
    report: RowReport,
    pool: ProcessPoolExecutor | None = None,
    removed: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows `image` (`{"bytes", "path"}`), `image_path`, `caption1`, `caption2` and the further columns, in order.

    Rows of a training cache also have `image_sha256`.

    Args:
        rows: of a source.
        extra: features of the further columns; a row without one of them has `None` there.
        options: what is left out, repaired or refused.
        report: records everything that is not passed on as it came.
        pool: processes that check images.
        removed: SHA-256 of pictures that were taken down; their rows are left out, whatever the options say.

    Raises:
        `DataError`: with `on_bad_images="error"`, at the first row that cannot be used; names it and the cure.
    """
    rows = iter(rows)
    check = pool.map if pool else map
    ahead: list[tuple[list[SourceRow], Iterable[CheckedImage]]] = []
    while True:
        if chunk := list(itertools.islice(rows, _CHUNK)):
            ahead.append((chunk, check(*_arguments(check_image, chunk, options))))
        elif not ahead:
            return
        # Processes work on the next chunks while this one is passed on.
        if len(ahead) > (4 if pool else 0) or not chunk:
            chunk, checked = ahead.pop(0)
            for row, image in zip(chunk, checked, strict=True):
                if (prepared := _prepare(row, image, extra, options, report, removed or {})) is not None:
                    yield prepared


def _arguments(function: Callable[..., CheckedImage], chunk: list[SourceRow], options: RowOptions) -> tuple[Any, ...]:
    """Arguments of `map` that check the images of a chunk. Files are read here; a row with a problem has no bytes."""
    data = []
    for row in chunk:
        try:
            data.append(row.read())
        except OSError as error:
            row.problem = "image-missing" if isinstance(error, FileNotFoundError) else "image-unreadable"
            row.message = f"{row.file}: {error.strerror}, named in {row.where}; check the folder of the images"
            data.append(b"")
    names = [row.file or row.where for row in chunk]
    same_for_all = map(itertools.repeat, (options.min_side, options.only_jpeg, options.cache_size))
    return function, data, names, *same_for_all


def _prepare(
    row: SourceRow,
    image: CheckedImage,
    extra: dict[str, Any],
    options: RowOptions,
    report: RowReport,
    removed: Mapping[str, str],
) -> dict[str, Any] | None:
    report.counts["read"] += 1
    # The picture as the source has it, as a release rewrote it, and as it is passed on.
    rewritten = {"image_sha256": image.full_sha256}
    if removed and (is_removed(row.extra, row.data or b"", removed) or is_removed(rewritten, image.data, removed)):
        report.leave_out(row, "removed", f"{row.where}: listed in {REMOVED}")
        return None
    problem, message = (row.problem, row.message) if row.problem else (image.problem, image.message)
    if not problem and not is_unicode(row.image_path):
        problem, message = "path-unsafe", f"{row.where!a}: {row.image_path!a} holds half a character"
    captions = usable_captions(row.captions)
    report.counts["captions"] += len(captions)
    if not problem:
        if options.clean_captions:
            captions = [report.cleaner.clean(caption, row.where) for caption in captions]
            captions = [caption for caption in captions if caption]
        if not captions:
            shown = ", ".join(f"{caption!r:.60}" for caption in row.captions) or "none"
            problem, message = "captions-missing", f"{row.where}: no usable caption among its captions ({shown})"
    if problem:
        if options.on_bad_images == "error" and problem != "image-small":
            raise DataError(
                f"{message.rstrip('.')}; or leave such rows out with on_bad_images='warn', which lists them"
            )
        report.leave_out(row, problem, message)
        return None
    report.counts["kept"] += 1
    report.counts["converted"] += image.converted
    if options.cache_size:
        report.counts["resized"] += bool(image.full_sha256)
    columns = {}
    for name, feature in extra.items():
        try:
            columns[name] = fit(row.extra.get(name), feature)
        except ValueError:
            columns[name] = None
            report.unfit[name] += 1
    for name in row.extra.keys() - extra.keys():
        report.unfit[name] += 1
    if options.cache_size and not isinstance(columns.get("image_sha256"), str):
        columns["image_sha256"] = image.full_sha256 or hashlib.sha256(image.data).hexdigest()
    path = row.image_path
    return {
        # A picture that lies elsewhere is embedded: the row does not depend on that folder.
        "image": {"bytes": image.data, "path": path},
        "image_path": path,
        # One caption short: the other takes its place, so that none is empty.
        "caption1": captions[0],
        "caption2": captions[-1],
        **columns,
    }


def merge_summaries(summaries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One summary of many: counts are added, the first examples are kept."""
    merged: dict[str, Any] = {}
    for summary in summaries:
        for part, values in summary.items():
            total = merged.setdefault(part, {})
            for name, value in values.items():
                if isinstance(value, list):
                    total[name] = (total.get(name, []) + value)[:12]
                else:
                    total[name] = total.get(name, 0) + value
    return merged


def describe_summary(summary: dict[str, Any], names_in: str) -> list[str]:
    """Lines for a reader: what was left out, and what was repaired."""
    rows, lines = summary.get("rows", {}), []
    if left_out := summary.get("left_out"):
        kinds = ", ".join(
            f"{_OTHER_TITLES[code] if code in _OTHER_TITLES else KINDS[code].title} {count:,}"
            for code, count in sorted(left_out.items())
        )
        total = sum(left_out.values())
        lines.append(f"{total:,} of {rows.get('read', 0):,} rows left out: {kinds}. Their names: {names_in}")
    if repairs := summary.get("caption_repairs"):
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(repairs.items()))
        lines.append(f"captions cleaned, of {rows.get('captions', 0):,}: {kinds}")
    if rows.get("converted"):
        lines.append(f"{rows['converted']:,} images rewritten (rotated, CMYK, 16 bits, palette, alpha, other format)")
    if rows.get("resized"):
        lines.append(f"{rows['resized']:,} images resized")
    if unfit := summary.get("unfit_values"):
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(unfit.items()))
        lines.append(f"values left out of further columns, absent from the first rows or of another type: {kinds}")
    return lines
