"""Every pre-training corpus becomes `image, image_path, caption1 .. captionN`, in a stream; bad ones are refused."""

import json
import os
import posixpath
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from made_up_datasets import (
    CORPUS_WRITERS,
    Copy,
    set_caption,
    set_path,
    write_copy,
    write_json,
    write_luperson,
    write_mals,
    write_picture,
    write_synth,
)
from places import REPO

from dataset_webperson.findings import DataError
from dataset_webperson.readers.corpora import CORPORA, MALS, load_corpus

# The made-up copies never have the official number of images.
pytestmark = pytest.mark.filterwarnings("ignore:.*counts differ")

STYLES = [(style, name) for style, (name, _) in CORPUS_WRITERS.items()]


@pytest.fixture
def load(tmp_path_factory):
    """`load_corpus` with a cache of the test's own."""
    cache = tmp_path_factory.mktemp("cache")
    return lambda name, root, **options: load_corpus(name, root, cache_dir=cache, **options)


@pytest.mark.parametrize(("style", "name"), STYLES)
def test_every_corpus_has_two_captions_and_more_in_every_row(tmp_path, load, style, name):
    data = load(name, write_copy(style, tmp_path))
    assert data.column_names[:4] == ["image", "image_path", "caption1", "caption2"]
    captions = [column for column in data.column_names if column.removeprefix("caption").isdigit()]
    for row in data:
        assert row["image"].size == (48, 96)
        assert not os.path.isabs(row["image_path"])
        texts = [row[column] for column in captions]
        assert all(texts)
        # Those beyond its own repeat its own, in order.
        own = row["caption_count"]
        assert texts == [texts[n % own] for n in range(len(texts))]
        assert len(set(texts)) == own


def test_mals_keeps_its_attributes_and_names(tmp_path, load):
    root = write_mals(tmp_path)
    data = load("mals", root)
    rows = [row for path in sorted(root.glob("gene_attrs/*.json")) for row in json.loads(path.read_text())]
    assert data["caption1"][:] == [row["caption"] for row in rows]
    assert data["image_path"][:] == [row["image"] for row in rows]
    assert data["label"][:] == [row["label"] for row in rows]
    assert data["source_image_id"][:] == [row["image_id"] for row in rows]


@pytest.mark.parametrize("spelling", ["synthpedes-dataset.json", "synthpedes_dataset.json"])
def test_synth_pedes_is_read_under_both_spellings(tmp_path, load, spelling):
    root = write_synth(tmp_path)
    rows = json.loads((root / "synthpedes-dataset.json").read_text())
    (root / "synthpedes-dataset.json").rename(root / spelling)
    data = load("synth-pedes", root)
    for row, source in zip(data, rows, strict=True):
        assert [row[f"caption{n + 1}"] for n in range(row["caption_count"])] == source["captions"]
        assert (row["source_person_id"], row["prompt_caption"]) == (source["id"], source["prompt_caption"])


