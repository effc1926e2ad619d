"""Starting from a Hugging Face CLIP: its weights, its embeddings at its own size, its position table resized."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from modeling_gadms import GADMSForPreTraining, GADMSModel

TABLE = "vision_model.embeddings.position_embedding.weight"
# as in openai's repositories, apart from width and depth: patch, image, widths, heads, joint space
LAYOUTS = {
    "B/16": {"patch_size": 16, "vision": (128, 2), "text": (64, 1), "projection_dim": 64},
    "B/32": {"patch_size": 32, "vision": (128, 2), "text": (64, 1), "projection_dim": 64},
    "L/14": {"patch_size": 14, "vision": (192, 3), "text": (128, 2), "projection_dim": 128},
}
VOCAB_SIZE, CONTEXT_LENGTH = 120, 77


def tiny_clip(name, folder, seed=0):
    """A random CLIP saved in `folder`, with the special ids of openai's configurations: BOS 0, EOS 2, padding 1."""
    layout = LAYOUTS[name]
    torch.manual_seed(seed)
    clip = CLIPModel(
        CLIPConfig(
            text_config={
                "hidden_size": layout["text"][0],
                "num_attention_heads": layout["text"][1],
                "intermediate_size": 4 * layout["text"][0],
                "num_hidden_layers": 2,
                "vocab_size": VOCAB_SIZE,
                "max_position_embeddings": CONTEXT_LENGTH,
                "bos_token_id": 0,
                "eos_token_id": 2,
                "pad_token_id": 1,
            },
            vision_config={
                "hidden_size": layout["vision"][0],
                "num_attention_heads": layout["vision"][1],
                "intermediate_size": 4 * layout["vision"][0],
                "num_hidden_layers": 2,
                "image_size": 224,
                "patch_size": layout["patch_size"],
            },
            projection_dim=layout["projection_dim"],
        )
    ).eval()
    with torch.no_grad():
        for parameter in clip.parameters():  # biases and norms too, so that a mix-up shows
            parameter.add_(0.05 * torch.randn_like(parameter))
    clip.save_pretrained(folder)
    return clip


