"""EVA02-CLIP and PE-Core, made up in the layout of open_clip and timm, against what timm gives for their weights."""

import json
import math

import pytest
import released_twin as twin
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import tiny_processor

from dataset_webperson.caption_checks import token_counter
from modeling_gadms import GADMSModel, GADMSProcessor
from modeling_gadms.convert_gadms_to_hf import main
from modeling_gadms.released.checkpoints import load_released, save_released
from modeling_gadms.vision_gadms import resize_position_table

PATCH, SIDE, WIDTH, EMBED = 16, 4, 128, 128  # SIDE patches by SIDE
MODELS = {"eva02": "eva02_base_patch16_clip_224", "pe_core": "vit_pe_core_base_patch16_224"}
# of timm 1.0.31, `timm.models.eva.Eva` with the arguments of these models in this size: the first numbers of an
# image's embedding, of a square image and of an upright one with the same kind of weights
FROZEN = {
    ("eva02", (64, 64)): [0.56026, -0.24542, -0.19097, -2.10694, 0.67490, 0.88016],
    ("eva02", (96, 32)): [1.64366, -0.72733, 0.95890, -0.67435, -1.14063, 0.13306],
    ("pe_core", (64, 64)): [0.63628, -5.32529, 0.45575, 3.78102, -0.92282, -1.55030],
    ("pe_core", (96, 32)): [-1.93130, 0.07805, 1.04571, -2.50600, 0.89441, -0.98340],
}


def layer(name, out, given=None, bias=True):
    yield f"{name}.weight", (out,) if given is None else (out, given)
    if bias:
        yield f"{name}.bias", (out,)


def shapes(tower, patches=SIDE * SIDE):
    hidden = WIDTH * 8 // 3 if tower == "eva02" else 4 * WIDTH
    yield "cls_token", (1, 1, WIDTH)
    yield "pos_embed", (1, 1 + patches, WIDTH)
    yield "patch_embed.proj.weight", (WIDTH, 3, PATCH, PATCH)
    if tower == "eva02":
        yield "patch_embed.proj.bias", (WIDTH,)
    for block in ("blocks.0", "blocks.1"):
        for name in ("norm1", "norm2"):
            yield from layer(f"{block}.{name}", WIDTH)
        yield from layer(f"{block}.attn.proj", WIDTH, WIDTH)
        yield from layer(f"{block}.mlp.fc2", WIDTH, hidden)
        if tower == "eva02":
            for letter in "qkv":
                yield from layer(f"{block}.attn.{letter}_proj", WIDTH, WIDTH, bias=letter != "k")
            yield from layer(f"{block}.attn.norm", WIDTH)
            for name in ("fc1_g", "fc1_x"):
                yield from layer(f"{block}.mlp.{name}", hidden, WIDTH)
            yield from layer(f"{block}.mlp.norm", hidden)
        else:
            yield from layer(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
            yield from layer(f"{block}.mlp.fc1", hidden, WIDTH)
    yield from layer("norm", WIDTH)
    if tower == "pe_core":
        yield from layer("norm_pre", WIDTH)
        yield "attn_pool.latent", (1, 1, WIDTH)
        for name, out, given in (("q", WIDTH, WIDTH), ("kv", 2 * WIDTH, WIDTH), ("proj", WIDTH, WIDTH)):
            yield from layer(f"attn_pool.{name}", out, given)
        yield from layer("attn_pool.norm", WIDTH)
        yield from layer("attn_pool.mlp.fc1", 4 * WIDTH, WIDTH)
        yield from layer("attn_pool.mlp.fc2", WIDTH, 4 * WIDTH)
    yield from layer("head", EMBED, WIDTH)


def numbers(seed, shape):
    """Uneven numbers between -1 and 1 that need no generator."""
    steps = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (2 * ((torch.sin(12.9898 * steps + seed) * 43758.5453) % 1) - 1).view(shape)


def trunk(tower, patches=SIDE * SIDE):
    weights = {}
    for seed, (name, shape) in enumerate(sorted(shapes(tower, patches))):
        values = numbers(seed, shape)
        if len(shape) == 1:
            values = 0.3 * values + (1 if name.endswith(".weight") else 0)
        elif name.endswith(".weight"):
            values = values * 2.5 * math.prod(shape[1:]) ** -0.5
        weights[name] = values.float()
    return weights


def image(size):
    return 2 * numbers(0.5, (1, 3, *size)).float()


def model_cfg(tower, custom=(), vision=(), text=()):
    pool = "token" if tower == "eva02" else "map"
    timm = {"timm_model_name": MODELS[tower], "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": None}
    return {
        "embed_dim": EMBED,
        "vision_cfg": {"image_size": PATCH * SIDE, **timm, **dict(vision)},
        "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 128, "heads": 2, "layers": 3, **dict(text)},
        "custom_text": True,
        **dict(custom),
    }


def checkpoint(tower, text=None):
    weights = {f"visual.trunk.{name}": tensor for name, tensor in trunk(tower).items()}
    for name, tensor in (text or twin.clip_weights()).items():
        if not name.startswith("visual"):
            weights[f"text.{name}"] = tensor
    return weights | {"logit_scale": torch.tensor(4.6)}


def save(folder, tower, weights, **changes):
    folder.mkdir(exist_ok=True)
    path = folder / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items() if tensor is not None}, path)
    prepared = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    content = {"model_cfg": model_cfg(tower, **changes), "preprocess_cfg": prepared}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return str(path)


