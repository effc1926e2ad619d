"""WebPerson from folders and repositories: every layout gives the same rows, and every defect is named or left out."""

import io
import json
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from made_up_datasets import write_picture
from made_up_webperson import (
    WRITERS,
    add_member,
    jpeg,
    made_up_rows,
    picture,
    same_pixels,
    write_images,
    write_parquets,
    write_tars,
)
from PIL import Image

from dataset_webperson import DataError, WebPerson
from dataset_webperson.images import to_rgb
from dataset_webperson.rows.cleaning import repair_caption
from dataset_webperson.rows.images import check_image, without_description
from dataset_webperson.rows.local_source import by_split, fit, infer_features, open_source
from dataset_webperson.rows.preparation import RowOptions


def builder(folder, cache, **options):
    return WebPerson(config_name="local", data_dir=str(folder), cache_dir=str(cache), **options)


def load(folder, cache, **options):
    made = builder(folder, cache, **options)
    made.download_and_prepare()
    return made.as_dataset(split="train"), made


def names(rows):
    return rows.select_columns("image_path")["image_path"][:]


# Layouts.


@pytest.mark.parametrize("layout", list(WRITERS))
@pytest.mark.parametrize("shards", [1, 3])
def test_every_layout_gives_the_same_rows(layout, shards, tmp_path):
    WRITERS[layout](tmp_path / "source", 12, shards)
    rows, made = load(tmp_path / "source", tmp_path / "cache")
    assert rows.column_names == ["image", "image_path", "caption1", "caption2", "score"]
    expected = made_up_rows(12)
    assert names(rows) == list(expected)
    for number, row in enumerate(rows):
        image = row.pop("image")
        assert row == {"image_path": row["image_path"], **expected[row["image_path"]]}
        assert same_pixels(image, Image.open(io.BytesIO(picture(number, tmp_path))))
    assert made.report()["rows"] == {"read": 12, "kept": 12, "converted": 0, "captions": 24}


@pytest.mark.parametrize("layout", list(WRITERS))
def test_a_folder_streams_and_two_processes_give_the_same_rows(layout, tmp_path):
    WRITERS[layout](tmp_path / "source", 10, 2)
    made = builder(tmp_path / "source", tmp_path / "cache")
    streamed = [row["image_path"] for row in made.as_streaming_dataset(split="train")]
    made.download_and_prepare(num_proc=2)
    assert streamed == names(made.as_dataset(split="train")) == list(made_up_rows(10))


def test_a_changed_folder_is_read_anew(tmp_path):
    write_images(tmp_path / "source", 4)
    assert len(load(tmp_path / "source", tmp_path / "cache")[0]) == 4
    write_images(tmp_path / "source", 6)
    assert len(load(tmp_path / "source", tmp_path / "cache")[0]) == 6


def test_what_img2dataset_writes_beside_its_tars_is_no_source(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_tars(tmp_path, 4, 1)
    pq.write_table(pa.table({"url": ["http://example.org"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text('{"count": 4}')
    assert open_source(tmp_path).format == "webdataset"


def test_a_folder_of_nothing_or_of_two_layouts_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no WebPerson in it.*pass the folder that holds the shards"):
        open_source(tmp_path / "empty")
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "nowhere")
    write_tars(tmp_path / "both", 4, 1)
    write_parquets(tmp_path / "both", 4, 2)
    with pytest.raises(DataError, match="ambiguous, it holds 2 of parquet.*1 of webdataset.*source_format="):
        open_source(tmp_path / "both")
    assert open_source(tmp_path / "both", "webdataset").format == "webdataset"
    with pytest.raises(DataError, match="no images in it"):
        open_source(tmp_path / "both", "images")
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "100w.json").write_text('{"a.jpg": {}}')
    with pytest.raises(DataError, match="hold a list"):
        open_source(tmp_path / "dict")


def test_broken_shards_are_named(tmp_path):
    write_tars(tmp_path / "tar", 4, 1)
    tar = tmp_path / "tar" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-14_000])
    with pytest.raises(DataError, match="00000.tar: broken after row"):
        load(tmp_path / "tar", tmp_path / "cache")
    write_images(tmp_path / "json", 4)
    file = tmp_path / "json" / "100w_0.json"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(DataError, match="100w_0.json: not valid json after entry 3"):
        load(tmp_path / "json", tmp_path / "cache")
    write_parquets(tmp_path / "parquet", 4, 1)
    file = next((tmp_path / "parquet" / "data").iterdir())
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match="parquet: not a whole parquet file"):
        load(tmp_path / "parquet", tmp_path / "cache")


