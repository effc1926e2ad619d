"""A table of text, written as Markdown or as LaTeX."""

import re
from dataclasses import dataclass, field

LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\rightarrow$",
    "†": r"$^\dagger$",
    "±": r"$\pm$",
}
PACKAGES = "% needs \\usepackage{booktabs}"
_EMPHASIS = (("**", "textbf"), ("*", "emph"))
_WITH_INTERVAL = re.compile(r"(.*\S) (\[[^][]*\])")


@dataclass
class Table:
    """Rows of cells.

    Attributes:
        title (`str`): a heading above it in Markdown, a comment in LaTeX.
        columns (`list[str]`): their heads.
        rows (`list[list[str]]`): a cell for each column; `**cell**` and `*cell*` are emphasised.
        words (`int`): leading columns that hold words; the others hold figures, set to the right.
        above, notes (`list[str]`): paragraphs before and behind it; comments in LaTeX.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    words: int = 1
    above: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Without the title, which goes into a heading of the page's own level."""
        figures = len(self.columns) - self.words
        lines = [_line(self.columns), "|---" * self.words + "|---:" * figures + "|", *map(_line, self.rows)]
        return "\n\n".join([*self.above, "\n".join(lines), *self.notes])

    def latex(self) -> str:
        """A `tabular` of the package booktabs; an interval behind a figure is set small."""
        comments = [f"% {' '.join(text.split())}" for text in (self.title, *self.above, *self.notes) if text]
        head = " & ".join(map(escaped, self.columns)) + r" \\"
        body = [_latex_row(row) for row in self.rows]
        layout = "l" * self.words + "r" * (len(self.columns) - self.words)
        lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", head, r"\midrule", *body]
        return "\n".join([*comments, *lines, r"\bottomrule", r"\end{tabular}"])


def latex_page(tables: list[Table]) -> str:
    """The tables as one file, for `\\input`."""
    return "\n\n".join([PACKAGES, *(table.latex() for table in tables)]) + "\n"


def markdown_page(tables: list[Table]) -> str:
    """The tables, each below its title."""
    return "\n\n".join(f"## {table.title}\n\n{table.markdown()}" for table in tables)


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex_row(row: list[str]) -> str:
    cells = [_latex_cell(cell) for cell in row]
    if cells[0].startswith("["):  # LaTeX would take it for an argument of the line break before it
        cells[0] = "{[}" + cells[0][1:]
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: str) -> str:
    for mark, command in _EMPHASIS:
        if len(cell) > 2 * len(mark) and cell.startswith(mark) and cell.endswith(mark):
            return rf"\{command}{{{_latex_cell(cell[len(mark) : -len(mark)])}}}"
    if found := _WITH_INTERVAL.fullmatch(cell):
        figure, interval = map(escaped, found.groups())
        return rf"{figure} {{\scriptsize {interval}}}"
    return escaped(cell)
