"""Reasons as part of a line: short, cut between words, and without the name that the line begins with."""

from dataset_webperson.findings import reason_of


def test_a_reason_is_cut_between_words_and_never_within_the_name_it_is_about():
    path = "/home/anna smith/" + "deep/" * 25 + "model"
    said = reason_of(OSError(f"Repo id must be in the form\n 'repo_name': '{path}'. Use something else"), path)
    assert said == "Repo id must be in the form 'repo_name': '...'. Use something else"
    long = reason_of(OSError(f"{'word ' * 20}{path} {'word ' * 40}"), path)
    assert len(long) <= 160 and long.endswith("word ...") and "anna" not in long
    assert reason_of(OSError("short")) == "short"
