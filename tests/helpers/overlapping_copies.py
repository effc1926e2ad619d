"""Made-up copies of two benchmarks, of which each trains on images that the other holds out."""

import json
import shutil

from made_up_datasets import write_copy
from PIL import Image


def images_of(root, split):
    """Paths of a split's images, and their persons, as the json has them."""
    (file,) = root.glob("*.json")
    rows = [row for row in json.loads(file.read_text()) if row["split"] == split]
    return [(root / "imgs" / (row.get("file_path") or row["img_path"]), row["id"]) for row in rows]


def plant(target, source, way):
    """Put the picture of `source` in the place of `target`: the same file, or one that only looks the same."""
    if way == "file":
        shutil.copy(source, target)
        return
    with Image.open(source) as image:
        changed = image.resize((60, 128)) if way == "resized" else image.copy()
    changed.save(target, format="JPEG", quality=70)


def two_copies(folder):
    """ICFG-PEDES and RSTPReid; 3 training images of the first, and 1 of the second, are held out by the other.

    Returns:
        Their folders, and the ids of the persons in these images by benchmark.
    """
    icfg, rstp = write_copy("icfg", folder), write_copy("rstp", folder)
    train, test = images_of(icfg, "train"), images_of(rstp, "test")
    plant(train[0][0], test[0][0], "file")
    plant(train[1][0], test[1][0], "resized")
    plant(train[4][0], images_of(rstp, "val")[2][0], "again")
    plant(images_of(rstp, "train")[3][0], images_of(icfg, "test")[0][0], "again")
    persons = {"ICFG-PEDES": {train[0][1], train[4][1]}, "RSTPReid": {images_of(rstp, "train")[3][1]}}
    return icfg, rstp, persons
