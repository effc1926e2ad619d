"""The versions that the shipped code needs: one sentence where transformers is older, one number everywhere."""

import re
import subprocess
import sys
import tomllib

import pytest
from places import REPO

from modeling_gadms.requirements_gadms import MINIMUM_TRANSFORMERS

# what transformers loads first of a checkpoint, whichever Auto class is asked for
ENTRIES = ["configuration_gadms", "modeling_gadms", "processing_gadms", "tokenization_gadms", "image_processing_gadms"]


@pytest.mark.parametrize("version, refused", [("4.57.6", True), ("5.9.0", True), ("5.22.2", True), ("5.23.0", False)])
def test_an_older_transformers_is_refused_by_number_whatever_is_loaded_first(tmp_path, version, refused):
    (tmp_path / "transformers.py").write_text(f'__version__ = "{version}"\n')  # it has no other name either
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(REPO)!r}]\n"
        f"for name in {['modeling_gadms', *(f'modeling_gadms.{entry}' for entry in ENTRIES)]}:\n"
        "    try:\n        __import__(name)\n    except ImportError as error:\n        print(error)\n"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    sentence = f"GA-DMS needs transformers {MINIMUM_TRANSFORMERS} or newer, but {version} is installed: pip install"
    lines = run.stdout.splitlines()
    assert len(lines) == 1 + len(ENTRIES) and all(line.startswith(sentence) == refused for line in lines), lines


def test_every_entry_checks_the_version_before_it_imports_from_transformers():
    for entry in [*ENTRIES, "__init__"]:
        source = (REPO / "modeling_gadms" / f"{entry}.py").read_text(encoding="utf-8")
        first = re.search(r"^(?:from|import) .*", source, re.MULTILINE)
        assert first is not None and first[0].startswith("from .requirements_gadms import"), entry


def test_readme_card_and_package_name_the_same_versions():
    with open(REPO / "pyproject.toml", "rb") as file:
        needs = dict(need.split(">=") for need in tomllib.load(file)["project"]["dependencies"])
    assert needs["transformers"] == MINIMUM_TRANSFORMERS
    for page in ("README.md", "model_card.md"):
        text = " ".join((REPO / page).read_text(encoding="utf-8").replace("`", "").split())
        assert f"transformers {MINIMUM_TRANSFORMERS} or newer" in text, page
        assert f"torch {needs['torch']} or newer" in text and "device_map needs accelerate" in text, page
