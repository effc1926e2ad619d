"""Every cure that a message about data advises exists: options, arguments, modules, methods and files."""

import ast
import importlib
import inspect
import re
import time
from pathlib import Path

import datasets
import PIL.Image
from places import REPO

from dataset_webperson.findings import KINDS
from dataset_webperson.readers.benchmarks import load_benchmark
from dataset_webperson.readers.corpora import load_corpus

PACKAGE = REPO / "dataset_webperson"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in SOURCES if "construction" not in path.parts and path.name != "build.py"]


def text_of(node: ast.expr) -> str:
    """A string of the source, with `0` in the place of what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "0" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def strings_in(tree: ast.AST) -> list[str]:
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    nodes = (
        node for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.Constant)) and id(node) not in parts
    )
    return [text for node in nodes if (text := text_of(node))]


def messages(path: Path) -> list[str]:
    """The strings of what a module raises, and of what it returns or adds to findings as text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {text for node in ast.walk(tree) if isinstance(node, ast.Expr) and (text := text_of(node.value))}
    return [text for text in strings_in(tree) if text not in docs and " " in text]


ALL = [(str(path.relative_to(REPO)), text) for path in MODULES for text in messages(path)]
ALL += [(f"KINDS[{code!r}]", kind.cure) for code, kind in KINDS.items()]


def options_of(path: Path) -> set[str]:
    return set(re.findall(r'"(--[a-z_]+)"', path.read_text(encoding="utf-8")))


def parameters() -> set[str]:
    """Every argument and field of the package."""
    names = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                names.add(node.arg)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


def test_there_are_messages_to_read():
    assert len(ALL) > 200 and any("on_bad_images='warn'" in text for _, text in ALL)


def test_options_that_are_advised_are_of_the_command_that_is_named_or_that_speaks():
    advised = 0
    for place, text in ALL:
        if place.endswith("command_line.py"):  # which speaks of options in general
            continue
        for option in re.findall(r"(?<![\w\"'`-])(--[a-z_]+)", text):
            named = re.search(r"dataset_webperson\.(\w+) --", text)
            speaker = PACKAGE / f"{named[1]}.py" if named else REPO / place
            known = options_of(speaker)
            if not named and not known:  # a module below: one of the commands on top has it
                known = set().union(*(options_of(path) for path in PACKAGE.glob("*.py")))
            assert option in known, f"{place}: {text}"
            advised += 1
    assert advised > 3


def test_arguments_that_are_advised_exist():
    known = parameters()
    both = set(inspect.signature(load_benchmark).parameters) & set(inspect.signature(load_corpus).parameters)
    advised = set()
    for place, text in ALL:
        for name in re.findall(r"\b(?:with|pass|load with) ([a-z]+(?:_[a-z]+)+)=", text):
            assert name in known, f"{place}: {text}"
            advised.add(name)
        for name in re.findall(r"\b(?:pass|load)\b[^;:]* as `?(annotations|image_root|[a-z]+_[a-z]+)\b", text):
            assert name in both, f"{place}: {text}"
            advised.add(name)
    assert {"on_bad_images", "on_missing_images", "annotations", "image_root", "expected_rows"} <= advised


def test_modules_and_attributes_that_are_advised_exist():
    advised = set()
    for place, text in ALL:
        for dotted in re.findall(r"\bdataset_webperson(?:\.[a-z_]+)+", text):
            module, _, attribute = dotted.rpartition(".")
            try:
                importlib.import_module(dotted)
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(module), attribute), f"{place}: {text}"
            advised.add(dotted)
        for name in re.findall(r"\bPIL\.Image\.(\w+)", text):
            assert hasattr(PIL.Image, name), f"{place}: {text}"
        for name in re.findall(r"`dataset\.(\w+)`", text):
            assert hasattr(datasets.Dataset, name), f"{place}: {text}"
        for dotted in re.findall(r"\bdatasets\.([A-Z]\w+)\(", text):
            assert hasattr(datasets, dotted), f"{place}: {text}"
    assert {"dataset_webperson.release", "dataset_webperson.images.open_image"} <= advised


def test_what_the_card_advises_against_waiting_takes_the_rest_of_a_shuffled_stream_away(tmp_path, monkeypatch):
    card = (REPO / "dataset_webperson" / "release_files" / "dataset_card.md").read_text()
    assert "datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0" in card and "rests for 5 seconds" in card
    assert datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN == 5
    datasets.Dataset.from_dict({"number": [1, 2, 3]}).to_parquet(str(tmp_path / "train.parquet"))
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    for seconds, shuffled, expected in ((5, True, [5]), (5, False, []), (0, True, [0])):
        monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", seconds)
        rows = datasets.load_dataset(str(tmp_path), split="train", streaming=True)
        rests.clear()
        assert len(list(rows.shuffle(seed=0) if shuffled else rows)) == 3
        assert [rest for rest in rests if rest in (0, 5)] == expected
