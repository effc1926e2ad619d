"""Where things lie in this repository."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "examples"
TESTS = REPO / "tests"
HELPERS = TESTS / "helpers"
