"""The doctor's findings as a table of text, as json, and as one HTML page that needs no other file."""

import dataclasses
import html
import json
from dataclasses import dataclass, field
from typing import TextIO

from .caption_checks import MAX_TOKENS
from .files import replacing
from .findings import DataError, Finding, Findings, share
from .images import jpeg_uri, open_image
from .readers.benchmark_copy import Counts

_THUMBNAIL = (96, 192)  # pixels, width and height at most
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; text-align: left;
border-bottom: 1px solid #ccc; vertical-align: top; } td.number { text-align: right; }
.error { color: #b00020; } .warning { color: #8a5a00; } .note { color: #44607a; } .case { display: inline-block;
width: 15rem; margin: .5rem; vertical-align: top; overflow-wrap: anywhere; font-size: 13px; }
.case img { margin-right: .3rem; background: #eee; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } th, td { border-color: #444; }
.error { color: #ff7b88; } .warning { color: #e5b35c; } .note { color: #9bb8d3; } }
"""


@dataclass
class Report:
    """What the doctor found out about one dataset."""

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
    longest: int = 0  # tokens
    over_limit: int = 0  # captions over MAX_TOKENS
    token_method: str = ""
    notes: list[str] = field(default_factory=list)


def print_table(reports: list[Report], out: TextIO) -> None:
    """Write what was found as plain text: counts per split, then two lines per finding."""
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
            write(f"{line}{' '.join(shown.split()):.160}\n{'':<10}{finding.cure}\n")


def _counts(report: Report, split: str) -> str:
    counts = report.counts[split]
    return str(counts) if counts.ids else f"{counts.images:,} images, {counts.captions:,} captions"


def _notes(report: Report) -> list[str]:
    notes = list(report.notes)
    if report.captions:
        part = share(report.over_limit, report.captions)
        notes.append(
            f"captions over {MAX_TOKENS} tokens: {part}; the longest has {report.longest} ({report.token_method})"
        )
    return notes


def write_doctor_json(reports: list[Report], path: str, exit_code: int) -> None:
    """Write everything the table says, and all kept examples, as json."""
    content = {"exit_code": exit_code, "datasets": [_as_dict(report) for report in reports]}
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _as_dict(report: Report) -> dict:
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    for name in ("counts", "official"):
        values[name] = {split: dataclasses.asdict(counts) for split, counts in values[name].items()}
    values["findings"] = [
        {**dataclasses.asdict(finding), "title": finding.title, "cure": finding.cure} for finding in report.findings
    ]
    return values


def write_doctor_page(reports: list[Report], path: str) -> None:
    """Write one page with the table and pictures of the worst cases of every finding, embedded."""
    body = "".join(_section(report) for report in reports)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data doctor</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>
<body><h1>Data doctor</h1>{body}</body></html>
"""
    _write(path, page)


def _section(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{split}</td><td>{_counts(report, split)}</td><td>{report.official.get(split, '')}</td></tr>"
        for split in report.counts
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(report))
    findings = list(report.findings)
    lines = "".join(
        f'<tr><td class="{finding.severity}">{finding.severity}</td><td>{html.escape(finding.title)}</td>'
        f'<td class="number">{finding.count:,}</td><td>{html.escape(finding.cure)}</td></tr>'
        for finding in findings
    )
    table = f"<table><tr><th></th><th>finding</th><th>count</th><th>cure</th></tr>{lines}</table>"
    cases = "".join(_cases(finding) for finding in findings)
    return (
        f"<h2>{html.escape(report.name)}</h2><p>{html.escape(report.root)}</p>"
        f"<table><tr><th>split</th><th>here</th><th>official</th></tr>{rows}</table><ul>{notes}</ul>"
        f"{table if findings else '<p>Nothing found.</p>'}{cases}"
    )


def _cases(finding: Finding) -> str:
    cases = "".join(
        f'<div class="case">{"".join(map(_thumbnail, example.images))}<div>{html.escape(example.text)}</div></div>'
        for example in finding.examples
    )
    detail = f"<p>{html.escape(finding.detail)}</p>" if finding.detail else ""
    return f'<h3 class="{finding.severity}">{html.escape(finding.title)} ({finding.count:,})</h3>{detail}{cases}'


def _thumbnail(file: str) -> str:
    """An `<img>` with the picture in it, or a word where it cannot be shown."""
    try:
        image = open_image(file)
    except DataError:
        return "<em>cannot be shown</em> "
    image.thumbnail(_THUMBNAIL)
    return f'<img src="{jpeg_uri(image, 80)}" width="{image.width}" height="{image.height}" alt="">'


def _write(path: str, text: str) -> None:
    """Write whole or not at all. Lone surrogates, which a json may hold, cannot be encoded and become `?`."""
    with replacing(path) as part, open(part, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
