"""MobileCLIP-B, made up in the layout of open_clip and timm, against its computation written out slowly."""

import json
import math

import pytest
import released_twin as twin
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from modeling_gadms import GADMSModel
from modeling_gadms.convert_gadms_to_hf import main
from modeling_gadms.released.checkpoints import load_released, save_released
from modeling_gadms.released.mobile_clip import reached_by
from modeling_gadms.vision_gadms import resize_position_table

PATCH, SIDE, WIDTH, STEM, HEADS, EMBED = 16, 4, 192, 24, 3, 128  # SIDE patches by SIDE
CONFIG = {
    "embed_dim": EMBED,
    "vision_cfg": {
        **{"timm_model_name": "vit_base_mci_224", "timm_model_pretrained": False, "timm_pool": "token"},
        **{"timm_proj": None, "timm_drop": 0.0, "timm_drop_path": 0.0, "image_size": PATCH * SIDE},
        **{"width": WIDTH, "layers": 2},  # of a real one they are the defaults
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 100,
        "width": 128,
        "heads": 2,
        "layers": 3,
        "no_causal_mask": False,
    },
    "custom_text": True,
}


def shapes():
    for number, (out, given, kernel) in enumerate(((STEM, 3, 4), (STEM, STEM, 2), (WIDTH, STEM, 2))):
        yield f"patch_embed.backbone.{number}.conv.weight", (out, given, kernel, kernel)
        if number < 2:
            for part in ("weight", "bias", "running_mean"):
                yield f"patch_embed.backbone.{number}.bn.{part}", (out,)
    yield "patch_embed.backbone.2.conv.bias", (WIDTH,)
    yield "cls_token", (1, 1, WIDTH)
    yield "pos_embed", (1, SIDE * SIDE, WIDTH)
    for block in ("blocks.0", "blocks.1"):
        for name, out, given in (("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH)):
            yield f"{block}.{name}.weight", (out, given)
            yield f"{block}.{name}.bias", (out,)
        for name, out, given in (("mlp.fc1", 4 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 4 * WIDTH)):
            yield f"{block}.{name}.weight", (out, given)
            yield f"{block}.{name}.bias", (out,)
        for name in ("norm1", "norm2"):
            yield f"{block}.{name}.weight", (WIDTH,)
            yield f"{block}.{name}.bias", (WIDTH,)
    yield from (("norm.weight", (WIDTH,)), ("norm.bias", (WIDTH,)))
    yield from (("head.weight", (EMBED, WIDTH)), ("head.bias", (EMBED,)))


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(3)
    trunk = {
        name: torch.randn(shape, generator=generator) / max(math.prod(shape[1:]), 4) ** 0.5 for name, shape in shapes()
    }
    for number in (0, 1):
        trunk[f"patch_embed.backbone.{number}.bn.running_var"] = 0.5 + torch.rand(STEM, generator=generator)
        trunk[f"patch_embed.backbone.{number}.bn.num_batches_tracked"] = torch.tensor(7)
    text = {f"text.{name}": w for name, w in twin.clip_weights().items() if not name.startswith("visual")}
    return {f"visual.trunk.{name}": w for name, w in trunk.items()} | text | {"logit_scale": torch.tensor(4.6)}


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobile")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")
    prepared = {"mean": [0.0] * 3, "std": [1.0] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": prepared}))
    return str(folder / "open_clip_model.safetensors")


def layer(weights, name, states):
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights, name, states):
    return F.layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def encode_image(weights, pixels, table):
    """As timm does, at inference, one image at a time."""
    w = {name.removeprefix("visual.trunk."): tensor for name, tensor in weights.items()}
    states = pixels[None]
    for number, stride in enumerate((4, 2, 2)):
        stem = f"patch_embed.backbone.{number}"
        states = F.conv2d(states, w[f"{stem}.conv.weight"], w.get(f"{stem}.conv.bias"), stride=stride)
        if number < 2:
            mean, variance = w[f"{stem}.bn.running_mean"], w[f"{stem}.bn.running_var"]
            states = (states - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
            states = F.gelu(states * w[f"{stem}.bn.weight"][:, None, None] + w[f"{stem}.bn.bias"][:, None, None])
    states = torch.cat([w["cls_token"][0], states[0].flatten(1).T + table])
    for block in ("blocks.0", "blocks.1"):
        query, key, value = layer(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", states)).chunk(3, dim=-1)
        states = states + layer(w, f"{block}.attn.proj", twin.heads_attention(query, key, value, HEADS)[0])
        states = states + layer(
            w, f"{block}.mlp.fc2", F.gelu(layer(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", states)))
        )
    return layer(w, "head", norm(w, "norm", states))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_both_towers_compute_what_mobile_clip_does(weights, path, tmp_path, size):
    converted, conversion = load_released(path, size)
    converted.save_pretrained(tmp_path)
    model = GADMSModel.from_pretrained(tmp_path)
    assert conversion.image_options == {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    table, pixels = weights["visual.trunk.pos_embed"][0], twin.images(2, image_size=size)
    table = resize_position_table(table, (size[0] // PATCH, size[1] // PATCH), class_rows=0)
    expected = torch.stack([encode_image(weights, image, table) for image in pixels])  # of each token
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected[:, 0], atol=1e-4, rtol=1e-4)
    tokens = model.project_image_tokens(model.vision_model(pixels).last_hidden_state)
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
    text = {name.removeprefix("text."): w for name, w in weights.items() if name.startswith("text.")}
    captions = twin.captions([9, 16])
    expected = torch.stack([twin.encode_text(text, ids, activation=F.gelu)[ids.argmax()] for ids in captions])
    torch.testing.assert_close(model.get_text_features(captions).pooler_output, expected, atol=1e-4, rtol=1e-4)
    assert set(conversion.left) == {"logit_scale"}


def test_the_towers_train_and_the_released_layout_has_no_place_for_them(path, tmp_path):
    model, _ = load_released(path)
    model.train().get_image_features(twin.images(2, image_size=(64, 64))).pooler_output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.vision_model.parameters())
    with pytest.raises(ValueError, match="cannot hold this model"):
        save_released(model, str(tmp_path / "out.pth"))


def test_weights_of_another_model_are_refused_by_name(weights, path, tmp_path, capsys):
    folder = tmp_path / "other"
    for change, reason in (
        (
            {"visual.trunk.norm_pre.weight": torch.ones(2)},
            r"MobileCLIP-B.*1 unexplained (visual.trunk.norm_pre.weight)",
        ),
        ({"visual.trunk.blocks.1.norm1.bias": None}, "1 missing (visual.transformer.resblocks.1.ln_1.bias)"),
        ({"visual.trunk.head.bias": None}, "1 missing (visual.trunk.head.bias)"),
    ):
        given = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
        folder.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in given.items()}, folder / "weights.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
        command = ["--checkpoint", str(folder / "weights.safetensors"), "--output_dir", str(tmp_path / "out")]
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert all(part in line for part in reason.split(".*")), line
    (folder / "open_clip_config.json").unlink()
    assert main([*command, "--activation", "gelu"]) == 2
    assert "MobileCLIP-B (put its open_clip_config.json beside the file)" in capsys.readouterr().err


def test_a_bias_that_the_projection_does_not_reach_is_refused():
    projection = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    shift = reached_by(projection, torch.tensor([5.0, 0.0]))
    torch.testing.assert_close(shift, torch.tensor([1.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match="does not reach it"):
        reached_by(projection, torch.tensor([5.0, 1.0]))
