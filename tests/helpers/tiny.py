"""Small models, captions and data sets for the tests; all of them follow from explicit seeds."""

import random

import datasets
import torch
from PIL import Image

from modeling_gadms import GADMSConfig, GADMSForPreTraining, GADMSImageProcessor, GADMSProcessor
from modeling_gadms.hub.listings import write_sentence_transformers
from modeling_gadms.masking_gadms import draw_uniforms
from modeling_gadms.training.tokenizers import train_tokenizer

COLOURS = ["red", "green", "blue", "black", "white", "yellow"]
GARMENTS = ["coat", "shirt", "dress", "jacket"]


def tiny_config(vocab_size=100, image_size=(32, 16), context_length=32, **kwargs) -> GADMSConfig:
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    return GADMSConfig(
        text_config={
            **tower,
            "vocab_size": vocab_size,
            "num_hidden_layers": 3,
            "max_position_embeddings": context_length,
        },
        vision_config={**tower, "num_hidden_layers": 2, "image_size": image_size, "patch_size": 8},
        projection_dim=64,
        decoder_num_layers=1,
        **kwargs,
    )


def tiny_model(seed=0, **kwargs) -> GADMSForPreTraining:
    """In evaluation mode, with weights large enough for captions and images to differ clearly."""
    torch.manual_seed(seed)
    model = GADMSForPreTraining(tiny_config(**kwargs))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embedding" not in name:
                parameter.mul_(1.5)
            if name.endswith("token_embedding.weight"):
                parameter.mul_(10)
    return model.eval()


def tiny_captions(lengths, vocab_size=100, seed=0, width=None) -> torch.Tensor:
    """Random captions of the given lengths, BOS and EOS included, padded with 0 to `width` or to the longest."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.zeros(len(lengths), width or max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        input_ids[row, 0] = vocab_size - 2
        input_ids[row, 1 : length - 1] = torch.randint(1, vocab_size - 3, (length - 2,), generator=generator)
        input_ids[row, length - 1] = vocab_size - 1
    return input_ids


def tiny_images(count, image_size=(32, 16), seed=0) -> torch.Tensor:
    return torch.randn(count, 3, *image_size, generator=torch.Generator().manual_seed(seed))


def tiny_batch(lengths) -> dict[str, torch.Tensor]:
    """An image and the draws of its masks for each caption of one of these lengths."""
    return {
        "pixel_values": tiny_images(len(lengths)),
        "input_ids": tiny_captions(lengths),
        "mask_uniforms": draw_uniforms(len(lengths), 32, torch.Generator().manual_seed(0)),
    }


def tiny_rows(count=24, seed=0) -> datasets.Dataset:
    """Two-colour images with the columns of WebPerson: two images per person, and captions that describe them."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        person = random.Random(f"{seed}-{index // 2}")
        top, lower, garment = person.choice(COLOURS), person.choice(COLOURS), person.choice(GARMENTS)
        image = Image.new("RGB", (16, 32), lower)
        image.paste(top, (0, 0, 16, rng.randint(12, 18)))
        rows.append(
            {
                "image": image,
                "image_path": f"{index:03d}.png",
                "caption1": f"a person in a {top} {garment} and {lower} trousers",
                "caption2": f"someone wears {lower} trousers, a {top} {garment}, and walks by",
                "person_id": index // 2,
            }
        )
    features = datasets.Features(
        image=datasets.Image(),
        image_path=datasets.Value("string"),
        caption1=datasets.Value("string"),
        caption2=datasets.Value("string"),
        person_id=datasets.Value("int64"),
    )
    return datasets.Dataset.from_list(rows, features=features)


def tiny_processor(image_size=(32, 16), context_length=32) -> GADMSProcessor:
    captions = [caption for row in tiny_rows(48, seed=1) for caption in (row["caption1"], row["caption2"])]
    tokenizer = train_tokenizer(captions, vocab_size=560)
    tokenizer.model_max_length = context_length
    height, width = image_size
    return GADMSProcessor(GADMSImageProcessor(size={"height": height, "width": width}), tokenizer)


def save_published(folder) -> None:
    """A tiny checkpoint as it goes to the Hub, without its card."""
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_sentence_transformers(folder)
