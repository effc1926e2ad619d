"""Measure the construction's stages beside their bare models, in images per second, with 1 and 2 workers.

python examples/benchmark_pipeline.py [--photos ~/.cache/gadms/photos] [--num_images 128] [--growth FILE.json]

Every process computes with one thread, so that one worker has one core and two have two; a worker's second thread only
reads and decodes. What bare models are given lies in memory, in the batches of the stage; as many processes of them
run at a time as the stage has workers. Nothing is counted before the models of all workers are open and have worked.

| stage | the bare rate beside it |
|---|---|
| crop | detector and pose of `examples/prepare_photo_models.py` (SSDLite, MoveNet) |
| caption | a server that answers after 0.2 s, asked by plain connections, 16 for each captioner and worker |
| quality, small | the shipped small CLIP, 64 x 32, whose work is so little that the stage's own shows |
| quality, paper's | a GA-DMS of the paper's size, ViT-B/16 at 384 x 128, with random weights |
| select, dedup, release | no model |

On a machine with other work all figures are lower and the shares mean little; a folder in memory (`TMPDIR=/dev/shm`)
leaves the disk out of it.
"""

import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from pipeline_benchmark.bare_rates import CallsOf, bare_rate, calls_of_crop, calls_of_quality
from pipeline_benchmark.caption_rates import IN_FLIGHT, serve, server_rate
from pipeline_benchmark.growth import PARTS, run_growth
from pipeline_benchmark.inputs import SHARDS, write_crops, write_lists, write_metadata, write_models
from pipeline_benchmark.stage_rates import no_models, open_for_caption, open_for_crop, open_for_quality, stage_rate

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.construction.captions.client import Captioner
from dataset_webperson.construction.persons.detectors import DetectorOptions, PoseOptions
from dataset_webperson.construction.persons.rule import RuleOptions
from dataset_webperson.construction.shards import Stage, read_rows, shard_writer
from dataset_webperson.construction.stages.captioning import CaptionOptions, caption_shard
from dataset_webperson.construction.stages.crop import CropOptions, crop_shard
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.stages.quality import QualityOptions, assess_shard
from dataset_webperson.construction.stages.select_urls import SelectOptions, select_shard
from dataset_webperson.release import main as release
from dataset_webperson.rows.joined_parquet import without_images

SPAWN = multiprocessing.get_context("spawn")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, renamed={"--images": "--num_images"})
    parser.add_argument(
        "--photos", default=os.path.expanduser("~/.cache/gadms/photos"), help="what `make photo-models` wrote"
    )
    parser.add_argument(
        "--num_images", type=int, default=128, help="photographs for the stage crop (default: %(default)s)"
    )
    parser.add_argument("--growth", metavar="FILE.json", help="measure how time and memory grow with the rows instead")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="for --growth")
    names = [part.__name__ for part in PARTS]
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="for --growth; `report` reads what `statistics` wrote"
    )
    args = parser.parse_args(arguments)
    root = tempfile.mkdtemp(prefix="benchmark-")
    if args.growth:
        run_growth(root, args.growth, args.rows, args.parts)
        return
    detector = DetectorOptions("onnx", os.path.join(args.photos, "person_detector.onnx"), min_score=0.5)
    pose = PoseOptions("onnx", os.path.join(args.photos, "pose.onnx"), min_score=0.2)
    options = CropOptions(detector, pose, RuleOptions(min_side=30))

    def place(name: str) -> str:
        return os.path.join(root, name)

    def measure(
        name: str,
        stage: Stage,
        open_its_models: Callable[[Any], None],
        sources: list[str],
        options: Any,
        bare: Callable[[int], float] | None = None,
    ) -> None:
        """A row of the table for each number of workers."""
        rates = {}
        for workers in (1, 2):
            own = bare(workers) if bare else None
            folder = place(f"{name}-{workers}/{name}")  # the cache of captions lies beside it
            rates[workers] = rate = stage_rate(stage, open_its_models, sources, folder, options, workers)
            beside = f"{own:,.1f} | {100 * rate / own:.0f} %" if bare else "no model |"
            gain = f"{rates[2] / rates[1]:.2f}" if workers == 2 else ""
            print(f"| {name} | {workers} | {rate:,.1f} | {beside} | {gain} |", flush=True)

    def bare_of(calls_of: CallsOf, sources: list[str], options: Any) -> Callable[[int], float]:
        return lambda workers: bare_rate(calls_of, sources, options, root, workers)

    print("| stage | workers | images/s | bare, images/s | share | 1 to 2 workers |\n|---|---|---|---|---|---|")
    metadata = write_metadata(place("coyo"), 200_000)
    measure("select", select_shard, no_models, metadata, SelectOptions())
    lists = write_lists(os.path.join(args.photos, "photos"), root, args.num_images)
    measure("crop", crop_shard, open_for_crop, lists, options, bare_of(calls_of_crop, lists, options))
    found = [os.path.join(place("crop-1/crop"), f"{number:05d}.parquet") for number in range(SHARDS)]
    crops = write_crops(found, place("crops"), 400)
    many, dedup = write_crops(found, place("many"), 5_000), DedupOptions(plan=place("plan"))
    find_duplicates(many, dedup)
    measure("dedup", dedup_shard, no_models, many, dedup)
    ports = SPAWN.Queue()
    server = SPAWN.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    port = ports.get()
    captioner = Captioner(f"http://127.0.0.1:{port}/v1", "fixed", max_in_flight=IN_FLIGHT)
    captions = CaptionOptions(captioner, Captioner(captioner.base_url, "fixed", seed=1, max_in_flight=IN_FLIGHT))
    measure(
        "caption",
        caption_shard,
        open_for_caption,
        crops,
        captions,
        lambda workers: server_rate(port, crops[0], 2 * IN_FLIGHT * workers),
    )
    server.terminate()
    captioned = [os.path.join(place("caption-1/caption"), os.path.basename(path)) for path in crops]
    models = write_models(root)
    for name, rows in (("small", 128), ("paper's", 4)):
        parts = [os.path.join(place(f"captioned {name}"), os.path.basename(path)) for path in captioned]
        for source, target in zip(captioned, parts, strict=True):
            with shard_writer(target, without_images(source, target)) as shard:
                for row in itertools.islice(read_rows(source), rows):
                    shard.write(row)
        quality = QualityOptions(models[name])
        bare = bare_of(calls_of_quality, parts, quality)
        measure(f"quality, {name}", assess_shard, open_for_quality, parts, quality, bare)
    arguments = ["--source", os.path.dirname(captioned[0]), "--source_format", "parquet"]
    arguments += ["--output_dir", place("released")]
    began = time.time()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        release([*arguments, "--contact", "benchmark@example.org"])
    print(f"| release | 1 | {SHARDS * 400 / (time.time() - began):,.1f} | no model | | |")
    shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(main())
