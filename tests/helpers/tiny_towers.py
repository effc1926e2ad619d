"""Tiny random models of every kind of towers, saved with tokenizers of their own."""

from pathlib import Path

import torch
from tiny import tiny_config, tiny_processor, tiny_rows
from transformers import (
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    Tipsv2Config,
    Tipsv2Model,
    Tipsv2Tokenizer,
    XLMRobertaTokenizer,
)

from modeling_gadms import GADMSConfig, GADMSForPreTraining, GADMSProcessor

KINDS = ("metaclip_2", "siglip", "siglip2", "tipsv2")
ROTARY = ("eva02", "pe_core")  # which transformers does not have: they come by conversion, with CLIP's text tower
WIDTHS = {"hidden_size": 64, "num_attention_heads": 2}
SIDE, PATCH = 32, 8  # of the square images that the towers come from
CONTEXT = {"metaclip_2": 77, "siglip": 64, "siglip2": 64, "tipsv2": 64}


def captions() -> list[str]:
    return [caption for row in tiny_rows(48, seed=1) for caption in (row["caption1"], row["caption2"])]


def letters_after(special: list[str]) -> dict[str, int]:
    """A vocabulary of special tokens and the letters of the captions, of which nothing is merged."""
    letters = sorted({letter for caption in captions() for letter in caption.replace(" ", "▁")})
    return {piece: number for number, piece in enumerate(special + letters)}


def with_merges(vocab: dict[str, int], words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary with each word, grown from its first letter, and the merges that grow it."""
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(1, len(word)):
            if (word[:end], word[end]) not in merges:
                merges.append((word[:end], word[end]))
    pieces = dict.fromkeys([*vocab, *(left + right for left, right in merges)])
    return {piece: number for number, piece in enumerate(pieces)}, merges


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    if kind == "metaclip_2":  # as XLM-V: EOS is 2, the mask comes last
        words = sorted({"▁" + word for caption in captions() for word in caption.split()})
        letters = sorted({letter for caption in captions() for letter in caption if letter != " "})
        pieces = [(word, -2.0) for word in words] + [(letter, -9.0) for letter in ["▁", *letters]]
        return XLMRobertaTokenizer(
            [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces, ("<mask>", 0.0)]
        )
    if kind == "tipsv2":  # no EOS, no mask
        return Tipsv2Tokenizer(letters_after(["<pad>", "<unk>"]), [])
    # as Gemma: padding 0, EOS 1, mask 4
    letters = letters_after(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    vocab, merges = with_merges(letters, ["▁red", "▁coat", "▁blue", "▁dress", "▁wears"])
    for byte in ("<0xC3>", "<0xA9>"):  # an e with an accent, which no caption has
        vocab[byte] = len(vocab)
    return Siglip2Tokenizer(vocab, merges, add_eos_token=True)


def tiny_towers(kind: str, vocab_size: int, seed: int = 0) -> PreTrainedModel:
    """In evaluation mode, with weights and biases large enough for captions and images to differ clearly."""
    text = {**WIDTHS, "vocab_size": vocab_size, "num_hidden_layers": 3, "max_position_embeddings": CONTEXT[kind]}
    vision = {**WIDTHS, "num_hidden_layers": 2, "patch_size": PATCH}
    if kind == "metaclip_2":
        ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        text |= {"intermediate_size": 128, **ids}
        vision |= {"intermediate_size": 128, "image_size": SIDE}
        config = MetaClip2Config(text_config=text, vision_config=vision, projection_dim=64)
    elif kind == "tipsv2":
        text |= {"intermediate_size": 128}
        vision |= {"mlp_ratio": 2, "image_size": SIDE, "num_register_tokens": 2}
        config = Tipsv2Config(text_config=text, vision_config=vision)
    else:
        # in transformers' configurations the special tokens of SigLIP are not those of its tokenizers
        text |= {"intermediate_size": 128, "bos_token_id": None, "eos_token_id": None}
        vision |= {"intermediate_size": 128}
        size = {"num_patches": (SIDE // PATCH) ** 2} if kind == "siglip2" else {"image_size": SIDE}
        config = (Siglip2Config if kind == "siglip2" else SiglipConfig)(text_config=text, vision_config=vision | size)
    torch.manual_seed(seed)
    classes = {"metaclip_2": MetaClip2Model, "siglip": SiglipModel, "siglip2": Siglip2Model, "tipsv2": Tipsv2Model}
    model = classes[kind](config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 0:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if name.endswith("token_embedding.weight"):
                parameter.mul_(3)
    return model


def tiny_rotary(tower: str, image_size: tuple[int, int] = (32, 16)) -> tuple[GADMSForPreTraining, GADMSProcessor]:
    """A model with an image tower that rotates, in evaluation mode, and its processor; as [`tiny_towers`]."""
    processor = tiny_processor(image_size)
    processor.tower = tower
    config = tiny_config(len(processor.tokenizer), image_size).to_dict()
    vision = {**config["vision_config"], "hidden_act": "gelu", "reference_side": 3}
    del vision["model_type"]
    torch.manual_seed(0)
    model = GADMSForPreTraining(GADMSConfig(**config | {"tower": tower, "vision_config": vision})).eval()
    with torch.no_grad():
        for name, parameter in model.gadms.named_parameters():
            parameter.add_((2.0 if name.endswith("token_embedding.weight") else 0.1) * torch.randn_like(parameter))
    return model, processor


def save_towers(kind: str, folder: Path) -> PreTrainedModel:
    tokenizer = tiny_tokenizer(kind)
    model = tiny_towers(kind, len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@torch.no_grad()
def set_by_arithmetic(model: torch.nn.Module) -> None:
    """Weights that need no random numbers, whose order libraries may change."""
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        steps = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
        uneven = (torch.sin(12.9898 * steps + index) * 43758.5453) % 1 - 0.5
        scale = 2.0 if name.endswith("token_embedding.weight") else 0.5
        parameter.copy_((scale * uneven).view_as(parameter))
