"""Search images with a sentence: the best match first, in the terminal and as a picture.

    python examples/search.py runs/demo "a woman in a red coat"                       # ten drawings
    python examples/search.py org/gadms "a man with a blue backpack" --images photos --output_file found.png

Without --images it draws ten pedestrians. Search only images of people who agreed to it: see the model card.
"""

import os
import sys
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import SafetensorError
from transformers import AutoModel, AutoProcessor

from dataset_webperson import DataError, WebPerson
from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.images import open_image

if TYPE_CHECKING:  # at run time both come with the checkpoint
    from modeling_gadms import GADMSModel, GADMSProcessor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def load(name_or_path: str) -> tuple["GADMSModel", "GADMSProcessor"]:
    """Model and processor of a checkpoint, by the code that lies beside its weights."""
    try:
        model = AutoModel.from_pretrained(name_or_path, trust_remote_code=True).eval()
        processor = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{name_or_path}: not a whole GA-DMS, as a folder or a Hub id ({error})") from error
    if not hasattr(model, "token_scores"):
        raise DataError(f"{name_or_path}: is of type {model.config.model_type}, not gadms; give a GA-DMS")
    return model, processor


def draw_people(count: int = 10) -> list[tuple[str, Image.Image]]:
    """Names and images of drawn pedestrians."""
    builder = WebPerson(
        config_name="synthetic",
        image_size=(128, 64),
        views_per_person=1,
        num_train_persons=2,
        num_validation_persons=2,
        num_test_persons=count,
    )
    builder.download_and_prepare()
    return [(row["image_path"], row["image"]) for row in builder.as_dataset(split="test")]


def read_folder(folder: str) -> list[tuple[str, Image.Image]]:
    """Names and images of a folder, upright and RGB."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; give the one that holds the images")
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    if not names:
        raise DataError(f"{folder}: no images ({', '.join(SUFFIXES)}); give the folder that holds them")
    return [(name, open_image(os.path.join(folder, name))) for name in names]


def refuse_output(path: str) -> None:
    """Stop before searching where the picture could not be written."""
    if os.path.splitext(path)[1].lower() not in SUFFIXES:
        raise DataError(f"{path}: the name of a picture ends in {', '.join(SUFFIXES)}; choose another --output_file")
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
        sheet.paste(image.convert("RGB").resize((width, height)), (x, 32))
        draw.text((x, height + 38), f"{cosine:.3f}", "black", font)
    sheet.save(path)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, renamed={"--output": "--output_file"})
    parser.add_argument("model", help="folder or Hub id of a GA-DMS")
    parser.add_argument("sentence", help="description of the person to find")
    parser.add_argument("--images", metavar="FOLDER", help="images to search (default: ten drawings)")
    parser.add_argument("--top", type=int, default=10, help="number of images to show (default: %(default)s)")
    parser.add_argument("--output_file", default="search.png", help="picture to write (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.top < 1:
        parser.error(f"--top must be at least 1; got {args.top}")
    refuse_output(args.output_file)
    names, images = zip(*(read_folder(args.images) if args.images else draw_people()), strict=True)
    model, processor = load(args.model)

    with torch.no_grad():
        embeds = [model.get_image_features(**processor(images=image))["pooler_output"] for image in images]
        query = model.get_text_features(**processor(text=[args.sentence]))["pooler_output"]
    cosines = torch.nn.functional.cosine_similarity(query, torch.cat(embeds))
    best = cosines.argsort(descending=True)[: args.top].tolist()
    for place, index in enumerate(best, 1):
        print(f"{place:2}  {cosines[index]:.3f}  {names[index]}")
    picture(args.sentence, [(cosines[index].item(), images[index]) for index in best], args.output_file)
    print(f"picture in {args.output_file}")


if __name__ == "__main__":
    sys.exit(main())
