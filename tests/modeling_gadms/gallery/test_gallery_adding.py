"""Taking images in: from every source, each once, whatever is broken, changed, opted out, or killed."""

import io
import json
import multiprocessing
import os
import random
import signal
import tarfile
import time

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from dataset_webperson.near_duplicates import perceptual_hash
from modeling_gadms.gallery import Gallery, adding, items
from modeling_gadms.gallery.adding import Known
from modeling_gadms.gallery.items import row_id
from modeling_gadms.gallery.rows import Rows, vector_array


@pytest.fixture
def gallery(model, tmp_path):
    return Gallery.create(tmp_path / "people", model)


@pytest.fixture(scope="module")
def images():
    """Forty different pictures."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)) for _ in range(40)]


@pytest.fixture
def folder(images, tmp_path):
    for number, image in enumerate(images[:12]):
        file = tmp_path / "photos" / f"cam{number % 3}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return tmp_path / "photos"


def counts(report):
    names = ("added", "changed", "unchanged", "removed", "opted_out")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def vectors_of(gallery):
    found = gallery._rows().read(["uri", "vector"])
    return dict(zip(found["uri"].to_pylist(), vector_array(found["vector"]).astype(np.float32), strict=True))


def test_a_folder_is_read_with_its_sub_folders_and_bad_files_are_listed(gallery, folder, images, model):
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "cam0" / "empty.png").touch()
    (folder / ".hidden").mkdir()
    images[20].save(folder / ".hidden" / "00.png")
    (folder / "notes.txt").write_text("no image")
    os.symlink("/etc", folder / "outside")
    os.symlink(folder.parent / "elsewhere.png", folder / "link.png")
    images[21].save(folder.parent / "elsewhere.png")
    report = gallery.add(folder, batch_size=5)
    assert counts(report) == {"added": 12}
    assert (
        [uri for uri, _ in report.skipped] == ["broken.jpg", "cam0/empty.png"] == [uri for uri, _ in gallery.skipped]
    )
    expected = gallery.encoder().images(images[:12])
    for uri, vector in vectors_of(gallery).items():
        assert np.allclose(vector, expected[int(uri[-6:-4])], atol=1e-3), uri
    assert counts(gallery.add(folder)) == {"unchanged": 12}
    hit = gallery.search("a coat")[0]
    assert np.array_equal(gallery.image(hit.id), images[int(hit.uri[-6:-4])])
    (folder / hit.uri).unlink()
    with pytest.raises(DataError, match="no such file"):
        gallery.image(hit.id)


def test_workers_read_what_one_process_reads(gallery, folder, model, tmp_path):
    gallery.add(folder)
    other = Gallery.create(tmp_path / "others", model)
    other.add(folder, num_workers=2, batch_size=5)
    ours, theirs = vectors_of(gallery), vectors_of(other)
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(ours[uri], theirs[uri], atol=1e-3) for uri in ours)


def test_metadata_is_joined_by_name_typed_and_brought_up_to_date(gallery, folder):
    lines = ["uri,camera,seen,night,note,2nd view"]
    lines += [f"cam{n % 3}/{n:02d}.png,{n % 3},2024-01-{n + 1:02d},{n % 2 == 0},n{n},0.5" for n in range(10)]
    (folder.parent / "table.csv").write_text("\n".join(lines))
    gallery.add(folder, folder.parent / "table.csv")
    kinds = {"camera": "number", "seen": "time", "night": "bool", "note": "text", "_2nd_view": "number"}
    assert gallery.columns == kinds
    (hit,) = gallery.search("a coat", where="seen = '2024-01-03'")
    wanted = {"camera": 2, "seen": "2024-01-03T00:00:00", "night": True, "note": "n2", "_2nd_view": 0.5}
    assert hit.uri == "cam2/02.png" and hit.metadata == wanted
    assert len(gallery.search("a coat", where="camera is null")) == 2
    rows = [{"uri": "cam2/02.png", "camera": 7, "words": ["a list"]}]
    (folder.parent / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert counts(gallery.add(folder, folder.parent / "new.jsonl")) == {"unchanged": 12}
    assert gallery.search("a coat", where="camera = 7")[0].metadata == {**wanted, "camera": 7}
    with pytest.raises(DataError, match="cam0/00.png: camera is 'three', but the column holds number"):
        gallery.add(folder, {"cam0/00.png": {"camera": "three"}})
    with pytest.raises(DataError, match="none of the 1 images that the metadata names"):
        gallery.add(folder, {"elsewhere.png": {"camera": 1}})
    number = gallery.search("a coat", k=1)[0].id
    assert gallery.update([number, "none"], {"camera": 5, "site": "north"}) == 1
    assert gallery.search("a coat", where="site = 'north'")[0].metadata["camera"] == 5


def test_lists_data_sets_parquet_and_tars_are_sources(gallery, images, tmp_path):
    assert counts(gallery.add(images[:4], [{"camera": n} for n in range(4)])) == {"added": 4}
    assert counts(gallery.add([images[0], images[0]])) == {
        "added": 1,
        "unchanged": 1,
    }  # the second of two copies is new
    assert np.array_equal(gallery.image(gallery.search("a coat", where="camera = 2")[0].id), images[2])
    images[5].save(tmp_path / "one.png")
    assert counts(gallery.add([tmp_path / "one.png"] * 2)) == {"added": 1, "unchanged": 1}
    rows = tiny_rows(6)
    assert counts(gallery.add(rows)) == {"added": 6}
    assert counts(gallery.add(rows.select([5, 0]))) == {"unchanged": 2}
    hit = gallery.search("a coat", where="uri = '003.png'")[0]
    assert hit.metadata["caption1"] == rows[3]["caption1"] and hit.metadata["person_id"] == 1
    (tmp_path / "shards").mkdir()
    rows.to_parquet(tmp_path / "shards" / "train.parquet")
    assert counts(gallery.add(tmp_path / "shards")) == {"added": 6}
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, image in enumerate(images[6:9]):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            text = json.dumps({"camera": 10 + number, "caption": "a coat"}).encode()
            for ending, data in (("png", buffer.getvalue()), ("json", text)):
                member = tarfile.TarInfo(f"a/{number}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert counts(gallery.add(tmp_path / "shard.tar")) == {"added": 3}
    assert counts(gallery.add(tmp_path / "shard.tar")) == {"unchanged": 3}
    hit = gallery.search("a coat", where="camera = 11")[0]
    assert hit.uri == "a/1.png" and np.array_equal(gallery.image(hit.id), images[7])
    with pytest.raises(DataError, match="neither a path nor a PIL image"):
        gallery.add([3])


def test_sync_follows_a_folder(gallery, folder, images, monkeypatch):
    gallery.add(images[30:33])  # rows of another source stay
    assert counts(gallery.sync(folder)) == {"added": 12}
    (folder / "cam0" / "00.png").unlink()
    images[25].save(folder / "cam1" / "01.png")
    os.utime(folder / "cam2" / "02.png", ns=(1, 1))  # another time, the same content
    images[26].save(folder / "new.png")
    assert counts(gallery.sync(folder)) == {"added": 1, "changed": 1, "unchanged": 10, "removed": 1}
    assert counts(gallery.sync(folder)) == {"unchanged": 12}
    assert np.allclose(vectors_of(gallery)["cam1/01.png"], gallery.encoder().images([images[25]])[0], atol=1e-3)
    assert len(gallery) == 15
    walked, walk = [], items._walk
    monkeypatch.setattr(items, "_walk", lambda root, path, *rest: walked.append(path) or walk(root, path, *rest))
    assert counts(gallery.sync(folder)) == {"unchanged": 12}
    assert len(walked) == len(set(walked)) == 4, "each folder is walked once"
    for file in folder.rglob("*.png"):
        file.unlink()
    images[27].save(folder / "other.png")
    with pytest.raises(DataError, match="none of its 12 images is there any more; is it mounted"):
        gallery.sync(folder)
    assert len(gallery) == 15


def test_removed_rows_leave_the_disk(gallery, images, tmp_path):
    gallery.add(images[:3], [{"note": f"secret {n} of the rows"} for n in range(3)])

    def on_disk(text):
        return any(text.encode() in file.read_bytes() for file in (tmp_path / "people").rglob("*") if file.is_file())

    number = gallery.search("a coat", where="note like 'secret 1%'")[0].id
    assert on_disk(number)
    assert gallery.remove([number]) == 1 and len(gallery) == 2
    assert not on_disk(number)
    assert gallery.remove(where="note is not null") == 2 and len(gallery) == 0


def test_one_of_many_removed_rows_leaves_the_disk_too(tmp_path):
    rows = Rows.create(tmp_path, "rows", 64, "float16")
    vectors = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float16)
    record = {"uri": "", "source": "", "sha256": "", "phash": 0, "file_size": 0, "file_time": 0}
    rows.append(rows.as_table([{"id": row_id("", str(n)), **record} for n in range(3000)], vectors))
    held = [file for file in tmp_path.rglob("*") if file.is_file() and vectors[7].tobytes() in file.read_bytes()]
    assert held and rows.delete(f"`id` = '{row_id('', '7')}'") == 1
    rows.purge()
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and vectors[7].tobytes() in file.read_bytes()]
    assert rows.count() == 2999


def test_the_opt_out_list_is_kept_at_adding_and_syncing(gallery, folder, images):
    gallery.add(folder)
    digest = gallery._rows().read(["sha256"], "`uri` = 'cam0/00.png'")["sha256"][0].as_py()
    near = images[1].copy()
    near.putpixel((0, 0), (0, 0, 0))
    entries = [f"sha256:{digest}", "uri:cam2/*", f"phash:{perceptual_hash(near):016x}"]
    assert gallery.opt_out(entries) == (3, 6) and len(gallery) == 6
    assert gallery.opt_out(entries) == (0, 0)
    assert counts(gallery.add(folder)) == {"unchanged": 6, "opted_out": 6}
    images[1].save(folder / "cam0" / "03.png")  # a file that is there takes on the content of one that must not be
    assert counts(gallery.sync(folder)) == {"unchanged": 5, "opted_out": 7}
    assert len(gallery) == 5
    with pytest.raises(DataError, match="'face:1' is not an entry"):
        gallery.opt_out(["uri:a", "face:1"])


def test_ids_that_end_in_zeros_are_known(tmp_path):
    rows = Rows.create(tmp_path, "rows", 2, "float16")
    numbers = ["ab" * 15 + "00", "00" * 16, "cd" * 14 + "0000", "ff" * 16]
    record = {"uri": "", "source": "", "sha256": "", "phash": 0, "file_size": 3}
    rows.append(rows.as_table([{"id": n, "file_time": t, **record} for t, n in enumerate(numbers)], np.ones((4, 2))))
    known = Known(rows)
    assert [known.find(number) for number in numbers] == [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert known.find("ab" * 16) is None and known.find("00" * 15 + "01") is None
    met = [items.Item(number, "", "") for number in ("ee" * 16, numbers[2], "dd" * 16, numbers[0])]
    assert list(known.ticked_off(iter(met), "photos")) == met
    assert known.not_seen() == sorted([numbers[1], numbers[3]])
    with pytest.raises(DataError, match="photos: none of its 4 images is there"):
        list(known.ticked_off(iter(met[::2]), "photos"))


def test_a_second_writer_is_refused_and_readers_are_not(gallery, images, monkeypatch):
    seen = []

    def at_once(*arguments, **options):
        with pytest.raises(DataError, match="another process is changing this gallery"):
            gallery.remove(["none"])
        seen.append(len(gallery.search("a coat")))
        return take_in(*arguments, **options)

    take_in = adding.take_in
    monkeypatch.setattr(adding, "take_in", at_once)
    gallery.add(images[:2])
    assert seen == [0] and len(gallery.search("a coat")) == 2


def test_rebuilding_goes_on_after_a_break_while_the_old_answers(gallery, folder, model, monkeypatch):
    gallery.add(folder, {"cam0/00.png": {"camera": 3}})
    before = gallery.search("a coat", k=12)
    other = tiny_model(seed=5, vocab_size=len(model[1].tokenizer)), model[1]
    monkeypatch.setattr(adding, "COMMIT_ROWS", 4)
    append, calls = Rows.append, []

    def broken(self, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(self, rows)

    monkeypatch.setattr(Rows, "append", broken)
    with pytest.raises(KeyboardInterrupt):
        gallery.rebuild(other, batch_size=4)
    assert Gallery.open(gallery.path, model).search("a coat", k=12) == before
    report = gallery.rebuild(other, batch_size=4)
    assert counts(report) == {"added": 8, "unchanged": 4}
    assert len(gallery) == 12 and gallery.columns == {"camera": "number"}
    after = gallery.search("a coat", k=12)
    assert {hit.id for hit in after} == {hit.id for hit in before} and after != before
    assert gallery.search("a coat", where="camera = 3")[0].uri == "cam0/00.png"
    assert Gallery.open(gallery.path, other).search("a coat", k=12) == after
    with pytest.raises(DataError, match="other weights"):
        Gallery.open(gallery.path, model)
    assert not [name for name in os.listdir(gallery.path) if name == "rows.lance"]


def _add_slowly(path, folder):
    """In a process of its own: small steps, so that there is much to be killed between."""
    os.setsid()
    adding.COMMIT_ROWS = 2
    processor = tiny_processor()
    gallery = Gallery.open(path, (tiny_model(vocab_size=len(processor.tokenizer)), processor))
    gallery.add(folder, batch_size=1)


def _kill_at_random(gallery, folder, total, kills, seed):
    """Kill adding after random times until it was killed often enough, then let it end; how often rows were gained."""
    rng, processes = random.Random(seed), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["modeling_gadms.gallery", "lancedb", "tiny"])
    killed, progress = 0, set()
    while killed < kills:
        process = processes.Process(target=_add_slowly, args=(gallery.path, folder))
        process.start()
        start = len(gallery)
        deadline = time.monotonic() + 60
        while len(gallery) == start and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        rows = gallery._rows().read(["id", "vector", "sha256"])
        assert len(set(rows["id"].to_pylist())) == len(rows), "an image has two rows"
        assert np.isfinite(vector_array(rows["vector"])).all() and "" not in rows["sha256"].to_pylist()
        progress.add(len(rows))
        if len(rows) == total:  # all were taken in before the last kill: begin again
            gallery.remove(where="id like '%'")
    report = gallery.add(folder)
    assert report.added + report.unchanged == total == len(gallery)
    return progress


def test_killed_three_times_each_image_is_there_once(gallery, images, tmp_path):
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "photos" / f"{number}.png")
    assert len(_kill_at_random(gallery, tmp_path / "photos", 40, 3, seed=0)) > 1


@pytest.mark.slow
def test_killed_twenty_times_each_image_is_there_once(gallery, tmp_path):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(400):
        noise = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number}.png")
    assert len(_kill_at_random(gallery, tmp_path / "photos", 400, 20, seed=1)) > 5
