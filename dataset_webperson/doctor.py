"""Examine a benchmark or corpus on disk and report what is wrong with it.

    python -m dataset_webperson.doctor data/CUHK-PEDES --output_dir reports/cuhk
    python -m dataset_webperson.doctor data/ICFG-PEDES data/RSTPReid --output_dir reports/both

recognises the datasets in a folder, checks json, files, counts, ids, splits, images and captions, prints a table, and
writes `report.json` and `report.html` (with pictures of the worst cases) into the output folder. Of several benchmarks
it also names the images and persons in the training of one and the validation or test of another. The exit code is 1
when something would break training or make its figures worthless, 0 when there are only warnings, 2 when the command
itself was wrong. An interrupted run continues where it stopped; unchanged images are not decoded again.
"""

import argparse
import contextlib
import itertools
import os
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .caption_checks import CaptionLengths, caption_problems, token_counter
from .command_line import CommandParser, command
from .doctor_report import Report, print_table, write_doctor_json, write_doctor_page
from .findings import MAX_EXAMPLES, DataError, Findings, share
from .image_audit import ImageFacts, audit_images
from .near_duplicates import close_pairs
from .overlap import NEAR_BITS, ImageSet, image_set, overlaps
from .readers.benchmark_copy import Benchmark, Counts, find_jsons, read_copy
from .readers.benchmarks import BENCHMARKS, accept_counts, benchmark_class
from .readers.corpora import CORPORA, Corpus, corpus_class, find_corpus_jsons, locate_rows
from .readers.near_hits import near_jsons
from .readers.reidentification import (
    REIDENTIFICATION,
    Reidentification,
    read_reidentification,
    recognised,
    reidentification_class,
)
from .rows.images import check_image
from .rows.local_source import SourceRow, open_source
from .safe_paths import SafeRoot

_MAX_KNOWN_CAPTIONS = 1_000_000  # remembered for the search of shared ones; about 220 MB
_TOKEN_BATCH = 1000
_PLAIN_MODES = ("RGB", "L")


@dataclass(frozen=True)
class Options:
    """How a dataset is examined; see `--help` for each."""

    output_dir: str
    annotations: str | None = None
    image_root: str | None = None
    partial: bool = False
    tokenizers: tuple[str, ...] = ()
    max_images: int = 100_000
    num_workers: int = 1

    def __post_init__(self) -> None:
        for name in ("max_images", "num_workers"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)}: must be at least 1")


class WebPersonFolder:
    """A folder of captioned images, as `WebPerson("local")` reads it."""

    name = "WebPerson"


Examined = type[Benchmark] | type[Corpus] | type[Reidentification] | type[WebPersonFolder]


def detect(root: str) -> list[Examined]:
    """The datasets whose json lies in `root` or in their own folder below it, or that `root` is named after.

    Where there is none of them, rows that `open_source` reads are a WebPerson.
    """
    found: list[Examined] = []
    for benchmark in BENCHMARKS.values():
        named = _named_after(root, benchmark.folder)
        _, jsons = find_jsons(benchmark, root, need_prefix=not named)
        if jsons or named or os.path.isdir(os.path.join(root, benchmark.folder)):
            found.append(benchmark)
    for corpus in CORPORA.values():
        _, corpus_jsons = find_corpus_jsons(corpus, root)
        if corpus_jsons or _named_after(root, corpus.folder) or os.path.isdir(os.path.join(root, corpus.folder)):
            found.append(corpus)
    found += recognised(root)
    if not found:
        with contextlib.suppress(DataError):
            open_source(root)
            found.append(WebPersonFolder)
    return found


def _named_after(root: str, folder: str) -> bool:
    return os.path.basename(os.path.realpath(root)).lower() == folder.lower()


