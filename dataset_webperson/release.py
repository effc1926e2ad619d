"""Write a folder for the Hub: parquet shards with embedded JPEGs, a dataset card with a datasheet, a loading script.

    python -m dataset_webperson.release --source data/webperson --output_dir release/webperson \\
        --repository org/webperson --contact privacy@example.org

OUTPUT_DIR is branch `main` of the dataset repository, with the configs `default`, of all columns, `images`, and
`captions`, whose files of its own are joined by `image_sha256`. OUTPUT_DIR-script is its branch `script` for
`datasets` 3.x, and OUTPUT_DIR-report, for the publisher only, lists what was left out, repaired or rewritten. An
interrupted run continues where it stopped when it is started again; the same source and options give the same bytes.

With `--cache_size 384 128` it is a cache to train from, of a release: its images have the size that the model takes,
so that training decodes little and resizes nothing, and `image_sha256` still names them at their own size.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from string import Template
from typing import Any

from datasets import Features
from tqdm import tqdm

from .builder import source_state
from .command_line import CommandParser, command
from .files import write_json, written_once
from .findings import DataError
from .release_card import CAPTIONS, DATA, Made, SplitFacts, card_texts
from .release_shards import ROW_GROUP_ROWS, ROWS_PER_SHARD, Layout, hashed, release_features, write_shard
from .removed import NAME as REMOVED
from .removed import read_removed, removed_beside, write_removed
from .rows.local_source import FORMATS, Source, SourceRow, open_source, source_features
from .rows.preparation import ON_BAD_IMAGES, RowOptions, RowReport, describe_summary, merge_summaries, prepare_rows
from .worker_processes import end_with_parent

_FILES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "release_files")
_VERSION = 4  # raise it when the same source and options would give other bytes: a run begun before is not continued


@dataclass(frozen=True)
class ReleaseSettings:
    """Everything about a release but where the rows come from and where it goes.

    Args:
        contact: address for opt-out and takedown, printed on the card.
        repository: `ORG/NAME` on the Hub.
        licence: Hub id of the licence that the publisher gives.
        provenance: Markdown file that says how the data was made; without it, and without `made`, the card says that
            nobody told.
        source_format: format of the source, for a folder that holds more than one.
        rows: what is left out, repaired or refused.
        layout: how rows lie in parquet.
        num_workers: processes that check images.
        made: what the command that made the rows says of them.
        removed: SHA-256 of pictures that were taken down, and why; they are left out and listed in `removed.parquet`,
            with those that a list in the source names.

    Raises:
        `DataError`: a repository name or licence that the Hub does not accept, no contact, or no process at all.
    """

    contact: str
    repository: str = "org/webperson"
    licence: str = "unknown"
    provenance: str | None = None
    source_format: str | None = None
    rows: RowOptions = field(default_factory=lambda: RowOptions(only_jpeg=True))
    layout: Layout = field(default_factory=Layout)
    num_workers: int = 1
    made: Made = field(default_factory=Made)
    removed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain_name = self.name.replace("-", "_").replace(".", "_")
        if self.repository.count("/") != 1 or not plain_name.isidentifier():
            raise DataError(f"repository {self.repository!r}: write ORG/NAME, of letters, digits, `-`, `_` and `.`")
        if not self.contact.strip():
            raise DataError("contact is empty: say where people ask to be taken out, such as an e-mail address")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.licence):
            raise DataError(f"licence {self.licence!r}: write the Hub's id of it, such as cc-by-4.0, other or unknown")
        if self.num_workers < 1:
            raise DataError(f"num_workers={self.num_workers}: at least one process is needed")

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.split("/")[-1]

    def about(self) -> dict[str, Any]:
        """What the card says of the release before anything of it is written; see `release_card.card_texts`."""
        provenance = ""
        if self.provenance is not None:
            try:
                with open(self.provenance, encoding="utf-8") as file:
                    provenance = file.read().strip()
            except OSError as error:
                raise DataError(
                    f"{self.provenance}: cannot be read ({error.strerror}); give the Markdown file of the provenance"
                ) from error
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self.provenance}: not a UTF-8 text file; save the provenance as Markdown"
                ) from error
        return {
            "name": self.name,
            "repository": self.repository,
            "licence": self.licence,
            "contact": self.contact,
            "provenance": provenance,
            "clean_captions": self.rows.clean_captions,
            "min_side": self.rows.min_side,
            "cache_size": self.rows.cache_size,
            "row_group_rows": self.layout.row_group_rows,
            "made": self.made,
        }


def release(source: str, output_dir: str, settings: ReleaseSettings) -> dict[str, Any]:
    """Write `output_dir`, `output_dir-script` and `output_dir-report`.

    Args:
        source: folder of rows.
        output_dir: must not exist; it appears, whole, when everything is written. Until then the work lies in
            `output_dir.partial`.
        settings: card, rows and layout.

    Returns:
        The summary of all rows (`RowReport.summary`), with `shards`, the names of the files.

    Raises:
        `DataError`: `output_dir` exists, `output_dir.partial` was begun with another source or other options, or a
            row or shard of the source cannot be used.
        OSError: a file that cannot be read or written.
    """
    about = settings.about()
    rows = open_source(source, settings.source_format)
    out = os.path.abspath(output_dir)
    work, report = out + ".partial", out + "-report"
    # A run that is continued may find what it moved into place before it was interrupted.
    for path in (out,) if os.path.isdir(work) else (out, out + "-script", report):
        if os.path.lexists(path):
            raise DataError(f"{path}: exists already; delete it, or choose another folder with --output_dir")
    state = source_state(rows, os.path.realpath(source))
    removed = {**read_removed(removed_beside(source)), **settings.removed}
    _begin(
        work, [_VERSION, state, asdict(settings.rows), asdict(settings.layout), rows.format, sorted(removed.items())]
    )

    pool = None
    if settings.num_workers > 1:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(settings.num_workers, mp_context=spawn, initializer=end_with_parent)
    try:
        _write_shards(rows, work, settings.rows, settings.layout, pool, removed)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    write_removed(os.path.join(work, "main", REMOVED), removed)
    summary = _finish(work, release_features(source_features(rows)), {**about, "format": rows.format})

    # The report and the script first: once `out` exists, everything does.
    for name, target in (("report", report), ("script", out + "-script"), ("main", out)):
        if os.path.isdir(target):
            shutil.rmtree(target)
        os.replace(os.path.join(work, name), target)
    shutil.rmtree(work)
    return summary


def _begin(work: str, state: list[Any]) -> None:
    """Make the working folder, or continue in it if it was begun with the same source and options."""
    os.makedirs(os.path.join(work, "shards"), exist_ok=True)
    path = os.path.join(work, "state.json")
    state = json.loads(json.dumps(state))
    try:
        begun_with = written_once(path, state)
    except ValueError as error:
        raise DataError(f"{path}: broken; delete {work} to start over") from error
    if begun_with != state:
        raise DataError(f"{work}: was begun with another source or other options; delete it to start over")


def _positions(source: Source, start: tuple[int, int], stop: int) -> Iterator[tuple[tuple[int, int], SourceRow]]:
    """Rows from `start` = (number of the source's shard, row in it) to shard `stop`, with the position after each."""
    first_shard, skip = start
    for shard_number in range(first_shard, stop):
        first = skip if shard_number == first_shard else 0
        for position, row in enumerate(source.rows(source.shards[shard_number], first), first + 1):
            yield (shard_number, position), row


def _write_shards(
    source: Source,
    work: str,
    options: RowOptions,
    layout: Layout,
    pool: ProcessPoolExecutor | None,
    removed: Mapping[str, str],
) -> None:
    """Write all missing shards. A shard counts as written once its file of facts exists, which is written last."""
    done, read, start = _written_shards(work)
    features = release_features(source_features(source))
    last = 0
    with tqdm(total=source.count(), desc="release", unit=" rows", initial=read) as bar:
        for split, shards in source.splits.items():
            first_shard, last = last, last + len(shards)
            if last <= start[0]:
                continue
            rows = _positions(source, max(start, (first_shard, 0)), last)
            # One row is taken ahead, so that no empty shard is begun when the split ends with a full one.
            while (first := next(rows, None)) is not None:
                stem = os.path.join(work, "shards", f"{done:06d}")
                taken = _Taken(itertools.chain([first], rows), layout, bar)
                with RowReport(stem) as report:
                    kept = prepare_rows(taken, source.extra, options, report, pool, removed)
                    write_shard(stem, kept if options.cache_size else hashed(kept), features, layout)
                facts = {"end": taken.end, "read": taken.rows, "kept": report.counts["kept"], "split": split}
                write_json(stem + ".facts.json", facts)
                done += 1


class _Taken:
    """The rows of one shard, of all that are left; `end` is the position in the source after the last one taken."""

    def __init__(self, rows: Iterator[tuple[tuple[int, int], SourceRow]], layout: Layout, bar: tqdm):
        self._left, self._layout, self._bar = rows, layout, bar
        self.rows = 0
        self.end = (0, 0)

    def __iter__(self) -> Iterator[SourceRow]:
        for end, row in self._left:
            self.end = end
            self.rows += 1
            self._bar.update()
            yield row
            if self._layout.ends_shard(row.image_path, self.rows):
                return


def _written_shards(work: str) -> tuple[int, int, tuple[int, int]]:
    """How many shards are written, of how many source rows, and the position in the source where the next starts."""
    done, read, start = 0, 0, (0, 0)
    while os.path.exists(path := os.path.join(work, "shards", f"{done:06d}.facts.json")):
        with open(path, encoding="utf-8") as file:
            facts = json.load(file)
        shard_number, position = facts["end"]
        start = (shard_number, position)
        read += facts["read"]
        done += 1
    return done, read, start


def _finish(work: str, features: Features, about: dict[str, Any]) -> dict[str, Any]:
    """Put the shards in order under their final names, and write card, script and report beside them."""
    shards = os.path.join(work, "shards")
    places = {name: os.path.join(work, name) for name in ("main", "script", "report")}
    for place in (os.path.join(places["main"], DATA), os.path.join(places["main"], CAPTIONS), *places.values()):
        os.makedirs(place, exist_ok=True)
    facts: list[tuple[str, dict[str, Any]]] = []
    for name in sorted(os.listdir(shards)):
        if name.endswith(".facts.json"):
            with open(os.path.join(shards, name), encoding="utf-8") as file:
                facts.append((name.removesuffix(".facts.json"), json.load(file)))
    splits: dict[str, SplitFacts] = {}
    for split in dict.fromkeys(known["split"] for _, known in facts):
        kept = [(stem, known["kept"]) for stem, known in facts if known["split"] == split and known["kept"]]
        names = [f"{split}-{number:05d}-of-{len(kept):05d}.parquet" for number in range(len(kept))]
        for (stem, _), name in zip(kept, names, strict=True):
            for folder, ending in ((DATA, ".parquet"), (CAPTIONS, ".captions.parquet")):
                target = os.path.join(places["main"], folder, name)
                # Linked, not moved: a run that is interrupted here finds the shards where it looks for them.
                if os.path.lexists(target):
                    os.remove(target)
                _link(os.path.join(shards, stem + ending), target)
        if kept:
            splits[split] = SplitFacts.of(places["main"], names, sum(rows for _, rows in kept))
    if not splits:
        raise DataError(f"{work}: no row is left to release; look at the reports in {shards}, then delete the folder")
    summaries = []
    with open(os.path.join(places["report"], "left_out.tsv"), "w", encoding="utf-8") as left_out:
        for stem, _ in facts:
            with open(os.path.join(shards, f"{stem}.tsv"), encoding="utf-8") as part:
                shutil.copyfileobj(part, left_out)
            with open(os.path.join(shards, f"{stem}.json"), encoding="utf-8") as file:
                summaries.append(json.load(file))
    names = [name for split in splits.values() for name in split.files(DATA)]
    counts = {split: facts.rows for split, facts in splits.items()}
    summary = {**merge_summaries(summaries), "shards": names, "splits": counts}
    write_json(os.path.join(places["report"], "report.json"), summary)
    texts = card_texts(places["main"], splits, features, summary, about)
    texts["files"] = json.dumps({split: facts.files(DATA) for split, facts in splits.items()}, indent=4)
    _fill("dataset_card.md", texts, os.path.join(places["main"], "README.md"))
    _fill("loading_script.py.txt", texts, os.path.join(places["script"], f"{about['name']}.py"))
    _fill("script_branch.md", texts, os.path.join(places["script"], "README.md"))
    return summary


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _fill(template: str, texts: dict[str, str], path: str) -> None:
    with open(os.path.join(_FILES, template), encoding="utf-8") as file:
        text = Template(file.read()).substitute(texts)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m dataset_webperson.release",
        description=__doc__,
        renamed={"--out": "--output_dir", "--num-proc": "--num_workers", "--num_proc": "--num_workers"},
    )
    parser.add_argument(
        "--source",
        required=True,
        metavar="FOLDER",
        help="folder of parquets, of tars, or of json lists and images",
    )
    parser.add_argument("--source_format", choices=FORMATS, help="needed if the folder holds more than one format")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="folder to write; must not exist")
    parser.add_argument(
        "--repository", default="org/webperson", metavar="ORG/NAME", help="name on the Hub (default: %(default)s)"
    )
    parser.add_argument("--contact", required=True, help="address for opt-out and takedown; printed on the card")
    parser.add_argument(
        "--licence", default="unknown", help="Hub id of the licence that you give (default: %(default)s)"
    )
    parser.add_argument(
        "--provenance",
        metavar="FILE.md",
        help="how the data was made and whom it shows, for the card; release_files/provenance.md is the paper's own",
    )
    parser.add_argument(
        "--on_bad_images",
        choices=ON_BAD_IMAGES,
        default="error",
        help="stop at the first bad image, or leave it out with or without a warning (default: %(default)s)",
    )
    parser.add_argument("--keep_captions", action="store_true", help="do not repair captions")
    parser.add_argument("--min_side", type=int, default=0, metavar="PIXELS", help="leave out smaller images")
    parser.add_argument(
        "--cache_size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="resize images, for a cache to train from: JPEG of quality 95 without chroma subsampling",
    )
    parser.add_argument(
        "--rows_per_shard",
        type=int,
        default=ROWS_PER_SHARD,
        metavar="ROWS",
        help="source rows per parquet file, at least (default: %(default)s)",
    )
    parser.add_argument(
        "--row_group_rows",
        type=int,
        default=ROW_GROUP_ROWS,
        metavar="ROWS",
        help="rows per row group, about (default: %(default)s)",
    )
    parser.add_argument(
        "--num_workers", type=int, default=1, help="processes that check images (default: %(default)s)"
    )
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> int | None:
    """The command line."""
    args = _parse(arguments)
    settings = ReleaseSettings(
        contact=args.contact,
        repository=args.repository,
        licence=args.licence,
        provenance=args.provenance,
        source_format=args.source_format,
        rows=RowOptions(
            args.on_bad_images,
            not args.keep_captions,
            args.min_side,
            only_jpeg=True,
            cache_size=args.cache_size and tuple(args.cache_size),
        ),
        layout=Layout(args.rows_per_shard, args.row_group_rows),
        num_workers=args.num_workers,
    )
    summary = release(args.source, args.output_dir, settings)

    report = f"{os.path.abspath(args.output_dir)}-report"
    kept, shards = summary["rows"]["kept"], len(summary["shards"])
    lines = describe_summary(summary, f"{report}/left_out.tsv")
    lines.append(f"{kept:,} rows in {shards} shards in {args.output_dir}; report: {report}")
    sys.stdout.write("\n".join(lines) + "\n")
    return None


if __name__ == "__main__":
    sys.exit(main())