# Rows that cannot be used.


@pytest.fixture
def defects(tmp_path):
    """12 rows: 0 is sound, the others each have a defect."""
    root = write_images(tmp_path / "source", 12)
    file = root / "100w_0.json"
    entries = json.loads(file.read_text())
    outside = tmp_path / "outside.jpg"
    write_picture(outside, 1)
    images = root / "images"

    def rename(number, name):
        entries[number] = {name: next(iter(entries[number].values()))}

    (images / "0001.jpg").unlink()
    (images / "0002.jpg").write_bytes(b"")
    (images / "0003.jpg").write_bytes((images / "0003.jpg").read_bytes()[:-300])
    rename(4, "../outside.jpg")
    rename(5, str(outside))
    (images / "0006.jpg").unlink()
    (images / "0006.jpg").symlink_to(outside)
    (images / "0007.jpg").unlink()
    (images / "0007.jpg").symlink_to(images / "0007.jpg")
    entries[8] = "0008.jpg"
    entries[9] = {"0009.jpg": {"caption1": None, "caption2": 7}}
    entries[10] = {"0010.jpg": {"caption1": " ", "caption2": "The person wears [colored top] and [shoes]."}}
    Image.new("RGB", (60, 60)).save(images / "0011.jpg")
    file.write_text(json.dumps(entries))
    return root


LEFT_OUT = {
    "image-missing": 1,
    "image-empty": 1,
    "image-unreadable": 1,
    "path-unsafe": 4,
    "row-not-object": 1,
    "captions-missing": 2,
}


def test_rows_that_cannot_be_used_are_left_out_counted_and_named(defects, tmp_path):
    with pytest.warns(UserWarning, match=r"11 of 12 rows left out: .*path that leaves the folder 4.*\.tsv"):
        rows, made = load(defects, tmp_path / "cache", on_bad_images="warn", min_side=49)
    # The rows without captions have small images too, which is what is told first.
    expected = {kind: count for kind, count in LEFT_OUT.items() if kind != "captions-missing"} | {"image-small": 3}
    assert names(rows) == ["0011.jpg"] and made.report()["left_out"] == expected
    with pytest.raises(DataError, match="no usable row; 12 of 12 rows left out"):
        load(defects, tmp_path / "cache", on_bad_images="warn", min_side=61)


