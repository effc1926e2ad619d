"""What a Space needs in one folder: its own files, this project's code and a model."""

import os
import shutil
from importlib.util import find_spec

from .listings import Listing

_CODE = ("py", "html", "css", "js", "json", "md")
# patterns hold for one depth each, and no package is deeper than four
_FOLDERS = ("modeling_gadms", "dataset_webperson")
APP = Listing(
    allowed=(
        *("README.md", "Dockerfile", "app.py", "requirements.txt", "small_clip/*"),
        *(f"{package}{'/*' * depth}.{kind}" for package in _FOLDERS for depth in (1, 2, 3, 4) for kind in _CODE),
    ),
    required=("README.md", "Dockerfile", "app.py", "requirements.txt", "small_clip/model.safetensors"),
)


def gather_space(folder: str, model: str, target: str) -> None:
    """Copy what [`APP`] lists to `target`: the files of `folder`, the two packages, and `model` as `small_clip`.

    Raises:
        FileNotFoundError: `folder` lacks a file that a Space needs.
    """
    copied = shutil.ignore_patterns("__pycache__")
    shutil.copytree(folder, target, dirs_exist_ok=True, ignore=copied)
    shutil.copytree(model, os.path.join(target, "small_clip"), dirs_exist_ok=True)
    for package in _FOLDERS:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        shutil.copytree(spec.submodule_search_locations[0], os.path.join(target, package), ignore=copied)
    APP.files(target)  # a missing file is found before anything is created
