"""Build a gallery of drawings, or of a folder, and open its page in a browser.

    python examples/demo_search.py                                          # `make demo-search`
    python examples/demo_search.py --images photos --port 7861              # `make demo-search FOLDER=photos`

The first call draws 20,000 pedestrians and encodes them, in minutes; another one opens at once. A folder is brought up
to date each time. Search only images of people who agreed to it: see the model card.
"""

import hashlib
import os
import sys
import threading
import webbrowser
from pathlib import Path

from space.app import drawn_gallery, save_model

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser, command
from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.server import serve


def folder_gallery(images: str, folder: Path, model: str | None) -> Gallery:
    """The gallery of a folder of images, as the folder is now."""
    path = os.path.realpath(images)  # of two folders of one name, each has its own
    place = folder / hashlib.sha256(path.encode()).hexdigest()[:8] / os.path.basename(path)
    if (place / "gallery.json").exists():
        gallery = Gallery.open(place)
    else:
        gallery = Gallery.create(place, model or save_model(folder / "small_clip"))
    report = gallery.sync(images, batch_size=128, progress=sys.stderr.isatty())
    print(f"{images}: {report}")
    return gallery


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--images", metavar="FOLDER", help="images to search (default: drawings)")
    parser.add_argument("--num_images", type=int, default=20_000, help="drawings, two of each person (default: 20000)")
    parser.add_argument("--model", help="folder or Hub id of a GA-DMS (default: the small CLIP, shipped)")
    parser.add_argument("--output_dir", help="(default: runs/search, with the name of --images)")
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: %(default)s)")
    parser.add_argument("--no_browser", action="store_true", help="only print the address")
    args = parser.parse_args(arguments)
    if args.images is not None and not os.path.isdir(args.images):
        raise DataError(f"{args.images}: no such folder; give the folder that holds the images")
    if args.num_images < 40:
        parser.error(f"--num_images must be at least 40; got {args.num_images}")
    name = f"search-{os.path.basename(os.path.abspath(args.images))}" if args.images else "search"
    folder = Path(args.output_dir or os.path.join("runs", name))
    if args.images:
        gallery = folder_gallery(args.images, folder, args.model)
    else:
        gallery = drawn_gallery(folder, args.num_images, args.model)
        if len(gallery) != args.num_images // 2 * 2:
            print(f"{gallery.path}: has {len(gallery):,} drawings from an earlier call; for others give --output_dir")
    if args.model:
        Gallery.open(gallery.path, args.model)  # refuses another model than the one that made it
    if not args.no_browser:  # a machine without one takes no notice; it listens before the browser asks
        threading.Timer(1.0, webbrowser.open, [f"http://127.0.0.1:{args.port}"]).start()
    serve(gallery.path, port=args.port)


if __name__ == "__main__":
    sys.exit(main())
