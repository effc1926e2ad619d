"""Tiny made-up copies of every benchmark and corpus, in the exact formats, and defects to plant in them.

The pictures are random colours, no persons. Every picture differs from every other by far more than the
perceptual hash's tolerance.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")
WORDS = "red blue green grey brown jacket skirt trousers shoes scarf hat bag shirt coat boots walking standing".split()


def write_picture(path: Path, seed: int, size: tuple[int, int] = (48, 96), **save_options) -> None:
    """A picture of 8 x 8 random colours that flow into each other, the same for the same seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(path, **save_options)


def caption(seed: int) -> str:
    words = np.random.default_rng(seed).choice(WORDS, 9)
    return f"A person number {seed} with {' '.join(words)}."


def people(first_id: int, splits=SPLITS, images: int = 2, captions: int = 2) -> list[dict]:
    """Rows `split, id, image, captions`: 5 persons of train, 2 of every other split, `images` each."""
    rows, person = [], first_id
    for split in splits:
        for _ in range(5 if split == "train" else 2):
            for number in range(images):
                seed = len(rows) * 10
                texts = [caption(seed + n) for n in range(captions)]
                rows.append({"split": split, "id": person, "number": number, "captions": texts, "seed": seed})
            person += 1
    return rows


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_cuhk(root: Path) -> Path:
    folders = ("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query")
    entries = []
    for number, row in enumerate(people(1)):
        suffix = "png" if number % 3 == 0 else "jpg"
        path = f"{folders[number % 7]}/{row['id']:04d}_{row['number']}.{suffix}"
        write_picture(root / "imgs" / path, row["seed"])
        tokens = [text.lower().split() for text in row["captions"]]
        entry = {"split": row["split"], "captions": row["captions"], "file_path": path, "id": row["id"]}
        entries.append({**entry, "processed_tokens": tokens})
    write_json(root / "reid_raw.json", entries)
    return root


def write_icfg(root: Path) -> Path:
    entries = []
    for row in people(0, ("train", "test"), captions=1):
        path = f"{row['split']}/{row['id']:04d}/{row['id']:04d}_{row['number']:03d}_01_0303morning_0008_0.jpg"
        write_picture(root / "imgs" / path, row["seed"])
        entry = {"split": row["split"], "captions": row["captions"], "file_path": path, "id": row["id"]}
        entries.append({**entry, "processed_tokens": [row["captions"][0].split()]})
    write_json(root / "ICFG-PEDES.json", entries)
    return root


def write_rstp(root: Path) -> Path:
    entries = []
    for row in people(0):
        path = f"{row['id']:04d}_c{row['number'] + 1}_0004.jpg"
        write_picture(root / "imgs" / path, row["seed"])
        entries.append({"id": row["id"], "img_path": path, "captions": row["captions"], "split": row["split"]})
    write_json(root / "data_captions.json", entries)
    return root


def write_ufine(root: Path) -> Path:
    entries = []
    for row in people(1, ("train", "test")):
        path = f"images/{row['id']}_{row['number']}.jpg"
        write_picture(root / path, row["seed"])
        texts = [f"{text} {caption(row['seed'] + 5)}" for text in row["captions"]]
        entries.append({"split": row["split"], "id": row["id"], "file_path": path, "captions": texts})
    write_json(root / "UFine6926.json", entries)
    return root


def write_ufine3c(root: Path) -> Path:
    """Test alone, the rows of which may lack their split; images have two to four captions."""
    entries = []
    for number, row in enumerate(people(1, ("test", "test"))):
        path = f"images/{number + 1}.jpg"
        write_picture(root / path, row["seed"])
        texts = [caption(row["seed"] + n) for n in range(2 + number % 3)]
        source = ("UFine6926", "CUHK-PEDES")[number % 2]
        entry = {"id": row["id"], "source": source, "split": "test", "file_path": path, "captions": texts}
        if number % 2:
            del entry["split"]
        entries.append(entry)
    write_json(root / "UFine3C_Annotations.json", entries)
    return root


def write_iiitd(root: Path, form: str = "RSTP") -> Path:
    """One image per person, in one of the three forms that the scripts of the data set write."""
    entries = []
    for row in people(0, images=1):
        path = f"IIITD-20K/{row['id']:05d}.{'jpg' if row['id'] % 2 else 'jpeg'}"
        write_picture(root / path, row["seed"])
        field = "img_path" if form == "RSTP" else "file_path"
        entry = {field: path, "id": row["id"], "captions": row["captions"], "split": row["split"]}
        if form == "ICFG":
            entries += [{**entry, "captions": [text], "processed_tokens": [text.split()]} for text in row["captions"]]
        else:
            entries.append(entry)
    write_json(root / f"IIITD-20K-{form}-FORMAT.json", entries)
    return root


def write_tbps_clip(root: Path) -> Path:
    """CUHK-PEDES as `train_reid.json`, `val_reid.json`, `test_reid.json`, with back-translated captions."""
    write_cuhk(root)
    entries = json.loads((root / "reid_raw.json").read_text())
    (root / "reid_raw.json").unlink()
    for split in SPLITS:
        rows = [
            {"id": e["id"], "file_path": e["file_path"], "captions": e["captions"], "captions_bt": e["captions"]}
            for e in entries
            if e["split"] == split
        ]
        write_json(root / f"{split}_reid.json", rows)
    return root


def write_rasa(root: Path) -> Path:
    """RSTPReid as `processed_data/train.json` and so on, whose rows keep their split."""
    write_rstp(root)
    entries = json.loads((root / "data_captions.json").read_text())
    (root / "data_captions.json").unlink()
    for entry in entries:
        entry["file_path"] = entry.pop("img_path")
    for split in SPLITS:
        write_json(root / "processed_data" / f"{split}.json", [e for e in entries if e["split"] == split])
    return root


