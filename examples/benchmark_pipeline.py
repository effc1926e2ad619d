"""Images a second of the construction's stages, beside the bare models' own rate in the same run, by 1 and 2 workers.

python examples/benchmark_pipeline.py [--photos ~/.cache/gadms/photos] [--images 96] [--shards 4]

The photographs and models are those of `examples/prepare_photo_models.py`. The bare rate is that of the two models on
decoded pictures and cut crops, nothing else; a stage reads, decodes, detects, crops, hashes, encodes and writes. Each
process computes with one thread, so that two workers have two cores and one has one. The bare models run in as many
processes, at the same time, as the stage beside them.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import shutil
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"

from PIL import Image

from dataset_webperson.construction.crop import CropOptions, crop_shard
from dataset_webperson.construction.detectors import DetectorOptions, PoseOptions, open_models
from dataset_webperson.construction.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.person_filter import RuleOptions, box_problem, crop_area
from dataset_webperson.construction.shards import run_stage, shard_counts
from dataset_webperson.construction.sources import read_images
from dataset_webperson.row_preparation import write_json


def write_lists(photos: str, folder: str, images: int, shards: int) -> list[str]:
    """The photographs over and over, as files of their own, in lists of equal length."""
    names = sorted(os.listdir(photos))
    paths = []
    root = os.path.join(folder, "images")
    os.makedirs(root)
    for number, name in zip(range(images), itertools.cycle(names), strict=False):
        image = Image.open(os.path.join(photos, name)).convert("RGB")
        # As the web has it: JPEG.
        image.save(os.path.join(root, f"{number:05d}.jpg"), quality=90)
        paths.append(f"{number:05d}.jpg")
    lists = []
    for number in range(shards):
        lists.append(os.path.join(folder, "lists", f"{number:05d}.json"))
        write_json(lists[-1], {"root": root, "images": paths[number::shards]})
    return lists


def bare_models(lists: list[str], options: CropOptions, ready, start, results) -> None:
    """The models alone on everything in memory."""
    detector, pose = open_models(options.detector, options.pose)
    pictures = [Image.open(io.BytesIO(image.data)).convert("RGB") for path in lists for image in read_images(path)]
    size = options.batch_size
    crops = []
    for image in pictures:
        for box in detector.persons([image])[0]:
            if not box_problem(box, options.detector.min_score, options.rule):
                crops.append(image.crop(crop_area(box, options.margin, *image.size)))
    ready.release()
    start.wait()
    began = time.perf_counter()
    for place in range(0, len(pictures), size):
        detector.persons(pictures[place : place + size])
    for place in range(0, len(crops), size):
        pose.keypoints(crops[place : place + size])
    results.put((len(pictures), time.perf_counter() - began))


def bare_rate(lists: list[str], options: CropOptions, workers: int) -> float:
    spawn = multiprocessing.get_context("spawn")
    ready, start, results = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
    parts = [lists[number::workers] for number in range(workers)]
    processes = [spawn.Process(target=bare_models, args=(part, options, ready, start, results)) for part in parts]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    start.set()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(count for count, _ in measured) / max(seconds for _, seconds in measured)


def timed_crop_shard(source: str, target: str, options: CropOptions) -> dict[str, int]:
    """The stage, its models opened beforehand: opening them is paid once a process, not once a shard."""
    open_models(options.detector, options.pose)
    began = time.time()
    counts = crop_shard(source, target, options)
    write_json(target + ".json", [began, time.time()])
    return counts


def crop_rate(lists: list[str], folder: str, options: CropOptions, workers: int) -> tuple[float, list[str]]:
    """Images a second from the first shard's beginning to the last one's end, and the crop shards."""
    run_stage(timed_crop_shard, lists, folder, options, workers)
    shards = [os.path.join(folder, f"{number:05d}.parquet") for number in range(len(lists))]
    times = []
    for shard in shards:
        with open(shard + ".json") as file:
            times.append([float(word) for word in file.read().strip("[]\n ").split(",")])
    images = sum(shard_counts(shard)["rows_in"] for shard in shards)
    return images / (max(end for _, end in times) - min(begin for begin, _ in times)), shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default=os.path.expanduser("~/.cache/gadms/photos"))
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--shards", type=int, default=4)
    args = parser.parse_args()
    detector = DetectorOptions("onnx", os.path.join(args.photos, "person_detector.onnx"), min_score=0.5)
    pose = PoseOptions("onnx", os.path.join(args.photos, "pose.onnx"), min_score=0.2)
    options = CropOptions(detector, pose, RuleOptions(min_side=30))
    folder = tempfile.mkdtemp(prefix="benchmark-")
    lists = write_lists(os.path.join(args.photos, "photos"), folder, args.images, args.shards)
    rates = {}
    print("| stage | workers | images/s | bare models, images/s | share |\n|---|---|---|---|---|")
    for workers in (1, 2):
        bare = bare_rate(lists, options, workers)
        rates[workers], crops = crop_rate(lists, os.path.join(folder, f"crop{workers}"), options, workers)
        print(
            f"| crop | {workers} | {rates[workers]:.1f} | {bare:.1f} | {100 * rates[workers] / bare:.0f} % |",
            flush=True,
        )
    began = time.perf_counter()
    dedup = DedupOptions(plan=os.path.join(folder, "dedup", "plan"))
    find_duplicates(crops, dedup)
    counts = run_stage(dedup_shard, crops, os.path.join(folder, "dedup"), dedup)
    print(f"| dedup (crops) | 1 | {counts['rows_in'] / (time.perf_counter() - began):,.0f} | no model | |")
    print(f"\n2 workers: {rates[2] / rates[1]:.2f} times the rate of 1")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
