"""Export both towers of a checkpoint to ONNX, and compare the results of ONNX Runtime with torch.

    pip install onnx onnxscript onnxruntime
    python examples/export_onnx.py runs/demo onnx
    python examples/export_onnx.py runs/demo onnx --int8            # image-int8.onnx too, for galleries made on a CPU

CHECKPOINT is a folder or Hub id; this package need not be installed. FOLDER receives image.onnx, `pixel_values`
(batch, 3, height, width) to `image_embeds`, and text.onnx, `input_ids` (batch, tokens) to `text_embeds`; both of unit
norm, so that their dot product is the cosine. Batch and tokens are free.
"""

import argparse
import os
import sys

import torch
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin


class Tower(torch.nn.Module):
    """One tower: the normalised result of the model's `method`."""

    def __init__(self, model: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(getattr(self.model, self.method)(inputs).pooler_output, dim=-1)


def export(
    model: PreTrainedModel, method: str, example: torch.Tensor, free: tuple[int, ...], name: str, path: str
) -> float:
    """Write one tower, and return the largest difference from torch, on the example and on another batch size."""
    import onnxruntime

    tower = Tower(model, method).eval()
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis in free}
    names = {"input_names": [name], "output_names": ["image_embeds" if name == "pixel_values" else "text_embeds"]}
    torch.onnx.export(tower, (example,), path, dynamo=True, dynamic_shapes=(dynamic,), verbose=False, **names)
    session = onnxruntime.InferenceSession(path)
    differences = []
    for batch in (example, example[:1], example.repeat(3, *[1] * (example.dim() - 1))):
        with torch.no_grad():
            expected = tower(batch)
        differences.append(abs(session.run(None, {name: batch.numpy()})[0] - expected.numpy()).max().item())
    return max(differences)


def quantize(path: str, target: str) -> float:
    """Write a tower with int8 weights, whose products are integers, and return its lowest cosine with the original."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kinds = ["MatMul", "Gemm"]  # patches are embedded as they are
    quantize_dynamic(path, target, kinds, per_channel=True, weight_type=QuantType.QInt8)
    sessions = [onnxruntime.InferenceSession(file) for file in (path, target)]
    shape = sessions[0].get_inputs()[0].shape
    pixels = torch.randn(8, *shape[1:], generator=torch.Generator().manual_seed(0)).numpy()
    before, after = (session.run(None, {"pixel_values": pixels})[0] for session in sessions)
    return (before * after).sum(axis=1).min().item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a model")
    parser.add_argument("folder", metavar="FOLDER", help="output folder of the files")
    parser.add_argument("--int8", action="store_true", help="write the image tower in int8 too")
    args = parser.parse_args()
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f"error: {error.name} is missing: pip install onnx onnxscript onnxruntime\n")
        return 2
    try:
        model = AutoModel.from_pretrained(args.checkpoint, trust_remote_code=True).eval()
        processor = AutoProcessor.from_pretrained(args.checkpoint, trust_remote_code=True)
        os.makedirs(args.folder, exist_ok=True)
    except (OSError, ValueError) as error:  # transformers raises these for a folder that is not a checkpoint
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return export_towers(model, processor, args.folder, args.int8)


def export_towers(model: PreTrainedModel, processor: ProcessorMixin, folder: str, int8: bool = False) -> int:
    """Write the files; 1 where ONNX Runtime and torch differ."""
    height, width = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    captions = processor(text=["a woman with long black hair and a red coat", "a man"])["input_ids"]
    image, text = os.path.join(folder, "image.onnx"), os.path.join(folder, "text.onnx")
    difference = export(model, "get_image_features", pixels, (0,), "pixel_values", image)
    print(f"{image}: largest difference from torch {difference:.1e}")
    if int8:
        small = os.path.join(folder, "image-int8.onnx")
        print(f"{small}: lowest cosine with the original on noise {quantize(image, small):.4f}")
    difference = max(difference, export(model, "get_text_features", captions, (0, 1), "input_ids", text))
    print(f"{text}: largest difference of both from torch {difference:.1e}")
    return int(difference > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
