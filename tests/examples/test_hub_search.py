"""`examples/search.py`: a sentence, ten images, and a picture of what was found."""

import subprocess
import sys

import pytest
from PIL import Image
from places import EXAMPLES
from tiny import tiny_model, tiny_processor

SCRIPT = EXAMPLES / "search.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def search(*arguments, cwd):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_ten_drawings_are_searched_and_shown(checkpoint, tmp_path):
    process = search(checkpoint, "a woman in a red coat", cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    *rows, last = process.stdout.splitlines()
    cosines = [float(row.split()[1]) for row in rows]
    assert len(rows) == 10 and cosines == sorted(cosines, reverse=True) and last == "picture in search.png"
    with Image.open(tmp_path / "search.png") as picture:
        assert picture.width > 10 * 96


def test_a_folder_is_searched_whatever_the_size_of_its_images(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    for number, colour in enumerate(("red", "blue", "white")):
        Image.new("RGB", (20 + number, 50), colour).save(tmp_path / "photos" / f"{colour}.png")
    options = ["--images", "photos", "--top", "2", "--output", "found.png"]
    process = search(checkpoint, "a coat", *options, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    assert len(process.stdout.splitlines()) == 3 and (tmp_path / "found.png").exists()
    (tmp_path / "empty").mkdir()
    process = search(checkpoint, "a coat", "--images", "empty", cwd=tmp_path)
    assert process.returncode == 1 and "no images" in process.stderr
