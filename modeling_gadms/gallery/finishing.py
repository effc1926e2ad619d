"""What a change of a gallery ends with: rows removed, the index made, bad images listed, by one of the processes."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch.distributed as dist

from dataset_webperson.files import write_text

from ..distributed_gadms import num_processes
from .filters import any_of
from .opt_out import OptOut
from .reports import Report
from .rows import Rows

SKIPPED = "skipped.tsv"
_AT_ONCE = 1000  # ids in one condition


@contextlib.contextmanager
def one_process() -> Iterator[bool]:
    """Whether this is the process that does what only one may do; the others wait for its end."""
    if num_processes() == 1:
        yield True
        return
    yield dist.get_rank() == 0
    dist.barrier()


def delete_ids(rows: Rows, ids: Sequence[str], where: str | None = None) -> int:
    """Delete rows by their ids, where a condition holds too; returns how many there were."""
    removed = 0
    for first in range(0, len(ids), _AT_ONCE):
        condition = any_of("id", list(ids[first : first + _AT_ONCE]))
        removed += rows.delete(f"{condition} and ({where})" if where else condition)
    return removed


def opted_out_ids(rows: Rows, opt_out: OptOut) -> list[str]:
    """Ids of the rows that the opt-out list names."""
    if not len(opt_out):
        return []
    found = []
    for batch in rows.batches(["id", "uri", "sha256", "phash"]):
        for row in batch.to_pylist():
            if opt_out.excludes(row["uri"], row["sha256"], row["phash"]):
                found.append(row["id"])
    return found


def finish(folder: str | os.PathLike, rows: Rows, index: str, report: Report) -> None:
    """What follows rows that were written, done by one process.

    Args:
        folder (`str`): of the gallery.
        rows (`Rows`): its table.
        index (`str`): of a large gallery.
        report ([`Report`]): what was written and what could not be read.
    """
    with one_process() as is_first:
        if is_first:
            rows.tidy(index)
            if report.removed or report.opted_out:
                rows.purge(index)
            list_skipped(folder, report)


def list_skipped(folder: str | os.PathLike, report: Report) -> None:
    """Write which images could not be read, in the place of the earlier list."""
    lines = [f"{uri}\t{reason}\n".replace("\r", " ") for uri, reason in report.skipped]
    write_text(os.path.join(folder, SKIPPED), "".join(lines))


def read_skipped(folder: str | os.PathLike) -> list[tuple[str, str]]:
    """`(uri, reason)` of the images that could not be read."""
    try:
        with open(os.path.join(folder, SKIPPED), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    return [(uri, reason) for uri, _, reason in (line.partition("\t") for line in lines)]
