"""The released recipe of the score against the released computation written out on weights in its own layout."""

import pytest
import released_twin as twin
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from modeling_gadms.released.checkpoints import load_released
from modeling_gadms.released_scores_gadms import released_scores

LENGTHS = [16, 9, 6, 12]


@pytest.fixture(scope="module")
def weights():
    return twin.family_weights()


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "made_up.pth"
    torch.save({"model": weights}, path)
    return load_released(path)[0].gadms


@pytest.fixture(scope="module")
def pairs():
    return twin.images(len(LENGTHS)), twin.captions(LENGTHS)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_released_scores_equal_the_released_computation(model, weights, pairs, num_layers):
    expected = twin.token_scores(weights, *pairs, num_layers)
    scores = model.token_scores(*pairs, num_layers=num_layers, recipe="released")
    assert ((expected > 1e-3) & (expected < 1)).sum() >= 8, "the example is too flat to test anything"
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_all_layers_of_a_shallow_tower_are_used_by_default(model, pairs):
    expected = model.token_scores(*pairs, num_layers=twin.NUM_LAYERS, recipe="released")
    assert torch.equal(model.token_scores(*pairs, recipe="released"), expected)
    assert not torch.equal(model.token_scores(*pairs, num_layers=2, recipe="released"), expected)


def test_the_last_eight_layers_of_a_deep_tower_are_used_by_default():
    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=11, num_attention_heads=2, vocab_size=twin.VOCAB_SIZE
    )
    tower, projection = CLIPTextModel(config), torch.nn.Linear(64, 32, bias=False)
    inputs = tower, projection, torch.randn(4, 32), twin.captions(LENGTHS)
    default = released_scores(*inputs)
    assert torch.equal(default, released_scores(*inputs, num_layers=8))
    assert not torch.equal(default, released_scores(*inputs, num_layers=7))


def test_captions_padded_to_the_longest_are_scored_as_if_padded_to_the_context_length(model):
    pixel_values, input_ids = twin.images(3), twin.captions([9, 5, 7])
    expected = model.token_scores(pixel_values, input_ids, recipe="released")
    scores = model.token_scores(pixel_values, input_ids[:, :9], recipe="released")
    assert scores.shape == (3, 9) and scores.dtype == torch.float32
    assert torch.equal(scores, expected[:, :9])


def test_released_scores_depend_on_the_batch_and_the_papers_do_not(model, pairs):
    pixel_values, input_ids = pairs
    changes = {}
    for recipe in ("paper", "released"):
        together = model.token_scores(pixel_values, input_ids, recipe=recipe)
        alone = [
            model.token_scores(pixel_values[row : row + 1], input_ids[row : row + 1], recipe=recipe)
            for row in range(len(LENGTHS))
        ]
        changes[recipe] = (torch.cat(alone) - together).abs().max().item()
    assert changes["paper"] < 1e-5
    assert changes["released"] > 0.1


def test_the_papers_recipe_is_the_default_and_the_two_differ(model, pairs):
    default = model.token_scores(*pairs)
    assert torch.equal(default, model.token_scores(*pairs, recipe="paper"))
    assert (default - model.token_scores(*pairs, recipe="released")).abs().max() > 0.1


def test_scores_are_zero_outside_the_captions_and_flat_captions_give_no_nan(model, pairs):
    pixel_values, input_ids = pairs
    scores = model.token_scores(*pairs, recipe="released")
    for row, length in enumerate(LENGTHS):
        assert scores[row, 0] == 0 and (scores[row, length - 1 :] == 0).all()
    flat = model.token_scores(pixel_values[:1], twin.captions([2]), recipe="released")
    assert torch.equal(flat, torch.zeros(1, twin.CONTEXT_LENGTH))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_scores_leave_no_gradient_in_any_grad_mode(model, pairs, context):
    expected = model.token_scores(*pairs, recipe="released")
    with context():
        scores = model.token_scores(*pairs, recipe="released")
    assert torch.equal(scores, expected) and not scores.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_do_not_change_with_frozen_weights_or_autocast(model, pairs):
    expected = model.token_scores(*pairs, recipe="released")
    image_embeds = model.get_image_features(pairs[0]).pooler_output.detach()
    model.requires_grad_(False)
    assert torch.equal(model.token_scores(*pairs, recipe="released"), expected)
    model.requires_grad_(True)

    with torch.autocast("cpu", torch.bfloat16):
        scores = released_scores(model.text_model, model.text_projection, image_embeds, pairs[1])
    assert torch.equal(scores, expected)


def test_an_unknown_recipe_a_wrong_depth_and_unpaired_batches_are_refused(model, pairs):
    pixel_values, input_ids = pairs
    with pytest.raises(ValueError, match='"paper" or "released"; got \'papers\''):
        model.token_scores(*pairs, recipe="papers")
    with pytest.raises(ValueError, match="between 1 and 3"):
        model.token_scores(*pairs, num_layers=4, recipe="released")
    with pytest.raises(ValueError, match="2 images for 4 captions"):
        model.token_scores(pixel_values[:2], input_ids, recipe="released")


def test_captions_longer_than_the_tower_are_refused(model):
    too_long = twin.captions([17], width=17)
    with pytest.raises(ValueError, match="Sequence length"):
        model.token_scores(twin.images(1), too_long, recipe="released")
