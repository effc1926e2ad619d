"""The models: shapes, sizes, kernels, saving, loading, and the parameters that one training step moves."""

import os

import forked
import pytest
import torch
from tiny import tiny_batch, tiny_captions, tiny_config, tiny_images, tiny_model
from transformers import AutoModel, AutoModelForPreTraining, CLIPConfig, CLIPModel

from modeling_gadms import GADMSConfig, GADMSForPreTraining, GADMSModel
from modeling_gadms.losses_gadms import mtp_loss, sdm_loss
from modeling_gadms.masking_gadms import DualMasking, mask_captions

LENGTHS = [12, 7, 3, 2, 9, 4]


@pytest.fixture
def batch():
    return tiny_batch(LENGTHS)


def test_the_default_configuration_is_the_papers():
    config = GADMSConfig()
    assert config.vision_config.image_size == (384, 128) and config.vision_config.grid == (24, 8)
    assert (config.mask_token_id, config.text_config.bos_token_id, config.text_config.eos_token_id) == (
        49405,
        49406,
        49407,
    )
    assert config.text_config.pad_token_id == 0 and config.temperature == 0.02 and config.decoder_num_layers == 4
    assert config.decoder_config().num_attention_heads == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_config": {"image_size": (100, 32)}}, "not a multiple of patch_size"),
        ({"vision_config": {"image_size": [384, 128, 3]}}, "must be \\(height, width\\)"),
        ({"vision_config": {"image_size": 8}}, "at least patch_size"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"projection_dim": 100}, "multiple of 64"),
    ],
)
def test_impossible_configurations_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GADMSConfig(**values)


def test_features_and_logits_have_the_documented_shapes(batch):
    model = tiny_model().gadms
    images = model.get_image_features(batch["pixel_values"])
    texts = model.get_text_features(batch["input_ids"])
    assert images.pooler_output.shape == texts.pooler_output.shape == (6, 64)
    assert images.last_hidden_state.shape == (6, 1 + 4 * 2, 64) and texts.last_hidden_state.shape == (6, 12, 64)
    outputs = model(batch["input_ids"][:2], batch["pixel_values"])
    assert outputs.logits_per_text.shape == (2, 6) and outputs.logits_per_image.shape == (6, 2)
    cosine = torch.cosine_similarity(texts.pooler_output[1], images.pooler_output[4], dim=0)
    torch.testing.assert_close(outputs.logits_per_text[1, 4], cosine / 0.02)
    torch.testing.assert_close(outputs.image_embeds.norm(dim=-1), torch.ones(6))


def test_text_embeddings_ignore_padding_and_its_id(batch):
    model = tiny_model().gadms
    expected = model.get_text_features(batch["input_ids"]).pooler_output
    for row, length in enumerate(LENGTHS):
        alone = model.get_text_features(batch["input_ids"][row : row + 1, :length]).pooler_output[0]
        torch.testing.assert_close(alone, expected[row], atol=1e-5, rtol=1e-5)
    padded_with_eos = batch["input_ids"].masked_fill(batch["input_ids"] == 0, 99)
    torch.testing.assert_close(model.get_text_features(padded_with_eos).pooler_output, expected)


@pytest.mark.parametrize("pad_id", [0, 99, 5])  # ours, CLIP's, and another, which only the mask tells
def test_captions_padded_on_the_left_are_refused_by_every_way_in(batch, pad_id):
    model, lengths = tiny_model(), torch.tensor(LENGTHS)
    shifts = max(LENGTHS) - lengths
    left = torch.stack([ids.roll(int(shift)) for ids, shift in zip(batch["input_ids"], shifts, strict=True)])
    mask = (torch.arange(max(LENGTHS)) >= shifts[:, None]).long()
    left = left.masked_fill(mask == 0, pad_id)
    pixel_values = batch["pixel_values"]
    for attention_mask in [mask] if pad_id == 5 else [mask, None]:
        for call in (
            lambda given: model.gadms.get_text_features(left, given),
            lambda given: model.gadms(left, pixel_values, given),
            lambda given: model.gadms.token_scores(pixel_values, left, given),
            lambda given: model.gadms.word_contributions(pixel_values, left, given),
            lambda given: model(pixel_values, left, given),
            lambda given: model(pixel_values, left, given, masking=None),
        ):
            with pytest.raises(ValueError, match="caption 1 is padded on the left"):
                call(attention_mask)


def test_a_mask_that_hides_a_captions_own_tokens_is_refused_and_one_of_padding_changes_nothing(batch):
    model, input_ids = tiny_model().gadms, batch["input_ids"]
    mask = (input_ids != 0).long()
    expected = model.get_text_features(input_ids).pooler_output
    for given in (mask, mask.bool(), torch.ones_like(mask)):
        assert torch.equal(model.get_text_features(input_ids, given).pooler_output, expected)
    mask[0, 3] = 0
    with pytest.raises(ValueError, match="caption 0 .* its mask hides tokens before EOS"):
        model.get_text_features(input_ids, mask)
    with pytest.raises(ValueError, match=r"attention_mask is \(6, 4\) but input_ids \(6, 12\)"):
        model.get_text_features(input_ids, mask[:, :4])