def write_aptm(root: Path) -> Path:
    """ICFG-PEDES as `icfg_train.json` (a caption per row) and `icfg_test.json` (a list of captions per row)."""
    write_icfg(root)
    entries = json.loads((root / "ICFG-PEDES.json").read_text())
    (root / "ICFG-PEDES.json").unlink()
    train = [e for e in entries if e["split"] == "train"]
    flat = [
        {"image": e["file_path"], "caption": text, "image_id": e["id"]}
        for e in train
        for text in (*e["captions"], e["captions"][0].replace("A person", "Somebody"))
    ]
    write_json(root / "icfg_train.json", flat)
    test = [
        {"image": e["file_path"], "caption": e["captions"], "image_id": e["id"]}
        for e in entries
        if e["split"] == "test"
    ]
    write_json(root / "icfg_test.json", test)
    return root


def write_mals(root: Path) -> Path:
    for part in range(2):
        rows = []
        for number in range(6):
            path = f"gene_crop/c_g_a_{part}/{number}.jpg"
            seed = 1000 * part + 10 * number
            write_picture(root / path, seed)
            label = [1, 0, -1] * 9
            rows.append(
                {"image": path, "caption": caption(seed), "image_id": f"c_g_a_{part}_{number}", "label": label}
            )
        write_json(root / "gene_attrs" / f"g_c_g_a_{part}_attrs.json", rows)
    return root


def write_synth(root: Path) -> Path:
    rows = []
    for person in range(4):
        for number in range(2):
            path = f"Part{person % 2 + 1}/{person}/{number}.jpg"
            seed = 100 * person + 10 * number
            write_picture(root / path, seed)
            texts = [caption(seed + n) for n in range(2 + number)]
            attributes = ["man,black hair,black shirt,pink shorts,black shoes,unknown"]
            row = {"id": person, "file_path": path, "attributes": attributes, "captions": texts}
            rows.append({**row, "prompt_caption": [caption(seed + 7)]})
    write_json(root / "synthpedes-dataset.json", rows)
    return root


def write_luperson(root: Path) -> Path:
    jsons: dict[str, dict] = {name: {} for name in ("Td-qwen", "Td-shikra", "Ts-qwen", "Ts-shikra")}
    for number in range(6):
        write_picture(root / "images" / f"{number}_clip.jpg", 10 * number)
        for position, name in enumerate(jsons):
            # Paths differ from json to json, and one image has only two captions: the file name joins them.
            if number or position in (1, 3):
                jsons[name][f"part{position}/{number}_clip.jpg"] = caption(10 * number + position)
    for name, content in jsons.items():
        write_json(root / f"{name}.json", dict(sorted(content.items(), reverse=name.startswith("Ts"))))
    return root


BENCHMARK_WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "cuhk": ("CUHK-PEDES", write_cuhk),
    "icfg": ("ICFG-PEDES", write_icfg),
    "rstp": ("RSTPReid", write_rstp),
    "ufine": ("UFine6926", write_ufine),
    "ufine3c": ("UFine3C", write_ufine3c),
    "iiitd": ("IIITD-20K", lambda root: write_iiitd(root.with_name("IIITD-20K-Dataset"))),
    "tbps-clip": ("CUHK-PEDES", write_tbps_clip),
    "rasa": ("RSTPReid", write_rasa),
    "aptm": ("ICFG-PEDES", write_aptm),
}
CORPUS_WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "mals": ("MALS", write_mals),
    "synth": ("SYNTH-PEDES", write_synth),
    "luperson": ("LUPerson-MLLM", write_luperson),
}
WRITERS = {**BENCHMARK_WRITERS, **CORPUS_WRITERS}


def write_copy(style: str, folder: Path) -> Path:
    """A clean copy in one of the styles above, in a folder of the dataset's own name below `folder`."""
    name, write = WRITERS[style]
    return write(folder / name)


class Copy:
    """A written copy that defects can be planted in: its jsons, and rows seen through the same few names."""

    def __init__(self, root: Path):
        self.root = root
        self.jsons = sorted(path for path in root.rglob("*.json"))

    def edit(self, change: Callable[[list | dict], list | dict | None], json_number: int = 0) -> None:
        path = self.jsons[json_number]
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    def json_of(self, split: str) -> int:
        """The number of the json that holds that split."""
        for number, path in enumerate(self.jsons):
            if path.name.split("_")[-1] == f"{split}.json" or path.name in (f"{split}.json", f"{split}_reid.json"):
                return number
        return 0

    def image(self, number: int = 0) -> Path:
        """A file the json names."""
        return sorted(path for path in self.root.rglob("*") if path.suffix in (".jpg", ".png"))[number]


def field(row: dict, *names: str) -> str:
    return next(name for name in names if name in row)


def path_field(row: dict) -> str:
    return field(row, "file_path", "img_path", "image")


def caption_field(row: dict) -> str:
    return field(row, "captions", "caption")


def id_field(row: dict) -> str:
    return field(row, "id", "image_id")


def set_caption(content: list | dict, text, position: int = 0) -> None:
    """Replace one caption of one row, in whatever form the row has it."""
    if isinstance(content, dict):
        content[list(content)[position]] = text
        return
    row = content[position]
    name = caption_field(row)
    row[name] = text if isinstance(row[name], str) else [text, *row[name][1:]]


def set_path(content: list | dict, path: str) -> None:
    if isinstance(content, dict):
        content[path] = content.pop(next(iter(content)))
    else:
        content[0][path_field(content[0])] = path
