"""Command lines of the examples: dataclasses filled from a YAML or JSON file and the command line; output folders."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType, string_to_bool

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser

FILES = (".yaml", ".yml", ".json")
_METAVARS = {int: "N", float: "X", string_to_bool: "BOOL"}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Options and their help side by side; a default that says nothing, or that the help names, is not added."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 36, **options})

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default in ("", [])
        if says_nothing or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _HelpAll(argparse.Action):
    """Prints the help with the options that `--help` leaves out."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, DataclassParser)
        for action, text in parser.left_out.items():
            action.help = text
        parser.print_help()
        parser.exit()


class DataclassParser(HfArgumentParser, CommandParser):
    """[`CommandParser`] whose options are the fields of dataclasses.

    The options of a dataclass with `HELP_GROUPS` are listed in these groups, `{title: {field: help}}`, where an empty
    help stands for the field's own; its other options are accepted too, and listed by `--help_all` only. The options
    of other dataclasses form one group each, with `_argument_group_name` as the title.

    Args:
        dataclass_types: the dataclasses.
        renamed: old names of options to their present ones, as in [`CommandParser`].
        options: of `argparse.ArgumentParser`.
    """

    def __init__(
        self, dataclass_types: Iterable[type], *, renamed: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        self.left_out: dict[argparse.Action, str | None] = {}
        self._hints: dict[str, Any] = {}
        options.setdefault("usage", "%(prog)s [FILE.yaml | FILE.json] [--name value ...]")
        types = [DataClassType(each) for each in dataclass_types]
        super().__init__(types, renamed=renamed, formatter_class=_HelpFormatter, **options)
        if self.left_out:
            self.add_argument(
                "--help_all",
                nargs=0,
                action=_HelpAll,
                dest=argparse.SUPPRESS,
                default=argparse.SUPPRESS,
                help="show every option, also the rest of transformers.TrainingArguments, and exit",
            )

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        hints = get_type_hints(dtype)
        fields = {field.name: field for field in dataclasses.fields(dtype) if field.init}
        self._hints |= {name: hints[name] for name in fields}
        groups: dict[str, dict[str, str]] = dict(getattr(dtype, "HELP_GROUPS", {}))
        grouped = {name for names in groups.values() for name in names}
        if groups:
            rest = "other options, of transformers.TrainingArguments"
        else:
            rest = getattr(dtype, "_argument_group_name", "options of this script")
        groups[rest] = dict.fromkeys((name for name in fields if name not in grouped), "")

        for title, names in groups.items():
            group = self.add_argument_group(title)
            for name, text in names.items():
                field = fields[name]
                field.type = hints[name]
                before = len(self._actions)
                self._parse_dataclass_field(group, field)  # type: ignore[arg-type]  # as the parent does
                for action in self._actions[before:]:
                    self._adapt(action, text)
                    if title == rest and grouped:
                        self.left_out[action], action.help = action.help, argparse.SUPPRESS

    def _adapt(self, action: argparse.Action, text: str) -> None:
        """Drop spellings with hyphens, which [`CommandParser`] translates, shorten the metavar, and set the help."""
        for spelling in [each for each in action.option_strings if "-" in each[2:]]:
            del self._option_string_actions[spelling]
        action.option_strings = [each for each in action.option_strings if "-" not in each[2:]]
        if action.option_strings[0].startswith("--no_") and action.const is False:
            action.help = argparse.SUPPRESS  # `--no_name` is `--name False`
            return
        if action.choices is None and action.nargs != 0:
            action.metavar = _METAVARS.get(action.type, "TEXT")
        if text:
            action.help = text

    def take_defaults(self, file: str) -> None:
        """Let the values of a YAML or JSON file be the defaults.

        Raises:
            DataError: the file is malformed or no mapping, names an unknown option, or has a value of a wrong type.
        """
        values = _read_mapping(file)
        actions = {action.dest: action for action in reversed(self._actions) if action.option_strings}
        named = {self._present_name(f"--{name}").removeprefix("--"): value for name, value in values.items()}
        if unknown := sorted(set(named) - set(self._hints)):
            raise DataError(f"{file}: no such argument: {', '.join(unknown)}; --help_all lists them")
        for name, value in named.items():
            action = actions[name]
            try:
                action.default = self._typed(action, value)
            except argparse.ArgumentError as error:
                raise DataError(f"{file}: {name}: {error.message}") from None
            action.required = False

    def _typed(self, action: argparse.Action, value: Any) -> Any:
        """A value of a file as the command line would give it.

        Raises:
            argparse.ArgumentError: it is of another type, or none of the choices.
        """
        hint = self._hints[action.dest]
        allowed = {get_origin(kind) or kind for kind in (*get_args(hint), hint)}
        if value is None and type(None) in allowed:
            return None
        if action.nargs == "+":
            if not isinstance(value, list):
                raise argparse.ArgumentError(action, f"expected a list, found {value!r}")
            return [self._word(action, each) for each in value]
        if type(value) in (list, dict) and type(value) in allowed:
            return value
        return self._word(action, value)

    def _word(self, action: argparse.Action, value: Any) -> Any:
        if not isinstance(value, str | int | float):
            raise argparse.ArgumentError(action, f"expected a single value, found {value!r}")
        typed = self._get_value(action, str(value))
        self._check_value(action, typed)
        return typed


def parse_arguments(
    dataclass_types: Sequence[type] | type,
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Fill dataclasses from `[FILE.yaml | FILE.json] [--name value ...]`; the command line wins over the file.

    Args:
        dataclass_types: the dataclasses to fill, or one.
        argv: the command line; by default that of the process.
        description: of the command, for `--help`.
        renamed: old names of options to their present ones, which are taken in the file too.

    Raises:
        ValueError: the dataclasses refuse the values.
        DataError: the file cannot be used.
        SystemExit: an option is unknown or malformed; one line on stderr, with exit code 2.
    """
    types = [dataclass_types] if isinstance(dataclass_types, type) else dataclass_types
    parser = DataclassParser(types, renamed=renamed, description=description)
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].endswith(FILES):
        parser.take_defaults(words.pop(0))
    try:
        *filled, left_over = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:
        # transformers refuses values too, such as bf16 on a device without it
        raise ValueError(str(error)) from error
    if left_over:
        parser.error(f"unrecognized arguments: {' '.join(left_over)}")
    return tuple(filled)


def _read_mapping(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            values = json.load(stream) if file.endswith(".json") else yaml.safe_load(stream)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        kind = "JSON" if file.endswith(".json") else "YAML"
        raise DataError(f"{file}: not {kind}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise DataError(f"{file}: expected `name: value` lines, found {type(values).__name__}")
    return {str(name): value for name, value in values.items()}


def refuse_image_size(image_size: Sequence[int]) -> None:
    """Raise `ValueError` for what is not the height and width of an image."""
    if len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"image_size is a height and a width in pixels, as 384 128; got {image_size}")


def free_folder(folder: str) -> str:
    """`folder`, or `folder-2`, `folder-3`, ...: the first that does not exist; the same in every process."""
    choice = [folder]
    if PartialState().is_main_process:
        count = 1
        while os.path.exists(choice[0]):
            count += 1
            choice[0] = f"{folder}-{count}"
    return broadcast_object_list(choice)[0]


def refuse_used_folder(folder: str, resume_from_checkpoint: str | bool | None) -> None:
    """Refuse an output folder before a run would write among the files of another, or fail to write at its end.

    Raises:
        FileExistsError: the folder holds files, and this run does not resume.
        NotADirectoryError: there is a file in its place, or in that of a folder above it.
        PermissionError: it cannot be written.
    """
    existing = os.path.abspath(folder)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise NotADirectoryError(f"output_dir {folder}: {existing} is not a folder; choose another")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"output_dir {folder}: {existing} cannot be written; choose another")
    used = [os.path.isdir(folder) and bool(os.listdir(folder))]
    if broadcast_object_list(used)[0] and not resume_from_checkpoint:
        raise FileExistsError(
            f"output_dir {folder} already holds files: choose another, delete it, or continue that run with "
            "--resume_from_checkpoint True"
        )