def test_eager_and_sdpa_attention_agree(batch):
    outputs = {}
    for kernel in ("eager", "sdpa"):
        model = tiny_model()
        model.set_attn_implementation(kernel)
        towers = (model.gadms.text_model, model.gadms.vision_model, model.decoder)
        assert {tower.config._attn_implementation for tower in towers} == {kernel}
        outputs[kernel] = model(**batch)
    for name in ("loss", "sdm_loss", "mtp_loss", "token_scores"):
        torch.testing.assert_close(outputs["eager"][name], outputs["sdpa"][name], atol=1e-4, rtol=1e-4)


def test_images_of_another_size_are_refused_with_the_cure():
    with pytest.raises(ValueError, match="pixel_values are 64x32 .* the model takes 32x16.*processor"):
        tiny_model().gadms.get_image_features(tiny_images(1, (64, 32)))


def test_the_position_table_follows_rows_then_columns():
    """Each patch gets its own row of the table, row by row of a non-square grid."""
    model = tiny_model().gadms.vision_model
    tokens = model.embeddings(torch.zeros(1, 3, 32, 16))[0]  # patches of zeros leave the table alone
    torch.testing.assert_close(tokens[1:], model.embeddings.position_embedding.weight[1:])
    pixels = torch.zeros(1, 3, 32, 16)
    pixels[..., 8:16, 8:16] = 1  # second row, second column of patches, of 4 rows and 2 columns
    changed = (model.embeddings(pixels)[0] - tokens).abs().sum(dim=-1).nonzero().flatten()
    assert changed.tolist() == [1 + 1 * 2 + 1]


def test_the_training_step_is_the_sum_of_its_documented_parts(batch):
    """The same loss and gradients from separate passes over each view, one caption at a time, unpadded."""
    model = tiny_model()
    masking = DualMasking(alpha_noise=0.9, alpha_info=0.6)
    outputs = model(**batch, masking=masking, mtp_weight=0.7)
    outputs.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    gadms, input_ids = model.gadms, batch["input_ids"]
    image_embeds = gadms.get_image_features(batch["pixel_values"]).pooler_output
    scores = gadms.token_scores(batch["pixel_values"], input_ids)
    views = mask_captions(input_ids, scores, batch["mask_uniforms"], masking, mask_token_id=97)
    assert views.noise_mask.any()
    text_embeds, logits = [], []
    for row, length in enumerate(LENGTHS):
        text_embeds.append(gadms.get_text_features(views.noise_input_ids[row : row + 1, :length]).pooler_output)
        hidden = gadms.text_model(views.prediction_input_ids[row : row + 1, :length]).last_hidden_state
        image_tokens = gadms.vision_model(batch["pixel_values"][row : row + 1]).last_hidden_state
        image_tokens = gadms.visual_projection(gadms.vision_model.post_layernorm(image_tokens))
        positions = views.prediction_mask[row : row + 1, :length]
        logits.append(
            model.decoder(gadms.text_projection(hidden), image_tokens, torch.ones(1, length).bool(), positions)
        )
    sdm = sdm_loss(image_embeds, torch.cat(text_embeds), torch.arange(6))
    mtp = mtp_loss(torch.cat(logits), input_ids[views.prediction_mask])
    torch.testing.assert_close(outputs.sdm_loss, sdm, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(outputs.mtp_loss, mtp, atol=1e-5, rtol=1e-5)
    assert outputs.no_valid_tokens.item() == pytest.approx(1 / 6)
    assert outputs.hidden_rate.item() == pytest.approx(views.noise_mask.sum().item() / (sum(LENGTHS) - 12))
    (sdm + 0.7 * mtp).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-4, rtol=1e-3, msg=name)


def test_one_step_moves_every_parameter(batch):
    model = tiny_model().train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(**batch).loss.backward()
    optimizer.step()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []


def test_without_masks_the_decoder_is_not_trained(batch):
    model = tiny_model()
    outputs = model(**batch, masking=None)
    outputs.loss.backward()
    assert outputs.mtp_loss is None
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"decoder.{name}" for name, _ in model.decoder.named_parameters()}
    images, texts = (
        model.gadms.get_image_features(batch["pixel_values"]).pooler_output,
        model.gadms.get_text_features(batch["input_ids"]).pooler_output,
    )
    torch.testing.assert_close(outputs.loss, sdm_loss(images, texts, torch.arange(6)), atol=1e-4, rtol=1e-5)


def test_a_step_repeats_bit_for_bit_and_draws_from_torchs_seed(batch):
    del batch["mask_uniforms"]
    model, losses = tiny_model(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(**batch).loss)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_equal_person_ids_make_pairs_match(batch):
    model = tiny_model()
    apart, together = (model(**batch, person_ids=torch.tensor(ids)) for ids in ([0, 1, 2, 3, 4, 5], [7] * 6))
    torch.testing.assert_close(apart.loss, model(**batch).loss)
    assert together.sdm_loss < apart.sdm_loss


