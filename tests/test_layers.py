"""The laws of the layers that CONTRIBUTING states, read off the imports, those inside functions included."""

import ast
import functools
import os
import sys
from pathlib import Path

import forked
import pytest
from places import REPO

FLAT = {"__init__.py", "rows.py", "convert_gadms_to_hf.py"}
BESIDE_SHIPPED = {"ftfy"}  # used where it is installed
PACKAGES = ("modeling_gadms", "dataset_webperson")


def module_name(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((REPO / package).rglob("*.py"))}


@functools.cache
def imports(module: str, source: str | None = None, inside_functions: bool = True) -> set[str]:
    """Absolute names of the modules that a module imports; `from package import module` gives the module."""
    path = FILES[module]
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    if inside_functions:
        nodes = list(ast.walk(tree))
    else:
        nodes = [inner for node in tree.body if not _is_definition(node) for inner in ast.walk(node)]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            submodules = {f"{name}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= submodules or {name}
    return found


def _is_definition(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def is_construction(module: str) -> bool:
    return is_below(module, "dataset_webperson.construction") or module == "dataset_webperson.build"


def breaches(module: str, imported: set[str]) -> set[str]:
    """What a module may not import, of what it does."""
    if is_construction(module):
        return set()
    forbidden = {name for name in imported if is_construction(name)}
    if is_below(module, "dataset_webperson"):
        forbidden |= {name for name in imported if is_below(name, "modeling_gadms")}
    return forbidden


@pytest.mark.parametrize("module", FILES)
def test_data_knows_no_model_and_neither_knows_the_construction(module):
    assert breaches(module, imports(module)) == set()


def test_a_breach_inside_a_function_would_be_seen():
    source = "def late():\n    from modeling_gadms import rows\n    from .construction.stages import crop\n"
    found = imports("dataset_webperson.doctor", source)
    assert breaches("dataset_webperson.doctor", found) == {
        "modeling_gadms.rows",
        "dataset_webperson.construction.stages.crop",
    }
    assert breaches("modeling_gadms.rows", {"dataset_webperson.build"}) == {"dataset_webperson.build"}
    assert breaches("dataset_webperson.build", found) == set()


def test_what_ships_lies_flat_and_little_else_does():
    flat = {path.name for path in (REPO / "modeling_gadms").glob("*.py")}
    assert {name for name in flat if not name.endswith("_gadms.py")} == FLAT
    nested = [path for path in (REPO / "modeling_gadms").rglob("*_gadms.py") if path.parent.name != "modeling_gadms"]
    assert nested == []


@pytest.mark.parametrize("module", [name for name in FILES if name.endswith("_gadms")])
def test_what_ships_imports_siblings_and_what_transformers_brings(module):
    brought = {"torch", "transformers", "numpy", "PIL", "tokenizers", "safetensors", "huggingface_hub"}
    for name in imports(module):
        if name.startswith("modeling_gadms."):
            assert name.endswith("_gadms") and name.count(".") == 1, name
        else:
            first = name.split(".")[0]
            assert first in sys.stdlib_module_names or first in brought | BESIDE_SHIPPED, name


def test_no_imports_run_in_a_circle():
    graph = {module: imports(module, inside_functions=False) & FILES.keys() for module in FILES}
    # a package's own names stand for its `__init__`, which its modules do not need in order to be imported
    done, path = set(), []

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for name in sorted(graph[module]):
            visit(name)
        path.pop()
        done.add(module)

    for module in FILES:
        visit(module)


def test_arguments_import_nothing_that_only_a_command_needs(tmp_path):
    code = (
        "import sys; before = {*sys.modules};"
        "import modeling_gadms.training.arguments, modeling_gadms.finetuning.arguments;"
        "print(*sys.modules); print(*before)"
    )
    # other libraries are loaded before: none of those that are unwanted, nor any that would load them
    run = forked.run(["-c", code], cwd=REPO, env={**os.environ, "HF_HOME": str(tmp_path)})
    run.check_returncode()
    after, before = ({*line.split()} for line in run.stdout.splitlines())
    unwanted = ("PIL.ImageFilter", "matplotlib", "modeling_gadms.evaluation", "modeling_gadms.hub.model_card")
    assert "modeling_gadms.training.arguments" in after - before
    assert not [name for name in after if name.startswith(unwanted)]


def test_the_check_of_a_gpu_imports_nothing_that_such_a_machine_may_lack():
    """Outside functions; torch, transformers, datasets and accelerate bring what is named here, but for Pillow."""
    brought = {"torch", "transformers", "datasets", "accelerate", "PIL", "numpy", "pyarrow", "safetensors", "yaml"}
    brought |= {"huggingface_hub", "fsspec", "tqdm", "jinja2", "tokenizers", "packaging", "markupsafe"}
    examples = [REPO / "examples" / "gpu_check.py", *(REPO / "examples" / "device_checks").glob("*.py")]
    examples += [REPO / "examples" / "studies" / f"{name}.py" for name in ("step_costs", "training_steps")]
    examples.append(REPO / "examples" / "loading_benchmark" / "pictures.py")
    names = {name for path in examples for name in imports("modeling_gadms", path.read_text(encoding="utf-8"), False)}
    beside = {"device_checks", "loading_benchmark", "studies"}
    seen: set[str] = set()
    while left := names - seen:
        for name in left:
            parents = {name.rpartition(".")[0]} & FILES.keys()
            names |= parents | (imports(name, inside_functions=False) if name in FILES else set())
        seen |= left
    others = {name.split(".")[0] for name in names} - sys.stdlib_module_names - set(PACKAGES) - beside - BESIDE_SHIPPED
    assert {"torch", "datasets", "PIL"} <= others <= brought, others - brought


def test_the_card_s_template_is_the_one_card_of_the_repository():
    template = REPO / "modeling_gadms" / "hub" / "model_card.md"
    assert template.read_bytes() == (REPO / "model_card.md").read_bytes()
