"""The same tiny made-up WebPerson as images with json lists, as tars and as parquet. Pictures are random colours."""

import io
import json
import tarfile
from pathlib import Path

import datasets
from made_up_datasets import write_picture
from PIL import Image


def made_up_rows(count: int) -> dict[str, dict]:
    """`{file name: {"caption1", "caption2", "score"}}`."""
    return {
        f"{number:04d}.jpg": {
            "caption1": f"Person {number} wears a red coat and walks.",
            "caption2": f"Somebody, number {number}, in blue shoes and a hat.",
            "score": number / 4,
        }
        for number in range(count)
    }


def picture(seed: int, folder: Path, **options) -> bytes:
    path = folder / "picture.tmp.jpg"
    write_picture(path, seed, quality=85, **options)
    data = path.read_bytes()
    path.unlink()
    return data


def write_images(root: Path, count: int = 12, jsons: int = 1) -> Path:
    entries = [{name: values} for name, values in made_up_rows(count).items()]
    for number, entry in enumerate(entries):
        write_picture(root / "images" / next(iter(entry)), number, quality=85)
    size = -(-count // jsons)
    for part in range(jsons):
        (root / f"100w_{part}.json").write_text(json.dumps(entries[part * size : (part + 1) * size]))
    return root


def add_member(tar: tarfile.TarFile, name: str, data: bytes, **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def write_tars(root: Path, count: int = 12, tars: int = 2) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = list(made_up_rows(count).items())
    size = -(-count // tars)
    for part in range(tars):
        with tarfile.open(root / f"{part:05d}.tar", "w") as tar:
            for number, (name, values) in list(enumerate(rows))[part * size : (part + 1) * size]:
                add_member(tar, name, picture(number, root))
                add_member(tar, name.replace(".jpg", ".json"), json.dumps(values).encode())
    return root


def write_parquets(root: Path, count: int = 12, files: int = 2) -> Path:
    (root / "data").mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": {"bytes": picture(number, root), "path": name}, "image_path": name, **values}
        for number, (name, values) in enumerate(made_up_rows(count).items())
    ]
    text = datasets.Value("string")
    features = datasets.Features(
        image=datasets.Image(), image_path=text, caption1=text, caption2=text, score=datasets.Value("float64")
    )
    whole = datasets.Dataset.from_list(rows, features=features)
    for part in range(files):
        name = root / "data" / f"train-{part:05d}-of-{files:05d}.parquet"
        whole.shard(files, part, contiguous=True).to_parquet(str(name))
    return root


WRITERS = {"images": write_images, "webdataset": write_tars, "parquet": write_parquets}


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.convert("RGB").tobytes() == other.convert("RGB").tobytes()
