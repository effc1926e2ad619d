"""Figures in prose, and whether a stored result has them.

A figure is founded if it is a number of the result's page, rounded to as many decimals as the figure has, or a
hundred times such a number, as a share of 0.558 is 56 %.
"""

import re
from pathlib import Path

CLAIM = re.compile(r"^\| (.+) \| (.+) \| (\[?`(?:python|make|accelerate) .+) \|$", re.MULTILINE)
COMMAND = re.compile(r"\[`(.+)`\]\((\S+\.md)\)")  # a command that leads to its stored result
RESULT = re.compile(r"results/(\w+)\.md")
# not the 1 of R@1, nor the 7 of 5e-7
_FIGURE = re.compile(r"(?<![\w@.,-])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
_STORED = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def unfounded(prose: str, result: str) -> list[str]:
    """The figures of `prose` that the page `result` does not have."""
    stored = [float(number.replace(",", "")) for number in _STORED.findall(result)]
    return [figure for figure in map(_plain, _FIGURE.findall(prose)) if not _is_stored(figure, stored)]


def unfounded_claims(readme: str, studies: str, repository: Path) -> list[str]:
    """Problems of the README's rows of measured claims, and of the sections on each study.

    The last cell of such a row is a command that links to its stored result, whose page names the same command.
    """
    problems, texts = [], []
    for claim, measured, cell in CLAIM.findall(readme):
        if linked := COMMAND.fullmatch(cell):
            texts.append((claim, measured, [repository / linked[2]], linked[1]))
        else:
            problems.append(f"{claim}\n    {cell} does not link to a stored result")
    for section in re.split(r"^## ", studies, flags=re.MULTILINE)[1:]:
        prose = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
        pages = [repository / "examples" / "studies" / "results" / f"{stem}.md" for stem in RESULT.findall(section)]
        texts += [(section.splitlines()[0], prose, pages, "")] if pages else []
    for title, prose, pages, command in texts:
        if absent := [page.name for page in pages if not page.exists()]:
            problems.append(f"{title}\n    there is no result {', '.join(absent)}")
            continue
        names = " and ".join(page.name for page in pages)
        text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
        if missing := unfounded(prose, text):
            problems.append(f"{title}\n    {names}: no {', '.join(missing)} there")
        if f"\n    {command}" not in text:
            problems.append(f"{title}\n    {names}: not the result of {command}")
    return problems


def _plain(figure: str) -> str:
    return figure.rstrip(",").replace(",", "")


def _is_stored(figure: str, stored: list[float]) -> bool:
    value = float(figure)
    if "e" in figure:  # one digit and the order
        return any(f"{number:.0e}" == f"{value:.0e}" for number in stored)
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
    return any(abs(scale * number - value) <= half for number in stored for scale in (1, 100))
