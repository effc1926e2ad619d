"""Command lines: one dialect of options, and one way in which a user's mistake ends."""

import argparse
import dis
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .findings import DataError

MISTAKE = 2  # exit code of a user's mistake, as argparse has it
_OURS = (os.path.dirname(os.path.abspath(__file__)), os.path.join(os.path.dirname(__file__), "..", "modeling_gadms"))
# what a library says of input is a mistake only where it was raised on purpose, so a bug of these types still shows
_PACKAGES = ("dataset_webperson.", "modeling_gadms.")
_RAISED = (ValueError, RuntimeError, FloatingPointError, ImportError)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Options and their help side by side; a long list of choices, or of values, does not push them apart."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 32, **options})

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Any:
        if action.choices is not None and action.option_strings and len(", ".join(map(str, action.choices))) > 30:
            return lambda size: (action.metavar or default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs in ("+", "*") and action.metavar is None:
            (metavar,) = self._metavar_formatter(action, default_metavar)(1)
            return f"{metavar} ..."
        return super()._format_args(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = super()._get_help_string(action)
        if action.choices is not None and len(", ".join(map(str, action.choices))) > 30 and text:
            return f"{text}; of {', '.join(map(str, action.choices))}" if action.option_strings else text
        return text


class CommandParser(argparse.ArgumentParser):
    """`argparse` in the dialect of this project: `--words_with_underscores`, never abbreviated, errors of one line.

    Old spellings, hyphens among them, are taken with a note on stderr.

    Args:
        renamed: old name of an option to its present one, as `{"--out": "--output_dir"}`.
        **options: of `argparse.ArgumentParser`.
    """

    def __init__(self, *, renamed: Mapping[str, str] | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        super().__init__(allow_abbrev=False, **options)
        self.renamed = dict(renamed or {})

    # argparse declares overloads by the namespace's type, which need not be repeated here
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([self._present_name(word) for word in words], namespace)

    def _present_name(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        present = self.renamed.get(name, "--" + name[2:].replace("-", "_"))
        if present not in self._option_string_actions:
            return word
        sys.stderr.write(f"note: {name} is now {present}; the old name will go in the release after this one\n")
        return present + equals + value

    def format_help(self) -> str:
        if self.usage is None:  # what must be given; the options are listed below it
            needed = [action for action in self._actions if action.required and action.help != argparse.SUPPRESS]
            names = [" ".join([*action.option_strings[-1:], _placeholder(action)]) for action in needed]
            self.usage = " ".join(["%(prog)s", *names, "[--name value ...]"])
        return super().format_help()

    def refuse_outside(self, args: argparse.Namespace, **bounds: tuple[float, float | None]) -> None:
        """End in an error if an option is below the first of its bounds or, where there is a second, above it."""
        for name, (least, most) in bounds.items():
            value = getattr(args, name)
            if not value >= least or (most is not None and value > most):
                self.error(f"--{name} must be at least {least}{f' and at most {most}' if most else ''}; got {value}")

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: error: {message}; --help lists the options\n")


def _placeholder(action: argparse.Action) -> str:
    if action.metavar is None and action.choices is not None and not action.option_strings:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar or action.dest.upper()


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Let a command's `main` end a user's mistake in one line on stderr and exit code 2; a bug keeps its traceback.

    A mistake is an error of a class of this project, an `OSError`, or what code of this project raised on purpose.

        @command
        def main(arguments: list[str] | None = None) -> int | None: ...

        if __name__ == "__main__":
            sys.exit(main())
    """

    folder = os.path.dirname(os.path.abspath(main.__code__.co_filename))

    @functools.wraps(main)
    def run(*arguments: Any) -> int:
        try:
            return main(*arguments) or 0
        except Exception as error:
            if not is_mistake(error, folder):
                raise
            sys.stderr.write(f"error: {in_one_line(error)}\n")
            return MISTAKE

    return run


def is_mistake(error: BaseException, folder: str | None = None) -> bool:
    """Whether an exception tells the user what to change, rather than us what to mend.

    Args:
        error: the exception.
        folder: code in it is ours too, as the packages' is: the folder of the script that runs.
    """
    if isinstance(error, DataError | OSError) or type(error).__module__.startswith(_PACKAGES):
        return True
    return isinstance(error, _RAISED) and _raised_on_purpose(error, folder)


def _raised_on_purpose(error: BaseException, folder: str | None) -> bool:
    """Whether a `raise` of this project's code is where the exception comes from."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"] and _is_ours(code.co_filename, folder)


def _is_ours(file: str, folder: str | None) -> bool:
    """Code of the two packages, of a checkpoint of ours, or beside the script that runs."""
    places = [os.path.realpath(place) + os.sep for place in (*_OURS, folder) if place]
    return os.path.realpath(file).startswith(tuple(places)) or file.endswith("_gadms.py")


def in_one_line(error: BaseException) -> str:
    """What an exception says, short of the traceback that a loader's worker puts before it."""
    text = str(error) or type(error).__name__
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = re.split(r"^[\w.]+(?:Error|Exception): ", text, flags=re.MULTILINE)[-1]
    return " ".join(text.split())