def slow_join(root: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for name in ("Td-qwen", "Td-shikra", "Ts-qwen", "Ts-shikra"):
        for key, text in json.loads((root / f"{name}.json").read_text()).items():
            captions.setdefault(posixpath.basename(key), []).append(text)
    return captions


def test_luperson_mllm_is_joined_on_the_file_name(tmp_path, load):
    root = write_luperson(tmp_path)
    joined = slow_join(root)
    data = load("luperson-mllm", root)
    assert data["image_path"][:] == [f"images/{name}" for name in sorted(joined)]
    for row in data:
        own = [row[f"caption{n + 1}"] for n in range(row["caption_count"])]
        assert own == joined[posixpath.basename(row["image_path"])]
    assert data[0]["caption_sources"] == ["Td-shikra", "Ts-shikra"]


def test_images_of_luperson_mllm_may_lie_where_the_keys_say(tmp_path, load):
    root = write_luperson(tmp_path)
    for path in root.glob("T[ds]-*.json"):
        content = {f"part/{posixpath.basename(key)}": text for key, text in json.loads(path.read_text()).items()}
        write_json(path, content)
    (root / "images").rename(root / "part")
    assert load("luperson-mllm", root)["image_path"][0] == "part/0_clip.jpg"


def test_a_file_name_twice_in_one_json_keeps_the_first_caption(tmp_path, load):
    root = write_luperson(tmp_path)
    Copy(root).edit(lambda content: {**content, "other/1_clip.jpg": "A second caption."})
    first = slow_join(root)["1_clip.jpg"][0]
    with pytest.warns(UserWarning, match="file name twice"):
        data = load("luperson-mllm", root)
    assert data[1]["caption1"] == first
    assert "A second caption." not in data[1].values()


def test_captions_that_show_their_template_are_left_out_and_counted(tmp_path, load):
    root = write_luperson(tmp_path)
    Copy(root).edit(lambda content: set_caption(content, "Here is the [detailed description]: a man."))
    whole = load("luperson-mllm", root, drop_template_leaks=False)
    with pytest.warns(UserWarning, match=r"template leak \(1\)"):
        data = load("luperson-mllm", root)
    changed = [n for n in range(len(data)) if data[n]["caption_count"] != whole[n]["caption_count"]]
    assert len(changed) == 1
    row, before = data[changed[0]], whole[changed[0]]
    assert before["caption1"] == "Here is the [detailed description]: a man."
    assert row["caption1"] == before["caption2"]
    assert len(row["caption_sources"]) == row["caption_count"] == 3
    assert "Td-qwen" not in row["caption_sources"]


@pytest.mark.parametrize("number", [1, 5])
def test_the_number_of_caption_columns_can_be_set(tmp_path, load, number):
    data = load("mals", write_mals(tmp_path), num_captions=number)
    assert [f"caption{n + 1}" in data.column_names for n in range(6)] == [n < number for n in range(6)]


def test_missing_images_are_told_by_folder_or_left_out(tmp_path, load):
    root = write_synth(tmp_path)
    gone = root / "Part2" / "1" / "0.jpg"
    gone.unlink()
    with pytest.raises(DataError, match=r"25 % of the images of `Part2/` are missing \(1 of 4\)"):
        load("synth-pedes", root)
    with pytest.warns(UserWarning, match="image missing"):
        data = load("synth-pedes", root, on_missing_images="skip")
    assert len(data) == 7
    assert "Part2/1/0.jpg" not in data["image_path"][:]


def test_a_folder_without_any_image_is_an_error_even_when_missing_ones_are_skipped(tmp_path, load):
    root = write_mals(tmp_path / "jsons")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no usable row"):
        load("mals", root, image_root=tmp_path / "empty", on_missing_images="skip")


@pytest.mark.parametrize(
    ("style", "change", "words"),
    [
        ("mals", lambda rows: set_caption(rows, None), "row 0: captions None"),
        ("mals", lambda rows: set_caption(rows, 7), "row 0: captions 7"),
        ("synth", lambda rows: set_caption(rows, 7), "row 0: caption 7"),
        ("luperson", lambda rows: set_caption(rows, None), "captions None"),
        ("mals", lambda rows: {"rows": rows}, "holds a dict"),
        ("synth", lambda rows: {"rows": rows}, "holds a dict"),
        ("luperson", lambda rows: list(rows), "holds a list"),
        ("mals", lambda rows: set_path(rows, "../../x.jpg"), "`..` in a path"),
        ("synth", lambda rows: set_path(rows, "/etc/hosts"), "absolute path"),
        ("luperson", lambda rows: set_path(rows, "../0_clip.jpg"), "`..` in a path"),
        ("synth", lambda rows: rows[0].update(id="a7"), "id 'a7'"),
        ("mals", lambda rows: rows[0].__delitem__("image"), "no `image`"),
        ("mals", lambda rows: rows[0].update(label="1"), "`label` must be a list"),
        (
            "mals",
            lambda rows: rows[0].update(label=[1, 0] * 13),
            "of 27 of -1, 0, 1, it has 26",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path, load, style, change, words):
    root = write_copy(style, tmp_path)
    copy = Copy(root)
    copy.edit(change)
    with pytest.raises(DataError) as caught:
        load(CORPUS_WRITERS[style][0], root)
    assert words in str(caught.value)
    assert str(copy.jsons[0]) in str(caught.value)


def test_person_ids_written_as_strings_are_read(tmp_path, load):
    root = write_synth(tmp_path)
    Copy(root).edit(lambda rows: [{**row, "id": str(row["id"])} for row in rows])
    with pytest.warns(UserWarning, match="written as strings"):
        assert load("synth-pedes", root)["source_person_id"][:] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("name", list(CORPORA))
def test_a_missing_json_is_named(tmp_path, load, name):
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    assert CORPORA[name].json_patterns[0] in str(caught.value)


def test_an_unknown_corpus_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="luperson-mllm, synth-pedes, mals"):
        load_corpus("coco", tmp_path)


def test_a_second_call_reads_the_cache_and_an_edited_json_does_not(tmp_path, load):
    root = write_mals(tmp_path)
    first = load("mals", root)
    assert load("mals", root).cache_files == first.cache_files
    Copy(root).edit(lambda rows: set_caption(rows, "A caption that was written later."))
    assert load("mals", root)[0]["caption1"] == "A caption that was written later."


def test_an_image_that_comes_later_is_noticed(tmp_path, load):
    root = write_mals(tmp_path)
    (root / "gene_crop" / "c_g_a_0").rename(tmp_path / "aside")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(load("mals", root, on_missing_images="skip")) == 6
    (tmp_path / "aside").rename(root / "gene_crop" / "c_g_a_0")
    assert len(load("mals", root, on_missing_images="skip")) == 12


MEASURE = """
    import sys
    from dataset_webperson.readers.corpora import load_corpus

    def peak():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    before = peak()
    data = load_corpus("mals", sys.argv[1], cache_dir=sys.argv[2])
    sys.stdout.write(f"{len(data)} {peak() - before}")
"""


def growth_in_kib(root: Path, cache: Path) -> tuple[int, int]:
    """Rows read, and how much the peak memory of a process grew by reading them."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(root), str(cache)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPO)
    rows, growth = map(int, run.stdout.split())
    return rows, growth


def test_another_number_of_images_than_the_official_one_is_a_warning(tmp_path, load):
    with pytest.warns(UserWarning, match=r"12 images in 2 jsons; official: 1,510,330"):
        load("mals", write_mals(tmp_path))

    class TinyMALS(MALS):
        official_images = 12

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(TinyMALS, write_mals(tmp_path))) == 12


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    sizes, growth = (20_000, 70_000), []
    text = "a person in a red coat with grey trousers and a brown bag, walking to the left. " * 5
    for size in sizes:
        root = tmp_path / str(size) / "MALS"
        for number in range(20):
            write_picture(root / f"{number}.jpg", seed=number)
        with open(root / "g_4x_attrs.json", "w", encoding="utf-8") as file:
            for number in range(size):
                row = {"image": f"{number % 20}.jpg", "caption": f"{number} {text}", "image_id": f"{number}"}
                file.write(("[" if number == 0 else ",") + json.dumps(row))
            file.write("]")
        rows, kib = growth_in_kib(root, tmp_path / "cache")
        assert rows == size
        growth.append(kib)
    more_text = 2 * (sizes[1] - sizes[0]) * len(text) / 1024  # KiB the larger corpus has more, in two columns
    assert growth[1] - growth[0] < more_text / 3, growth


def test_absolute_keys_of_a_corpus_that_is_joined_on_names_are_names(tmp_path, load):
    root = write_luperson(tmp_path / "LUPerson-MLLM")
    expected = load("luperson-mllm", root)
    for path in root.glob("T*.json"):
        entries = json.loads(path.read_text())
        write_json(path, {f"/home/somebody/{key}": caption for key, caption in entries.items()})
    found = load("luperson-mllm", root)
    for column in ("image_path", "caption1", "caption_count"):
        assert found[column][:] == expected[column][:]
