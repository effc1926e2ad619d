"""`examples/search.py`: a sentence, ten images, and a picture of the matches."""

import shutil
import sys

import forked
import pytest
from PIL import Image
from places import EXAMPLES
from tiny import tiny_model, tiny_processor

sys.path.insert(0, str(EXAMPLES))
from search import main  # noqa: E402

from modeling_gadms.gallery.models import Encoder  # noqa: E402

SCRIPT = EXAMPLES / "search.py"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Galleries are kept in a folder of these tests, by processes that they start too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.CACHE", str(folder / "gadms-galleries"))
        patch.setenv("HF_HOME", str(folder))
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def search(*arguments, cwd):
    return forked.run([SCRIPT, *arguments], cwd=cwd)


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
    options = ["--images", "photos", "--top", "2", "--output_file", "found.png"]
    process = search(checkpoint, "a coat", *options, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    assert len(process.stdout.splitlines()) == 3 and (tmp_path / "found.png").exists()


def test_a_second_question_encodes_only_what_is_new(checkpoint, tmp_path, capsys, monkeypatch):
    folder, encoded = tmp_path / "photos" / "below", []
    folder.mkdir(parents=True)
    for colour in ("red", "blue", "white"):
        Image.new("RGB", (20, 50), colour).save(folder / f"{colour}.png")
    (folder / "cut.jpg").write_bytes(b"cut")
    pixels = Encoder.pixels
    monkeypatch.setattr(Encoder, "pixels", lambda self, batch: encoded.append(len(batch)) or pixels(self, batch))
    command = [str(checkpoint), "a coat", "--images", str(tmp_path / "photos")]
    command += ["--output_file", str(tmp_path / "found.png"), "--gallery", str(tmp_path / "kept")]
    assert main(command) == 0 and encoded == [3]
    output = capsys.readouterr()
    assert "below/red.png" in output.out and "left out: below/cut.jpg: cannot be decoded" in output.err
    assert main(command) == 0 and encoded == [3]
    Image.new("RGB", (20, 50), "green").save(folder / "green.png")
    (folder / "red.png").unlink()
    capsys.readouterr()
    assert main(command) == 0 and encoded == [3, 1]
    assert "green.png" in (output := capsys.readouterr().out) and "red.png" not in output


def test_a_gallery_of_two_folders_answers_for_the_one_that_is_asked(checkpoint, tmp_path, capsys):
    command = [str(checkpoint), "a coat", "--gallery", str(tmp_path / "kept")]
    command += ["--output_file", str(tmp_path / "found.png")]
    for name, colour in (("o'neill", "red"), ("shop", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 50), colour).save(tmp_path / name / f"{colour}.png")
        assert main([*command, "--images", str(tmp_path / name)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 and lines[0].endswith(f"{colour}.png")


def test_a_mistake_ends_in_one_line_and_code_2(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "cut", "not_a_model", "clip"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (64, 128), "red").save("cut/whole.jpg")
    (tmp_path / "cut" / "cut.jpg").write_bytes((tmp_path / "cut" / "whole.jpg").read_bytes()[:400])
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    for arguments, words in (
        ([checkpoint, "--images", "empty"], "empty: no images"),
        ([checkpoint, "--images", "nowhere"], "nowhere: no such folder; give"),
        ([checkpoint, "--images", "cut/whole.jpg"], "whole.jpg"),
        ([checkpoint, "--output_file", "found"], "the name of a picture ends in"),
        ([checkpoint, "--output_file", "nowhere/found.png"], "cannot be written"),
        ([tmp_path / "nowhere"], "nowhere: no model can be read there"),
        ([tmp_path / "not_a_model"], "not_a_model: no model can be read there"),
        ([broken], "broken: "),
        ([tmp_path / "clip"], "clip: "),
    ):
        model, *options = map(str, arguments)
        assert main([model, "a coat", *options]) == 2, arguments
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0] and "Traceback" not in "".join(lines), (arguments, lines)
    with pytest.raises(SystemExit) as stop:
        main([str(checkpoint), "a coat", "--top", "0"])
    assert stop.value.code == 2 and "--top must be at least 1" in capsys.readouterr().err


def test_the_old_name_of_the_picture_s_option_is_taken(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), "a coat", "--output", str(tmp_path / "found.png")]) == 0
    assert (tmp_path / "found.png").exists() and "--output is now --output_file" in capsys.readouterr().err
