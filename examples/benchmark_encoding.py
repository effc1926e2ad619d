"""Compare what can encode a gallery's images on a machine without a GPU: rate, and what retrieval loses.

    pip install onnx onnxscript onnxruntime
    python examples/benchmark_encoding.py                               # minutes, most of them for exporting

Rates are images per CPU second, on pixels that are ready, of a GA-DMS of the paper's size (ViT-B/16, 384 x 128 pixels,
random weights) and of the small CLIP that the demo starts from. R@1 is the small one's, on drawings of two images and
four captions a person; descriptions are always encoded in float32. Without the packages above, the ONNX rows are left
out. A second table encodes the whole set by the small CLIP, beside one batch after another without reading ahead or
sorting by length, in wall time.
"""

import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from export_onnx import export, quantize
from gallery_benchmark.inputs import drawings, paper_size_model, small_model
from gallery_benchmark.whole_sets import beside_the_plain_way

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import write_text
from modeling_gadms.gallery.image_towers import PRECISIONS, ImageTower
from modeling_gadms.gallery.models import Encoder
from modeling_gadms.person_retrieval.ranking import rank_queries


def towers_of(encoder: Encoder, folder: Path) -> dict[str, Encoder]:
    """The same model with each of its image towers."""
    choices = {name: name for name in PRECISIONS}
    if all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        folder.mkdir()
        plain, small = str(folder / "image.onnx"), str(folder / "image-int8.onnx")
        height, width = encoder.model.config.vision_config.image_size
        example = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        export(encoder.model, "get_image_features", example, (0,), "pixel_values", plain)
        quantize(plain, small)
        choices |= {"ONNX Runtime, float32": plain, "ONNX Runtime, int8": small}
    model = encoder.model, encoder.processor
    return {name: Encoder(model, image_tower=ImageTower.chosen(choice)) for name, choice in choices.items()}


def rates(encoders: dict[str, Encoder], pixels: torch.Tensor, batch_size: int, rounds: int) -> dict[str, float]:
    """Images per CPU second, the best of some rounds, which take turns so that what else runs disturbs all alike."""
    found = dict.fromkeys(encoders, 0.0)
    for encoder in encoders.values():
        encoder.pixels(pixels[:2])
    for _ in range(rounds):
        for name, encoder in encoders.items():
            start = time.process_time()
            for batch in pixels.split(batch_size):
                encoder.pixels(batch)
            found[name] = max(found[name], len(pixels) / (time.process_time() - start))
    return found


def cpu_name() -> str:
    """The processor, and whether it multiplies bfloat16 in tiles, which decides whether that is fast."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")
    return f"{name} {'with' if any('amx_bf16' in line for line in lines) else 'without'} AMX"


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="drawings for R@1 (default: %(default)s)")
    parser.add_argument(
        "--num_timed", type=int, default=16, help="of them encoded in each round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of timing (default: %(default)s)")
    parser.add_argument("--output_file", help="where to write the table too")
    args = parser.parse_args(arguments)
    if args.images < 4 or args.num_timed < 2 or args.rounds < 1:
        parser.error("--images must be at least 4, --num_timed 2, and --rounds 1")
    drawn = drawings(args.images)
    images = list(drawn["image"])
    persons = torch.tensor(drawn["person_id"])
    captions = [text for name in ("caption1", "caption2") for text in drawn[name]]
    with tempfile.TemporaryDirectory() as folder:
        small = towers_of(small_model(), Path(folder) / "small")
        large = towers_of(paper_size_model(), Path(folder) / "large")
        timed = {}
        for name, encoders, times in (("paper", large, 1), ("small", small, 16)):
            some = (images * times)[: args.num_timed * times]
            pixels = next(iter(encoders.values())).processor(images=some, return_tensors="pt")["pixel_values"]
            timed[name] = rates(encoders, pixels, 8, args.rounds)
        texts = torch.from_numpy(small["float32"].texts(captions)).float()
        ranks = {}
        for name, encoder in small.items():
            parts = [encoder.images(images[start : start + 64]) for start in range(0, len(images), 64)]
            embeds = torch.from_numpy(np.concatenate(parts)).float()
            ranks[name] = rank_queries(texts, embeds, persons.repeat(2), persons).first_match_rank
    lines = [
        f"`python examples/benchmark_encoding.py --images {args.images}`: {len(captions):,} captions ask "
        f"{len(images):,} drawings; {torch.get_num_threads()} thread(s), {cpu_name()}\n",
        "| image tower | paper's size, images/CPU s | small CLIP, images/CPU s | R@1 | captions won / lost |",
        "|---|---|---|---|---|",
    ]
    before = ranks["float32"] == 1
    for name in small:
        now = ranks[name] == 1
        changed = f"{(now & ~before).sum()} / {(before & ~now).sum()}"
        cells = f"{timed['paper'][name]:.1f} | {timed['small'][name]:.0f} | {100 * now.mean():.2f} | {changed}"
        lines.append(f"| {name} | {cells} |")
    lines += ["", beside_the_plain_way(small["float32"], drawn, captions, args.rounds)]
    print("\n".join(lines))
    if args.output_file:
        write_text(args.output_file, "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
