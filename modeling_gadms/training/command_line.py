"""Arguments of the examples: dataclasses from the command line and, before it, a YAML or JSON file; output folders."""

import json
import os

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import HfArgumentParser


def parse_arguments(dataclass_types, argv: list[str]) -> tuple:
    """Fill dataclasses from `[FILE.yaml | FILE.json] [--name value ...]`; the command line wins over the file.

    Raises:
        ValueError: the file does not hold a mapping, or names an argument that does not exist.
        SystemExit: as `argparse`, on an unknown or malformed option.
    """
    parser = HfArgumentParser(dataclass_types)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        with open(argv[0]) as file:
            values = json.load(file) if argv[0].endswith(".json") else yaml.safe_load(file)
        if not isinstance(values, dict):
            raise ValueError(f"{argv[0]}: expected `name: value` lines, found {type(values).__name__}")
        known = {action.dest for action in parser._actions}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{argv[0]}: no such argument: {', '.join(unknown)}; `--help` lists them")
        for action in parser._actions:
            if action.dest in values:
                action.required = False
        parser.set_defaults(**values)
        argv = argv[1:]
    return parser.parse_args_into_dataclasses(argv)


def free_folder(folder: str) -> str:
    """`folder`, or `folder-2`, `folder-3`, ...: the first that does not exist; the same in every process."""
    choice = [folder]
    if PartialState().is_main_process:
        count = 1
        while os.path.exists(choice[0]):
            count += 1
            choice[0] = f"{folder}-{count}"
    return broadcast_object_list(choice)[0]


def refuse_used_folder(folder: str, resume_from_checkpoint) -> None:
    """Stop before a run would write among the files of another.

    Raises:
        FileExistsError: the folder holds files and this run does not resume.
    """
    used = [os.path.isdir(folder) and bool(os.listdir(folder))]
    if broadcast_object_list(used)[0] and not resume_from_checkpoint:
        raise FileExistsError(
            f"output_dir {folder} already holds files: choose another, delete it, or continue that run with "
            "--resume_from_checkpoint True"
        )
