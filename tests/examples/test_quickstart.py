"""The notebook, run from the first cell to the last with less data."""

import re

import nbformat
from nbclient import NotebookClient
from places import REPO

NOTEBOOK = REPO / "examples" / "quickstart.ipynb"


def parameters(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def test_the_notebook_runs_and_what_it_saved_loads_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    names = [line.split(" = ")[0] for line in parameters(notebook).source.splitlines()]
    assert names == ["NUM_PERSONS", "EPOCHS", "BATCH_SIZE", "IMAGE_SIZE", "OUTPUT"]
    parameters(notebook).source = f"{', '.join(names)} = 16, 1, 16, (64, 32), {str(tmp_path / 'out')!r}"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(REPO / "examples")}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "| text->image | after" in printed
    # weights are the same; products may be rounded otherwise where they lie otherwise in memory
    assert float(re.search(r"largest difference: (\S+)", printed)[1]) < 1e-5
    assert {"retrievals.png", "words.png", "model.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_notebook_is_kept_with_its_figures_and_no_path_of_the_machine_that_made_them():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kept = NOTEBOOK.read_text(encoding="utf-8")
    assert "image/png" in kept and "| text->image | after" in kept
    assert not [word for word in ("/home/", "/root/", "/tmp/", "/work/") if word in kept] and len(kept) < 600_000
