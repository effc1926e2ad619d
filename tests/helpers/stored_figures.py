"""Figures in prose, and whether a stored result has them.

A figure is founded if it is a number of the result's page, rounded to as many decimals as the figure has, or a
hundred times such a number, as a share of 0.558 is 56 %.
"""

import re
from pathlib import Path

STUDY = re.compile(r"\| (.+) \| (.+) \| `python examples/studies/(\w+)\.py`.* \|")
RESULT = re.compile(r"results/(\w+)\.md")
# not the 1 of R@1, nor the 7 of 5e-7
_FIGURE = re.compile(r"(?<![\w@.,-])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
_STORED = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def unfounded(prose: str, result: str) -> list[str]:
    """The figures of `prose` that the page `result` does not have."""
    stored = [float(number.replace(",", "")) for number in _STORED.findall(result)]
    return [figure for figure in map(_plain, _FIGURE.findall(prose)) if not _is_stored(figure, stored)]


def unfounded_claims(readme: str, studies: str, results: Path) -> list[str]:
    """Problems of the README's rows of measured claims that name a study, and of the sections on each study."""
    texts = [(claim, measured, stem) for claim, measured, stem in STUDY.findall(readme)]
    for section in re.split(r"^## ", studies, flags=re.MULTILINE)[1:]:
        prose = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
        texts += [(section.splitlines()[0], prose, stem) for stem in RESULT.findall(section)[:1]]
    problems = []
    for title, prose, stem in texts:
        page = results / f"{stem}.md"
        if not page.exists():
            problems.append(f"{title}\n    there is no result {page.name}")
        elif missing := unfounded(prose, page.read_text(encoding="utf-8")):
            problems.append(f"{title}\n    {page.name} has no {', '.join(missing)}")
    return problems


def _plain(figure: str) -> str:
    return figure.rstrip(",").replace(",", "")


def _is_stored(figure: str, stored: list[float]) -> bool:
    value = float(figure)
    if "e" in figure:  # one digit and the order
        return any(f"{number:.0e}" == f"{value:.0e}" for number in stored)
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
    return any(abs(scale * number - value) <= half for number in stored for scale in (1, 100))
