"""A release folder: whole or absent, the same bytes each time, loadable as it stands, with a card of what it is."""

import hashlib
import importlib.util
import io
import json
import re
import signal
import sys
import time
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, List, Value, load_dataset
from datasets import Image as Image_
from hub_server import environment, hub
from huggingface_hub import DatasetCardData
from made_up_webperson import WRITERS, picture, same_pixels, write_images, write_parquets
from PIL import Image, JpegImagePlugin
from places import HELPERS

from dataset_webperson import release as release_module
from dataset_webperson.files import file_size
from dataset_webperson.release import main
from dataset_webperson.release_shards import release_schema
from dataset_webperson.removed import write_removed
from dataset_webperson.rows.local_source import open_source
from modeling_gadms.image_processing_gadms import GADMSImageProcessor

CONTACT = ["--contact", "privacy@example.org", "--repository", "org/webperson"]


def write(source, out, *options):
    return main(["--source", str(source), "--output_dir", str(out), *CONTACT, *options])


def digests(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("layout", list(WRITERS))
def test_every_layout_becomes_shards_that_load_plain_and_streaming(layout, tmp_path):
    source = WRITERS[layout](tmp_path / "source", 20, 3)
    assert write(source, tmp_path / "out", "--rows_per_shard", "8", "--row_group_rows", "1") == 0
    shards = [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    assert listing(tmp_path / "out" / "data") == shards
    assert listing(tmp_path) == ["out", "out-report", "out-script", "source"]
    plain = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    streamed = list(load_dataset(str(tmp_path / "out"), split="train", streaming=True))
    opened = open_source(source)
    source_rows = [row for shard in opened.shards for row in opened.rows(shard)]
    assert len(plain) == len(streamed) == len(source_rows) == 20
    for row, stream_row, expected in zip(plain, streamed, source_rows, strict=True):
        assert same_pixels(row["image"], stream_row.pop("image"))
        assert same_pixels(row.pop("image"), Image.open(io.BytesIO(expected.read())))
        captions = dict(zip(("caption1", "caption2"), expected.captions, strict=True))
        sha256 = {"image_sha256": hashlib.sha256(expected.read()).hexdigest()}
        assert row == stream_row == {"image_path": expected.image_path, **captions, **sha256, **expected.extra}


def rows_of(folder):
    return [row for file in sorted((folder / "data").iterdir()) for row in pq.read_table(file).to_pylist()]


def test_a_cache_holds_images_as_the_processor_resizes_them_under_the_names_of_the_originals(tmp_path):
    source = write_images(tmp_path / "source", 5)
    Image.open(source / "images" / "0001.jpg").convert("CMYK").save(source / "images" / "0001.jpg")
    Image.new("RGBA", (30, 90), (250, 0, 0, 99)).save(source / "images" / "0002.jpg", format="PNG")
    Image.new("L", (16, 48), 77).save(source / "images" / "0003.jpg")
    write(source, tmp_path / "full")
    whole = rows_of(tmp_path / "full")
    removed = {whole[4]["image_sha256"]: "asked for"}
    write_removed(str(tmp_path / "full" / "removed.parquet"), removed)
    write_removed(str(source / "removed.parquet"), removed)
    size = {"height": 48, "width": 16}
    processor = GADMSImageProcessor(size=size, do_rescale=False, do_normalize=False)
    for name in ("source", "full"):
        out = tmp_path / f"cache-of-{name}"
        assert write(tmp_path / name, out, "--cache_size", "48", "16") == 0
        rows = rows_of(out)
        assert [row["image_path"] for row in rows] == [f"{number:04d}.jpg" for number in range(4)]
        for row, full in zip(rows, whole, strict=False):
            resized = processor(Image.open(io.BytesIO(full["image"]["bytes"])))["pixel_values"][0]
            twin = io.BytesIO()
            Image.fromarray(resized.transpose(1, 2, 0).copy()).save(twin, "JPEG", quality=95, subsampling=0)
            data = row.pop("image")["bytes"]
            # one that has the size already keeps its pixels
            assert data == (full["image"]["bytes"] if row["image_path"] == "0003.jpg" else twin.getvalue())
            assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(data))) in (0, -1)
            assert row == {key: value for key, value in full.items() if key != "image"}
        card = card_of(out)[1]
        assert "a cache to train from: every image has 48 x 16 pixels" in card
        assert "- 3 images resized (bicubic)" in card and "before any resizing" in card
        assert "All other images keep their compressed pixels" in card
    assert "cache" not in card_of(tmp_path / "full")[1]