def test_the_names_of_rows_left_out_are_in_a_file(defects, tmp_path, recwarn):
    rows, made = load(defects, tmp_path / "cache", on_bad_images="skip", min_side=48)
    assert names(rows) == ["0000.jpg", "0011.jpg"]
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]
    assert made.report()["left_out"] == LEFT_OUT
    lines = [
        line.split("\t")
        for path in sorted(Path(made.report_dir).glob("*.tsv"))
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == 10 and {len(line) for line in lines} == {3}
    assert {line[0]: line[1] for line in lines}["0003.jpg"] == "image-unreadable"


def test_the_first_row_that_cannot_be_used_stops_by_default(defects, tmp_path):
    with pytest.raises(DataError, match=r"0001.jpg: No such file.*on_bad_images='warn'"):
        load(defects, tmp_path / "cache")


def test_a_tar_never_reads_outside_itself(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(picture(99, tmp_path))
    root = write_tars(tmp_path / "source", 2, 1)
    good = picture(5, tmp_path)
    text = json.dumps({"caption1": "A person walks in a coat.", "caption2": "A person walks in a hat."}).encode()
    with tarfile.open(root / "00001.tar", "w") as tar:
        for name in ("../up.jpg", "/etc/absolute.jpg", "back\\slash.jpg"):
            add_member(tar, name, good)
            add_member(tar, name.replace(".jpg", ".json"), text)
        add_member(tar, "link.jpg", b"", type=tarfile.SYMTYPE, linkname="../secret.jpg")
        add_member(tar, "link.json", text)
        add_member(tar, "hard.jpg", b"", type=tarfile.LNKTYPE, linkname="../secret.jpg")
        add_member(tar, "device.jpg", b"", type=tarfile.CHRTYPE)
        add_member(tar, "lonely.json", text)
        add_member(tar, "bad.jpg", good)
        add_member(tar, "bad.json", b"[1, 2")
        add_member(tar, "text.jpg", good)
        add_member(tar, "text.txt", b"A person of the text file walks.")
    rows, made = load(root, tmp_path / "cache", on_bad_images="skip")
    assert names(rows) == ["0000.jpg", "0001.jpg", "text.jpg"]
    assert made.report()["left_out"] == {"path-unsafe": 6, "image-missing": 1, "row-not-object": 1}
    assert rows[2]["caption1"] == rows[2]["caption2"] == "A person of the text file walks."


def test_a_link_to_a_shard_outside_is_refused(tmp_path):
    write_tars(tmp_path / "elsewhere", 2, 1)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "00000.tar").symlink_to(tmp_path / "elsewhere" / "00000.tar")
    with pytest.raises(DataError, match="leads out of"):
        open_source(tmp_path / "source")


# Images.


def modes():
    """Pictures that are not plain, and what they look like."""
    colours = Image.effect_mandelbrot((40, 80), (-2, -1.5, 1, 1.5), 50)
    rgb = Image.merge("RGB", (colours, colours.rotate(90), colours.rotate(180)))
    alpha = rgb.copy()
    alpha.putalpha(colours)
    palette = rgb.quantize(16)
    palette.info["transparency"] = 3
    deep = Image.frombytes("I;16", (40, 80), b"".join((n * 20).to_bytes(2, "little") for n in range(3200)))
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    yield "cmyk", jpeg(rgb.convert("CMYK"))
    yield "rotated", jpeg(rgb, exif=exif)
    for name, image in (("alpha", alpha), ("palette", palette), ("deep", deep)):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        yield name, buffer.getvalue()


@pytest.mark.parametrize(("name", "data"), list(modes()), ids=lambda value: value if isinstance(value, str) else "")
def test_pictures_that_are_not_plain_are_rewritten_with_the_same_look(name, data):
    expected = to_rgb(Image.open(io.BytesIO(data)))
    checked = check_image(data, name, 0, only_jpeg=False)
    written = Image.open(io.BytesIO(checked.data))
    assert checked.converted and (written.format, written.mode) == ("PNG", "RGB")
    assert same_pixels(written, expected) and not written.getexif()
    as_jpeg = check_image(data, name, 0, only_jpeg=True)
    assert Image.open(io.BytesIO(as_jpeg.data)).format == "JPEG" and (as_jpeg.width, as_jpeg.height) == expected.size


def test_plain_pictures_keep_their_bytes_and_lose_their_description(tmp_path):
    data = picture(3, tmp_path)
    assert check_image(data, "a", 0, only_jpeg=False).data == data
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Artist] = "A. Photographer"
    described = jpeg(Image.open(io.BytesIO(data)), exif=exif, comment=b"at home", quality=90)
    bare = check_image(described, "a", 0, only_jpeg=True)
    assert not bare.converted and b"Photographer" not in bare.data and b"at home" not in bare.data
    assert same_pixels(Image.open(io.BytesIO(bare.data)), Image.open(io.BytesIO(described)))
    assert without_description(b"\xff\xd8\xff\xe1\xff") == b"\xff\xd8\xff\xe1\xff"
    plain_png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain_png, format="PNG")
    assert not check_image(plain_png.getvalue(), "a", 0, only_jpeg=False).converted
    assert check_image(plain_png.getvalue(), "a", 0, only_jpeg=True).converted


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch, tmp_path):
    data = picture(1, tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 96 - 1)
    assert check_image(data, "a", 0, only_jpeg=True).problem == "image-bomb"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert not check_image(data, "a", 0, only_jpeg=True).problem


# Captions.