@pytest.mark.parametrize("lengths", [[2, 2], [12], [9, 9, 9]])
def test_empty_captions_single_pairs_and_equal_captions_train(lengths):
    model = tiny_model()
    input_ids = tiny_captions(lengths)
    outputs = model(pixel_values=tiny_images(len(lengths)), input_ids=input_ids[:1].expand_as(input_ids))
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert outputs.no_valid_tokens.item() == (lengths[0] == 2)


def test_bf16_autocast_and_bf16_weights_run(batch):
    model = tiny_model()
    expected = model(**batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=0.1)
    half = model.gadms.to(torch.bfloat16)
    assert half.get_image_features(batch["pixel_values"]).pooler_output.dtype == torch.bfloat16
    assert torch.isfinite(half.token_scores(batch["pixel_values"], batch["input_ids"])).all()


def test_gradient_checkpointing_gives_the_same_gradients(batch):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)


def test_the_towers_compile(batch):
    model = tiny_model().gadms
    expected = model(batch["input_ids"], batch["pixel_values"]).logits_per_text
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(batch["input_ids"], batch["pixel_values"]).logits_per_text, expected)


def test_a_training_step_compiles_to_the_same_gradients(batch):
    gradients = []
    for backend in (None, "aot_eager"):
        model = tiny_model().train()
        step = model if backend is None else torch.compile(model, backend=backend)
        step(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert any(gradient.abs().max() > 0.1 for gradient in gradients[0])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, compiled, atol=1e-5, rtol=1e-4)


def test_a_training_checkpoint_reloads_bit_for_bit_and_as_a_retriever(tmp_path, batch):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert "model.safetensors" in os.listdir(tmp_path)
    again = GADMSForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).loss, model(**batch).loss)
    retriever, info = GADMSModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = model.gadms.get_image_features(batch["pixel_values"]).pooler_output
    assert torch.equal(retriever.get_image_features(batch["pixel_values"]).pooler_output, expected)
    assert isinstance(AutoModel.from_pretrained(tmp_path), GADMSModel)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), GADMSForPreTraining)
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_retriever_gets_a_new_decoder_that_is_initialised(tmp_path):
    tiny_model().gadms.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = GADMSForPreTraining.from_pretrained(tmp_path)
    assert model.decoder.vocabulary.weight.std().item() == pytest.approx(64**-0.5 * 2**-0.5, rel=0.1)
    assert model.decoder.cross_attention.q_proj.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
    assert (model.decoder.vocabulary.bias == 0).all()


STRANGER = """
import sys
sys.modules["modeling_gadms"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, CLIPConfig, CLIPModel
folder, out = sys.argv[1:]
batch = load_file(folder + "/batch.safetensors")
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(out)
AutoModel.from_pretrained(out, trust_remote_code=True)
with torch.no_grad():
    embeds = model.get_image_features(batch["pixel_values"]).pooler_output
scores = model.token_scores(batch["pixel_values"], batch["input_ids"])
save_file({"image_embeds": embeds, "scores": scores}, out + "/result.safetensors")
"""


@pytest.mark.parametrize("class_name", ["retriever", "pretraining"])
def test_a_fresh_process_without_the_package_gets_the_same_embeddings(tmp_path, batch, class_name):
    from safetensors.torch import load_file, save_file

    model = tiny_model()
    folder, out = tmp_path / "checkpoint", tmp_path / "again"
    (model.gadms if class_name == "retriever" else model).save_pretrained(folder)
    save_file({name: batch[name] for name in ("pixel_values", "input_ids")}, folder / "batch.safetensors")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = forked.run(["-c", STRANGER, folder, out], cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    kept = load_file(out / "result.safetensors")
    expected = model.gadms.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(kept["image_embeds"], expected, atol=1e-6, rtol=1e-6)
    expected = model.gadms.token_scores(batch["pixel_values"], batch["input_ids"])
    torch.testing.assert_close(kept["scores"], expected, atol=1e-5, rtol=0)


def test_the_towers_are_initialised_like_clips():
    """The initialisation of transformers may skip classes from outside it."""
    torch.manual_seed(0)
    config = tiny_config()
    square = {**config.vision_config.to_dict(), "image_size": 32}
    clip = CLIPModel(CLIPConfig(text_config=config.text_config.to_dict(), vision_config=square, projection_dim=64))
    ours = dict(GADMSModel(config).named_parameters())
    for name, parameter in clip.named_parameters():
        if name != "logit_scale":
            # of n draws each, the spreads differ by n ** -0.5 of their size
            close = pytest.approx(parameter.std().item(), rel=5 * parameter.numel() ** -0.5, abs=1e-3)
            assert ours[name].std().item() == close, name
