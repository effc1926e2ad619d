"""Construct a small WebPerson from end to end: offline, on two cores, in minutes.

    python examples/demo_webperson.py                                       # `make demo-webperson`

Photographs and drawn pedestrians are cropped, cleared of near-duplicates, captioned by a server that this command
starts, checked, scored and released; then `examples/pretrain.py` takes a few steps on the release. A model with random
weights captions the photographs, with nonsense; two others, one careless, the drawings. Interrupted, it continues.
"""

import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import Any

from datasets import load_dataset

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.construction.boxes_sheet import boxes_sheet
from dataset_webperson.construction.captions.brake import BrakeOptions
from dataset_webperson.construction.captions.client import Captioner
from dataset_webperson.construction.drawn_persons import NOISE_RATES, draw_crops, measure_scores, scores_by_kind
from dataset_webperson.construction.persons.detectors import DetectorOptions, PoseOptions
from dataset_webperson.construction.persons.rule import RuleOptions
from dataset_webperson.construction.quality_report import summarize, write_build_page
from dataset_webperson.construction.shards import Stage, run_stage
from dataset_webperson.construction.sources import find_shards
from dataset_webperson.construction.stages.captioning import CaptionOptions, caption_shard
from dataset_webperson.construction.stages.crop import CropOptions, crop_shard
from dataset_webperson.construction.stages.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.stages.quality import QualityOptions, assess_shard, auc
from dataset_webperson.files import write_json
from dataset_webperson.release import main as release
from modeling_gadms import GADMSForPreTraining, GADMSProcessor

HERE = Path(__file__).resolve().parent
PHOTOS = Path(os.environ.get("GADMS_PHOTOS", Path.home() / ".cache" / "gadms" / "photos"))


def crop_photos(folder: str) -> list[str]:
    """Crops of persons in photographs, where the models are there."""
    models = [PHOTOS / "person_detector.onnx", PHOTOS / "pose.onnx"]
    if not all(path.exists() for path in (*models, PHOTOS / "photos")):
        print(f"No photographs and models in {PHOTOS} (`make photo-models` fetches them): drawn crops alone are used.")
        return []
    shards, _ = find_shards(str(PHOTOS / "photos"), os.path.join(folder, "0_lists"))
    # These pedestrians are small: the paper's rule asks for 90 pixels.
    options = CropOptions(
        DetectorOptions("onnx", str(models[0]), min_score=0.5),
        PoseOptions("onnx", str(models[1]), min_score=0.2),
        RuleOptions(min_side=40),
    )
    counts = run_stage(crop_shard, shards, os.path.join(folder, "1_crop"), options)
    print("crop: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    crops = sorted(glob(os.path.join(folder, "1_crop", "*.parquet")))
    boxes_sheet(str(PHOTOS / "photos"), crops, os.path.join(folder, "boxes.png"))
    print(f"who was kept: {os.path.join(folder, 'boxes.png')}")
    return crops


def start_server(truth: str) -> tuple[subprocess.Popen, str]:
    """A captioning server of one's own, and its address."""
    words = [sys.executable, str(HERE / "serve_captions.py"), "--port", "0", "--truth", truth]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=repository_first())
    line = server.stdout.readline()
    if not line.startswith("listening on "):
        raise RuntimeError("the captioning server did not start; its message is above")
    return server, line.removeprefix("listening on ").strip()


def repository_first() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1"}


def small_model(folder: str) -> str:
    """The shipped small CLIP as a GA-DMS model."""
    if not os.path.exists(os.path.join(folder, "processor_config.json")):
        clip = str(HERE / "small_clip")
        model = GADMSForPreTraining.from_clip_pretrained(clip, image_size=(64, 32))
        model.gadms.save_pretrained(folder)
        GADMSProcessor.from_clip_pretrained(clip, image_size=(64, 32)).save_pretrained(folder)
    return folder


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--output_dir", default=os.path.join("runs", "demo-webperson"), help="(default: %(default)s)")
    parser.add_argument("--num_drawn", type=int, default=300, help="drawn pedestrians, 60 or more (default: 300)")
    parser.add_argument("--max_steps", type=int, default=5, help="steps of pre-training at the end (default: 5)")
    args = parser.parse_args(arguments)
    out = os.path.abspath(args.output_dir)

    def place(name: str) -> str:
        return os.path.join(out, name)

    shards = [*crop_photos(out), place(f"drawn/drawn{args.num_drawn}.parquet")]
    captions, false_spans = draw_crops(shards[-1], args.num_drawn)
    write_json(place("truth.json"), captions)

    def stage(name: str, function: Stage, options: Any) -> None:
        nonlocal shards
        counts = run_stage(function, shards, place(name), options)
        print(f"{name[2:]}: " + ", ".join(f"{reason} {count}" for reason, count in counts.items()), flush=True)
        shards = sorted(glob(os.path.join(place(name), "*.parquet")))

    # Drawings are alike in outline: only equal hashes count as near-duplicates here.
    dedup = DedupOptions(max_distance=0, plan=place("2_dedup/plan"))
    find_duplicates(shards, dedup)
    stage("2_dedup", dedup_shard, dedup)
    server, url = start_server(place("truth.json"))
    try:
        captioners = [Captioner(url, name, max_tokens=48, max_in_flight=4) for name in NOISE_RATES]
        stage("3_caption", caption_shard, CaptionOptions(*captioners, brake=BrakeOptions(min_usable=0)))
    finally:
        server.terminate()
        server.wait()
    # A real construction drops what is marked, and with it every photograph here: `marked="drop"`.
    stage("4_quality", assess_shard, QualityOptions(small_model(place("model")), marked="keep"))
    scores = scores_by_kind(shards, false_spans)
    print("captions            number  mean score  below a true one with probability (half is chance)")
    for kind, found in scores.items():
        if len(found):
            chance = "" if kind == "true" else f"{auc(found, scores['true']):.3f}"
            print(f"{kind:<18} {len(found):>7} {found.mean():>11.3f}  {chance}")
    chance = measure_scores(shards, false_spans)[1]
    print(f"a false attribute word scores below a true one with probability {chance:.3f}", flush=True)
    write_build_page(summarize(out), place("report.html"))
    released = place("released")
    if not os.path.exists(released):
        arguments = ["--source", place("4_quality"), "--source_format", "parquet", "--output_dir", released]
        if release([*arguments, "--contact", "demo@example.org", "--on_bad_images", "warn"]):
            raise RuntimeError("the release failed; its message is above")
    rows = load_dataset(released, split="train")
    print(f"load_dataset: {rows}\n{rows[0]['image_path']}: {rows[0]['caption1']}", flush=True)
    pretrain = [sys.executable, str(HERE / "pretrain.py"), "--dataset_name", released, "--model_name_or_path"]
    pretrain += [str(HERE / "small_clip"), "--image_size", "64", "32", "--num_test_images", str(args.num_drawn // 6)]
    pretrain += ["--max_steps", str(args.max_steps), "--per_device_train_batch_size", "32", "--use_cpu", "True"]
    pretrain += ["--logging_steps", "1", "--save_strategy", "no", "--output_dir", place("pretrained")]
    if not os.path.exists(place("pretrained/metrics.json")):
        shutil.rmtree(place("pretrained"), ignore_errors=True)  # of a run that was interrupted
        subprocess.run(pretrain, check=True, env=repository_first())
    print(f"report: {place('report.html')}")


if __name__ == "__main__":
    sys.exit(main())