@pytest.mark.parametrize(
    ("caption", "cleaned", "repairs"),
    [
        ("A man in a red coat.", "A man in a red coat.", ()),
        ("A black/navy coat and a pink/nude bag.", "A black/navy coat and a pink/nude bag.", ()),
        ("A man in red./nHe walks./n", "A man in red. He walks.", ("line-break",)),
        ("A man /n in red", "A man in red", ("line-break",)),
        ("A man\\nin red\nwalks", "A man in red walks", ("line-break",)),
        ("A man in a red coat. He wears [colored shoes].", "A man in a red coat.", ("template-sentence",)),
        ("He wears {colored top} now. A man in a red coat.", "A man in a red coat.", ("template-sentence",)),
        ("[detailed description] A man.", "", ("dropped",)),
        ("description]", "", ("dropped",)),
        ("Here is the caption: A man in a red coat.", "A man in a red coat.", ("preamble",)),
        ("Sure! Here is a description of the person: A man in red.", "A man in red.", ("preamble",)),
        ('"A man in a red coat."', "A man in a red coat.", ("quotes",)),
        ('"A man" says "no"', '"A man" says "no"', ()),
        ("  A man   in red ", "A man in red", ("spaces",)),
        ("A child of <5 years in a blue coat.", "A child of <5 years in a blue coat.", ()),
    ],
)
def test_captions_are_repaired_and_the_repairs_are_named(caption, cleaned, repairs):
    assert repair_caption(caption) == (cleaned, repairs)
    assert repair_caption(cleaned)[0] == cleaned


def test_repairs_are_counted_and_shown_and_can_be_left_undone(tmp_path):
    root = write_images(tmp_path / "source", 3)
    file = root / "100w_0.json"
    entries = json.loads(file.read_text())
    entries[1]["0001.jpg"]["caption1"] = "She wears [colored top]."
    entries[2]["0002.jpg"]["caption2"] = "A woman in a green dress./nShe reads."
    file.write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match="captions cleaned, of 6: dropped 1, line-break 1"):
        rows, made = load(root, tmp_path / "cache")
    assert rows[1]["caption1"] == rows[1]["caption2"] == "Somebody, number 1, in blue shoes and a hat."
    assert rows[2]["caption2"] == "A woman in a green dress. She reads."
    example = made.report()["repair_examples"]["line-break"][0]
    assert example["before"] == "A woman in a green dress./nShe reads." and "100w_0.json entry 2" in example["where"]
    rows, _ = load(root, tmp_path / "cache", clean_captions=False)
    assert rows[1]["caption1"] == "She wears [colored top]."


# Further columns.


def test_half_characters_are_refused_as_names_and_captions_and_left_out_of_further_columns(tmp_path):
    root = write_tars(tmp_path / "source", 1, 1)
    texts = {"caption1": "A person \ud800 in red.", "caption2": "A person in a hat.", "note": "\ud800"}
    with tarfile.open(root / "00001.tar", "w", errors="surrogateescape") as tar:
        add_member(tar, "a.jpg", picture(1, tmp_path))
        add_member(tar, "a.json", json.dumps(texts).encode())
        add_member(tar, "\udcff.jpg", picture(1, tmp_path))
        add_member(tar, "\udcff.txt", b"A person in a red coat.")
    with tarfile.open(root / "00000.tar", "w") as tar:
        add_member(tar, "b.jpg", picture(2, tmp_path))
        add_member(tar, "b.json", json.dumps({**texts, "note": "fine"}).encode())
    rows, made = load(root, tmp_path / "cache", on_bad_images="skip")
    assert names(rows) == ["b.jpg", "a.jpg"]
    assert rows["caption1"][:] == rows["caption2"][:] == ["A person in a hat."] * 2
    assert rows["note"][:] == ["fine", None]
    assert made.report()["left_out"] == {"path-unsafe": 1} and made.report()["unfit_values"] == {"note": 1}


def test_types_of_further_columns_come_from_the_first_rows():
    features = infer_features(
        [{"a": 1, "b": 1, "c": True, "d": "x", "e": None}, {"a": 2, "b": 0.5, "d": [1], "f": {"g": 1}}]
    )
    kinds = {name: feature.dtype for name, feature in features.items()}
    assert kinds == {"a": "int64", "b": "float64", "c": "bool", "d": "string", "e": "string", "f": "string"}
    assert fit([1, "é"], features["d"]) == '[1, "é"]' and fit(None, features["a"]) is None
    for name, value in (("a", 1.5), ("a", True), ("b", "x"), ("c", 1), ("a", 2**63)):
        with pytest.raises(ValueError):
            fit(value, features[name])


def test_values_of_another_type_and_late_columns_are_left_out_and_counted(tmp_path):
    root = write_images(tmp_path / "source", 220)
    file = root / "100w_0.json"
    entries = json.loads(file.read_text())
    entries[210]["0210.jpg"] |= {"score": "high", "late": 1}
    file.write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match="another type: late 1, score 1"):
        rows, _ = load(root, tmp_path / "cache")
    assert rows[210]["score"] is None and "late" not in rows.column_names


