"""Draw a sheet to look at: source images with the persons that were kept, their keypoints, and the crops.

python -m dataset_webperson.construction.boxes_sheet IMAGES_FOLDER CROP_SHARD.parquet SHEET.png
"""

import io
import os
import sys

from PIL import Image, ImageDraw

from ..command_line import CommandParser, command
from ..files import replacing
from ..findings import DataError
from ..images import open_image
from .shards import read_rows

_CELL, _CELL_HEIGHT, _COLUMNS, _VISIBLE = 320, 240, 4, 0.2


def boxes_sheet(rows: list[dict], folder: str, path: str) -> None:
    """Write a PNG: each image of `folder` with its kept boxes, and below them all crops."""
    drawn = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            key = os.path.splitext(os.path.relpath(os.path.join(place, name), folder))[0].replace("/", "_")
            mine = [row for row in rows if row["source_id"] == key]
            if mine:
                drawn.append(_with_boxes(open_image(os.path.join(place, name)), mine))
    crops = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    pictures = [_fit(image, _CELL, _CELL_HEIGHT) for image in drawn]
    small = [_fit(image, _CELL // 4, _CELL // 2) for image in crops]
    upper = -(-len(pictures) // _COLUMNS)
    lower = -(-len(small) // (4 * _COLUMNS))
    sheet = Image.new("RGB", (_COLUMNS * _CELL, upper * _CELL_HEIGHT + lower * _CELL // 2), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % _COLUMNS * _CELL, number // _COLUMNS * _CELL_HEIGHT))
    for number, picture in enumerate(small):
        row, column = divmod(number, 4 * _COLUMNS)
        sheet.paste(picture, (column * _CELL // 4, upper * _CELL_HEIGHT + row * _CELL // 2))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _with_boxes(image: Image.Image, rows: list[dict]) -> Image.Image:
    draw, width = ImageDraw.Draw(image), max(2, image.width // 200)
    for row in rows:
        draw.rectangle(row["box"], outline="lime", width=width)
        draw.text(row["box"][:2], f"{row['box_score']:.2f}", fill="yellow", font_size=6 * width)
        for x, y, score in row["keypoints"]:
            if score >= _VISIBLE:
                draw.ellipse((x - width, y - width, x + width, y + width), fill="red")
    return image


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    image = image.convert("RGB")
    image.thumbnail((width - 4, height - 4))
    return image


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = CommandParser(prog="python -m dataset_webperson.construction.boxes_sheet", description=__doc__)
    parser.add_argument("folder", metavar="IMAGES_FOLDER", help="the images that were cropped")
    parser.add_argument("shard", metavar="CROP_SHARD.parquet", help="a shard that the stage `crop` wrote")
    parser.add_argument("sheet", metavar="SHEET.png", help="the picture to write")
    args = parser.parse_args(arguments)
    if not os.path.isdir(args.folder):
        raise DataError(f"{args.folder}: no such folder; give the one whose images were cropped")
    boxes_sheet(list(read_rows(args.shard)), args.folder, args.sheet)


if __name__ == "__main__":
    sys.exit(main())