class CaptionExaminer:
    """Takes the captions of one image after the other; findings are complete after `finish`."""

    def __init__(self, findings: Findings, tokenizers: tuple[str, ...]):
        self.findings = findings
        self.counters = [token_counter(tokenizer) for tokenizer in tokenizers or (None,)]
        self.lengths = [CaptionLengths(counter.method, counter.limit) for counter in self.counters]
        self.captions = 0
        self._waiting: list[tuple[str, str]] = []
        self._person_of: dict[int, tuple[int, str]] = {}  # hash of a caption: first person, and its image
        self._shared: set[int] = set()

    def add(self, captions: list[str], person: int, image_path: str, file: str) -> None:
        self.captions += len(captions)
        for caption in captions:
            for code in caption_problems(caption):
                self.findings.add(code, f"{image_path}: {caption:.200}", (file,))
            self._waiting.append((caption, file))
            self._look_for_shared(caption, person, image_path, file)
        if len(self._waiting) >= _TOKEN_BATCH:
            self._count_waiting()

    def _look_for_shared(self, caption: str, person: int, image_path: str, file: str) -> None:
        words = " ".join(caption.lower().split())
        if not words:
            return
        key = hash(words)  # 64 bits stand for the caption: with a million of them, two meet once in 40 million runs
        first = self._person_of.get(key)
        if first is None:
            if len(self._person_of) < _MAX_KNOWN_CAPTIONS:
                self._person_of[key] = (person, file)
        elif first[0] != person and key not in self._shared:
            self._shared.add(key)
            self.findings.add("caption-shared", f"{image_path}: {caption:.200}", (first[1], file))

    def _count_waiting(self) -> None:
        captions = [caption for caption, _ in self._waiting]
        too_long: dict[int, int] = {}  # the number of a caption, and its tokens as the first tower that cuts it counts
        for counter, found in zip(self.counters, self.lengths, strict=True):
            for number, length in enumerate(counter.count(captions)):
                found.longest = max(found.longest, length)
                if length > counter.limit:
                    found.over_limit += 1
                    too_long.setdefault(number, length)
        for number, length in sorted(too_long.items()):
            caption, file = self._waiting[number]
            self.findings.add("caption-long", f"{length} tokens: {caption:.200}", (file,))
        self._waiting.clear()

    def finish(self, report: Report) -> None:
        if self._waiting:
            self._count_waiting()
        report.captions, report.lengths = self.captions, self.lengths
        cut = [found for found in self.lengths if found.over_limit]
        if cut:
            parts = (
                f"{share(found.over_limit, self.captions)} of the captions over {found.limit} ({found.method})"
                for found in cut
            )
            self.findings.set_detail("caption-long", "; ".join(parts))


def examine_benchmark(benchmark: type[Benchmark], root: str, options: Options) -> tuple[Report, dict[str, ImageSet]]:
    """Examine one copy of a benchmark; its images by split. Raises `DataError` only when a folder does not exist."""
    findings = Findings()
    copy = read_copy(benchmark, root, findings, options.annotations, options.image_root)
    if options.partial:
        accept_counts(findings)
    report = Report(
        benchmark.name, root, copy.json_files, copy.image_root, copy.counts(), dict(benchmark.official), findings
    )
    examiner = CaptionExaminer(findings, options.tokenizers)
    for row in copy.rows:
        examiner.add(row.captions, row.person, row.image_path, row.file)
    examiner.finish(report)
    report.images_named = len(copy.rows)
    present = [(row.image_path, row.file) for row in copy.rows if row.present]
    facts = _examine_images(present, report, options)
    splits = {row.image_path: (row.split, row.file) for row in copy.rows}
    _find_near_duplicates(facts, splits, findings)
    images = {}
    for split in report.counts:
        rows = [(row.image_path, row.file, row.person) for row in copy.rows if row.split == split]
        images[split] = image_set(benchmark.name, split, split == "train", rows, facts)
    return report, images