def groups_by_the_rule(names, group_rows, shard_rows):
    """Sizes of the row groups of each file, written out from the rule that a name marks an end."""
    files = []
    while names:
        groups, size = [], 0
        for place, name in enumerate(names, 1):
            mark = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % (group_rows // 4) == 0
            size += 1
            if size >= group_rows * 3 / 4 and (mark or size == 2 * group_rows):
                groups.append(size)
                size = 0
            if place >= shard_rows and (mark or place == shard_rows + 2 * group_rows):
                break
        files.append(groups + [size] * (size > 0))
        names = names[place:]
    return files


def test_pictures_are_jpeg_and_groups_end_where_a_name_says_so(tmp_path):
    source = write_images(tmp_path / "source", 60)
    Image.new("RGBA", (40, 80), (250, 0, 0, 255)).save(source / "images" / "0004.jpg", format="PNG")
    write(source, tmp_path / "out", "--rows_per_shard", "20", "--row_group_rows", "8")
    for folder in ("data", "captions"):
        groups, formats = [], set()
        for file in sorted((tmp_path / "out" / folder).iterdir()):
            footer = pq.read_metadata(file)
            groups.append([footer.row_group(group).num_rows for group in range(footer.num_row_groups)])
            columns = [footer.row_group(0).column(number) for number in range(footer.num_columns)]
            kinds = {column.path_in_schema: column.compression for column in columns}
            assert kinds.pop("image.bytes", "UNCOMPRESSED") == "UNCOMPRESSED" and set(kinds.values()) == {"ZSTD"}
            images = pq.read_table(file).to_pydict().get("image", [])
            formats |= {Image.open(io.BytesIO(image["bytes"])).format for image in images}
        names = [f"{number:04d}.jpg" for number in range(60)]
        assert groups == groups_by_the_rule(names, 8, 20) and len(groups) > 1
        assert formats == ({"JPEG"} if folder == "data" else set())
    report = json.loads((tmp_path / "out-report" / "report.json").read_text())
    assert report["rows"] == {"read": 60, "kept": 60, "converted": 1, "captions": 120}


def test_images_and_captions_are_configs_joined_by_the_hash_of_the_image(tmp_path):
    source = write_images(tmp_path / "source", 9)
    write(source, tmp_path / "out", "--rows_per_shard", "5", "--row_group_rows", "2")
    for options in ({"cache_dir": str(tmp_path / "cache")}, {"streaming": True}):
        joined, images, captions = (
            list(load_dataset(str(tmp_path / "out"), config, split="train", **options))
            for config in ("default", "images", "captions")
        )
        assert set(images[0]) == {"image", "image_path", "image_sha256", "score"}
        assert set(captions[0]) == {"image_sha256", "image_path", "caption1", "caption2"}
        by_hash = {row["image_sha256"]: row for row in captions}
        assert len(joined) == len(by_hash) == 9
        for row, image in zip(joined, images, strict=True):
            assert row == {**image, **by_hash[image["image_sha256"]]}


def test_the_same_source_gives_the_same_bytes_by_any_number_of_processes(tmp_path):
    source = write_images(tmp_path / "source", 150)
    for name, options in (("one", []), ("two", ["--num_workers", "2"])):
        write(source, tmp_path / name, "--rows_per_shard", "70", *options)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one-report") == digests(tmp_path / "two-report")


@pytest.mark.parametrize("layout", list(WRITERS))
def test_a_run_stopped_at_any_shard_goes_on_and_gives_the_same_bytes(layout, tmp_path, monkeypatch):
    source = WRITERS[layout](tmp_path / "source", 20, 3)
    options = ["--rows_per_shard", "6", "--row_group_rows", "1"]
    write(source, tmp_path / "whole", *options)
    out, real, written = tmp_path / "out", release_module.write_shard, []

    class Stopped(BaseException):
        pass

    def stop(stem, rows, *rest):
        if len(written) == 2:
            next(rows)
            Path(stem + ".parquet.part").write_bytes(b"half a file")
            raise Stopped
        written.append(stem)
        real(stem, rows, *rest)

    monkeypatch.setattr(release_module, "write_shard", stop)
    with pytest.raises(Stopped):
        write(source, out, *options)
    assert not out.exists() and (tmp_path / "out.partial").exists()
    written.clear()
    monkeypatch.setattr(release_module, "write_shard", lambda stem, *rest: written.append(stem) or real(stem, *rest))
    assert write(source, out, *options) == 0
    assert [Path(path).name for path in written] == ["000002", "000003"]
    assert digests(out) == digests(tmp_path / "whole") and not (tmp_path / "out.partial").exists()
    assert digests(tmp_path / "out-report") == digests(tmp_path / "whole-report")


def test_a_killed_run_leaves_no_release_and_the_next_one_completes_it(tmp_path):
    source = write_images(tmp_path / "source", 600)
    options = ["--rows_per_shard", "10", "--row_group_rows", "5"]
    out = tmp_path / "out"
    command = ["-m", "dataset_webperson.release", "--source", source, "--output_dir", out]
    command += [*CONTACT, *options]
    process = forked.start(command)
    shards = tmp_path / "out.partial" / "shards"
    while len(list(shards.glob("*.facts.json"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert len(done) >= 3
    for name in done:
        pq.read_metadata(shards / name)  # whole
    write(source, out, *options)
    write(source, tmp_path / "whole", *options)
    assert digests(out) == digests(tmp_path / "whole")


def test_other_options_do_not_continue_a_run_and_nothing_is_written_over(tmp_path, capsys):
    source = write_images(tmp_path / "source", 4)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "state.json").write_text("[]")
    assert write(source, tmp_path / "out") == 2
    assert "begun with another source or other options" in capsys.readouterr().err
    assert write(source, tmp_path / "other") == 0 and write(source, tmp_path / "other") == 2
    assert "exists already" in capsys.readouterr().err


def test_rows_left_out_are_listed_for_the_publisher_and_counted_on_the_card(tmp_path, capsys):
    source = write_images(tmp_path / "source", 9)
    (source / "images" / "0002.jpg").write_bytes(b"")
    entries = json.loads((source / "100w_0.json").read_text())
    entries[5]["0005.jpg"]["caption1"] += "/nHe reads."
    (source / "100w_0.json").write_text(json.dumps(entries))
    assert write(source, tmp_path / "out") == 2 and "on_bad_images='warn'" in capsys.readouterr().err
    (tmp_path / "out.partial" / "state.json").unlink()
    assert write(source, tmp_path / "out", "--on_bad_images", "warn") == 0
    told = capsys.readouterr().out
    assert "1 of 9 rows left out: image of 0 bytes 1" in told and "line-break 1" in told
    assert (tmp_path / "out-report" / "left_out.tsv").read_text().startswith("0002.jpg\timage-empty\t")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 of 9 rows left out" in card and "left_out.tsv" not in card and str(tmp_path) not in card
    shards = (tmp_path / "out" / "data").iterdir()
    assert sum(pq.read_metadata(file).num_rows for file in shards) == 8


def test_a_source_of_nothing_usable_is_no_release(tmp_path, capsys):
    source = write_images(tmp_path / "source", 2)
    assert write(source, tmp_path / "out", "--min_side", "500") == 2
    assert "no row is left to release" in capsys.readouterr().err and not (tmp_path / "out").exists()


def card_of(folder):
    """The head of a release's card, checked by the Hub's own class, and its text."""
    text = (Path(folder) / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    values = yaml.safe_load(head)
    assert DatasetCardData(**values).to_dict() == values
    assert "$" not in body and "\n\n\n" not in body
    return values, body


# What only the paper's construction did, and what is said of people where nobody knows of any.
CLAIMS = ("COYO", "YOLO", "Qwen", "Common Crawl", "did not consent", "templates", "0.00 GB", "as the source has it")


def test_the_card_of_any_folder_says_only_what_the_release_did(tmp_path):
    source = write_images(tmp_path / "source", 5)
    write(source, tmp_path / "out", "--licence", "cc-by-nc-4.0")
    card, body = card_of(tmp_path / "out")
    data, captions = ([{"split": "train", "path": f"{folder}/train-*"}] for folder in ("data", "captions"))
    assert card["configs"] == [
        {"config_name": "default", "data_files": data, "default": True},
        {"config_name": "images", "data_files": data, "columns": ["image", "image_path", "image_sha256", "score"]},
        {"config_name": "captions", "data_files": captions},
    ]
    assert card["license"] == "cc-by-nc-4.0" and card["size_categories"] == ["n<1K"] and card["language"] == ["en"]
    assert card["task_categories"] == ["image-feature-extraction"]
    assert card["dataset_info"][0]["splits"][0]["num_examples"] == 5
    for heading in ("How it was made", "What is not in it", "Licence, opt-out and takedown", "Files", "Citation"):
        assert f"\n## {heading}\n" in body, heading
    for told in (
        "5 images with 10 captions",
        "gives `cc-by-nc-4.0` as the licence",
        "Captions have 8.5 words on average",
        "The publisher has not said",
        "from image files and json lists",
        "- No caption was changed.\n- No row was left out.\n- All images keep their compressed pixels",
        "No column names the person",
        "no split `validation` and no split `test`",
        "privacy@example.org",
        "| `score` | float64 | 0 to 1 |",
        "1 Parquet file, ",
        "@inproceedings{zheng-etal-2025-gradient",
    ):
        assert told in body, told
    assert not [claim for claim in CLAIMS if claim in body]
    assert not re.search(r"[^.\d]0\.0+ [kMG]B", body) and "benchmark_layouts" not in body


def test_the_card_counts_persons_missing_values_and_repairs(tmp_path):
    text, rows = Value("string"), []
    for number in range(12):
        rows.append(
            {
                "image": {"bytes": picture(number, tmp_path), "path": None},
                "image_path": f"{number}.jpg",
                "caption1": f"Uma pessoa número {number} caminha.",
                "caption2": f"Ela usa chapéu./nPessoa {number}.",
                "person_id": None if number == 3 else 100_000_000 * (number // 2),
                "words": [{"start": 0, "score": 0.5}] * (number % 4),
                "camera": "north|1" if number % 2 else "south",
            }
        )
    features = Features(
        image=Image_(), image_path=text, caption1=text, caption2=text, person_id=Value("int64"), camera=text
    )
    features["words"] = List({"start": Value("int32"), "score": Value("float32")})
    (tmp_path / "source").mkdir()
    for split, part in (("train", rows[:7]), ("test", rows[7:])):
        Dataset.from_list(part, features=features).to_parquet(str(tmp_path / "source" / f"{split}.parquet"))
    write(tmp_path / "source", tmp_path / "out")
    card, body = card_of(tmp_path / "out")
    assert "language" not in card  # no English word in it
    for told in (
        "12 images with 24 captions of 6 persons, by the column `person_id`",
        "Splits: `train` (7 rows), `test` (5 rows).",
        "| `person_id` | int64 | 0 to 500,000,000; none in 1 row |",
        "| `words` | list of (start: int32, score: float32) | 0 to 3 in a row |",
        "`south` 6, `north/1` 6",
        "Captions cleaned, of 24: line-break 12.",
        "`person_id` is missing in 1 row.",
        "`train` and `test` share 1 person.",
        "There is no split `validation`.",
    ):
        assert told in body, told
    assert "No column names the person" not in body and not [claim for claim in CLAIMS if claim in body]


@pytest.mark.parametrize(
    "suffix, told", [("png", "- 3 images re-encoded as JPEG at quality 95.\n- EXIF"), ("jpg", "All")]
)
def test_the_card_speaks_of_other_images_where_there_are_any(tmp_path, suffix, told):
    (tmp_path / "source").mkdir()
    entries = {}
    for number in range(3):
        Image.new("RGB", (60, 120), (number, 0, 0)).save(tmp_path / "source" / f"{number}.{suffix}")
        entries[f"{number}.{suffix}"] = {"caption1": "A man walks.", "caption2": "He has a bag."}
    (tmp_path / "source" / "list.json").write_text(json.dumps([entries]))
    write(tmp_path / "source", tmp_path / "out")
    body = card_of(tmp_path / "out")[1]
    assert told in body and "other images" not in body


def test_a_provenance_is_printed_as_it_is_and_the_paper_s_is_at_hand(tmp_path):
    source = write_images(tmp_path / "source", 2)
    (tmp_path / "made.md").write_text("Drawn by hand for $5.")
    write(source, tmp_path / "out", "--provenance", str(tmp_path / "made.md"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Drawn by hand for $5." in text and "COYO" not in text and "has not said" not in text
    write(source, tmp_path / "paper", "--provenance", str(Path(release_module._FILES) / "provenance.md"))
    text = (tmp_path / "paper" / "README.md").read_text()
    for word in ("COYO-700M", "Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-32B-Instruct", "0.85", "did not consent"):
        assert word in text, word


@pytest.mark.parametrize(
    ("size", "text"),
    [(999, "999 bytes"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (25_300_000, "25.3 MB"), (2e15, "2,000.0 TB")],
)
def test_sizes_are_never_nothing(size, text):
    assert file_size(size) == text


def test_a_wrong_number_of_rows_on_the_card_is_noticed(tmp_path):
    source = write_images(tmp_path / "source", 20)
    write(source, tmp_path / "out", "--rows_per_shard", "8", "--row_group_rows", "1")
    (tmp_path / "out" / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(Exception, match="20"):
        load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))


def test_lists_are_described_in_a_way_that_older_versions_read():
    features = Features(tags=List(Value("string")), spans=List(List(Value("int32"))), name=Value("string"))
    schema = release_schema(features)
    described = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert described["tags"] == [{"dtype": "string", "_type": "Value"}]
    assert Features.from_arrow_schema(schema) == features


@pytest.mark.parametrize("name", ["webperson", "org/", "a/b/c", "org/../x"])
def test_a_repository_that_is_none_is_refused(name, tmp_path, capsys):
    source = write_images(tmp_path / "source", 1)
    assert write(source, tmp_path / "out", "--repository", name) == 2
    assert "write ORG/NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    "mistake",
    [
        "source",
        "source-file",
        "place",
        "provenance",
        "latin-1",
        "contact",
        "licence",
        "workers",
        "rows",
        "side",
        "cache",
        "state",
    ],
)
def test_a_mistake_is_one_line_and_code_2(mistake, tmp_path, capsys):
    source = write_images(tmp_path / "source", 1)
    file = tmp_path / "file"
    file.write_bytes("Döner".encode("latin-1"))
    (tmp_path / "begun.partial").mkdir()
    (tmp_path / "begun.partial" / "state.json").write_text("[")
    arguments = {
        "source": (tmp_path / "nowhere", tmp_path / "out"),
        "source-file": (file, tmp_path / "out"),
        "place": (source, file / "out"),
        "provenance": (source, tmp_path / "out", "--provenance", str(tmp_path / "nowhere.md")),
        "latin-1": (source, tmp_path / "out", "--provenance", str(file)),
        "contact": (source, tmp_path / "out", "--contact", " "),
        "licence": (source, tmp_path / "out", "--licence", "CC BY 4.0"),
        "workers": (source, tmp_path / "out", "--num_workers", "0"),
        "rows": (source, tmp_path / "out", "--rows_per_shard", "0"),
        "side": (source, tmp_path / "out", "--min_side", "-1"),
        "cache": (source, tmp_path / "out", "--cache_size", "384", "0"),
        "state": (source, tmp_path / "begun"),
    }[mistake]
    assert write(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and not (tmp_path / "out").exists()


def test_the_loading_script_is_a_file_that_cannot_be_imported_here_and_lies_apart(tmp_path):
    source = write_parquets(tmp_path / "source", 4, 1)
    write(source, tmp_path / "out")
    assert listing(tmp_path / "out") == ["README.md", "captions", "data", "removed.parquet"]
    assert listing(tmp_path / "out-script") == ["README.md", "webperson.py"]
    script = (tmp_path / "out-script" / "webperson.py").read_text()
    compile(script, "webperson.py", "exec")
    assert '"data/train-00000-of-00001.parquet"' in script
    # Version 3 reads imports line by line.
    assert all("," not in line for line in script.splitlines() if line.startswith(("import", "from")))
    assert not [path for path in Path(release_module._FILES).iterdir() if path.suffix == ".py"]


def test_the_release_loads_and_streams_from_a_hub(tmp_path):
    source = write_images(tmp_path / "source", 12)
    write(source, tmp_path / "out", "--rows_per_shard", "5", "--row_group_rows", "2")
    with hub("org/webperson", {"main": tmp_path / "out", "script": tmp_path / "out-script"}) as endpoint:
        wanted = json.dumps(
            [[str(tmp_path / "out"), {}], ["org/webperson", {}], ["org/webperson", {"streaming": True}]]
        )
        process = forked.run([HELPERS / "print_rows.py", wanted], env=environment(endpoint, tmp_path / "cache"))
        assert process.returncode == 0, process.stderr[-2000:]
        local, plain, streamed = json.loads(process.stdout)["found"]
        assert local == plain == streamed and len(local["rows"]) == 12
        code = """
from dataset_webperson import WebPerson
from dataset_webperson.rows.streaming import ShuffledParquet
stream = ShuffledParquet("org/webperson", window_rows=4)
assert stream.files[0].startswith("hf://"), stream.files
builder = WebPerson(config_name="webperson-1m", repository="org/webperson", expected_rows=12)
builder.download_and_prepare()
names = builder.as_dataset(split="train")["image_path"][:]
print(sorted(stream[key]["image_path"] for key in stream.order(0)) == names, len(names))
"""
        process = forked.run(["-c", code], env=environment(endpoint, tmp_path / "cache"))
        assert process.stdout.strip() == "True 12", process.stderr[-2000:]


@pytest.mark.parametrize("layout", list(WRITERS))
def test_splits_stay_splits_in_files_card_and_script(layout, tmp_path, monkeypatch):
    source = WRITERS[layout](tmp_path / "source", 20, 2)
    folder = source / "data" if layout == "parquet" else source
    files = sorted(path for path in folder.iterdir() if path.suffix in (".parquet", ".tar", ".json"))
    for file, split in zip(files, ("test", "train"), strict=True):
        file.rename(file.with_name(f"{split}-0{file.suffix}"))
    assert write(source, tmp_path / "out", "--rows_per_shard", "8", "--row_group_rows", "1") == 0
    out = tmp_path / "out"
    names = [f"{split}-0000{number}-of-00002.parquet" for split in ("test", "train") for number in range(2)]
    assert listing(out / "data") == names
    plain = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    rows = [f"{number:04d}.jpg" for number in range(20)]
    assert {split: part["image_path"][:] for split, part in plain.items()} == {"train": rows[10:], "test": rows[:10]}
    head = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    patterns = [{"split": split, "path": f"data/{split}-*"} for split in ("train", "test")]
    assert head["configs"][0] == {"config_name": "default", "data_files": patterns, "default": True}
    sizes = {split["name"]: split["num_examples"] for split in head["dataset_info"][0]["splits"]}
    assert sizes == {"train": 10, "test": 10}
    spec = importlib.util.spec_from_file_location("released_script", tmp_path / "out-script" / "webperson.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "released_script", script)
    spec.loader.exec_module(script)
    files = {split: [f"data/{split}-0000{n}-of-00002.parquet" for n in range(2)] for split in ("train", "test")}
    assert script._FILES == files
    made = script.WebPerson(data_dir=str(out), cache_dir=str(tmp_path / "script"))
    made.download_and_prepare()
    assert {split: part["image_path"][:] for split, part in made.as_dataset().items()} == {
        "train": rows[10:],
        "test": rows[:10],
    }
    assert json.loads((tmp_path / "out-report" / "report.json").read_text())["splits"] == {"train": 10, "test": 10}
