"""Tables that others wrote: images as structs, bytes or paths are read alike; what cannot be is named before work."""

import io

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_datasets import write_picture
from made_up_webperson import picture, same_pixels
from PIL import Image

from dataset_webperson import DataError, WebPerson
from dataset_webperson.rows.captioned import load_captioned
from dataset_webperson.rows.image_column import cast_images, refuse_missing, with_image_paths
from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms.evaluation.benchmarks import load_evaluation_set
from modeling_gadms.rows import all_captions, person_ids
from modeling_gadms.training.samplers import TrainingRows

COUNT = 6


def table(images, kind=None, **changes):
    columns = {
        "image": pa.array(images, kind),
        "image_path": [f"{number}.jpg" for number in range(len(images))],
        "caption1": [f"Person {number} walks in a red coat." for number in range(len(images))],
        "caption2": [f"Somebody, number {number}, in a hat." for number in range(len(images))],
        **changes,
    }
    return pa.table({name: values for name, values in columns.items() if values is not None})


def data(folder):
    return [picture(number, folder) for number in range(COUNT)]


def both(kind_of_bytes, kind_of_path):
    return pa.struct([("bytes", kind_of_bytes), ("path", kind_of_path)])


def written(root, form):
    """A folder with `train.parquet` and `test.parquet`, images written as `form`."""
    (root / "files").mkdir(parents=True)
    pictures = data(root)
    for number in range(COUNT):
        write_picture(root / "files" / f"{number}.jpg", number, quality=85)
    paths = [f"files/{number}.jpg" for number in range(COUNT)]
    images, kind = {
        "binary": (pictures, pa.binary()),
        "large-binary": (pictures, pa.large_binary()),
        "struct": ([{"bytes": d, "path": None} for d in pictures], both(pa.binary(), pa.null())),
        "struct-large": (
            [{"bytes": d, "path": p} for d, p in zip(pictures, paths, strict=True)],
            both(pa.large_binary(), pa.large_string()),
        ),
        "struct-bytes": ([{"bytes": d} for d in pictures], pa.struct([("bytes", pa.binary())])),
        "struct-path": ([{"path": p} for p in paths], pa.struct([("path", pa.string())])),
        "path": (paths, pa.string()),
        "large-path": (paths, pa.large_string()),
    }[form]
    for split in ("train", "test"):
        pq.write_table(table(images, kind), root / f"{split}.parquet")
    return root


FORMS = ("binary", "large-binary", "struct", "struct-large", "struct-bytes", "struct-path", "path", "large-path")


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_an_image_gives_the_same_pictures(form, tmp_path):
    root = written(tmp_path / "source", form)
    train, _, test = load_captioned(str(root), 2, seed=0)
    stream, _, streamed_test = load_captioned(str(root), 2, seed=0, streaming=True)
    evaluated = load_evaluation_set(str(root))
    made = WebPerson(config_name="local", data_dir=str(root), cache_dir=str(tmp_path / "cache"))
    made.download_and_prepare()
    local = made.as_dataset(split="test")
    by_path = {row["image_path"]: row["image"] for row in (stream[key] for key in stream.order(0))}
    for number, expected in enumerate(data(tmp_path)):
        expected = Image.open(io.BytesIO(expected))
        for rows in (train, test, streamed_test, evaluated, local):
            assert same_pixels(rows[number]["image"], expected)
        assert same_pixels(by_path[f"{number}.jpg"], expected)


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        (pa.list_(pa.uint8()), [1, 2, 3]),
        (pa.list_(pa.list_(pa.int64())), [[1, 2], [3, 4]]),
        (pa.int64(), 7),
        (pa.struct([("width", pa.int64())]), {"width": 3}),
    ],
    ids=["list", "pixels", "number", "other-struct"],
)
@pytest.mark.parametrize("way", ["train", "stream", "evaluate", "local"])
def test_a_column_that_holds_no_image_files_is_named_with_its_type(way, kind, image, tmp_path):
    pq.write_table(table([image] * COUNT, kind), tmp_path / "train.parquet")
    pq.write_table(table([image] * COUNT, kind), tmp_path / "test.parquet")
    ways = {
        "train": lambda: load_captioned(str(tmp_path), 2, seed=0),
        "stream": lambda: ShuffledParquet(str(tmp_path)),
        "evaluate": lambda: load_evaluation_set(str(tmp_path)),
        "local": lambda: WebPerson(config_name="local", data_dir=str(tmp_path)),
    }
    with pytest.raises(DataError, match=r"the column image is .*(list|int64|struct).*; write the bytes") as raised:
        ways[way]()
    assert len(str(raised.value)) < 500 and "again" not in str(raised.value)


