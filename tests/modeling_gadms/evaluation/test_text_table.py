"""Tables of text: the same cells in Markdown and in LaTeX, where every sign prints as it stands."""

import re

from modeling_gadms.evaluation.tables import results_table
from modeling_gadms.evaluation.text_table import LATEX_SIGNS, Table, escaped, latex_page, markdown_page

ROWS = [["a_b & 50 %", "*published*", "12.30 [11.0, 13.5]"], ["[x]†", "**here**", "-"], ["", "a → b", "+1.00"]]
TABLE = Table("R@1 of a_b", ["model", "source", "R@1"], ROWS, words=2, above=["Above."], notes=["First.", "Last."])


def printed(latex):
    """What LaTeX prints of escaped text, by undoing one command after another."""
    undone = sorted(((code, sign) for sign, code in LATEX_SIGNS.items()), key=lambda pair: -len(pair[0]))
    text, place = "", 0
    while place < len(latex):
        code, sign = next(((c, s) for c, s in undone if latex.startswith(c, place)), (latex[place], latex[place]))
        text, place = text + sign, place + len(code)
    return text


def test_every_sign_is_printed_as_it_stands():
    text = r"100% of $5 & #1_a {b} \c ~d ^e <f> g|h → † ± ü"
    assert printed(escaped(text)) == text
    bare = re.sub(r"\\(?:[&%_#${}]|\w+(?:\{\})?)|\$\S+?\$", "", escaped(text))
    assert not set(bare) & set("&%_#$~^{}\\<>|")


def test_markdown_has_the_rows_between_what_stands_above_and_the_notes():
    above, table, *notes = TABLE.markdown().split("\n\n")
    assert above == "Above." and notes == ["First.", "Last."]
    lines = table.splitlines()
    assert lines[:2] == ["| model | source | R@1 |", "|---|---|---:|"]
    assert [line.strip("| ").split(" | ") for line in lines[2:4]] == ROWS[:2]
    assert markdown_page([TABLE, TABLE]).count("## R@1 of a_b\n\nAbove.") == 2


def test_latex_is_a_tabular_whose_rows_have_the_cells():
    lines = TABLE.latex().splitlines()
    assert lines[:4] == ["% R@1 of a_b", "% Above.", "% First.", "% Last."]
    assert lines[4:8] == [r"\begin{tabular}{llr}", r"\toprule", r"model & source & R@1 \\", r"\midrule"]
    assert lines[8] == r"a\_b \& 50 \% & \emph{published} & 12.30 {\scriptsize [11.0, 13.5]} \\"
    # a bracket behind a line break would be its argument
    assert lines[9] == r"{[}x]$^\dagger$ & \textbf{here} & - \\"
    assert lines[10] == r" & a $\rightarrow$ b & +1.00 \\" and lines[11:] == [r"\bottomrule", r"\end{tabular}"]
    assert latex_page([TABLE]) == f"% needs \\usepackage{{booktabs}}\n\n{TABLE.latex()}\n"


def test_queries_that_were_left_out_are_counted_below_the_table():
    about = {"model": "a", "scoring": "cosine", "metrics": {}}
    results = [
        {**about, "benchmark": "MSMT17", "queries": 1_960, "skipped": 40},
        {**about, "benchmark": "Market-1501", "queries": 3, "skipped": 0},
    ]
    (note,) = results_table(results).notes
    assert note == "MSMT17: 40 of 2,000 queries have no match that counts, and are left out."
