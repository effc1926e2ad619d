"""Draw sheets to look at: source images with the persons that were kept, those rejected by rule, and the crops.

python -m dataset_webperson.construction.boxes_sheet IMAGES_FOLDER CROP_SHARD.parquet SHEET.png

The images are those that the stage `crop` read, also in tars. SHEET.png is the first page; further ones are
SHEET-2.png and so on, of 20 images each.
"""

import io
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw

from ..command_line import CommandParser, command
from ..files import replacing
from ..findings import DataError
from ..images import ImageError, decode_within
from .shards import read_rows
from .sources import read_images

_CELL, _CELL_HEIGHT, _STRIP, _COLUMNS, _ROWS, _LEGEND = 320, 240, 96, 4, 5, 24
_VISIBLE = 0.2
_PIXELS = 4_000_000  # of an image while it is drawn on
_KEPT = "lime"
_COLOURS = {
    "box_score": "gray",
    "box_side": "orange",
    "box_ratio": "magenta",
    "keypoints_few": "cyan",
    "hips_hidden": "dodgerblue",
    "head_hidden": "red",
    "second_person": "yellow",
}


def boxes_sheet(folder: str, shards: list[str], path: str, max_pages: int = 10) -> list[str]:
    """Write pages of images with their boxes and crops, one image in memory at a time.

    Args:
        folder: the images that were cropped.
        shards: what the stage `crop` wrote.
        path: the first page, a PNG; it is written even where there is no person.
        max_pages: number of pages at most; the images after them are left out.

    Returns:
        The paths of the pages.

    Raises:
        `DataError`: the images of a shard are not there.
    """
    cells = itertools.chain.from_iterable(_cells(_source_of(folder, shard), shard) for shard in shards)
    stem, ending = os.path.splitext(path)
    pages: list[str] = []
    while len(pages) < max_pages:
        mine = list(itertools.islice(cells, _COLUMNS * _ROWS))
        if pages and not mine:
            break
        pages.append(f"{stem}-{len(pages) + 1}{ending}" if pages else path)
        rows = max(1, -(-len(mine) // _COLUMNS))
        page = Image.new("RGB", (_COLUMNS * _CELL, _LEGEND + rows * (_CELL_HEIGHT + _STRIP)), "white")
        _draw_legend(page)
        for place, cell in enumerate(mine):
            row, column = divmod(place, _COLUMNS)
            page.paste(cell, (column * _CELL, _LEGEND + row * (_CELL_HEIGHT + _STRIP)))
        with replacing(pages[-1]) as temporary:
            page.save(temporary, format="PNG")
    return pages


def _source_of(folder: str, shard: str) -> str:
    """The source of a crop shard: the tar or parquet of its name, or the list of images that the build made."""
    stem = os.path.splitext(os.path.basename(shard))[0]
    lists = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(shard))), "0_lists", f"{stem}.json")
    places = [os.path.join(folder, f"{stem}.tar"), os.path.join(folder, f"{stem}.parquet")]
    for place in places:
        if os.path.exists(place):
            return place
    if os.path.exists(lists):
        with open(lists, encoding="utf-8") as file:
            if os.path.realpath(json.load(file)["root"]) == os.path.realpath(folder):
                return lists
    raise DataError(f"{folder}: not the images of {shard}; give the folder that the build calls `source`")


def _cells(source: str, shard: str) -> Iterator[Image.Image]:
    """The images of a source shard that have a box, each with its boxes and a strip of its crops."""
    stem = os.path.splitext(os.path.basename(shard))[0]
    columns = ["image_path", "box", "box_score", "keypoints"]
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(shard, columns):
        kept.setdefault(row["image_path"].rpartition("_")[0], []).append(row)
    rejected: dict[str, list[dict[str, Any]]] = {}
    beside = os.path.join(os.path.dirname(shard), "rejected_boxes", os.path.basename(shard))
    for row in read_rows(beside) if os.path.exists(beside) else ():
        rejected.setdefault(row["image"], []).append(row)
    crops = itertools.groupby(
        read_rows(shard, ["image_path", "image"]), lambda row: row["image_path"].rpartition("_")[0]
    )
    pictures = {name: [row["image"]["bytes"] for row in list(rows)[:5]] for name, rows in crops}
    for place, image in enumerate(read_images(source)):
        name = f"{stem}_{place:06d}"
        if image.data is None or (name not in kept and name not in rejected):
            continue
        try:
            decoded, scale = decode_within(image.data, name, _PIXELS)
        except ImageError:  # it has changed since it was cropped
            continue
        yield _cell(decoded, scale, kept.get(name, []), rejected.get(name, []), pictures.get(name, []))


def _cell(image: Image.Image, scale: int, kept: list[dict], rejected: list[dict], crops: list[bytes]) -> Image.Image:
    small = _fit(image, _CELL, _CELL_HEIGHT)
    factor = scale * image.width / small.width
    draw = ImageDraw.Draw(small)
    for row in [*rejected, *kept]:  # those that were kept lie above
        colour = _COLOURS.get(row.get("reason", ""), _KEPT)
        x0, y0, x1, y1 = (side / factor for side in row["box"])
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=2)
        draw.text((x0, y0), f"{row['box_score']:.2f}", fill=colour, font_size=10)
        for x, y, score in row.get("keypoints", ()):
            if score >= _VISIBLE:
                x, y = x / factor, y / factor
                draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill="red")
    cell = Image.new("RGB", (_CELL, _CELL_HEIGHT + _STRIP), "white")
    cell.paste(small, (0, 0))
    for place, data in enumerate(crops):
        crop = Image.open(io.BytesIO(data))
        cell.paste(_fit(crop, _CELL // 5, _STRIP), (place * _CELL // 5, _CELL_HEIGHT))
    return cell


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    image = image.convert("RGB")
    image.thumbnail((width - 4, height - 4))
    return image


def _draw_legend(page: Image.Image) -> None:
    draw, left = ImageDraw.Draw(page), 4
    for text, colour in {"kept": _KEPT, **{name.replace("_", " "): c for name, c in _COLOURS.items()}}.items():
        draw.rectangle((left, 6, left + 12, 18), fill=colour)
        draw.text((left + 16, 4), text, fill="black", font_size=14)
        left += 30 + int(draw.textlength(text, font_size=14))


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = CommandParser(prog="python -m dataset_webperson.construction.boxes_sheet", description=__doc__)
    parser.add_argument("folder", metavar="IMAGES_FOLDER", help="the images that were cropped")
    parser.add_argument("shard", metavar="CROP_SHARD.parquet", help="a shard that the stage `crop` wrote")
    parser.add_argument("sheet", metavar="SHEET.png", help="the first page")
    parser.add_argument("--max_pages", type=int, default=10, help="pages of 20 images (default: %(default)s)")
    args = parser.parse_args(arguments)
    if not os.path.isdir(args.folder):
        raise DataError(f"{args.folder}: no such folder; give the one whose images were cropped")
    for page in boxes_sheet(args.folder, [args.shard], args.sheet, args.max_pages):
        sys.stdout.write(f"wrote {page}\n")


if __name__ == "__main__":
    sys.exit(main())
