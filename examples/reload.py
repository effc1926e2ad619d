"""Load a checkpoint with transformers alone, and compare its embeddings with those it was saved with.

    python -I examples/reload.py CHECKPOINT

CHECKPOINT is a folder that `examples/pretrain.py` wrote: the model, its processor and its code, and, in
`reload_check.safetensors`, one prepared pair with its embeddings.
"""

import os
import sys

sys.modules["modeling_gadms"] = None  # this process must do without the package, should it be installed

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModel, AutoProcessor  # noqa: E402

if len(sys.argv) != 2 or not os.path.exists(os.path.join(sys.argv[1], "reload_check.safetensors")):
    sys.stderr.write("error: give the one folder that examples/pretrain.py wrote\n")
    sys.exit(2)
folder = sys.argv[1]
kept = load_file(os.path.join(folder, "reload_check.safetensors"))
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    outputs = model(input_ids=kept["input_ids"], pixel_values=kept["pixel_values"])
difference = max((outputs[name] - kept[name]).abs().max().item() for name in ("image_embeds", "text_embeds"))
caption = processor.decode(kept["input_ids"][0], skip_special_tokens=True)
print(f"reloaded {type(model).__module__.split('.')[0]} / {type(model).__name__} in a fresh process")
print(f"caption: {caption}")
print(f"largest difference of its embeddings: {difference:.1e}")
sys.exit(difference > 1e-5)