def examine_reidentification(
    kind: type[Reidentification], root: str, options: Options
) -> tuple[Report, list[ImageSet]]:
    """Examine one copy of a re-identification data set; its images, all of them held out."""
    if options.annotations or options.image_root:
        raise DataError(f"{root}: annotations and image_root are of benchmarks and corpora, {kind.name} has neither")
    findings = Findings()
    copy = read_reidentification(kind, root, findings)
    if options.partial:
        accept_counts(findings)
    report = Report(kind.name, root, [], copy.root, copy.counts(), dict(kind.official), findings)
    if copy.junk:
        report.notes.append(f"{copy.junk:,} images of person -1 are junk, and left out")
    images = [image for found in copy.images.values() for image in found]
    report.images_named = len(images)
    facts = _examine_images([(i.image_path, i.file) for i in images if i.present], report, options)
    held_out = []
    for part, found in copy.images.items():
        rows = [(image.image_path, image.file, image.person) for image in found]
        held_out.append(image_set(kind.name, part, False, rows, facts))
    return report, held_out


def find_overlaps(sets: list[ImageSet], findings: dict[str, Findings]) -> None:
    """Add what benchmarks share to the findings of the one whose training holds it.

    Args:
        findings (`dict[str, Findings]`): by name of the benchmark.
    """
    for overlap in overlaps(sets):
        training, held_out, found = overlap.training, overlap.held_out, findings[overlap.training.name]
        where = f"{held_out.split} of {held_out.name}"
        for i, j, bits in overlap.nearest_pairs():
            text = f"{training.paths[i]} and {held_out.paths[j]} in {where}: {bits} of 64 bits differ"
            found.add("image-elsewhere-held-out", text, (training.files[i], held_out.files[j]))
        for person in sorted(overlap.persons()):
            text = f"person {person}, with {training.persons.count(person)} images in training, is in {where}"
            found.add("person-elsewhere-held-out", text)


def examine_corpus(corpus: type[Corpus], root: str, options: Options) -> Report:
    """Examine a corpus: every row of its json; of its images a random sample when there are too many."""
    findings = Findings()
    home, files = find_corpus_jsons(corpus, SafeRoot(root).root, options.annotations)
    images = SafeRoot(options.image_root or home)
    report = Report(corpus.name, root, list(files), images.root, {}, {}, findings)
    if not files:
        near = near_jsons(options.annotations or home, corpus.json_patterns)
        tried = f"{options.annotations or home}: looked for {', '.join(corpus.json_patterns)}"
        findings.add("json-missing", tried + (f"; {near}" if near else ""))
        return report
    examiner = CaptionExaminer(findings, options.tokenizers)
    rng = random.Random(0)
    sample: list[tuple[str, str]] = []
    seen = captions = present = 0
    rows = locate_rows(corpus, files, images, findings)
    for located in tqdm(rows, desc=f"{corpus.name} json", unit=" rows"):
        person = located.row.person if located.row.person is not None else seen
        examiner.add(located.row.captions, person, located.image_path, located.file)
        seen += 1
        captions += len(located.row.captions)
        if located.present:
            # Reservoir sampling: every image has the same chance, and only the sample is kept.
            present += 1
            if len(sample) < options.max_images:
                sample.append((located.image_path, located.file))
            elif (place := rng.randrange(present)) < options.max_images:
                sample[place] = (located.image_path, located.file)
    examiner.finish(report)
    report.images_named = seen
    report.counts = {"train": Counts(0, seen, captions)}
    _examine_images(sample, report, options)
    return report