@torch.no_grad()
@pytest.mark.parametrize("tower", MODELS)
def test_both_towers_compute_what_timm_and_open_clip_do(tower, tmp_path):
    weights = checkpoint(tower)
    model, conversion = load_released(save(tmp_path, tower, weights))
    assert model.config.tower == tower and model.config.vision_config.image_size == (64, 64)
    found = model.get_image_features(image((64, 64))).pooler_output[0, :6]
    torch.testing.assert_close(found, torch.tensor(FROZEN[tower, (64, 64)]), atol=1e-4, rtol=1e-4)
    text = {name.removeprefix("text."): w for name, w in weights.items() if name.startswith("text.")}
    captions = twin.captions([9, 16])
    expected = torch.stack([twin.encode_text(text, ids, activation=F.gelu)[ids.argmax()] for ids in captions])
    torch.testing.assert_close(model.get_text_features(captions).pooler_output, expected, atol=1e-4, rtol=1e-4)
    assert set(conversion.left) == {"logit_scale"}
    assert conversion.image_options == {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    assert conversion.architecture.startswith({"eva02": "EVA02-CLIP, 2 layers", "pe_core": "PE-Core, 2 layers"}[tower])


@torch.no_grad()
@pytest.mark.parametrize("tower", MODELS)
def test_upright_images_have_the_places_that_timm_gives_them(tower, tmp_path):
    upright = trunk(tower, patches=12)
    weights = checkpoint(tower)
    model, _ = load_released(save(tmp_path, tower, weights), (96, 32))
    table = model.vision_model.embeddings.position_embedding.weight
    assert torch.equal(table, resize_position_table(weights["visual.trunk.pos_embed"][0], (6, 2)))
    table.copy_(upright["pos_embed"][0])  # which timm was given, for it resizes in another way
    found = model.get_image_features(image((96, 32))).pooler_output[0, :6]
    torch.testing.assert_close(found, torch.tensor(FROZEN[tower, (96, 32)]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("tower", MODELS)
def test_the_command_writes_a_model_and_its_processor_whose_captions_are_cut_at_its_context(tower, tmp_path, capsys):
    tokenizer = tiny_processor((96, 32), 40).tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    text = twin.clip_weights() | {"token_embedding.weight": torch.randn(len(tokenizer), 128)}
    path = save(tmp_path / "open", tower, checkpoint(tower, text), text={"vocab_size": len(tokenizer)})
    options = ["--checkpoint", path, "--output_dir", str(tmp_path / "out"), "--image_size", "96", "32"]
    assert main([*options, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert "images 96x32" in capsys.readouterr().out
    model, processor = GADMSModel.from_pretrained(tmp_path / "out"), GADMSProcessor.from_pretrained(tmp_path / "out")
    assert processor.tower == model.config.tower == tower and processor.image_processor.resample == 2
    before = load_released(path, (96, 32))[0].get_image_features(image((96, 32))).pooler_output
    found = model.get_image_features(image((96, 32))).pooler_output
    torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)
    captions = ["a person in a red coat and blue trousers " * 3, "a red coat"]
    inputs = processor(text=captions)
    assert inputs["input_ids"].shape == (2, 16) and model.get_text_features(**inputs).pooler_output.isfinite().all()
    counter = token_counter(str(tmp_path / "out"))  # the doctor's, who says what share is cut
    assert [count > counter.limit for count in counter.count(captions)] == [True, False] and counter.limit == 16
    assert set(processor.word_ids("a red coat")) == {-1, 0, 1, 2}


def test_the_released_layout_has_no_place_for_them(tmp_path):
    model, _ = load_released(save(tmp_path, "pe_core", checkpoint("pe_core")))
    with pytest.raises(ValueError, match="holds CLIP's towers alone, and this model has those of pe_core"):
        save_released(model, str(tmp_path / "out.pth"))


@pytest.mark.parametrize(
    "tower, weights, changes, reason",
    [
        (
            "eva02",
            {"visual.trunk.blocks.1.attn.k_proj.weight": None},
            {},
            r"1 missing (visual.trunk.blocks.1.attn.k_p",
        ),
        (
            "eva02",
            {"visual.trunk.blocks.1.attn.k_proj.bias": torch.ones(2)},
            {},
            "1 unexplained (visual.transformer.resblocks.1.attn.k_proj.bias)",
        ),
        (
            "eva02",
            {"visual.trunk.blocks.0.mlp.fc1_g.bias": None},
            {},
            "1 missing (visual.transformer.resblocks.0.mlp.c_",
        ),
        ("pe_core", {"visual.trunk.attn_pool.kv.bias": None}, {}, "1 missing (visual.trunk.attn_pool.kv.bias)"),
        ("pe_core", {"visual.trunk.cls_token": None}, {}, "1 missing (visual.trunk.cls_token)"),
        (
            "pe_core",
            {"visual.trunk.blocks.0.gamma_1": torch.ones(2)},
            {},
            "1 unexplained (visual.transformer.resblocks.0.gamma_1)",
        ),
        (
            "pe_core",
            {},
            {"vision": {"image_size": 48}},
            "beside it gives 9 for vision_cfg.image_size, the weights have",
        ),
        (
            "pe_core",
            {},
            {"vision": {"timm_model_name": MODELS["eva02"]}},
            "13 unexplained (visual.attn_pool.",
        ),
        (
            "eva02",
            {},
            {"vision": {"timm_model_name": "eva02_enormous_patch14_clip_224"}},
            "timm_model_name=eva02_enormous_patch14_clip_224 is not of a plain ViT; only plain ViTs can be converted",
        ),
        (
            "pe_core",
            {},
            {"vision": {"timm_model_name": "vit_pe_core_gigantic_patch14_448"}},
            "is not of a plain ViT; only plain ViTs can be converted (OpenAI's, LAION's, DataComp, DFN, MetaCLIP 1), "
            "MobileCLIP-B, EVA02-CLIP (B, L) and PE-Core (T, S, B, L)",
        ),
    ],
)
def test_other_layouts_are_refused_in_one_line(tower, weights, changes, reason, tmp_path, capsys):
    path = save(tmp_path / "other", tower, checkpoint(tower) | weights, **changes)
    assert main(["--checkpoint", path, "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and path.rpartition("/")[0] in line, line


def test_without_its_configuration_a_checkpoint_is_refused_with_the_cure(tmp_path):
    path = save(tmp_path, "eva02", checkpoint("eva02"))
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match="with an image tower of timm .put its open_clip_config.json beside it; only"):
        load_released(path, activation="gelu")
