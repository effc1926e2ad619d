"""Figures in the README and in the page of studies are those of stored results."""

import pytest
from stored_figures import STUDY, unfounded, unfounded_claims

RESULT = "| GASS | 0.558 | 12,345 | 4.6e-07 |\n| none | 71.34 [70.1, 72.5] | 0.04 |"


@pytest.mark.parametrize(
    ("prose", "missing"),
    [
        ("R@1 71.3 for 12,345 images", []),
        ("AUROC 0.56, or 56 %; a drift of 4 % and of 5e-7", []),
        ("R@1 71.4, AUROC 0.57", ["71.4", "0.57"]),
        ("4e-7 of 12,346", ["4e-7", "12346"]),
    ],
)
def test_a_figure_is_founded_if_it_rounds_a_stored_number(prose, missing):
    assert unfounded(prose, RESULT) == missing


def test_claims_and_studies_are_compared_with_their_own_result(tmp_path):
    (tmp_path / "scores.md").write_text(RESULT)
    row = "| It finds {} | AUROC {} | `python examples/studies/{}.py` |\n"
    section = "# Studies\n\nSix.\n\n## Which?\n\nR@1 {}.\n\n```\nrun 99\n```\n\n[Result](results/scores.md)\n"
    right = row.format("few", "0.56", "scores")
    assert STUDY.findall(right) == [("It finds few", "AUROC 0.56", "scores")]
    assert unfounded_claims(right, section.format(71.3), tmp_path) == []
    wrong = row.format("all", "0.99", "scores") + row.format("some", "0.56", "unmade")
    assert unfounded_claims(wrong, section.format(88.8), tmp_path) == [
        "It finds all\n    scores.md has no 0.99",
        "It finds some\n    there is no result unmade.md",
        "Which?\n    scores.md has no 88.8",
    ]
