"""A checkpoint in the hands of a user without this package: quickly here, in clean environments by `make`."""

import json
import os
import subprocess
import sys

import pytest
from places import HELPERS, REPO
from tiny import save_published
from tiny_towers import KINDS, ROTARY, save_towers, tiny_rotary

from modeling_gadms import GADMSModel, GADMSProcessor
from modeling_gadms.hub.listings import write_sentence_transformers

# interpreters of clean environments; absolute, but never resolved: what a link points to is outside of the environment
STRANGER, EXPORTS = (os.path.abspath(os.environ.get(f"{name}_PYTHON", "")) for name in ("STRANGER", "EXPORTS"))
only_by_make = pytest.mark.skipif(
    "STRANGER_PYTHON" not in os.environ, reason="run by `make test-stranger`, in clean environments"
)

CHECKS = ["model and processor", "pixel_values", "token_scores", "word_contributions"]
CHECKS += ["save and reload", "processor reloaded"]
CHECKS += ["bfloat16", "token_scores in bfloat16"]

# both towers by `sentence-transformers`, from the settings in the folder, compared with the model's own embeddings
SENTENCES = """
import sys
sys.modules["modeling_gadms"] = None
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

encoder = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
captions = ["a Person in a red coat", "someone in blue"]  # SigLIP's captions are lower-cased
pictures = [Image.new("RGB", (20, 40), colour) for colour in ("red", "blue", "white")]
with torch.no_grad():
    outputs = model(**processor(images=pictures, text=captions))
text, image = (torch.from_numpy(encoder.encode(inputs)) for inputs in (captions, pictures))
assert (text - outputs.text_embeds).abs().max() < 1e-6 and (image - outputs.image_embeds).abs().max() < 1e-6
assert encoder.similarity(text, image).shape == (2, 3)
print("same")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    save_published(folder)
    return folder


@pytest.fixture(scope="module", params=["clip", *ROTARY, *KINDS])
def of_each_kind(request, tmp_path_factory):
    """A checkpoint with towers of each kind, as it goes to the Hub."""
    if request.param == "clip":
        return request.getfixturevalue("checkpoint")
    towers, folder = tmp_path_factory.mktemp("towers"), tmp_path_factory.mktemp("published")
    if request.param in ROTARY:
        model, processor = tiny_rotary(request.param)
        model.gadms.save_pretrained(folder)
        processor.save_pretrained(folder)
    else:
        save_towers(request.param, towers)
        for kind in (GADMSModel, GADMSProcessor):
            kind.from_pretrained_towers(towers, image_size=(32, 16)).save_pretrained(folder)
    write_sentence_transformers(folder)
    return folder


def run(python, *command, cwd):
    # caches of their own: a compiled graph or remote code of an earlier run proves nothing
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    env = {**kept, "HF_HOME": str(cwd / "hf"), "TORCHINDUCTOR_CACHE_DIR": str(cwd / "inductor"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run([python, "-I", *map(str, command)], env=env, cwd=cwd, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.splitlines()[-1]


def test_a_checkpoint_works_where_this_package_cannot_be_imported(checkpoint, tmp_path):
    found = json.loads(run(sys.executable, HELPERS / "stranger_process.py", checkpoint, tmp_path, cwd=tmp_path))
    assert found["done"] == CHECKS and found["loaded"] == []


@only_by_make
def test_a_checkpoint_works_where_only_transformers_and_torch_are_installed(checkpoint, tmp_path):
    installed = run(STRANGER, "-m", "pip", "list", "--format", "json", cwd=tmp_path)
    names = {package["name"].lower() for package in json.loads(installed)}
    assert {"torch", "transformers", "pillow"} <= names and not {"gadms", "datasets", "accelerate", "ftfy"} & names
    command = [HELPERS / "stranger_process.py", checkpoint, tmp_path, "compile"]
    assert json.loads(run(STRANGER, *command, cwd=tmp_path))["done"] == [*CHECKS, "torch.compile"]


@only_by_make
def test_a_checkpoint_can_be_spread_over_devices_where_accelerate_is_installed(checkpoint, tmp_path):
    command = [HELPERS / "stranger_process.py", checkpoint, tmp_path, "device_map"]
    done = json.loads(run(EXPORTS, *command, cwd=tmp_path))["done"]
    assert [name.split()[0] for name in done[len(CHECKS) :]] == ["device_map", "device_map"]


@only_by_make
def test_both_towers_give_the_same_embeddings_by_onnx_runtime(of_each_kind, tmp_path):
    last = run(EXPORTS, REPO / "examples/export_onnx.py", of_each_kind, tmp_path / "onnx", "--int8", cwd=tmp_path)
    assert float(last.split()[-1]) < 1e-5
    assert {"image.onnx", "image-int8.onnx", "text.onnx"} <= set(os.listdir(tmp_path / "onnx"))


@only_by_make
def test_sentence_transformers_encodes_sentences_and_images_without_code_of_its_own(of_each_kind, tmp_path):
    assert run(EXPORTS, "-c", SENTENCES, of_each_kind, cwd=tmp_path) == "same"
