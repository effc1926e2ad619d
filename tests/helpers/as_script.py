"""A script run as `python script.py` runs it, in the process of the test: to import torch anew takes seconds."""

import runpy
import sys
from pathlib import Path

import pytest


def run_as_script(script: Path, *arguments: object) -> int:
    """The exit code of the script, whose `__main__` block runs too."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        patch.syspath_prepend(str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
    return int(ended.value.code or 0)
