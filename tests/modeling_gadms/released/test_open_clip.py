"""Plain ViTs of open_clip, made up in its layout: any heads and activation, from the configuration beside them."""

import json

import pytest
import released_twin as twin
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import tiny_processor

from dataset_webperson import DataError
from modeling_gadms import GADMSProcessor
from modeling_gadms.convert_gadms_to_hf import main
from modeling_gadms.released.checkpoints import load_converted, load_released
from modeling_gadms.released.open_clip import refuse_undecided
from modeling_gadms.vision_gadms import resize_position_table

SQUARE = 16  # patches, 4 x 4 of 4 pixels
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def model_cfg(quick_gelu=False, custom=False, vision=(), text=()):
    config = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 192, "head_width": 48, "patch_size": 4, **dict(vision)},
        "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 128, "heads": 4, "layers": 3, **dict(text)},
    }
    return config | ({"quick_gelu": True} if quick_gelu else {}) | ({"custom_text": True} if custom else {})


def save(folder, weights, config=None, name="open_clip_model.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / name)
    if config is not None:
        content = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
    return str(folder / name)


@pytest.fixture(scope="module")
def weights():
    return twin.clip_weights(num_patches=SQUARE) | {"logit_scale": torch.tensor(4.6)}


@torch.no_grad()
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("custom", [True, False])
def test_towers_compute_what_open_clip_does_with_its_heads_and_activation(weights, tmp_path, quick_gelu, custom):
    of_text = ("token_embedding", "positional", "transformer", "ln_final", "text_proj")
    given = {f"text.{name}" if custom and name.startswith(of_text) else name: w for name, w in weights.items()}
    model, conversion = load_released(save(tmp_path, given, model_cfg(quick_gelu, custom)))
    captions, pictures = twin.captions([9, 5, 16]), twin.images(3, image_size=(16, 16))
    options = {"num_heads": 4, "activation": twin.quick_gelu if quick_gelu else F.gelu}
    for row in range(3):
        text = twin.encode_text(weights, captions[row], **options)[captions[row].argmax()]
        image = twin.encode_image(weights, pictures[row], **options)[0]
        found = model.get_text_features(captions).pooler_output[row]
        torch.testing.assert_close(found, text, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.get_image_features(pictures).pooler_output[row], image, atol=1e-4, rtol=1e-4)
    assert set(conversion.left) == {"logit_scale"}


@torch.no_grad()
def test_without_a_configuration_the_activation_is_asked_for_and_obeyed(weights, tmp_path, capsys):
    path = save(tmp_path / "open", weights, name="weights.safetensors")
    command = ["--checkpoint", path, "--output_dir", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--activation quick_gelu (OpenAI, MetaCLIP 1, DFN" in error
    assert "--activation gelu (other open_clip models: LAION, DataComp)" in error
    captions, pictures = twin.captions([9, 5]), twin.images(2, image_size=(16, 16))
    found = {}
    for name, activation in (("gelu", F.gelu), ("quick_gelu", twin.quick_gelu)):
        folder = tmp_path / name
        assert main([*command[:3], str(folder), "--activation", name]) == 0
        model = load_converted(str(folder))
        found[name] = model.get_image_features(pictures).pooler_output, model.get_text_features(captions).pooler_output
        image = torch.stack([twin.encode_image(weights, picture, activation=activation)[0] for picture in pictures])
        text = torch.stack([twin.encode_text(weights, ids, activation=activation)[ids.argmax()] for ids in captions])
        torch.testing.assert_close(found[name], (image, text), atol=1e-4, rtol=1e-4)
    for gelu, quick_gelu in zip(*found.values(), strict=True):
        assert (gelu - quick_gelu).abs().max() > 1e-3


def test_heads_that_no_option_tells_and_options_against_the_configuration_are_refused(weights, tmp_path):
    path = save(tmp_path, weights, model_cfg())
    with pytest.raises(DataError, match="beside it says gelu, --activation quick_gelu; leave one out"):
        load_released(path, activation="quick_gelu")
    wide = {"visual.class_embedding": torch.empty(1280, device="meta")}  # 16 heads of 80 in ViT-H, not 20 of 64
    with pytest.raises(DataError, match="do not tell the heads of an image tower 1280 wide; put the model's"):
        refuse_undecided("huge.pt", wide, "gelu")


def test_the_command_resizes_the_table_and_keeps_the_colours(weights, tmp_path, capsys):
    processor = tiny_processor((24, 8), twin.CONTEXT_LENGTH)
    processor.save_pretrained(tmp_path / "tokenizer")
    size = len(processor.tokenizer)
    given = weights | {"token_embedding.weight": torch.randn(size, 128)}
    path = save(tmp_path / "open", given, model_cfg(text={"vocab_size": size}))
    options = ["--checkpoint", path, "--output_dir", str(tmp_path / "out"), "--image_size", "24", "8"]
    assert main([*options, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert "images 24x8" in capsys.readouterr().out
    saved = GADMSProcessor.from_pretrained(tmp_path / "out").image_processor
    assert (list(saved.image_mean), list(saved.image_std), saved.size["height"]) == (MEAN, STD, 24)
    table = load_released(path, (24, 8))[0].vision_model.embeddings.position_embedding.weight
    assert torch.equal(table, resize_position_table(weights["visual.positional_embedding"], (6, 2)))


def test_a_square_table_is_resized_without_a_configuration_too(weights, tmp_path):
    path = save(tmp_path, weights)
    square = weights["visual.positional_embedding"]
    for size, grid in (((24, 8), (6, 2)), ((32, 8), (8, 2)), ((16, 16), (4, 4))):  # 8 x 2 are as many patches as 4 x 4
        model, _ = load_released(path, size, activation="gelu")
        table = model.vision_model.embeddings.position_embedding.weight
        assert model.config.vision_config.image_size == size and torch.equal(
            table, resize_position_table(square, grid)
        )
    with pytest.raises(
        ValueError, match=r"image_size \(26, 8\) is not a multiple of patch_size 4; the nearest is \(24, 8"
    ):
        load_released(path, (26, 8), activation="gelu")


def test_a_custom_text_tower_without_its_configuration_is_refused_with_the_cure(weights, tmp_path, capsys):
    given = {f"text.{name}" if not name.startswith(("visual", "logit")) else name: w for name, w in weights.items()}
    command = ["--checkpoint", save(tmp_path, given), "--output_dir", str(tmp_path / "out"), "--activation", "gelu"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of open_clip (put its open_clip_config.json beside the file), by its text.transformer." in line


@pytest.mark.parametrize(
    "changes, reason",
    [
        (
            {"vision": {"timm_model_name": "fastvit_mci2"}},
            "timm_model_name=fastvit_mci2 is not of a plain ViT.*EVA02-CLIP .B, L. and PE-Core .*start from one of",
        ),
        ({"vision": {"timm_model_name": "vit_base_mci_224"}}, r"1 missing \(visual.trunk.patch_embed.backbone.2.conv"),
        (
            {"vision": {"norm_kwargs": {"eps": 1e-6}}},
            "vision_cfg.norm_kwargs=.* is not of a plain ViT; only plain ViTs",
        ),
        (
            {"text": {"pool_type": "last"}},
            "text_cfg.pool_type=last is not of a plain ViT.*a MetaCLIP 2, SigLIP, SigLIP 2 or FG",
        ),
        ({"text": {"hf_tokenizer_name": "x"}}, "text_cfg.hf_tokenizer_name=x is not of a plain ViT"),
        ({"vision": {"width": 256}}, "beside it gives 256 for vision_cfg.width, the weights have 192"),
        ({"text": {"layers": 12}}, "beside it gives 12 for text_cfg.layers, the weights have 3"),
        ({"vision": {"image_size": 24}}, "beside it gives 36 for vision_cfg.image_size, the weights have 16"),
        ({"text": {"heads": 5}}, "the text tower is 128 wide, which 5 heads do not divide"),
    ],
)
def test_other_towers_and_configurations_of_other_models_are_refused_in_one_line(weights, tmp_path, changes, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        load_released(save(tmp_path, weights, model_cfg(**changes)))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_options_that_are_off_or_of_training_are_taken(weights, tmp_path):
    vision = {"patch_dropout": 0.5, "ls_init_value": None, "pool_type": "tok", "no_ln_pre": False}
    load_released(save(tmp_path, weights, model_cfg(vision=vision, text={"proj_type": "linear", "eos_id": 2})))


def test_what_cannot_be_read_is_refused_with_a_cure(weights, tmp_path):
    path = save(tmp_path, weights)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(ValueError, match="open_clip_config.json: is no configuration of open_clip"):
        load_released(path)
    half = {name: tensor for name, tensor in weights.items() if "ln_final" not in name}
    with pytest.raises(ValueError, match=r"2 missing \(ln_final.weight, ln_final.bias\)"):
        load_released(save(tmp_path, half, model_cfg()))
    trunk = {"visual.trunk.cls_token": torch.zeros(2), **half}
    with pytest.raises(
        ValueError, match="image tower of timm .put its open_clip_config.json beside it; only plain ViTs.*start from"
    ):
        load_released(save(tmp_path, trunk, model_cfg()))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cut short, or no safetensors file"):
        load_released(path)
