"""FG-CLIP 2, made up in its own layout: images and short captions against a twin written from its description."""

import json
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import tiny_images
from tiny_towers import PATCH, save_towers

from dataset_webperson import DataError
from modeling_gadms import GADMSForPreTraining, GADMSModel, GADMSProcessor
from modeling_gadms.training.starting_points import load_starting_point, own_image_size

SIZE, HEADS, LONG = (48, 16), 2, 196
CAPTIONS = ["a Person in a red coat", "someone wears blue trousers, a white shirt, and walks by", "red"]
LEFT = ("position_embedding_ori", "position_embedding_res", "longtext_head", "boxtext_head", "dense_feature_head")


def published(folder):
    """Weights and configuration as FG-CLIP 2 is published: code of its own, two more tables, three more heads."""
    save_towers("siglip2", folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    width = weights["text_model.head.weight"].shape[0]
    for name in ("ori", "res"):
        weights[f"text_model.embeddings.position_embedding_{name}.weight"] = torch.randn(
            LONG, width, generator=generator
        )
    for head in ("longtext_head", "boxtext_head"):
        weights |= {
            f"{head}.weight": torch.randn(width, width, generator=generator),
            f"{head}.bias": torch.ones(width),
        }
    head = {name: tensor + 1 for name, tensor in weights.items() if name.startswith("vision_model.head.")}
    weights |= {name.replace("vision_model.head", "dense_feature_head"): tensor for name, tensor in head.items()}
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    of_code = {"AutoConfig": "configuration_fgclip2.Fgclip2Config", "AutoModel": "modeling_fgclip2.Fgclip2Model"}
    config |= {"model_type": "fgclip2", "architectures": ["Fgclip2Model"], "auto_map": of_code}
    config["text_config"] |= {"model_type": "fgclip2_text_model", "keep_len": 20, "longtext_len": LONG}
    config["vision_config"] |= {"model_type": "fgclip2_vision_model"}
    (folder / "config.json").write_text(json.dumps(config))
    return weights


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fg-clip2")
    return str(folder), published(folder)


# ---- the twin: what FG-CLIP 2 computes, one caption or image at a time


def linear(weights, name, states):
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights, name, states):
    centred = states - states.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def mlp(weights, name, states):
    inner = linear(weights, f"{name}.fc1", states)
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return linear(weights, f"{name}.fc2", inner)


def attend(queries, keys, values):
    parts = []
    for query, key, value in zip(*(part.chunk(HEADS, dim=-1) for part in (queries, keys, values)), strict=True):
        parts.append(torch.softmax(query @ key.T / math.sqrt(query.shape[-1]), dim=-1) @ value)
    return torch.cat(parts, dim=-1)


def encode(weights, tower, states):
    depth = len({name.split(".")[3] for name in weights if name.startswith(f"{tower}.encoder.layers.")})
    for layer in (f"{tower}.encoder.layers.{index}" for index in range(depth)):
        normed = norm(weights, f"{layer}.layer_norm1", states)
        attended = attend(*(linear(weights, f"{layer}.self_attn.{part}_proj", normed) for part in "qkv"))
        states = states + linear(weights, f"{layer}.self_attn.out_proj", attended)
        states = states + mlp(weights, f"{layer}.mlp", norm(weights, f"{layer}.layer_norm2", states))
    return states


def encode_short_caption(weights, ids):
    """64 ids, padding among them: no mask, positions of the short table, the last state through the text head."""
    assert len(ids) == 64
    table = "text_model.embeddings."
    states = weights[f"{table}token_embedding.weight"][ids] + weights[f"{table}position_embedding.weight"]
    states = norm(weights, "text_model.final_layer_norm", encode(weights, "text_model", states))
    return linear(weights, "text_model.head", states[-1])


def encode_picture(weights, pixels):
    """Patches row by row, positions resized to their grid, pooled by the attention of one learned query."""
    rows, columns = pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
    flat = [
        pixels[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].permute(1, 2, 0).flatten()
        for y in range(rows)
        for x in range(columns)
    ]
    table = weights["vision_model.embeddings.position_embedding.weight"]
    side = math.isqrt(len(table))
    square = table.T.reshape(1, -1, side, side)
    resized = F.interpolate(square, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
    states = linear(weights, "vision_model.embeddings.patch_embedding", torch.stack(flat)) + resized[0].flatten(1).T
    states = norm(weights, "vision_model.post_layernorm", encode(weights, "vision_model", states))
    head = "vision_model.head"
    inputs = weights[f"{head}.attention.in_proj_weight"].chunk(3), weights[f"{head}.attention.in_proj_bias"].chunk(3)
    query, key, value = (
        given @ matrix.T + bias
        for given, matrix, bias in zip((weights[f"{head}.probe"][0], states, states), *inputs, strict=True)
    )
    pooled = linear(weights, f"{head}.attention.out_proj", attend(query, key, value))
    return (pooled + mlp(weights, f"{head}.mlp", norm(weights, f"{head}.layernorm", pooled)))[0]


# ---- what starts from it


@torch.no_grad()
def test_images_and_short_captions_are_embedded_as_fg_clip_2_does(source, tmp_path):
    folder, weights = source
    GADMSModel.from_pretrained_towers(folder, image_size=SIZE).save_pretrained(tmp_path)
    GADMSProcessor.from_pretrained_towers(folder, image_size=SIZE).save_pretrained(tmp_path)
    model, processor = GADMSModel.from_pretrained(tmp_path), GADMSProcessor.from_pretrained(tmp_path)
    text_config = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert (model.config.tower, processor.tower) == ("siglip", "siglip") and not {"keep_len", "longtext_len"} & set(
        text_config
    )
    ids = processor(text=CAPTIONS)["input_ids"]
    assert torch.equal(ids, processor(text=[caption.lower() for caption in CAPTIONS])["input_ids"])
    expected = torch.stack([encode_short_caption(weights, row) for row in ids])
    torch.testing.assert_close(model.get_text_features(ids).pooler_output, expected, atol=1e-4, rtol=1e-4)
    pixels = tiny_images(3, SIZE)
    expected = torch.stack([encode_picture(weights, image) for image in pixels])
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected, atol=1e-4, rtol=1e-4)
    assert expected.std(dim=0).max() > 0.01, "the images are too alike to test anything"


def test_training_starts_from_it_and_a_line_names_what_is_left_out(source, caplog):
    folder, weights = source
    with caplog.at_level(logging.WARNING):
        model, _ = load_starting_point(folder, own_image_size(folder))
    assert isinstance(model, GADMSForPreTraining) and model.config.vision_config.image_size == (32, 32)
    (line,) = [record.message for record in caplog.records if folder in record.message]
    count = sum(any(part in name for part in LEFT) for name in weights)
    assert f"{count} weights are left out" in line and all(part in line for part in LEFT) and "\n" not in line


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda w: w | {"shorttext_head.weight": torch.ones(2)}, r"1 weights that an FG-CLIP 2 .*\(shorttext_head"),
        (
            lambda w: {name: tensor for name, tensor in w.items() if "position_embedding.w" not in name},
            r"not a whole fgclip2 model: 2 of \d+ weights are missing .*position_embedding",
        ),
        (lambda w: w | {"text_model.embeddings.position_embedding.weight": torch.ones(LONG, 64)}, "cannot be loaded"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(source, tmp_path, change, reason):
    weights = published(tmp_path)
    save_file(change(weights), tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=f"^{tmp_path}.*{reason}") as caught:
        load_starting_point(str(tmp_path), SIZE)
    assert "\n" not in str(caught.value)
