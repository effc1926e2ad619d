"""A batch, whole and in chunks, with its loss and gradient either way."""

import pytest
import torch
from tiny import tiny_captions, tiny_images

from modeling_gadms.masking_gadms import draw_uniforms
from modeling_gadms.training.accumulation import plan_replays


def make_batch(count=64, persons=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 14, (count,), generator=generator).tolist()
    return {
        "pixel_values": tiny_images(count, seed=seed),
        "input_ids": tiny_captions(lengths, seed=seed),
        "person_ids": torch.randint(persons, (count,), generator=generator),
        "mask_uniforms": draw_uniforms(count, 32, generator),
    }


def split(batch, sizes):
    parts = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [{name: part[number] for name, part in parts.items()} for number in range(len(sizes))]


def loss_and_gradients(model, losses):
    """Mean of the losses and its gradient; each loss is freed before the next is made."""
    model.zero_grad()
    total = 0
    for number, loss in losses:
        (loss / number).backward()
        total += loss.item() / number
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_replays(model, chunks, masking, sigmoid_bias=None):
    replays = plan_replays(model, chunks, masking, sigmoid_bias)

    def losses():
        for chunk, replay in zip(chunks, replays, strict=True):
            with replay.same_randomness():
                yield len(chunks), model(**chunk, masking=masking, chunk=replay.chunk, sigmoid_bias=sigmoid_bias).loss

    return loss_and_gradients(model, losses())


def assert_equal_to(got, expected, tolerance=1e-5):
    (loss, gradients), (expected_loss, expected_gradients) = got, expected
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        difference = (gradients[name] - gradient).abs().max().item()
        assert difference <= tolerance * max(1.0, gradient.abs().max().item()), name
