"""Search images with a sentence: the best match first, in the terminal and as a picture.

    python examples/search.py runs/demo "a woman in a red coat"                       # ten drawings
    python examples/search.py org/gadms "a man with a blue backpack" --images photos --output_file found.png

Without --images it draws ten pedestrians. Images are encoded once, with those of all sub-folders, and kept in a
gallery (`python -m modeling_gadms.gallery` does more with it); the next question encodes only what is new, and forgets
what is gone. Search only images of people who agreed to it: see the model card.
"""

import hashlib
import os
import sys

from huggingface_hub.constants import HF_HOME
from PIL import Image, ImageDraw, ImageFont

from dataset_webperson import DataError, WebPerson
from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSModel
from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.items import ENDINGS
from modeling_gadms.gallery.models import Encoder

CACHE = os.path.join(HF_HOME, "gadms-galleries")


def draw_people(folder: str, count: int = 10) -> None:
    """Images of drawn pedestrians, unless they lie there from last time."""
    if os.path.isdir(folder):
        return
    builder = WebPerson(
        config_name="synthetic",
        image_size=(128, 64),
        views_per_person=1,
        num_train_persons=2,
        num_validation_persons=2,
        num_test_persons=count,
    )
    builder.download_and_prepare()
    os.makedirs(folder + ".part", exist_ok=True)
    for row in builder.as_dataset(split="test"):
        row["image"].save(os.path.join(folder + ".part", row["image_path"].replace("/", "-")), "PNG")
    os.replace(folder + ".part", folder)


def kept_gallery(model: str, images: str, place: str | None) -> Gallery:
    """The gallery of a folder by a model, made at the first question and brought up to date at the next."""
    encoder = Encoder(model)
    if not isinstance(encoder.model, GADMSModel):
        raise DataError(f"{model}: is of type {encoder.model.config.model_type}, not gadms; give a GA-DMS")
    key = f"{os.path.abspath(images)}\0{encoder.facts['weights_sha256']}"  # a model trained further is another one
    place = place or os.path.join(CACHE, hashlib.sha256(key.encode()).hexdigest()[:16])
    made = (Gallery.open if os.path.exists(place) else Gallery.create)(place, encoder)
    report = made.sync(images, progress=sys.stderr.isatty())
    for name, reason in report.skipped:
        sys.stderr.write(f"left out: {name}: {reason}\n")
    return made


def refuse_output(path: str) -> None:
    """Stop before searching where the picture could not be written."""
    if os.path.splitext(path)[1].lower() not in ENDINGS:
        raise DataError(f"{path}: the name of a picture ends in {', '.join(ENDINGS)}; choose another --output_file")
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or "."):
        raise DataError(f"{path}: cannot be written; choose a file in a folder that exists by --output_file")


def picture(sentence: str, found: list[tuple[float, Image.Image]], path: str, height: int = 192) -> None:
    """The images side by side, best match first, each above its cosine."""
    width, font = height // 2, ImageFont.load_default(15)
    sheet = Image.new("RGB", (len(found) * (width + 8) + 8, height + 64), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 8), f'"{sentence}"', "black", font)
    for place, (cosine, image) in enumerate(found):
        x = 8 + place * (width + 8)
        sheet.paste(image.resize((width, height)), (x, 32))
        draw.text((x, height + 38), f"{cosine:.3f}", "black", font)
    sheet.save(path)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, renamed={"--output": "--output_file"})
    parser.add_argument("model", help="folder or Hub id of a GA-DMS")
    parser.add_argument("sentence", help="description of the person to find")
    parser.add_argument("--images", metavar="FOLDER", help="images to search (default: ten drawings)")
    parser.add_argument("--gallery", metavar="FOLDER", help="where embeddings are kept (default: in the cache)")
    parser.add_argument("--top", type=int, default=10, help="number of images to show (default: %(default)s)")
    parser.add_argument("--output_file", default="search.png", help="picture to write (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.top < 1:
        parser.error(f"--top must be at least 1; got {args.top}")
    refuse_output(args.output_file)
    if args.images and not os.path.isdir(args.images):
        raise DataError(f"{args.images}: no such folder; give the one that holds the images")
    images = args.images or os.path.join(CACHE, "drawings")
    if not args.images:
        draw_people(images)
    gallery = kept_gallery(args.model, images, args.gallery)
    source = os.path.realpath(images).replace("'", "''")  # --gallery may hold those of other folders too
    hits = gallery.search(args.sentence, k=args.top, where=f"source = '{source}'")
    if not hits:
        raise DataError(f"{images}: no images ({', '.join(ENDINGS)}); give the folder that holds them")
    for place, hit in enumerate(hits, 1):
        print(f"{place:2}  {hit.score:.3f}  {hit.uri}")
    picture(args.sentence, [(hit.score, gallery.image(hit.id)) for hit in hits], args.output_file)
    print(f"picture in {args.output_file}")


if __name__ == "__main__":
    sys.exit(main())