def test_paths_that_lead_nowhere_are_named_before_work(tmp_path):
    root = written(tmp_path / "source", "path")
    (root / "files" / "4.jpg").unlink()
    with pytest.raises(DataError, match=r"row 4: image 'files/4.jpg' is no file of that folder"):
        load_captioned(str(root), 2, seed=0)


def test_equal_base_names_are_images_of_their_own(tmp_path):
    images = [{"bytes": d, "path": f"{number % 2}.jpg"} for number, d in enumerate(data(tmp_path))]
    images[0]["path"], images[1]["path"] = "alone.jpg", None
    pq.write_table(table(images, both(pa.binary(), pa.string()), image_path=None), tmp_path / "train.parquet")
    rows = load_evaluation_set(str(tmp_path))
    assert len(set(person_ids(rows))) == COUNT
    assert rows["image_path"][:][:3] == ["alone.jpg", "row 1", "row 2, 0.jpg"]
    train, *_ = load_captioned(str(tmp_path), 1, seed=0)
    assert len(set(train["image_path"][:])) == COUNT - 1
    made = WebPerson(config_name="local", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    made.download_and_prepare()
    names = made.as_dataset(split="train")["image_path"][:]
    assert names[0] == "train/000000/alone.jpg" and len(set(names)) == COUNT


# Missing captions and images.


def rows_with_gaps(folder):
    images = [{"bytes": d, "path": None} for d in data(folder)]
    images[2] = None
    images[5] = {"bytes": None, "path": None}
    captions = [f"Person {number} walks." for number in range(COUNT)]
    captions[3] = None
    rows = datasets.Dataset(table(images, both(pa.binary(), pa.string()), caption1=captions, caption2=None))
    return rows.cast_column("image", datasets.Image())


def test_rows_without_image_or_caption_are_named_as_the_data_set_counts_them(tmp_path):
    rows = rows_with_gaps(tmp_path)
    with pytest.raises(DataError, match=r"train: no image in 2 of 6 rows, row 2, 5; fill them"):
        refuse_missing(rows, "train")
    shuffled = rows.select([3, 1, 0, 4])
    for refuse in (refuse_missing, all_captions, TrainingRows):
        with pytest.raises(DataError, match=r"a missing caption in caption1 in 1 of 4 rows, row 0"):
            refuse(shuffled)
    refuse_missing(rows.select([0, 1, 4]))
    refuse_missing(rows.select_columns("image_path"))


def test_a_gap_in_a_list_of_captions_is_named():
    captions = [["a man"], ["a man", None], [], None, ["a woman"]]
    rows = datasets.Dataset.from_dict({"captions": captions, "image_path": list("abcde")})
    with pytest.raises(DataError, match=r"a missing caption in captions in 2 of 5 rows, row 1, 3;"):
        refuse_missing(rows)
    refuse_missing(rows.select([0, 2, 4]))


def test_a_stored_set_with_a_gap_is_refused_before_training_and_a_stream_names_file_and_row(tmp_path):
    images = [{"bytes": d, "path": None} for d in data(tmp_path)]
    captions = ["a man"] * 4 + [None, "a man"]
    gaps = table(images, both(pa.binary(), pa.string()), caption1=captions)
    pq.write_table(gaps, tmp_path / "train.parquet", row_group_size=2)
    pq.write_table(gaps, tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"missing caption in caption1 in 1 of 6 rows, row 4"):
        load_captioned(str(tmp_path), 1, seed=0)
    stream = ShuffledParquet(str(tmp_path))
    with pytest.raises(DataError, match=r"train\.parquet row 4: nothing in the column caption1"):
        [stream[key] for key in stream.order(0)]


def test_images_that_datasets_wrote_are_passed_on_as_they_are(tmp_path):
    rows = rows_with_gaps(tmp_path)
    assert cast_images(rows, "x") is rows and with_image_paths(rows, "x") is rows
