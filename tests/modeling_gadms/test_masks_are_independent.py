"""The random numbers of a token: which masks it is in, and what becomes of it, are drawn apart from each other."""

import pytest
import torch
from tiny import tiny_captions

from modeling_gadms.masking_gadms import DualMasking, RandomMasking, draw_uniforms, mask_captions

MASK = 97  # of the 100 ids of the tiny vocabulary
HALF = DualMasking(alpha_noise=1.0, alpha_info=1.0, steepness=0.0)  # either mask has every token by half


@pytest.fixture(scope="module")
def captions_and_views():
    input_ids = tiny_captions([42] * 2000)
    uniforms = draw_uniforms(2000, 42, torch.Generator().manual_seed(0))
    return input_ids, mask_captions(input_ids, torch.zeros(input_ids.shape), uniforms, HALF, MASK)


def share(mask):
    return mask[:, 1:41].float().mean().item()


def test_the_two_masks_overlap_as_independent_ones_do(captions_and_views):
    _, views = captions_and_views
    noise, prediction = views.noise_mask, views.prediction_mask
    assert (share(noise), share(prediction)) == pytest.approx((0.5, 0.5), abs=0.01)
    for one in (noise, ~noise):
        for other in (prediction, ~prediction):
            assert share(one & other) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("of", ["noise_mask", "prediction_mask"])
def test_what_a_chosen_token_becomes_does_not_depend_on_the_masks(captions_and_views, of):
    input_ids, views = captions_and_views
    chosen = views.prediction_mask & getattr(views, of)
    result = views.prediction_input_ids[chosen]
    masked, kept = result == MASK, result == input_ids[chosen]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / 97, abs=0.01)
    replaced = result[~masked & ~kept].float()
    assert replaced.mean().item() == pytest.approx(48, abs=1.5), "from the whole vocabulary below the mask"
    assert replaced.std().item() == pytest.approx(97 / 12**0.5, abs=1)


def test_neighbouring_tokens_and_captions_are_drawn_apart(captions_and_views):
    _, views = captions_and_views
    for mask in (views.noise_mask[:, 1:41], views.prediction_mask[:, 1:41]):
        assert (mask[:, 1:] & mask[:, :-1]).float().mean().item() == pytest.approx(0.25, abs=0.01)
        assert (mask[1:] & mask[:-1]).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_random_masking_hides_its_share_of_every_place_and_aligns_the_whole_caption():
    input_ids = tiny_captions([42] * 4000)
    uniforms = draw_uniforms(4000, 42, torch.Generator().manual_seed(1))
    views = mask_captions(input_ids, None, uniforms, RandomMasking(), MASK)
    assert torch.equal(views.noise_input_ids, input_ids) and not views.noise_mask.any()
    by_place = views.prediction_mask[:, 1:41].float().mean(dim=0)
    torch.testing.assert_close(by_place[1:], torch.full((39,), 0.15), atol=0.03, rtol=0)
    in_place = mask_captions(input_ids, None, uniforms, RandomMasking(in_place=True), MASK)
    assert torch.equal(in_place.noise_input_ids, in_place.prediction_input_ids)
    assert torch.equal(in_place.prediction_input_ids, views.prediction_input_ids)


def test_without_scores_the_first_word_is_hidden_where_nothing_was_chosen():
    input_ids = tiny_captions([9, 4, 3, 2])
    uniforms = draw_uniforms(4, 9, torch.Generator().manual_seed(0))
    views = mask_captions(input_ids, None, uniforms, RandomMasking(probability=0.0), MASK)
    assert views.prediction_mask.nonzero().tolist() == [[0, 1], [1, 1], [2, 1]]
    assert (views.prediction_input_ids[:3, 1] == MASK).all()
