"""What strangers run and what we upload: code that touches nothing, no pickle, no file that is not listed."""

import ast
import json
import sys
from pathlib import Path

import pytest
from places import REPO
from tiny import save_published

from modeling_gadms.hub.listings import DATASET, METRICS, MODEL, SCRIPT, TRAINING_STATE

# torch, transformers, and what transformers itself depends on
LIBRARIES = {"torch", "transformers", "numpy", "tokenizers", "PIL"}
STANDARD = {
    "collections",
    "contextlib",
    "dataclasses",
    "functools",
    "gzip",
    "html",
    "json",
    "math",
    "pathlib",
    "typing",
    "zlib",
}
STANDARD |= {
    "base64",
    "binascii",
    "http",
    "io",
    "os",
    "urllib",
}  # an image in a string, as the image processor reads it
OPTIONAL = {"ftfy"}  # inside a `try`; used where it is installed
RISKY_NAMES = {"open", "eval", "exec", "compile", "__import__", "globals", "breakpoint", "input"}
RISKY_ATTRIBUTES = {"load", "save", "system", "popen", "connect", "urlopen", "unlink", "rmtree", "remove", "hub"}
RISKY_ATTRIBUTES |= {
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "load_state_dict_from_url",
    "loads_pickle",
    "open",
}
# they read the vocabulary or the image that their caller names; no way of loading a checkpoint comes through them
READERS = {
    ("tokenization_gadms.py", name)
    for name in ("from_clip_vocabulary", "_read_clip_merges", "_read_bpe_file", "_text_of")
} | {("image_processing_gadms.py", name) for name in ("_open_string", "_fetched")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    save_published(folder)
    (folder / "README.md").write_text("card")
    return folder


def imports_of(tree):
    """Top-level modules imported anywhere, and of them those that stand in a `try`."""
    found, tried = set(), set()
    inside = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [] if node.level else [node.module]
            assert node.level < 2, "a sibling is imported as `from .x import y`"
        for name in names:
            (tried if id(node) in inside else found).add(name.split(".")[0])
    return found, tried


def risks_of(tree, file):
    """`{name of the function: calls that could touch files, the network or pickles}`."""
    found = {}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        if name in (RISKY_NAMES if isinstance(called, ast.Name) else RISKY_ATTRIBUTES):
            around = [f.name for f in functions if f.lineno <= node.lineno <= f.end_lineno]
            found.setdefault((file, around[0] if around else ""), set()).add(name)
    return found


def code_of(checkpoint):
    return {path.name: ast.parse(path.read_text()) for path in sorted(checkpoint.glob("*.py"))}


def test_code_beside_the_weights_imports_torch_and_transformers_alone(checkpoint):
    trees = code_of(checkpoint)
    assert {"configuration_gadms.py", "modeling_gadms.py", "processing_gadms.py"} <= set(trees)
    for name, tree in trees.items():
        found, tried = imports_of(tree)
        assert found <= LIBRARIES | STANDARD, name
        assert tried <= OPTIONAL, name
    assert STANDARD <= set(sys.stdlib_module_names)


def test_code_beside_the_weights_touches_no_file_no_network_and_no_pickle_but_what_it_is_given(checkpoint):
    found = {}
    for name, tree in code_of(checkpoint).items():
        found |= risks_of(tree, name)
    assert set(found) <= READERS
    pictures = found.pop(("image_processing_gadms.py", "_open_string"))
    assert pictures == {"open", "load"}  # Pillow opens the image and decodes it
    assert found.pop(("image_processing_gadms.py", "_fetched")) == {"urlopen"}  # an address that the caller gives
    assert set().union(*found.values()) <= {"read_text", "read_bytes", "open"}


@pytest.mark.parametrize(
    "line",
    ["open('x')", "torch.load('x')", "eval('1')", "Path('x').write_text('y')", "os.system('x')", "__import__('os')"],
)
def test_the_check_of_code_notices_what_it_is_for(line):
    assert risks_of(ast.parse(f"def f():\n    {line}"), "x.py")


def test_the_code_published_is_the_code_here(checkpoint):
    source = REPO / "modeling_gadms"
    for path in checkpoint.glob("*.py"):
        assert path.read_bytes() == (source / path.name).read_bytes(), path.name


def test_weights_are_safetensors_and_nothing_in_a_model_is_a_pickle(checkpoint):
    files = MODEL.files(checkpoint)
    assert {Path(name).suffix for name in files} == {".md", ".json", ".py", ".safetensors"}
    assert set(files) == {path.name for path in checkpoint.iterdir()}
    size = int.from_bytes((checkpoint / "model.safetensors").read_bytes()[:8], "little")
    header = json.loads((checkpoint / "model.safetensors").read_bytes()[8 : 8 + size])
    assert header["__metadata__"] == {"format": "pt"}
    for path in checkpoint.glob("*.json"):
        json.loads(path.read_text())


@pytest.mark.parametrize(
    "path",
    [".env", "token", "training_args.bin", "pytorch_model.bin", "model.pkl", "optimizer.pt", "notes_gadms.txt"]
    + ["../config.json", "run/config.json", "logs/README.md", ".git/config", "id_rsa", "data/train.csv"],
)
def test_what_is_not_listed_is_not_uploaded(path):
    assert not any(listing.owns(path) for listing in (MODEL, DATASET, *METRICS.values(), SCRIPT)), path
    assert path == "optimizer.pt" or not TRAINING_STATE.owns(path)