# Repositories, counts and options.


@pytest.mark.parametrize("name", ["webperson-1m", "webperson-5m"])
def test_a_repository_is_checked_by_its_rows_before_it_is_read(name, tmp_path):
    root = write_parquets(tmp_path / "stand-in", 9, 2)
    made = WebPerson(config_name=name, repository=str(root), cache_dir=str(tmp_path / "cache"), expected_rows=9)
    made.download_and_prepare()
    assert names(made.as_dataset(split="train")) == list(made_up_rows(9))
    declared = {"webperson-1m": "1,000,000", "webperson-5m": "5,002,723"}[name]
    whole = WebPerson(config_name=name, repository=str(root), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=f"9 rows, {declared} are declared.*expected_rows=9"):
        whole.download_and_prepare()
    assert WebPerson(config_name=name, cache_dir=str(tmp_path)).config.repository.endswith(name[-2:].upper())


def test_a_wrong_byte_count_on_the_card_does_not_matter(tmp_path):
    root = write_parquets(tmp_path / "stand-in", 5, 1)
    card = "dataset_info:\n  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: 5\n  download_size: 2\n"
    (root / "README.md").write_text(f"---\n{card}---\n")
    made = WebPerson(
        config_name="webperson-1m", repository=str(root), cache_dir=str(tmp_path / "cache"), expected_rows=5
    )
    made.download_and_prepare()
    assert len(made.as_dataset(split="train")) == 5


@pytest.mark.parametrize("layout", list(WRITERS))
def test_a_folder_with_another_number_of_rows_than_expected_is_refused_each_time(layout, tmp_path):
    WRITERS[layout](tmp_path / "source", 5)
    for _ in range(2):
        with pytest.raises(DataError, match="5 rows, 6 are declared"):
            load(tmp_path / "source", tmp_path / "cache", expected_rows=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config_name": "local"}, "data_dir is the folder of the config 'local'"),
        ({"config_name": "webperson-1m", "data_dir": "."}, "data_dir is the folder"),
        ({"config_name": "synthetic", "repository": "a/b"}, "repository belongs to the configs webperson-1m"),
        ({"config_name": "webperson-1m", "source_format": "images"}, "source_format of the config 'local'"),
        ({"config_name": "webperson-1m", "on_bad_images": "ignore"}, "on_bad_images is one of error, warn, skip"),
        ({"config_name": "webperson-1m", "min_side": -1}, "min_side is a whole number"),
        ({"config_name": "webperson-1m", "expected_rows": 1.5}, "expected_rows must be a whole number"),
    ],
)
def test_options_that_make_no_sense_raise_one_clear_error(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        WebPerson(cache_dir=str(tmp_path), **options)


def test_memory_stays_flat_over_a_long_list(tmp_path):
    """A list ten times as long takes no more memory; its images are looked for, not held."""
    peaks = []
    for count in (2_000, 20_000):
        root = tmp_path / str(count)
        root.mkdir()
        with open(root / "list.json", "w") as file:
            entries = (json.dumps({f"{n}.jpg": {"caption1": f"A person {n} " * 8}}) for n in range(count))
            file.write("[" + ",\n".join(entries) + "]")
        source = open_source(root)
        tracemalloc.start()
        assert sum(1 for _ in source.rows(source.shards[0])) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 200_000


def test_skipped_rows_are_not_handed_on(tmp_path):
    for layout, write in WRITERS.items():
        source = open_source(write(tmp_path / layout, 9, 1))
        whole = [row.image_path for row in source.rows(source.shards[0])]
        for skip in (0, 1, 8, 9, 12):
            assert [row.image_path for row in source.rows(source.shards[0], skip)] == whole[skip:], layout
    shutil.rmtree(tmp_path / "images" / "images")
    assert len(list(open_source(tmp_path / "images").rows(str(tmp_path / "images" / "100w_0.json")))) == 9


def test_row_options_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="min_side"):
        RowOptions(min_side=True)


# Splits.


def named_splits(root, layout):
    """A folder of 12 rows in 3 shards, renamed after train, validation (`val`) and test."""
    WRITERS[layout](root, 12, 3)
    folder = root / "data" if layout == "parquet" else root
    endings = (".parquet", ".tar", ".json")
    files = sorted(path for path in folder.iterdir() if path.suffix in endings)
    for file, name in zip(files, ("train-0", "val_0", "TEST.part"), strict=True):
        file.rename(file.with_name(name + file.suffix))
    return root


