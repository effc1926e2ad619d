"""The app of a Space: a gallery of drawn pedestrians, its page and its API, for everybody.

    python examples/space/app.py --port 7861                               # here, as it runs there
    python examples/publish.py space examples/space org/gallery            # there

The drawings come from a seed and show nobody. For images of people, serve a gallery of your own with a token, as the
model card asks: `python -m modeling_gadms.gallery serve`.
"""

import json
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.drawn.rows import generate_rows
from dataset_webperson.files import write_json, write_text
from modeling_gadms import GADMSModel, GADMSProcessor
from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.server import address_of, create_app, listen, run_app

HERE = Path(__file__).resolve().parent
VIEWS, PART = 2, 250  # images of each person; persons that a process draws at a time
CALIBRATED = 150  # images whose captions tell how likely a match is true
SIDES = (48, 48)  # pixels; as the small CLIP was trained
SITES = ("harbour", "market", "museum", "station")


def draw_part(folder: Path, first: int, last: int) -> list[dict[str, Any]]:
    """Draw the persons `first` to `last` (excluded); for each image its name, columns and captions."""
    rows = []
    options = {"image_size": (128, 64), "views_per_person": VIEWS, "noise_rate": 0.0, "seed": 11}
    for row in generate_rows("test", first, last, **options):
        name = os.path.basename(row["image_path"])
        (folder / name).write_bytes(row["image"]["bytes"])
        chance = random.Random(name)
        camera = chance.randrange(12)
        time = f"2026-05-{chance.randint(1, 28):02}T{chance.randrange(24):02}:{chance.randrange(60):02}"
        columns = {"person": row["person_id"] % 10**8, "camera": camera, "site": SITES[camera % 4], "time": time}
        rows.append({"uri": name, **columns, "captions": [row["caption1"], row["caption2"]]})
    return rows


def draw(folder: Path, count: int) -> None:
    """Draw `count` images on all cores, and write columns.jsonl and captions.jsonl for the gallery."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    starts = range(0, count // VIEWS, PART)
    ends = [min(start + PART, count // VIEWS) for start in starts]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        spread = map if len(ends) == 1 else pool.map  # a process takes seconds to start
        for part in spread(draw_part, [folder / "images"] * len(ends), starts, ends):
            rows += part
    some = rows[:: max(1, len(rows) // CALIBRATED)]
    captions = [{"uri": row["uri"], "captions": row["captions"]} for row in some]
    columns = [{name: value for name, value in row.items() if name != "captions"} for row in rows]
    for name, lines in (("columns.jsonl", columns), ("captions.jsonl", captions)):
        write_text(str(folder / name), "".join(json.dumps(line) + "\n" for line in lines))


def save_model(folder: Path) -> str:
    """The small CLIP that lies beside this file, or one folder up, saved as a GA-DMS."""
    if not (folder / "processor_config.json").exists():
        clip = str(next(place / "small_clip" for place in (HERE, HERE.parent) if (place / "small_clip").exists()))
        GADMSModel.from_clip_pretrained(clip, image_size=SIDES).save_pretrained(folder)
        GADMSProcessor.from_clip_pretrained(clip, image_size=SIDES).save_pretrained(folder)
    return str(folder)


def drawn_gallery(folder: Path, count: int, model: str | None = None) -> Gallery:
    """A gallery of `count` drawings below `folder`, calibrated; what an earlier call made is taken as it is.

    Args:
        folder: of the drawings, the model and the gallery.
        count: of images.
        model: folder or Hub id of a GA-DMS; by default the small CLIP as one.
    """
    place = folder / "drawings"
    if (folder / "facts.json").exists():
        return Gallery.open(place)
    if not (folder / "captions.jsonl").exists():
        print(f"drawing {count:,} images ...", flush=True)
        draw(folder, count)
    if (place / "gallery.json").exists():
        gallery = Gallery.open(place)
    else:
        gallery = Gallery.create(place, model or save_model(folder / "small_clip"))
    print("encoding them ...", flush=True)
    gallery.add(folder / "images", folder / "columns.jsonl", batch_size=128, progress=sys.stderr.isatty())
    # two images of each person among thousands that look alike: one in ten that is the very person is a find
    facts = gallery.calibrate(folder / "captions.jsonl", same="person", threshold=0.1)
    write_json(str(folder / "facts.json"), facts)  # last: it says that all of the above is done
    return gallery


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--output_dir", default=os.path.join("runs", "space"), help="(default: %(default)s)")
    parser.add_argument("--num_images", type=int, default=2000, help="drawings, two of each person (default: 2000)")
    parser.add_argument("--host", default="127.0.0.1", help="address; in a Space 0.0.0.0 (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: %(default)s)")
    parser.add_argument("--build_only", action="store_true", help="make the gallery, and stop before serving it")
    args = parser.parse_args(arguments)
    if args.num_images < 40:
        parser.error(f"--num_images must be at least 40; got {args.num_images}")
    gallery = drawn_gallery(Path(args.output_dir), args.num_images)
    if args.build_only:
        return
    with listen(args.host, args.port) as listener:
        print(f"{len(gallery):,} drawings at {address_of(listener)}", flush=True)
        run_app(create_app(gallery, public=True), listener)


if __name__ == "__main__":
    sys.exit(main())
