"""The doctor's findings as a table of text, as JSON, and as one self-contained HTML page."""

import dataclasses
import json
import os
import textwrap
from dataclasses import dataclass, field
from typing import Any, TextIO

from .caption_checks import CaptionLengths
from .files import write_text
from .findings import DataError, Findings, share
from .images import open_image
from .pages import Picture, embed, write_page
from .readers.benchmark_copy import Counts


@dataclass
class Report:
    """The doctor's report on one dataset."""

    name: str
    root: str
    json_files: list[str]
    image_root: str
    counts: dict[str, Counts]  # by split
    official: dict[str, Counts]
    findings: Findings
    images_named: int = 0
    images_examined: int = 0
    captions: int = 0
    lengths: list[CaptionLengths] = field(default_factory=list)  # one per tokenizer
    notes: list[str] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Tokens of the longest caption, by whichever tokenizer finds most."""
        return max((found.longest for found in self.lengths), default=0)


def print_table(reports: list[Report], out: TextIO) -> None:
    """Write the findings as plain text: the counts of each split, then two lines per finding."""
    encoding = out.encoding or "utf-8"

    def write(text: str) -> None:
        # Captions of any script must not stop a terminal that knows only some.
        out.write(text.encode(encoding, "replace").decode(encoding))

    for report in reports:
        write(f"\n{report.name} in {report.root}\n")
        for split, counts in report.counts.items():
            official = report.official.get(split)
            agrees = "" if official is None else "  as official" if official == counts else f"  official: {official}"
            write(f"  {split:<11}{_counts(report, split)}{agrees}\n")
        for note in _notes(report):
            write(f"  {note}\n")
        findings = list(report.findings)
        if not findings:
            write("  nothing found\n")
            continue
        width = max(len(finding.title) for finding in findings)
        for finding in findings:
            shown = finding.detail or finding.examples[0].text
            line = f"  {finding.severity:<8}{finding.title:<{width}}{finding.count:>10,}  "
            write(f"{line}{textwrap.shorten(shown, 160, placeholder=' ...')}\n{'':<10}{finding.cure}\n")


def _counts(report: Report, split: str) -> str:
    counts = report.counts[split]
    return str(counts) if counts.ids else f"{counts.images:,} images, {counts.captions:,} captions"


def _notes(report: Report) -> list[str]:
    notes = list(report.notes)
    for found in report.lengths if report.captions else ():
        part = share(found.over_limit, report.captions)
        notes.append(f"captions over {found.limit} tokens: {part}; the longest has {found.longest} ({found.method})")
    return notes


def write_doctor_json(reports: list[Report], path: str, exit_code: int) -> None:
    """Write everything that the table says, and every example kept, as JSON."""
    content = {"exit_code": exit_code, "datasets": [_as_dict(report) for report in reports]}
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _as_dict(report: Report) -> dict[str, Any]:
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    for name in ("counts", "official"):
        values[name] = {split: dataclasses.asdict(counts) for split, counts in values[name].items()}
    values["lengths"] = [dataclasses.asdict(found) for found in report.lengths]
    values["findings"] = [
        {**dataclasses.asdict(finding), "title": finding.title, "cure": finding.cure} for finding in report.findings
    ]
    return values


def write_doctor_page(reports: list[Report], path: str) -> None:
    """Write one page with the table and pictures of the worst cases of every finding, embedded."""
    title = reports[0].name if len(reports) == 1 else f"{len(reports)} datasets"
    write_page(path, "doctor.html", title=title, reports=reports, notes_of=_notes, picture_of=_picture)


def _picture(file: str) -> Picture | None:
    """An image file as a picture of the page; `None` where it cannot be shown."""
    try:
        return embed(open_image(file), os.path.basename(file))
    except DataError:
        return None