@pytest.mark.parametrize("layout", list(WRITERS))
def test_shards_named_after_splits_stay_splits(layout, tmp_path):
    source = named_splits(tmp_path / "source", layout)
    made = builder(source, tmp_path / "cache")
    made.download_and_prepare()
    found = {split: names(rows) for split, rows in made.as_dataset().items()}
    rows = list(made_up_rows(12))
    assert found == {"train": rows[:4], "validation": rows[4:8], "test": rows[8:]}
    assert list(found) == ["train", "validation", "test"]


def test_a_split_is_a_whole_word_of_a_name_and_two_of_them_are_refused():
    found = by_split(
        ["a/latest.tar", "data/validity_00.tar", "train/00000.tar", "x.eval.tar", "dev-1.tar", "0test.tar"]
    )
    assert found == {
        "train": ("a/latest.tar", "data/validity_00.tar", "train/00000.tar"),
        "validation": ("dev-1.tar",),
        "test": ("x.eval.tar", "0test.tar"),
    }
    with pytest.raises(DataError, match=r"train_val\.json: the name says train and validation; rename it"):
        by_split(["train_val.json"])


# Names in a tar.


def tar_of(root, members):
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "00000.tar", "w") as tar:
        for name, data in members:
            add_member(tar, name, data)
    return root


TEXT = json.dumps({"caption1": "A person walks in a coat.", "caption2": "A person walks in a hat."}).encode()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_a_mask_beside_a_picture_is_never_the_person(order, tmp_path):
    members = []
    for number in range(3):
        own = [(".jpg", picture(number, tmp_path)), (".mask.png", picture(90 + number, tmp_path)), (".JSON", TEXT)]
        members += [(f"{number:05d}{own[place][0]}", own[place][1]) for place in order]
    rows, made = load(tar_of(tmp_path / "source", members), tmp_path / "cache")
    assert names(rows) == [f"{number:05d}.jpg" for number in range(3)]
    for number, row in enumerate(rows):
        assert same_pixels(row["image"], Image.open(io.BytesIO(picture(number, tmp_path))))


def test_a_mask_without_its_picture_and_two_pictures_of_one_name_are_named(tmp_path):
    mask = [("0.mask.png", picture(1, tmp_path)), ("0.json", TEXT), ("1.jpg", picture(2, tmp_path)), ("1.json", TEXT)]
    with pytest.raises(DataError, match=r"0\.json: no image of this name in the tar, only 0\.mask\.png"):
        load(tar_of(tmp_path / "mask", mask), tmp_path / "cache")
    two = [("7.jpg", picture(1, tmp_path)), ("7.png", picture(2, tmp_path)), ("7.json", TEXT)]
    with pytest.raises(DataError, match=r"7\.jpg and 7\.png are images of one row; keep one"):
        load(tar_of(tmp_path / "two", two), tmp_path / "cache")


@pytest.mark.parametrize("count", [3, 50])  # fewer and more than wait for a plain name
def test_names_with_dots_are_rows_of_their_own(count, tmp_path):
    data = [picture(number, tmp_path) for number in range(count)]
    members = []
    for number in range(count):
        members += [(f"cam1.frame{number}.jpg", data[number]), (f"cam1.frame{number}.json", TEXT)]
        members += [(f"._cam1.frame{number}.jpg", b"what macOS adds")]
    source = tar_of(tmp_path / "source", members)
    rows, _ = load(source, tmp_path / "cache")
    assert names(rows) == [f"cam1.frame{number}.jpg" for number in range(count)]
    assert all(same_pixels(rows[n]["image"], Image.open(io.BytesIO(data[n]))) for n in range(count))
    shard = str(source / "00000.tar")
    rest = list(open_source(source).rows(shard, count - 1))
    assert [row.data for row in rest] == [data[-1]]
    if count == 50:
        tar_of(tmp_path / "late", [*members, ("cam1.jpg", data[0]), ("cam1.json", TEXT)])
        with pytest.raises(DataError, match=r"cam1\..*it comes after other files cam1\.\*, each of which is a row"):
            load(tmp_path / "late", tmp_path / "cache")
