"""A training step where its arguments are left out: depth of the score, weights, temperature, padding, identities."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_batch, tiny_captions, tiny_config, tiny_model

from modeling_gadms import GADMSForPreTraining
from modeling_gadms.losses_gadms import id_loss, mtp_loss, sdm_loss
from modeling_gadms.masking_gadms import DualMasking, RandomMasking
from modeling_gadms.token_scores_gadms import scored_layers

LENGTHS = [12, 7, 3, 9]


@pytest.fixture
def batch():
    return tiny_batch(LENGTHS)


@pytest.mark.parametrize(("depth", "expected"), [(3, 2), (6, 4), (9, 6), (12, 8), (24, 16)])
def test_two_thirds_of_the_layers_are_scored_by_default(depth, expected):
    assert scored_layers(depth, None, 1, 1) == expected
    assert scored_layers(depth, 1, 1, 1) == 1 and scored_layers(depth, depth, 1, 1) == depth


@pytest.mark.parametrize(("recipe", "expected"), [("paper", 6), ("released", 8)])
def test_of_nine_text_layers_the_paper_scores_two_thirds_and_the_released_code_eight(batch, recipe, expected):
    config = tiny_config()
    config.text_config.num_hidden_layers = 9
    torch.manual_seed(0)
    model = GADMSForPreTraining(config).gadms.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(10 if name.endswith("token_embedding.weight") else 1.5 if parameter.dim() > 1 else 1)
    pairs = batch["pixel_values"], batch["input_ids"]
    by_depth = {depth: model.token_scores(*pairs, num_layers=depth, recipe=recipe) for depth in range(5, 10)}
    assert torch.equal(model.token_scores(*pairs, recipe=recipe), by_depth.pop(expected))
    for scores in by_depth.values():
        assert (model.token_scores(*pairs, recipe=recipe) - scores).abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_the_configured_temperature_divides_the_similarities(batch, temperature):
    model = tiny_model(temperature=temperature)
    outputs = model(**batch, masking=None)
    torch.testing.assert_close(
        outputs.image_embeds, model.gadms.get_image_features(batch["pixel_values"]).pooler_output
    )
    expected = sdm_loss(outputs.image_embeds, outputs.text_embeds, torch.arange(4), temperature=temperature)
    torch.testing.assert_close(outputs.loss, expected)
    masked = model(**batch)
    expected = sdm_loss(masked.image_embeds, masked.text_embeds, torch.arange(4), temperature=temperature)
    torch.testing.assert_close(masked.sdm_loss, expected.detach())
    logits = model.gadms(batch["input_ids"], batch["pixel_values"])
    torch.testing.assert_close(
        logits.logits_per_text, logits.text_embeds @ logits.image_embeds.T / temperature, atol=1e-4, rtol=1e-5
    )


def test_sdm_s_own_temperature_is_the_paper_s():
    embeds = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert sdm_loss(*embeds, torch.arange(5)) == sdm_loss(*embeds, torch.arange(5), temperature=0.02)


def test_masked_token_prediction_weighs_0_4_by_default(batch):
    outputs = tiny_model()(**batch)
    torch.testing.assert_close(outputs.loss.detach(), outputs.sdm_loss + 0.4 * outputs.mtp_loss)
    doubled = tiny_model()(**batch, mtp_weight=2.0)
    torch.testing.assert_close(doubled.loss.detach(), outputs.sdm_loss + 2 * outputs.mtp_loss)


def test_the_default_masks_are_the_paper_s(batch):
    by_default = tiny_model()(**batch)
    given = tiny_model()(**batch, masking=DualMasking(0.2, 0.3, 20.0, 0.9, 0.1))
    assert torch.equal(by_default.loss, given.loss) and by_default.prediction_rate == given.prediction_rate


def test_rates_are_shares_of_the_tokens_between_bos_and_eos(batch):
    outputs = tiny_model()(**batch, masking=DualMasking(alpha_noise=1.0, steepness=1e4, gamma_noise=-1))
    assert outputs.hidden_rate == 1
    outputs = tiny_model()(**batch, masking=RandomMasking(probability=1.0))
    assert outputs.prediction_rate == 1 and outputs.hidden_rate == 0
    outputs = tiny_model()(**batch, masking=RandomMasking(probability=0.0))  # one word of each caption
    assert outputs.prediction_rate.item() == pytest.approx(4 / (sum(LENGTHS) - 8))


def test_padding_follows_eos_whatever_its_id(batch):
    """CLIP pads by EOS, others by 0: what lies behind the first EOS is no part of the caption."""
    model = tiny_model()
    expected = model(**batch)
    padded = batch["input_ids"].masked_fill(batch["input_ids"] == 0, 99)
    outputs = model(**{**batch, "input_ids": padded})
    for name in ("loss", "sdm_loss", "mtp_loss"):
        torch.testing.assert_close(outputs[name], expected[name], msg=name)
    assert outputs.prediction_rate == expected.prediction_rate and outputs.hidden_rate == expected.hidden_rate


def test_a_word_whose_id_is_that_of_padding_is_read_by_the_decoder(batch):
    model, masking = tiny_model(), RandomMasking(probability=0.0)  # the first word is to be predicted
    input_ids = tiny_captions([8])
    input_ids[0, 3:5] = 0
    pixel_values, uniforms = batch["pixel_values"][:1], batch["mask_uniforms"][:1]
    outputs = model(pixel_values, input_ids, mask_uniforms=uniforms, masking=masking)
    gadms, hidden = model.gadms, input_ids.clone()
    hidden[0, 1] = 97
    text_tokens = gadms.text_projection(gadms.text_model(hidden).last_hidden_state)
    image_tokens = gadms.project_image_tokens(gadms.vision_model(pixel_values).last_hidden_state)
    first = F.one_hot(torch.tensor([1]), 8).bool()
    logits = model.decoder(text_tokens, image_tokens, torch.ones(1, 8).bool(), first)
    torch.testing.assert_close(outputs.mtp_loss, mtp_loss(logits, input_ids[:, 1]).detach())


def test_identity_loss_is_the_mean_of_both_cross_entropies():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([6, 0, 3, 3, 1])
    expected = 0.0
    for logits in (images, texts):
        for row, label in enumerate(labels.tolist()):
            expected += (logits[row].exp().sum().log() - logits[row, label]).item() / 10
    assert id_loss(images, texts, labels).item() == pytest.approx(expected, rel=1e-5)
    parts = [id_loss(images[:2], texts[:2], labels[:2], 2.5), id_loss(images[2:], texts[2:], labels[2:], 2.5)]
    assert (sum(parts) / 2).item() == pytest.approx(expected, rel=1e-5)