def captions():
    """Rows of BOS, tokens, EOS, padded with EOS as CLIP's tokenizer does and with 0 as ours; id 2 lies among them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCAB_SIZE - 3, (6, CONTEXT_LENGTH), generator=generator)
    ids[:, 0], ids[:, 2] = VOCAB_SIZE - 2, 2
    for row, eos in enumerate([5, 9, 20, 40, 75, 76]):
        ids[row, eos:] = 0 if row % 2 else VOCAB_SIZE - 1
        ids[row, eos] = VOCAB_SIZE - 1
    return ids


def resized_by_hand(table, rows, columns):
    """Bilinear with half-pixel centres, patch by patch; the class row stays."""
    side = round((len(table) - 1) ** 0.5)
    grid = table[1:].reshape(side, side, -1)
    resized = [table[0]]
    for row in range(rows):
        y = min(max((row + 0.5) * side / rows - 0.5, 0), side - 1)
        for column in range(columns):
            x = min(max((column + 0.5) * side / columns - 0.5, 0), side - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
            upper = grid[top, left] * (1 - (x - left)) + grid[top, right] * (x - left)
            lower = grid[bottom, left] * (1 - (x - left)) + grid[bottom, right] * (x - left)
            resized.append(upper * (1 - (y - top)) + lower * (y - top))
    return torch.stack(resized)


@pytest.mark.parametrize(
    ("name", "image_size", "grid"),
    [("B/16", (384, 128), (24, 8)), ("B/32", (384, 128), (12, 4)), ("L/14", (378, 126), (27, 9))],
)
def test_only_the_position_table_changes_and_it_is_resized_bilinearly(tmp_path, name, image_size, grid):
    clip = tiny_clip(name, tmp_path)
    model = GADMSModel.from_clip_pretrained(tmp_path, image_size=image_size)
    weights, expected = model.state_dict(), clip.state_dict()
    assert set(expected) - set(weights) == {"logit_scale"} and set(weights) <= set(expected)
    for key, tensor in weights.items():
        if key != TABLE:
            assert torch.equal(tensor, expected[key]), key
    assert torch.equal(weights[TABLE][0], expected[TABLE][0])
    torch.testing.assert_close(weights[TABLE], resized_by_hand(expected[TABLE], *grid), atol=1e-6, rtol=0)
    assert model.config.vision_config.image_size == image_size
    embeddings = model.get_image_features(torch.randn(2, 3, *image_size)).pooler_output
    assert embeddings.shape == (2, LAYOUTS[name]["projection_dim"]) and embeddings.isfinite().all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_embeddings_at_clips_own_size_are_clips(tmp_path, name):
    clip = tiny_clip(name, tmp_path)
    model = GADMSModel.from_clip_pretrained(tmp_path, image_size=(224, 224))
    assert torch.equal(model.state_dict()[TABLE], clip.state_dict()[TABLE])
    pixel_values = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs, expected = model(captions(), pixel_values), clip(captions(), pixel_values)
        for ours, theirs in (
            (outputs.image_embeds, expected.image_embeds),
            (outputs.text_embeds, expected.text_embeds),
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        raw = model.get_text_features(captions()).pooler_output
        torch.testing.assert_close(raw, clip.get_text_features(captions()).pooler_output, atol=1e-5, rtol=0)
        raw = model.get_image_features(pixel_values).pooler_output
        torch.testing.assert_close(raw, clip.get_image_features(pixel_values).pooler_output, atol=1e-5, rtol=0)


def test_special_ids_of_openais_configurations_become_the_last_of_the_vocabulary(tmp_path):
    tiny_clip("B/16", tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert written["eos_token_id"] == 2, "the example is not what it should be"
    config = GADMSModel.from_clip_pretrained(tmp_path).config
    text = config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (VOCAB_SIZE - 2, VOCAB_SIZE - 1, 0)
    assert config.mask_token_id == VOCAB_SIZE - 3


def test_the_pre_training_model_starts_from_clip_with_a_new_decoder(tmp_path):
    tiny_clip("B/16", tmp_path)
    retriever = GADMSModel.from_clip_pretrained(tmp_path)
    torch.manual_seed(0)
    model = GADMSForPreTraining.from_clip_pretrained(tmp_path)
    assert not model.training
    for key, tensor in retriever.state_dict().items():
        assert torch.equal(model.gadms.state_dict()[key], tensor), key
    decoder = model.decoder.state_dict()
    assert all(tensor.isfinite().all() for tensor in decoder.values())
    assert all(tensor.std() > 0 for key, tensor in decoder.items() if tensor.dim() > 1)
    generator = torch.Generator().manual_seed(1)
    outputs = model(torch.randn(6, 3, 384, 128, generator=generator), captions().masked_fill(captions() == 2, 3))
    assert outputs.loss.isfinite()


def test_a_model_started_from_clip_saves_and_reloads_bit_for_bit(tmp_path):
    tiny_clip("B/16", tmp_path / "clip")
    model = GADMSForPreTraining.from_clip_pretrained(tmp_path / "clip")
    model.save_pretrained(tmp_path / "gadms")
    again = GADMSForPreTraining.from_pretrained(tmp_path / "gadms")
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert again.config.vision_config.image_size == (384, 128)


def test_the_requested_dtype_and_attention_are_kept(tmp_path):
    clip = tiny_clip("B/16", tmp_path)
    model = GADMSModel.from_clip_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert model.text_model.config._attn_implementation == "eager"
    key = "text_projection.weight"
    assert torch.equal(model.state_dict()[key], clip.state_dict()[key].bfloat16())


def test_an_image_size_that_patches_do_not_divide_is_refused(tmp_path):
    tiny_clip("L/14", tmp_path)
    with pytest.raises(ValueError, match="not a multiple of patch_size 14"):
        GADMSModel.from_clip_pretrained(tmp_path, image_size=(384, 128))


def test_another_kind_of_model_is_refused(tmp_path):
    text_config = CLIPTextConfig(hidden_size=64, num_attention_heads=1, num_hidden_layers=1, vocab_size=VOCAB_SIZE)
    CLIPTextModel(text_config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="not a CLIP model with both towers, but of type clip_text_model"):
        GADMSModel.from_clip_pretrained(tmp_path / "text")
    tiny_model().save_pretrained(tmp_path / "gadms")
    with pytest.raises(ValueError, match="but of type gadms; a GA-DMS model is loaded with from_pretrained"):
        GADMSModel.from_clip_pretrained(tmp_path / "gadms")


def test_a_clip_with_missing_weights_is_refused(tmp_path):
    tiny_clip("B/16", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing \(visual_projection.weight\)"):
        GADMSModel.from_clip_pretrained(tmp_path)
