"""Cut the persons out of the pictures of CUHK-SYSU-TBPS or PRW-TBPS, to be read as a benchmark.

    python -m dataset_webperson.person_search_crops data/PRW-TBPS --output_dir data/PRW-TBPS-crops

Of train, the described persons are cut; of test, every box of the pictures that are searched: those of described
persons are what a caption is to find, all others are wrong for every caption. Crops are JPEGs under `imgs`, beside a
json whose rows have `split`, `id`, `file_path`, `captions` (none but of the described ones), `picture` and `box`. What
is searched are boxes drawn by hand, so figures do not compare with those of detectors. After an interruption the same
command goes on.
"""

import math
import os
import sys
from collections.abc import Iterator
from typing import Any

from PIL import Image
from tqdm import tqdm

from .command_line import CommandParser, command
from .files import replacing, write_json
from .findings import Findings
from .images import ImageError, open_image
from .readers.person_search import (
    NOBODY,
    PERSON_SEARCH,
    Box,
    Description,
    PersonSearch,
    find_home,
    person_search_class,
    read_descriptions,
)
from .safe_paths import SafeRoot, UnsafePathError

QUALITY = 95


def wanted_boxes(
    kind: type[PersonSearch], root: str, findings: Findings
) -> dict[str, list[tuple[str, Box, list[str]]]]:
    """What to cut, by picture: split, box and captions. Whom no caption of the split describes is `NOBODY`."""
    train, test = (read_descriptions(kind, root, split, findings) for split in ("train", "test"))
    searched = kind.test_pictures(root)
    pictures = list(dict.fromkeys([entry.picture for entry in (*train, *test)] + searched))
    safe = SafeRoot(root)
    for picture in list(pictures):
        try:
            safe.resolve(picture, kind.pictures)
        except UnsafePathError as error:
            findings.add("path-unsafe", str(error))
            pictures.remove(picture)
    boxes = kind.boxes(root, pictures)
    wanted: dict[str, list[tuple[str, Box, list[str]]]] = {}
    described = {split: _captions(entries, boxes, findings) for split, entries in (("train", train), ("test", test))}
    for split, captions in described.items():
        persons = {person for _, person in captions}
        for picture in dict.fromkeys([*(picture for picture, _ in captions), *(searched if split == "test" else ())]):
            used: set[int] = set()  # a person's first box in a picture has the captions
            for box in boxes.get(picture, ()):
                own = captions.get((picture, box.person), []) if box.person not in used else []
                used.add(box.person)
                if own or split == "test":
                    who = box.person if box.person in persons else NOBODY
                    place = Box(who, box.x, box.y, box.width, box.height)
                    wanted.setdefault(picture, []).append((split, place, own))
    return wanted


def _captions(
    entries: list[Description], boxes: dict[str, list[Box]], findings: Findings
) -> dict[tuple[str, int], list[str]]:
    """Captions by picture and person, of those who have a box there."""
    kept = {}
    for entry in entries:
        if any(box.person == entry.person for box in boxes.get(entry.picture, ())):
            kept[entry.picture, entry.person] = entry.captions
        else:
            findings.add("box-missing", f"{entry.where}: person {entry.person} has no box in {entry.picture}")
    return kept


def cut(kind: type[PersonSearch], root: str, output_dir: str, findings: Findings) -> Iterator[dict[str, Any]]:
    """Cut what is wanted; a row of the json for each crop. Crops that are there already are kept."""
    safe = SafeRoot(root)
    wanted = wanted_boxes(kind, root, findings)
    for picture, parts in tqdm(wanted.items(), desc=f"{kind.name} pictures", unit=" pictures"):
        image = None
        for split, box, captions in parts:
            x, y = math.floor(box.x), math.floor(box.y)
            right, bottom = math.ceil(box.x + box.width), math.ceil(box.y + box.height)
            name = f"{split}/{os.path.splitext(picture)[0]}_{x}_{y}_{right}_{bottom}.jpg"
            file = os.path.join(output_dir, "imgs", name)
            if not os.path.exists(file):
                try:
                    image = image or open_image(safe.resolve(picture, kind.pictures))
                except ImageError as error:
                    findings.add(error.code, f"{picture}: {error}")
                    break
                inside = max(x, 0), max(y, 0), min(right, image.width), min(bottom, image.height)
                if inside[0] >= inside[2] or inside[1] >= inside[3]:
                    findings.add("box-outside", f"{picture}: box {x}, {y} to {right}, {bottom} of {image.size}")
                    continue
                _save(image.crop(inside), file)
            row = {"split": split, "id": box.person, "file_path": name, "captions": captions}
            yield {**row, "picture": picture, "box": [box.x, box.y, box.width, box.height]}


def _save(crop: Image.Image, file: str) -> None:
    with replacing(file) as temporary:
        crop.save(temporary, format="JPEG", quality=QUALITY, subsampling=0)


@command
def main(arguments: list[str] | None = None) -> int | None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dataset_webperson.person_search_crops",
        description="Cut the persons out of the pictures of CUHK-SYSU-TBPS or PRW-TBPS, to be read as a benchmark.",
    )
    parser.add_argument("root", help="the data set's folder, or the one above it")
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="where to write crops and json")
    parser.add_argument(
        "--dataset", help=f"which it is, if the folder's name does not say: {', '.join(PERSON_SEARCH)}"
    )
    args = parser.parse_args(arguments)
    kind = person_search_class(args.dataset or os.path.basename(os.path.realpath(args.root)))
    root = find_home(kind, args.root)
    findings = Findings()
    rows = list(cut(kind, root, args.output_dir, findings))
    findings.raise_errors(f"{kind.name} in {root}")
    file = os.path.join(args.output_dir, f"{kind.name}.json")
    write_json(file, rows)
    for finding in findings:
        sys.stdout.write(f"{finding.severity}: {finding.describe()}\n")
    counts = [f"{split} {sum(row['split'] == split for row in rows):,}" for split in ("train", "test")]
    sys.stdout.write(f"{file}: {', '.join(counts)} crops\n")
    return None


if __name__ == "__main__":
    sys.exit(main())
