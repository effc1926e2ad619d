"""Search images with a sentence: the best first, in the terminal and as a picture.

    python examples/search.py runs/demo "a woman in a red coat"                       # ten drawings
    python examples/search.py org/gadms "a man with a blue backpack" --images photos --output found.png

Without --images it draws ten pedestrians. Search only images of people who agreed to it: see the model card.
"""

import argparse
import os
import sys

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from transformers import AutoModel, AutoProcessor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def draw_people(count: int = 10) -> list[tuple[str, Image.Image]]:
    from dataset_webperson import WebPerson

    options = {"num_train_persons": 2, "num_validation_persons": 2, "num_test_persons": count}
    builder = WebPerson(config_name="synthetic", image_size=(128, 64), views_per_person=1, **options)
    builder.download_and_prepare()
    return [(row["image_path"], row["image"]) for row in builder.as_dataset(split="test")]


def read_folder(folder: str) -> list[tuple[str, Image.Image]]:
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    if not names:
        raise SystemExit(f"error: {folder}: no images ({', '.join(SUFFIXES)})")
    return [(name, ImageOps.exif_transpose(Image.open(os.path.join(folder, name))).convert("RGB")) for name in names]


def picture(sentence: str, found: list[tuple[float, Image.Image]], path: str, height: int = 192) -> None:
    """The images side by side, best first, each above its cosine."""
    width, font = height // 2, ImageFont.load_default(15)
    sheet = Image.new("RGB", (len(found) * (width + 8) + 8, height + 64), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 8), f'"{sentence}"', "black", font)
    for place, (cosine, image) in enumerate(found):
        x = 8 + place * (width + 8)
        sheet.paste(image.convert("RGB").resize((width, height)), (x, 32))
        draw.text((x, height + 38), f"{cosine:.3f}", "black", font)
    sheet.save(path)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a GA-DMS")
    parser.add_argument("sentence", help="whom to look for")
    parser.add_argument("--images", metavar="FOLDER", help="images to search (default: ten drawings)")
    parser.add_argument("--top", type=int, default=10, help="how many to show (default: %(default)s)")
    parser.add_argument("--output", default="search.png", help="the picture (default: %(default)s)")
    args = parser.parse_args(argv)
    model = AutoModel.from_pretrained(args.model, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    names, images = zip(*(read_folder(args.images) if args.images else draw_people()), strict=True)
    with torch.no_grad():
        embeds = [model.get_image_features(**processor(images=image)).pooler_output for image in images]
        query = model.get_text_features(**processor(text=[args.sentence])).pooler_output
    cosines = torch.nn.functional.cosine_similarity(query, torch.cat(embeds))
    best = cosines.argsort(descending=True)[: args.top].tolist()
    for place, index in enumerate(best, 1):
        print(f"{place:2}  {cosines[index]:.3f}  {names[index]}")
    picture(args.sentence, [(cosines[index].item(), images[index]) for index in best], args.output)
    print(f"picture in {args.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
