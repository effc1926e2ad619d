"""A checkpoint saved by version 0.1, with the code that went with it, loads as it did then.

`tests/assets/checkpoint_0_1` was written by commit f728993; `expected.safetensors` there holds a batch and the
outputs of the model for it.
"""

import json
import os

import forked
import pytest
import torch
from places import REPO, TESTS
from safetensors.torch import load_file
from transformers import AutoModel

import modeling_gadms

CHECKPOINT = TESTS / "assets" / "checkpoint_0_1"

EMBED = """
import json, sys
checkpoint, trusted, blocked = sys.argv[1], sys.argv[2] == "trusted", sys.argv[3:]
for name in blocked:
    sys.modules[name] = None
if not blocked:
    import modeling_gadms
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

expected = load_file(checkpoint + "/expected.safetensors")
model = AutoModel.from_pretrained(checkpoint, trust_remote_code=trusted).eval()
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=trusted)
batch = {name: expected[name] for name in ("pixel_values", "input_ids", "attention_mask")}
with torch.no_grad():
    outputs = model(**batch)
found = {"image_embeds": outputs.image_embeds, "text_embeds": outputs.text_embeds}
found["token_scores"] = model.token_scores(batch["pixel_values"], batch["input_ids"])
ids = processor(text=["a person in a red coat and blue trousers"])["input_ids"]
differences = {name: (tensor - expected[name]).abs().max().item() for name, tensor in found.items()}
print(json.dumps({"differences": differences, "module": type(model).__module__, "ids": ids.tolist()}))
"""


@pytest.mark.parametrize(
    "trusted, blocked, module",
    [
        ("trusted", ["modeling_gadms", "dataset_webperson"], "transformers_modules"),
        ("trusted", [], "modeling_gadms"),
        ("registered", [], "modeling_gadms"),
    ],
    ids=["without the package", "with the package", "with the package, no trust"],
)
def test_a_checkpoint_of_0_1_gives_the_same_embeddings(tmp_path, trusted, blocked, module):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    process = forked.run(["-c", EMBED, CHECKPOINT, trusted, *blocked], env=environment, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["module"].startswith(module)
    assert set(found["differences"]) == {"image_embeds", "text_embeds", "token_scores"}
    assert found["differences"].pop("token_scores") < 1e-5  # of 0 to 1: processors round the sums apart
    assert max(found["differences"].values()) < 1e-6
    assert found["ids"][0][0] == 558 and found["ids"][0][-1] == 559


def test_its_weights_matter():
    """The expected values need these weights: a model that lost one of them would not pass."""
    expected = load_file(CHECKPOINT / "expected.safetensors")
    model = AutoModel.from_pretrained(CHECKPOINT).eval()
    assert isinstance(model, modeling_gadms.GADMSModel)
    with torch.no_grad():
        model.text_projection.weight.neg_()
        text = model.get_text_features(expected["input_ids"]).pooler_output
    assert (torch.nn.functional.normalize(text, dim=-1) - expected["text_embeds"]).abs().max() > 0.1
