"""Figures in the README and in the page of studies are those of stored results."""

import json
import re
from pathlib import Path

import pytest
from stored_figures import unfounded, unfounded_claims

REPO = Path(__file__).resolve().parents[1]
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
    results = tmp_path / "examples" / "studies" / "results"
    results.mkdir(parents=True)
    (results / "scores.md").write_text(f"# Scores\n\n    python examples/studies/scores.py --seeds 0\n\n{RESULT}")
    row = "| It finds {} | AUROC {} | [`python examples/studies/{}.py`](examples/studies/results/{}.md) |\n"
    section = "# Studies\n\nSix.\n\n## Which?\n\nR@1 {}.\n\n```\nrun 99\n```\n\n[Result](results/scores.md)\n"
    head = "| claim | measured | command |\n|---|---|---|\n"
    right = head + row.format("few", "0.56", "scores", "scores")
    assert unfounded_claims(right, section.format(71.3), tmp_path) == []
    wrong = head + row.format("all", "0.99", "scores", "scores") + row.format("some", "0.56", "scores", "unmade")
    wrong += row.format("others", "0.56", "faces", "scores") + "| It is quick | 3 s | `make demo` |\n"
    assert unfounded_claims(wrong, section.format(88.8), tmp_path) == [
        "It is quick\n    `make demo` does not link to a stored result",
        "It finds all\n    scores.md: no 0.99 there",
        "It finds some\n    there is no result unmade.md",
        "It finds others\n    scores.md: not the result of python examples/studies/faces.py",
        "Which?\n    scores.md: no 88.8 there",
    ]


def test_what_a_command_prints_is_kept_if_it_succeeds(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(REPO / "examples" / "studies")
    import record

    page = tmp_path / "results" / "sums.md"
    assert not record.main([str(page), "python", "-c", "print('| 1 + 1 | 2 |')"])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# sums\n\n    python -c ")
    assert text.endswith("\n\n| 1 + 1 | 2 |\n") and "Commit " in text
    assert record.main([str(page), "python", "-c", "print(3); raise SystemExit(4)"]) == 2
    assert "ended with code 4" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == text
    assert record.main([str(page), "no-such-program"]) == 2


def test_the_baselines_of_false_words_are_those_that_were_measured():
    card = (REPO / "modeling_gadms" / "false_words" / "README.md").read_text(encoding="utf-8")
    pages = {
        height: (REPO / "examples" / "results" / f"false_words_{height}.md").read_text(encoding="utf-8")
        for height in (64, 96, 128)
    }
    rows = {}
    for line in pages[64].splitlines():
        rows.setdefault(line.strip("| ").split(" | ")[0], []).append(line.strip("| ").split(" | ")[1:])
    (methods,) = rows["group of words"]
    (made_up,) = (found[0] for name, found in rows.items() if name.startswith("things made up"))
    table = [
        line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| `") and line.count("|") == 7
    ]
    assert len(table) == len(methods) > 10
    for name, auroc, visible, made, at_96, at_128 in table:
        for height, larger in ((96, at_96), (128, at_128)):
            assert f"\n| {name.strip('`')} | {larger} [" in pages[height], name
        every, of_visible = rows[name.strip("`")][:2]
        assert [auroc, visible, made] == [every[0], of_visible[0], made_up[methods.index(name.strip("`"))]], name
    for height, page in pages.items():
        command = f"python examples/score_false_words.py --data_root data/false_words_{height} "
        assert command + card.split(command)[1].splitlines()[0] in page


def test_what_more_images_and_pixels_are_worth_to_the_reader_is_what_was_measured():
    card = (REPO / "modeling_gadms" / "false_words" / "README.md").read_text(encoding="utf-8")
    _, _, *table = (line.strip("| ").split(" | ") for line in card.splitlines() if line.count("|") == 9)
    assert len(table) >= 4
    for size, images, _, *cells in table:
        name = "_".join([f"false_words_{size.split()[0]}", *([] if images == "2,000" else [images.replace(",", "")])])
        stored = json.loads((REPO / "examples" / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]
        found = stored["posterior"]
        figures = [found["AUROC"], found["visible"]["AUROC"], found["visible"]["of_oracle"]]
        figures += [found["by_group"]["things made up"]["AUROC"], stored["swap"]["AUROC"]]
        assert cells == [f"{figure:.3f}" for figure in figures], name


def test_what_long_training_is_worth_to_methods_without_a_reader_is_what_was_measured():
    card = (REPO / "modeling_gadms" / "false_words" / "README.md").read_text(encoding="utf-8")
    name = REPO / "examples" / "results" / "false_words_64_16000_trained"
    page, measured = (name.with_suffix(kind).read_text(encoding="utf-8") for kind in (".md", ".json"))
    told = card.split("for long does not find many more")[1].split("```")
    said = dict(re.findall(r"`(\w+)`(?: of the decoder has)? (0\.\d{3})", told[0]))
    assert set(said) == {"surprise", "swap", "masked", "gass"}
    for method, figure in said.items():
        assert figure == f"{json.loads(measured)['results'][method]['AUROC']:.3f}", method
    for loss in re.findall(r"\d\.\d\d\b", told[0]):
        assert loss in page
    for command in told[1].replace("\\\n", "").split("\n")[1:3]:
        assert " ".join(command.split()) in page
