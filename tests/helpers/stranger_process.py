"""What somebody does with a published checkpoint who has transformers and torch, and has never heard of this package.

python -I tests/helpers/stranger_process.py CHECKPOINT FOLDER [device_map]

Works in FOLDER, and prints one line of JSON with the checks made.
"""

import json
import os
import sys

OURS = ("modeling_gadms", "dataset_webperson")
# other packages that this project and its tests use; a checkpoint must need none of them
OTHERS = ("datasets", "evaluate", "peft", "ijson", "ftfy", "open_clip", "matplotlib", "torchvision")
for blocked in (*OURS, *OTHERS):
    sys.modules[blocked] = None

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoProcessor  # noqa: E402

checkpoint, folder = sys.argv[1:3]
done = []


def same(one, other, tolerance=0.0):
    return all((a.float() - b.float()).abs().max() <= tolerance for a, b in zip(one, other, strict=True))


def check(name, passed):
    if not passed:
        raise SystemExit(f"{name}: failed")
    done.append(name)


model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
captions = ["a person in a red coat", "someone wears blue trousers, a white shirt, and walks by"]
pictures = [Image.new("RGB", (30, 70), colour) for colour in ("red", "blue")]
inputs = processor(images=pictures, text=captions)


def embed(of):
    with torch.no_grad():
        outputs = of(**inputs)
    return outputs.image_embeds, outputs.text_embeds


expected = embed(model)
check(
    "model and processor", expected[0].shape == expected[1].shape and expected[0].norm(dim=-1).allclose(torch.ones(2))
)
height, width = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True).vision_config.image_size
check("pixel_values", tuple(inputs["pixel_values"].shape) == (2, 3, height, width))

scores = model.token_scores(**inputs)
check("token_scores", scores.shape == inputs["input_ids"].shape and 0 <= scores.min() and scores.max() == 1)
drops = model.word_contributions(**inputs)
check("word_contributions", drops.shape == scores.shape and drops.abs().max() > 0)

model.save_pretrained(os.path.join(folder, "saved"))
processor.save_pretrained(os.path.join(folder, "saved"))
again = AutoModel.from_pretrained(os.path.join(folder, "saved"), trust_remote_code=True).eval()
check("save and reload", same(embed(again), expected))
others = AutoProcessor.from_pretrained(os.path.join(folder, "saved"), trust_remote_code=True)
check("processor reloaded", torch.equal(others(text=captions)["input_ids"], inputs["input_ids"]))

half = AutoModel.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.bfloat16).eval()
check("bfloat16", half.dtype == torch.bfloat16 and same(embed(half), expected, 0.1))
check("token_scores in bfloat16", half.token_scores(**inputs).dtype == torch.float32)

if "device_map" in sys.argv[3:]:  # needs accelerate
    parts = {"text_model": "cpu", "text_projection": "cpu", "visual_projection": "cpu", "vision_model": "disk"}
    offload = os.path.join(folder, "offload")
    for device_map in ("auto", parts):
        options = {"device_map": device_map, "offload_folder": offload}
        mapped = AutoModel.from_pretrained(checkpoint, trust_remote_code=True, **options).eval()
        check(f"device_map {device_map}", same(embed(mapped), expected, 1e-5))

if "compile" in sys.argv[3:]:  # needs a C++ compiler
    compiled = torch.compile(model)
    check("torch.compile", same(embed(compiled), expected, 1e-5))

loaded = sorted(name for name in OURS if sys.modules.get(name))
sys.stdout.write(json.dumps({"done": done, "loaded": loaded, "torch": torch.__version__}) + "\n")
