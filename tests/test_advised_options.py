"""Every option that a message advises exists: on a command line, or as an argument of a function."""

import ast
import re
from dataclasses import fields
from functools import cache

import pytest
from places import REPO
from transformers import TrainingArguments

from modeling_gadms.evaluation.arguments import EvaluationArguments
from modeling_gadms.finetuning.data import FineTuningDataArguments

FILES = sorted(
    path for folder in ("modeling_gadms", "dataset_webperson", "examples") for path in (REPO / folder).rglob("*.py")
)
# of the tools that messages name with them: torchrun, pip, git and the like
OF_OTHERS = {"nproc_per_node", "num_processes", "upgrade", "no"}
ARGUMENTS_OF_OTHERS = {"trust_remote_code", "weights_only"}  # of transformers and torch
READERS = ("annotations", "image_root", "on_count_mismatch", "on_missing_images")


@cache
def trees():
    return {path: ast.parse(path.read_text()) for path in FILES}


@cache
def known():
    """Names of options of all commands, and of arguments and fields of all functions and classes."""
    options, arguments = {field.name for field in fields(TrainingArguments)} | {"help", "help_all"}, set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                given = [part.value for part in node.args if isinstance(part, ast.Constant)]
                options |= {name[2:] for name in given if str(name).startswith("--")}
            elif isinstance(node, ast.keyword) and node.arg == "renamed" and isinstance(node.value, ast.Dict):
                options |= {key.value.removeprefix("--") for key in node.value.keys if isinstance(key, ast.Constant)}
            elif isinstance(node, ast.ClassDef):
                named = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
                options |= named
                arguments |= named
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                parts = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments |= {part.arg for part in parts}
    return options, arguments


def messages(tree):
    """The texts of what is raised, found or warned of: every string that is no docstring and no bare word."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            if " " in node.value and "img2dataset --" not in node.value:  # a whole command of another tool
                yield node.lineno, node.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_option_that_a_message_advises_exists(path):
    options, arguments = known()
    for line, text in messages(trees()[path]):
        for name in re.findall(r"(?<![\w-])--([a-z][a-z0-9_]+)(?![\w-])", text):
            assert name in options | OF_OTHERS, f"{path}:{line}: --{name} is an option of no command"
        for name in re.findall(r"\b([a-z]+(?:_[a-z]+)+)=['\"\w]", text):
            assert name in options | arguments | ARGUMENTS_OF_OTHERS, (
                f"{path}:{line}: {name}= is an argument of nothing"
            )


@pytest.mark.parametrize("option", READERS)
def test_what_readers_advise_can_be_given_where_benchmarks_are_read(option):
    for arguments in (EvaluationArguments, FineTuningDataArguments):
        assert option in {field.name for field in fields(arguments)}, arguments
