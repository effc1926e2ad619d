"""Dual masking against its probabilities, and its promises about tokens that are never masked."""

import math

import pytest
import torch
from tiny import tiny_captions

from modeling_gadms.masking_gadms import NUM_DRAWS, DualMasking, draw_uniforms, mask_captions

MASK = 97  # of the 100 ids of the tiny vocabulary


def draw(batch_size, width, seed=0):
    return draw_uniforms(batch_size, width, torch.Generator().manual_seed(seed))


def test_probabilities_are_the_sigmoids_of_the_paper():
    masking = DualMasking()
    for score in (0.0, 0.05, 0.1, 0.5, 1.0):
        noise = 0.2 / (1 + math.exp(-20 * ((1 - score) - 0.9)))
        info = 0.3 / (1 + math.exp(-20 * (score - 0.1)))
        assert masking.noise_probability(torch.tensor(score)).item() == pytest.approx(noise, abs=1e-6)
        assert masking.info_probability(torch.tensor(score)).item() == pytest.approx(info, abs=1e-6)


@pytest.mark.parametrize("score", [0.0, 0.1, 0.15, 1.0])
def test_masks_occur_at_their_probabilities(score):
    input_ids = tiny_captions([18] * 4000)
    views = mask_captions(input_ids, torch.full(input_ids.shape, score), draw(4000, 18), DualMasking(), MASK)
    valid = 16 * 4000
    masking = DualMasking()
    noise = masking.noise_probability(torch.tensor(score)).item()
    info = masking.info_probability(torch.tensor(score)).item()
    info += (1 - info) ** 16 / 16  # one token more where none was chosen
    for mask, probability in ((views.noise_mask, noise), (views.prediction_mask, info)):
        error = 5 * math.sqrt(probability / valid)
        assert mask.sum().item() / valid == pytest.approx(probability, abs=error)


def test_chosen_tokens_are_masked_replaced_or_kept_80_10_10():
    input_ids = tiny_captions([18] * 4000)
    views = mask_captions(input_ids, torch.ones(input_ids.shape), draw(4000, 18), DualMasking(alpha_info=1.0), MASK)
    chosen = views.prediction_mask
    result, original = views.prediction_input_ids[chosen], input_ids[chosen]
    masked = (result == MASK).float().mean().item()
    kept = (result == original).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert kept == pytest.approx(0.1 + 0.1 / 97, abs=0.01)
    random_tokens = result[(result != MASK) & (result != original)]
    assert random_tokens.min() >= 0 and random_tokens.max() < MASK
    assert len(random_tokens.unique()) == 97, "every ordinary token can be drawn"


def test_noise_view_holds_masks_only_where_the_noise_mask_says():
    input_ids = tiny_captions([12, 5, 3])
    views = mask_captions(input_ids, torch.zeros(input_ids.shape), draw(3, 12), DualMasking(alpha_noise=1.0), MASK)
    assert views.noise_mask.any()
    assert (views.noise_input_ids[views.noise_mask] == MASK).all()
    assert torch.equal(views.noise_input_ids[~views.noise_mask], input_ids[~views.noise_mask])
    assert torch.equal(views.prediction_input_ids[~views.prediction_mask], input_ids[~views.prediction_mask])


def test_bos_eos_and_padding_are_never_chosen():
    input_ids = tiny_captions([12, 5, 3, 2] * 100)
    masking = DualMasking(alpha_noise=1.0, alpha_info=1.0, gamma_noise=-9.0, gamma_info=-9.0)
    views = mask_captions(input_ids, torch.rand(input_ids.shape), draw(400, 12), masking, MASK)
    ordinary = (input_ids > 0) & (input_ids < 98)
    assert torch.equal(views.noise_mask, ordinary) and torch.equal(views.prediction_mask, ordinary)


def test_the_highest_score_is_masked_where_nothing_was_chosen():
    input_ids = tiny_captions([12, 5, 3, 2])
    scores = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(1))
    views = mask_captions(input_ids, scores, draw(4, 12), DualMasking(alpha_info=0.0), MASK)
    for row, length in enumerate([12, 5, 3]):
        best = 1 + scores[row, 1 : length - 1].argmax().item()
        assert views.prediction_mask[row].nonzero().flatten().tolist() == [best]
        assert views.prediction_input_ids[row, best] == MASK
    assert not views.prediction_mask[3].any(), "a caption without a word"


def test_masks_of_a_caption_depend_on_its_own_row_only():
    input_ids = tiny_captions([12, 9, 12])
    scores = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(1))
    uniforms = draw(3, 20)
    together = mask_captions(input_ids, scores, uniforms, DualMasking(), MASK)
    alone = mask_captions(input_ids[1:2, :9], scores[1:2, :9], uniforms[1:2], DualMasking(), MASK)
    assert torch.equal(together.prediction_input_ids[1, :9], alone.prediction_input_ids[0])
    assert torch.equal(together.noise_input_ids[1, :9], alone.noise_input_ids[0])


def test_draws_repeat_from_a_seed_and_have_the_stated_shape():
    assert draw(5, 7).shape == (5, NUM_DRAWS, 7)
    assert torch.equal(draw(5, 7, seed=3), draw(5, 7, seed=3))
    assert not torch.equal(draw(5, 7, seed=3), draw(5, 7, seed=4))


def test_impossible_probabilities_are_refused():
    with pytest.raises(ValueError, match="alpha_noise is a probability"):
        DualMasking(alpha_noise=1.5)
