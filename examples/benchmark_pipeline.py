"""Images a second of the construction's stages beside the bare models' own rate in the same run, by 1 and 2 workers.

python examples/benchmark_pipeline.py [--photos ~/.cache/gadms/photos] [--images 128]

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

import argparse
import hashlib
import http.client
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from contextlib import redirect_stdout
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataset_webperson.construction.caption_prompts import caption_messages
from dataset_webperson.construction.caption_server_client import Captioner, load_openai
from dataset_webperson.construction.captioning import CaptionOptions, caption_shard
from dataset_webperson.construction.crop import SCHEMA, CropOptions, crop_shard
from dataset_webperson.construction.detectors import DetectorOptions, PoseOptions, open_models
from dataset_webperson.construction.duplicates import DedupOptions, dedup_shard, find_duplicates
from dataset_webperson.construction.person_filter import RuleOptions
from dataset_webperson.construction.quality import QualityOptions, assess_shard, open_scorer, read_batch
from dataset_webperson.construction.select_urls import SelectOptions, select_shard
from dataset_webperson.construction.shards import read_rows, run_stage, shard_counts, shard_writer
from dataset_webperson.construction.templates import load_templates
from dataset_webperson.release import main as release
from dataset_webperson.row_preparation import write_json

HERE = os.path.dirname(os.path.abspath(__file__))
SPAWN = multiprocessing.get_context("spawn")
SHARDS, LATENCY_S, IN_FLIGHT = 4, 0.2, 16
CAPTION = "A man in a navy hooded sweatshirt, grey trousers and white sneakers carries a black backpack."


def timed(stage, open_its_models, workers: int, source: str, target: str, options) -> dict[str, int]:
    """A stage that starts when the models of all workers are open, and writes down when it began and ended."""
    open_its_models(options)
    folder = os.path.dirname(target)
    write_json(os.path.join(folder, f"{os.getpid()}.ready"), {})
    while sum(name.endswith(".ready") for name in os.listdir(folder)) < workers:
        time.sleep(0.005)
    began = time.time()
    counts = stage(source, target, options)
    write_json(target + ".json", [began, time.time()])
    return counts


def stage_rate(stage, open_its_models, sources: list[str], folder: str, options, workers: int) -> float:
    """Rows read a second, from the first shard's beginning to the last one's end."""
    run_stage(partial(timed, stage, open_its_models, workers), sources, folder, options, workers)
    times, rows = [], 0
    for name in os.listdir(folder):
        if name.endswith(".parquet"):
            rows += shard_counts(os.path.join(folder, name))["rows_in"]
            with open(os.path.join(folder, name + ".json")) as file:
                times.append(json.load(file))
    return rows / (max(end for _, end in times) - min(began for began, _ in times))


def no_models(options) -> None:
    """For stages without any."""


def open_for_caption(options: CaptionOptions) -> None:
    load_openai()


def open_for_crop(options: CropOptions) -> None:
    detector, pose = open_models(options.detector, options.pose)
    pictures = [Image.new("RGB", (640, 480))] * options.batch_size
    (
        detector.persons(pictures),
        pose.keypoints(pictures),
    )  # the first calls take memory, as those of the bare models did


def open_for_quality(options: QualityOptions) -> None:
    scorer = open_scorer(options.model)
    pixels, ids, _ = scorer.prepare([Image.new("RGB", (64, 128))], [CAPTION])
    scorer.forward(pixels, ids, [0])


def calls_of_crop(lists: list[str], options: CropOptions, folder: str):
    """Number of images, and the models' calls for them, with what the stage gave the models."""
    calls = []
    models = open_models(options.detector, options.pose)
    for model in models:
        run = model.run
        model.run = lambda pictures, run=run: calls.append(partial(run, pictures)) or run(pictures)
    images = sum(crop_shard(path, f"{folder}/{os.getpid()}.parquet", options)["rows_in"] for path in lists)
    return images, calls