def examine_rows(root: str, options: Options) -> Report:
    """Examine a folder of captioned images; of its images every nth where there are more than `max_images`."""
    if options.annotations or options.image_root:
        raise DataError(f"{root}: annotations and image_root are of benchmarks and corpora, a WebPerson has neither")
    findings, source = Findings(), open_source(root)
    report = Report(WebPersonFolder.name, root, list(source.shards), root, {}, {}, findings)
    examiner = CaptionExaminer(findings, options.tokenizers)
    stride = -(-(source.count() or 0) // options.max_images) or 1
    for split, shards in source.splits.items():
        rows = captions = 0
        for row in tqdm(
            itertools.chain.from_iterable(map(source.rows, shards)), desc=f"WebPerson {split}", unit=" rows"
        ):
            texts = [caption for caption in row.captions if isinstance(caption, str)]
            examiner.add(texts, report.images_named, row.image_path, row.file or "")
            if len(texts) < len(row.captions):
                findings.add("caption-not-text", f"{row.where}: {row.captions!r:.100}")
            if not row.captions:
                findings.add("captions-missing", row.where)
            if row.problem:
                findings.add(row.problem, row.message)
            elif report.images_named % stride == 0 and report.images_examined < options.max_images:
                report.images_examined += 1
                _examine_row_image(row, findings)
            report.images_named += 1
            rows, captions = rows + 1, captions + len(texts)
        report.counts[split] = Counts(0, rows, captions)
    examiner.finish(report)
    if report.images_examined < report.images_named:
        report.notes.append(f"{report.images_examined:,} of the {report.images_named:,} images were decoded")
    return report


def _examine_row_image(row: SourceRow, findings: Findings) -> None:
    try:
        data = row.read()
    except OSError as error:
        findings.add("image-missing", f"{row.file}: {error.strerror}, named in {row.where}")
        return
    checked = check_image(data, row.file or row.where, 0, only_jpeg=False)
    if checked.problem:
        findings.add(checked.problem, checked.message)
    elif checked.converted:
        findings.add("image-mode", f"{row.image_path}: rotated, CMYK, 16 bits, a palette or alpha")


def _examine_images(images: list[tuple[str, str]], report: Report, options: Options) -> dict[str, ImageFacts]:
    if len(images) > options.max_images:
        images = random.Random(0).sample(images, options.max_images)
    cache_file = os.path.join(options.output_dir, f"images-{report.name}.jsonl")
    facts = audit_images(images, report.image_root, cache_file, options.num_workers, f"{report.name} images")
    report.images_examined = len(facts)
    if len(facts) < report.images_named:
        report.notes.append(f"{len(facts):,} of the {report.images_named:,} images named in the json were decoded")
    files = dict(images)
    for path, found in facts.items():
        if found.problem:
            report.findings.add(found.problem, found.message, (files[path],))
            continue
        if found.mode not in _PLAIN_MODES:
            report.findings.add("image-mode", f"{path}: {found.mode}", (files[path],))
        if found.rotated:
            report.findings.add("image-rotated", path, (files[path],))
    return facts


def _find_near_duplicates(
    facts: dict[str, ImageFacts], splits: dict[str, tuple[str, str]], findings: Findings
) -> None:
    by_split: dict[str, list[str]] = {}
    for path, found in facts.items():
        if not found.problem:
            by_split.setdefault(splits[path][0], []).append(path)
    hashes = {split: np.array([facts[path].hash for path in paths], np.uint64) for split, paths in by_split.items()}
    names = sorted(by_split)
    for position, left in enumerate(names):
        for right in names[position + 1 :]:
            for block in close_pairs(hashes[left], hashes[right], NEAR_BITS):
                # The first pairs of a block are shown; the rest (many, when most images are blank) is only counted.
                for i, j, bits in block[:MAX_EXAMPLES]:
                    a, b = by_split[left][i], by_split[right][j]
                    text = f"{a} ({left}) and {b} ({right}): {bits} of 64 bits differ"
                    findings.add("near-duplicate", text, (splits[a][1], splits[b][1]))
                if len(block) > MAX_EXAMPLES:
                    findings.add("near-duplicate", "and more pairs like these", count=len(block) - MAX_EXAMPLES)


def examine(found: Iterable[tuple[str, Examined]], options: Options) -> list[Report]:
    """Examine datasets, each given by its folder and its class, in turn, and benchmarks against each other."""
    os.makedirs(options.output_dir, exist_ok=True)
    reports: list[Report] = []
    images: list[ImageSet] = []
    for root, dataset in found:
        if issubclass(dataset, Benchmark):
            report, of_splits = examine_benchmark(dataset, root, options)
            reports.append(report)
            images += of_splits.values()
        elif issubclass(dataset, Corpus):
            reports.append(examine_corpus(dataset, root, options))
        elif issubclass(dataset, Reidentification):
            report, held_out = examine_reidentification(dataset, root, options)
            reports.append(report)
            images += held_out
        else:
            reports.append(examine_rows(root, options))
    find_overlaps(images, {report.name: report.findings for report in reports})
    return reports


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m dataset_webperson.doctor",
        description="Examine a benchmark or corpus on disk and report what is wrong with it.",
        epilog="Exit code: 0 fit for training, 1 something would break training, 2 a mistake in the command.",
        renamed={"--output": "--output_dir", "--workers": "--num_workers"},
    )
    parser.add_argument(
        "root", nargs="+", help="the dataset's folder, or the folder above several; or several folders"
    )
    known = ", ".join([*BENCHMARKS, *CORPORA, *REIDENTIFICATION, "webperson"])
    parser.add_argument("--dataset", help=f"which dataset it is, if its files do not show it: {known}")
    parser.add_argument(
        "--output_dir", default="doctor_report", metavar="FOLDER", help="folder for the reports (default: %(default)s)"
    )
    parser.add_argument("--annotations", metavar="PATH", help="a json, or a folder of jsons, that lies elsewhere")
    parser.add_argument("--image_root", metavar="FOLDER", help="folder of the images, if they lie elsewhere")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="the copy is incomplete on purpose: differing counts are warnings, not errors",
    )
    parser.add_argument(
        "--tokenizer",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="saved tokenizers or models: what share of the captions each tower cuts (default: estimated for CLIP)",
    )
    parser.add_argument(
        "--max_images",
        type=int,
        default=Options.max_images,
        help="most images to decode, drawn at random from a larger set (default: %(default)s)",
    )
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def _datasets_to_examine(args: argparse.Namespace) -> list[tuple[str, Examined]]:
    """The datasets of all folders, each once. Raises `DataError` when there is nothing to examine in one of them."""
    if len(args.root) > 1 and (args.dataset or args.annotations or args.image_root):
        raise DataError(
            f"{' '.join(args.root)}: --dataset, --annotations and --image_root are of one folder; give one"
        )
    return [(root, dataset) for root in dict.fromkeys(args.root) for dataset in _datasets_of(root, args)]


