"""Options in one dialect, old spellings with a note, and mistakes that end in one line while bugs keep a traceback."""

import pytest
import torch
from torch.utils.data import DataLoader

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser, command, in_one_line
from modeling_gadms import GADMSConfig


def parser():
    made = CommandParser(prog="python -m it", renamed={"--out": "--output_dir"})
    made.add_argument("--output_dir")
    made.add_argument("--num_workers", type=int)
    return made


def test_old_spellings_are_taken_with_a_note(capsys):
    args = parser().parse_args(["--out", "there", "--num-workers=3"])
    assert (args.output_dir, args.num_workers) == ("there", 3)
    notes = capsys.readouterr().err.splitlines()
    assert notes[0].startswith("note: --out is now --output_dir") and notes[1].startswith("note: --num-workers is now")


def test_present_spellings_give_no_note(capsys):
    assert parser().parse_args(["--output_dir", "there"]).output_dir == "there"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("argv", [["--output", "x"], ["--num_workers", "many"], ["left", "over"]])
def test_a_wrong_option_ends_in_one_line_and_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("python -m it: error: ") and "--help" in lines[0]


def a_bug(kind):
    if kind == "index":
        return [][1]
    if kind == "value":
        return int("x")
    if kind == "library":
        return torch.zeros(2).reshape(3)
    return {}["key"]


@pytest.mark.parametrize("kind", ["index", "value", "library", "key"])
def test_a_bug_keeps_its_traceback(kind):
    with pytest.raises((IndexError, ValueError, KeyError, RuntimeError)):
        command(lambda: a_bug(kind))()


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "main",
    [
        raising(DataError("a.json: cut off;\n download it again")),
        lambda: open("no/such/file"),
        lambda: GADMSConfig(temperature=-1.0),
    ],
    ids=["data", "file", "config"],
)
def test_a_mistake_ends_in_one_line_and_code_2(main, capsys):
    assert command(main)() == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


def test_codes_of_results_pass_through():
    assert [command(lambda code=code: code)() for code in (None, 0, 1)] == [0, 0, 1]


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise DataError("row 3: broken; replace it")


def test_what_a_worker_of_a_loader_raises_is_one_line_too(capsys):
    assert command(lambda: list(DataLoader(Broken(), num_workers=1)) and None)() == 2
    assert capsys.readouterr().err == "error: row 3: broken; replace it\n"
    assert in_one_line(ValueError("two\nlines")) == "two lines"


@pytest.mark.parametrize(
    ("count", "ending"), [(0, "at least 1 and at most 5; got 0"), (6, "at least 1 and at most 5; got 6")]
)
def test_a_number_outside_its_bounds_is_named(count, ending, capsys):
    args = parser().parse_args(["--num_workers", str(count)])
    with pytest.raises(SystemExit) as stop:
        parser().refuse_outside(args, num_workers=(1, 5))
    assert stop.value.code == 2 and f"--num_workers must be {ending};" in capsys.readouterr().err
    for inside in (1, 5):
        args.num_workers = inside
        parser().refuse_outside(args, num_workers=(1, 5))
    args.num_workers = 6
    parser().refuse_outside(args, num_workers=(1, None))
    args.num_workers = float("nan")  # is neither below nor above
    with pytest.raises(SystemExit):
        parser().refuse_outside(args, num_workers=(1, None))
    assert "--num_workers must be at least 1; got nan" in capsys.readouterr().err