def calls_of_quality(shards: list[str], options: QualityOptions, folder: str):
    """As `calls_of_crop`."""
    scorer, calls, images = open_scorer(options.model), [], 0
    for shard in shards:
        rows = read_rows(shard)
        while batch := read_batch(rows, scorer, options.batch_size):
            pixels, ids, _ = batch.prepared
            calls.append(partial(scorer.forward, pixels, ids, [place // 2 for place in batch.captioned]))
            images += len(batch.rows)
    calls[0]()
    return images, calls


def bare_models(calls_of, sources: list[str], options, folder: str, ready, start, results) -> None:
    """A process of nothing but models."""
    images, calls = calls_of(sources, options, folder)
    ready.release()
    start.wait()
    began = time.time()
    for call in calls:
        call()
    results.put((images, began, time.time()))


def bare_rate(calls_of, sources: list[str], options, folder: str, workers: int) -> float:
    """Images a second of the models alone, in so many processes at a time."""
    ready, start, results = SPAWN.Semaphore(0), SPAWN.Event(), SPAWN.Queue()
    parts = [sources[number::workers] for number in range(workers)]
    jobs = [(calls_of, part, options, folder, ready, start, results) for part in parts]
    processes = [SPAWN.Process(target=bare_models, args=job) for job in jobs]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    start.set()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(images for images, _, _ in measured) / (
        max(end for *_, end in measured) - min(began for _, began, _ in measured)
    )


class Handler(BaseHTTPRequestHandler):
    """Answers each question with one caption, after a while."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Not a line a request."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(LATENCY_S)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": CAPTION}}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "fixed", "choices": [choice]}
        data = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.wfile.write(head.encode() + data)  # at once: two packets would wait for each other


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # of 5, which is Python's, connections that come at once are lost


def serve(port) -> None:
    server = Server(("127.0.0.1", 0), Handler)
    port.put(server.server_address[1])
    server.serve_forever()


def server_rate(port: int, shard: str, connections: int, questions: int = 20) -> float:
    """Answers a second of the server to so many connections at a time, halved: an image has two captions."""
    template = load_templates(None)[0]
    images = [row["image"]["bytes"] for row in itertools.islice(read_rows(shard), questions)]
    bodies = [
        json.dumps({"model": "fixed", "messages": caption_messages(image, template.text, 60)}) for image in images
    ]

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for body in bodies:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    began = time.time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return connections * len(bodies) / 2 / (time.time() - began)


def write_lists(photos: str, folder: str, images: int) -> list[str]:
    """The photographs over and over, as files of their own, in lists of equal length."""
    names = sorted(os.listdir(photos))
    paths = []
    root = os.path.join(folder, "images")
    os.makedirs(root)
    for number, name in zip(range(images), itertools.cycle(names), strict=False):
        image = Image.open(os.path.join(photos, name)).convert("RGB")
        image.save(os.path.join(root, f"{number:05d}.jpg"), quality=90)  # as the web has it: JPEG
        paths.append(f"{number:05d}.jpg")
    lists = []
    for number in range(SHARDS):
        lists.append(os.path.join(folder, "lists", f"{number:05d}.json"))
        write_json(lists[-1], {"root": root, "images": paths[number::SHARDS]})
    return lists


def write_crops(crops: list[str], folder: str, rows_of_shard: int) -> list[str]:
    """Crops over and over, each with other bytes, in shards of equal length."""
    kept = [row for crop in crops for row in read_rows(crop)]
    paths = []
    for number in range(SHARDS):
        paths.append(os.path.join(folder, f"{number:05d}.parquet"))
        with shard_writer(paths[-1], SCHEMA) as shard:
            for place in range(rows_of_shard):
                row, name = dict(kept[(number * rows_of_shard + place) % len(kept)]), f"{number}-{place}.jpg"
                data = row["image"]["bytes"] + name.encode()
                digest = hashlib.sha256(data).hexdigest()
                row |= {"image": {"bytes": data, "path": name}, "image_path": name, "image_sha256": digest}
                row["phash"] = digest[:16]
                shard.write(row)
                shard.counts["rows_in"] += 1
    return paths


def write_metadata(folder: str, rows: int) -> list[str]:
    """Metadata with COYO's columns."""
    os.makedirs(folder)
    paths = []
    for number in range(SHARDS):
        random, numbers = np.random.default_rng(number), np.arange(rows) + number * rows
        columns = {
            "id": numbers,
            "url": [f"https://example.org/{value}.jpg" for value in numbers],
            "width": random.integers(150, 900, rows),
            "height": random.integers(150, 900, rows),
            "image_phash": [f"{value:016x}" for value in random.integers(0, 1 << 62, rows)],
            "num_faces": random.integers(0, 3, rows),
        }
        for name in ("nsfw_score_opennsfw2", "nsfw_score_gantman", "watermark_score"):
            columns[name] = random.random(rows) ** 2
        paths.append(os.path.join(folder, f"{number:05d}.parquet"))
        pq.write_table(pa.table(columns), paths[-1])
    return paths


def write_models(folder: str) -> dict[str, str]:
    """The shipped small CLIP as GA-DMS, and one of the paper's size."""
    from modeling_gadms import GADMSConfig, GADMSForPreTraining, GADMSModel, GADMSProcessor

    clip = os.path.join(HERE, "small_clip")
    models = {"small": (64, 32), "paper's": (384, 128)}
    for name, size in models.items():
        path = os.path.join(folder, name)
        GADMSProcessor.from_clip_pretrained(clip, image_size=size).save_pretrained(path)
        small = name == "small"
        model = GADMSForPreTraining.from_clip_pretrained(clip, image_size=size).gadms if small else None
        (model or GADMSModel(GADMSConfig())).save_pretrained(path)
        models[name] = path
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default=os.path.expanduser("~/.cache/gadms/photos"))
    parser.add_argument("--images", type=int, default=128, help="photographs for the stage crop")
    args = parser.parse_args()
    detector = DetectorOptions("onnx", os.path.join(args.photos, "person_detector.onnx"), min_score=0.5)
    pose = PoseOptions("onnx", os.path.join(args.photos, "pose.onnx"), min_score=0.2)
    options = CropOptions(detector, pose, RuleOptions(min_side=30))
    root = tempfile.mkdtemp(prefix="benchmark-")

    def place(name: str) -> str:
        return os.path.join(root, name)

    def measure(name: str, stage, open_its_models, sources: list[str], options, bare=None) -> None:
        """A row of the table for each number of workers."""
        rates = {}
        for workers in (1, 2):
            own = bare(workers) if bare else None
            folder = place(f"{name}-{workers}/{name}")  # the cache of captions lies beside it
            rates[workers] = rate = stage_rate(stage, open_its_models, sources, folder, options, workers)
            beside = f"{own:,.1f} | {100 * rate / own:.0f} %" if bare else "no model |"
            gain = f"{rates[2] / rates[1]:.2f}" if workers == 2 else ""
            print(f"| {name} | {workers} | {rate:,.1f} | {beside} | {gain} |", flush=True)

    def bare_of(calls_of, sources, options):
        return lambda workers: bare_rate(calls_of, sources, options, root, workers)

    print("| stage | workers | images/s | bare, images/s | share | 1 to 2 workers |\n|---|---|---|---|---|---|")
    metadata = write_metadata(place("coyo"), 200_000)
    measure("select", select_shard, no_models, metadata, SelectOptions())
    lists = write_lists(os.path.join(args.photos, "photos"), root, args.images)
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
            with shard_writer(target, pq.read_schema(source).remove_metadata()) as shard:
                for row in itertools.islice(read_rows(source), rows):
                    shard.write(row)
        quality = QualityOptions(models[name])
        bare = bare_of(calls_of_quality, parts, quality)
        measure(f"quality, {name}", assess_shard, open_for_quality, parts, quality, bare)
    arguments = ["--source", os.path.dirname(captioned[0]), "--source-format", "parquet", "--out", place("released")]
    began = time.time()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        release([*arguments, "--contact", "benchmark@example.org"])
    print(f"| release | 1 | {SHARDS * 400 / (time.time() - began):,.1f} | no model | | |")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
