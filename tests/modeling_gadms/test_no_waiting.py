"""A training step never waits for the device: nothing in it depends on a value, only on shapes.

Tensors on `meta` have no values, so whatever looks at one fails there: `.item()`, `bool(tensor)`, `nonzero`, an index
of booleans. Everything else of a step runs on it as on a GPU.
"""

import contextlib
from unittest import mock

import pytest
import torch
from tiny import tiny_batch, tiny_captions, tiny_model

from modeling_gadms.chunk_gadms import BatchChunk
from modeling_gadms.losses_gadms import IGNORED, mtp_loss
from modeling_gadms.masking_gadms import (
    DualMasking,
    RandomMasking,
    draw_uniforms,
    first_true,
    mask_captions,
    most_to_predict,
    places_to_predict,
)
from modeling_gadms.modeling_gadms import GADMSForPreTraining
from modeling_gadms.towers_gadms import refuse_left_padding

LENGTHS = [12, 7, 3, 9]


@pytest.fixture(autouse=True)
def without_autocast():
    """Which `meta` does not have."""
    with mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()):
        yield


def on_meta(**config):
    model = tiny_model(**config).train().to("meta")
    return model, {name: tensor.to("meta") for name, tensor in tiny_batch(LENGTHS).items()}


def a_chunk():
    gradients = torch.empty(2, len(LENGTHS), 64, device="meta")
    return BatchChunk(torch.empty((), device="meta"), *gradients, torch.empty((), device="meta"), 4.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"masking": RandomMasking()},
        {"masking": None},
        {"sigmoid_bias": -10.0},
        {"chunk": a_chunk()},
        {"matching_weight": 1.0},
        {"swap_input_ids": torch.empty(len(LENGTHS), 2, 9, dtype=torch.int64, device="meta")},
    ],
    ids=["dual masking", "random masking", "no masks", "sigmoid loss", "chunk", "matching", "swaps"],
)
def test_a_step_with_its_score_and_its_backward_pass_looks_at_no_value(options):
    model, batch = on_meta(matching_head="matching_weight" in options)
    outputs = model(**batch, **options)
    outputs.loss.backward()
    trained = model if options.get("masking", True) else model.gadms
    assert all(parameter.grad is not None for parameter in trained.parameters())
    assert (outputs.token_scores is None) == ("masking" in options)


@pytest.mark.parametrize(
    "look",
    [
        lambda values: values.sum().item(),
        lambda values: values[values > 0],
        lambda values: values.nonzero(),
        lambda values: bool((values > 0).any()),
        lambda values: values.tolist(),
        lambda values: values.masked_select(values > 0),
    ],
)
def test_such_a_look_would_fail(look):
    class Looks(GADMSForPreTraining):
        def score_captions(self, image_embeds, input_ids):
            look(image_embeds)
            return super().score_captions(image_embeds, input_ids)

    model, batch = on_meta()
    model.__class__ = Looks
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(**batch)


def test_padding_is_still_looked_at_where_no_gradient_is_recorded():
    ids = tiny_captions([5, 4]).flip(1)
    with pytest.raises(ValueError, match="padded on the left"):
        refuse_left_padding(ids)
    with torch.no_grad(), pytest.raises(RuntimeError, match="meta"):
        refuse_left_padding(ids.to("meta"))
    refuse_left_padding(ids.to("meta"))


def test_places_are_the_true_ones_and_then_others():
    flags = torch.tensor([False, True, False, False, True, True])
    assert first_true(flags, 3).tolist() == [1, 4, 5]
    assert first_true(flags, 5).tolist() == [1, 4, 5, 0, 2]
    assert first_true(flags, 2).tolist() == [1, 4]
    assert places_to_predict(flags.view(2, 3), DualMasking()).tolist() == [1, 4, 5]
    counted = places_to_predict(torch.zeros(64, 40, dtype=torch.bool, device="meta"), DualMasking())
    assert counted.shape == (most_to_predict(64, 40, DualMasking()),)


def test_there_is_room_for_all_that_is_drawn_even_where_every_score_is_highest():
    ids = tiny_captions([30] * 256)
    for masking in (DualMasking(), DualMasking(alpha_info=1.0), RandomMasking(0.15), RandomMasking(0.0)):
        uniforms = draw_uniforms(256, 30, torch.Generator().manual_seed(0))
        found = mask_captions(ids, torch.ones(256, 30), uniforms, masking, 97).prediction_mask.sum()
        assert found <= most_to_predict(256, 30, masking) <= 256 * 30
    assert most_to_predict(64, 40, DualMasking()) == 1024 < 64 * 40


def test_the_loss_and_its_gradient_are_the_same_with_places_to_spare():
    """As a device computes them, on the CPU: by more places than there are tokens to predict."""
    found = []
    for spare in (False, True):
        model, batch = tiny_model().train(), tiny_batch(LENGTHS)
        if spare:
            fixed = lambda mask, masking: first_true(mask.flatten(), mask.numel() // 2)  # noqa: E731
            with mock.patch("modeling_gadms.modeling_gadms.places_to_predict", fixed):
                outputs = model(**batch)
        else:
            outputs = model(**batch)
        outputs.loss.backward()
        found.append([outputs.loss.detach(), outputs.mtp_loss, *(each.grad for each in model.parameters())])
    for exact, spared in zip(*found, strict=True):
        torch.testing.assert_close(spared, exact, atol=1e-5, rtol=1e-4)


def test_ignored_labels_have_no_part_in_the_loss():
    logits, labels = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1, 8, 2])
    expected = mtp_loss(logits[:3], labels[:3], 3)
    labels[3] = IGNORED
    torch.testing.assert_close(mtp_loss(logits, labels, 3), expected)
