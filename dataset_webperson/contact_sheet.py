"""Draw a sheet of synthetic pedestrians with their captions, to look at before training on them.

python -m dataset_webperson.contact_sheet FILE [--image_size H W] [--count N] [--noise_rate R] [--seed S]
"""

import io
import sys
import textwrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .builder import WebPersonConfig
from .command_line import CommandParser, command
from .drawn.rows import generate_rows
from .files import replacing


def contact_sheet(rows: list[dict[str, Any]], path: str, columns: int = 8) -> None:
    """Write a picture of rows with their first captions; false words are in capitals."""
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    zoom = max(1, 256 // images[0].height)
    width, height = images[0].width * zoom, images[0].height * zoom
    cell_width, cell_height = width + 150, max(height, 200) + 6
    sheet = Image.new("RGB", (columns * cell_width, -(-len(rows) // columns) * cell_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        left, top = number % columns * cell_width, number // columns * cell_height
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
        caption = row["caption1"]
        for start, end in row["caption1_false_spans"]:
            caption = caption[:start] + caption[start:end].upper() + caption[end:]
        draw.text((left + width + 4, top), textwrap.fill(caption, 24), fill="black", font=font)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


@command
def main(arguments: list[str] | None = None) -> int | None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dataset_webperson.contact_sheet",
        description="Draw synthetic pedestrians with their first captions; false words are in capitals.",
    )
    parser.add_argument("file", help="PNG file to write")
    parser.add_argument(
        "--image_size",
        type=int,
        nargs=2,
        default=(128, 64),
        metavar=("H", "W"),
        help="height and width of each picture in pixels (default: 128 64)",
    )
    parser.add_argument(
        "--count", type=int, default=32, help="number of pictures, two per person (default: %(default)s)"
    )
    parser.add_argument(
        "--noise_rate", type=float, default=0.3, help="share of false attribute words (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of persons and captions (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.count < 1:
        parser.error(f"--count must be at least 1, not {args.count}")
    try:
        config = WebPersonConfig(image_size=tuple(args.image_size), noise_rate=args.noise_rate, seed=args.seed)
    except ValueError as error:
        parser.error(str(error))
    rows = generate_rows(
        "train",
        0,
        (args.count + 1) // 2,
        image_size=config.image_size,
        views_per_person=2,
        noise_rate=config.noise_rate,
        seed=config.seed,
    )
    contact_sheet(list(rows)[: args.count], args.file)
    sys.stdout.write(f"wrote {args.file}\n")
    return None


if __name__ == "__main__":
    sys.exit(main())
