"""Tiny made-up copies of CUHK-SYSU-TBPS and PRW-TBPS: pictures with boxes, and what was written of some persons."""

import json
from pathlib import Path

import numpy as np
from made_up_datasets import caption, write_picture

# split, picture: persons in it (None: nobody knows), each with x, y, width, height
SCENES = {
    ("train", "one"): {5: (10, 20, 40, 90), 6: (100, 15, 30, 80), None: (60, 40, 20, 60)},
    ("train", "two"): {5: (30, 10, 35, 85)},
    ("test", "three"): {9: (5, 5, 40, 100), None: (80, 30, 25, 70)},
    ("test", "four"): {9: (60.5, 12.25, 30.25, 70), 10: (110, 20, 40, 95)},
    ("test", "five"): {10: (20, 10, 45, 99), 12: (90, 10, 30, 80)},
}
DESCRIBED = {  # and how many pieces each text comes in
    "train": {("one", 5): 2, ("one", 6): 2, ("two", 5): 1},
    "test": {("three", 9): 2, ("four", 10): 3},
}
SIZE = (160, 120)


def write_descriptions(root: Path, name: str, ending: str = ".jpg") -> None:
    for split, entries in DESCRIBED.items():
        rows = []
        for number, ((picture, person), pieces) in enumerate(entries.items()):
            texts = [caption(10 * number + piece + person) for piece in range(pieces)]
            texts.insert(1, "")
            rows.append({"pic_path": picture + ending, "id": person, "desrciption": texts})
        (root / f"{name}_{split}").write_text(json.dumps(rows))


def write_cuhk_sysu(root: Path) -> Path:
    savemat = matlab()
    images, people = [], {}
    for number, ((_, picture), boxes) in enumerate(SCENES.items()):
        write_picture(root / "Image" / "SSM" / f"{picture}.jpg", number, SIZE)
        places = [(np.array([box], float), 0.0) for box in boxes.values()]
        images.append((f"{picture}.jpg", float(len(places)), structs(places, "idlocate", "ishard")))
        for person, box in boxes.items():
            if person is not None:
                people.setdefault(person, []).append((f"{picture}.jpg", np.array([box], float), 0.0))
    folder = root / "annotation"
    folder.mkdir()
    savemat(folder / "Images.mat", {"Img": structs(images, "imname", "nAppear", "box")})
    persons = [
        (f"p{person}", float(len(scenes)), structs(scenes, "imname", "idlocate", "ishard"))
        for person, scenes in people.items()
    ]
    savemat(folder / "Person.mat", {"Person": structs(persons, "idname", "nAppear", "scene")})
    pool = [f"{picture}.jpg" for split, picture in SCENES if split == "test"]
    savemat(folder / "pool.mat", {"pool": cells(pool)})
    write_descriptions(root, "CUHK-SYSU-TBPS")
    return root


def write_prw(root: Path) -> Path:
    savemat = matlab()
    (root / "annotations").mkdir(parents=True)
    for number, ((_, picture), boxes) in enumerate(SCENES.items()):
        write_picture(root / "frames" / f"{picture}.jpg", number, SIZE)
        rows = [[-2 if person is None else person, *box] for person, box in boxes.items()]
        variable = ("box_new", "anno_file", "anno_previous")[number % 3]
        savemat(root / "annotations" / f"{picture}.jpg.mat", {variable: np.array(rows, float)})
    savemat(root / "frame_test.mat", {"img_index_test": cells([p for split, p in SCENES if split == "test"])})
    write_descriptions(root, "PRW-TBPS")
    return root


def matlab():
    import pytest

    return pytest.importorskip("scipy.io").savemat


def structs(rows: list[tuple], *fields: str) -> np.ndarray:
    """A row of MATLAB structures."""
    found = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
    for number, row in enumerate(rows):
        found[0, number] = row
    return found


def cells(texts: list[str]) -> np.ndarray:
    found = np.empty((len(texts), 1), dtype=object)
    found[:, 0] = texts
    return found


WRITERS = {"CUHK-SYSU-TBPS": write_cuhk_sysu, "PRW-TBPS": write_prw}