def _datasets_of(root: str, args: argparse.Namespace) -> list[Examined]:
    """The dataset that was named, or those recognised in one folder."""
    if args.dataset:
        if args.dataset.lower() == "webperson":
            return [WebPersonFolder]
        for known in (benchmark_class, reidentification_class):
            with contextlib.suppress(DataError):
                return [known(args.dataset)]
        return [corpus_class(args.dataset)]
    datasets = detect(SafeRoot(root).root)
    if not datasets:
        looked_for = [name for benchmark in BENCHMARKS.values() for name in benchmark.json_names]
        looked_for += [pattern for corpus in CORPORA.values() for pattern in corpus.json_patterns]
        near = near_jsons(root, looked_for)
        looked_for += ["bounding_box_test", "list_gallery.txt"]
        raise DataError(
            f"{root}: no known dataset in it, looked for {', '.join(looked_for)}, and the parquets, tars or json "
            f"lists of a WebPerson{'; ' + near if near else ''}; say with --dataset which it is"
        )
    if len(datasets) > 1 and (args.annotations or args.image_root):
        found = ", ".join(dataset.name for dataset in datasets)
        raise DataError(f"{root}: it holds {found}; --annotations and --image_root need --dataset")
    return datasets


@command
def main(arguments: list[str] | None = None) -> int | None:
    """The command line. Returns 1 for a copy with errors, 0 for one without."""
    args = _parse(arguments)
    options = Options(
        output_dir=args.output_dir,
        annotations=args.annotations,
        image_root=args.image_root,
        partial=args.partial,
        tokenizers=tuple(args.tokenizer),
        max_images=args.max_images,
        num_workers=args.num_workers,
    )
    reports = examine(_datasets_to_examine(args), options)

    exit_code = int(any(report.findings.errors() for report in reports))
    print_table(reports, sys.stdout)
    json_file = os.path.join(args.output_dir, "report.json")
    html_file = os.path.join(args.output_dir, "report.html")
    write_doctor_json(reports, json_file, exit_code)
    write_doctor_page(reports, html_file)
    sys.stdout.write(f"\nReports: {json_file}, {html_file}\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
