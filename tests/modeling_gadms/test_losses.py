"""Each loss against a loop over its definition, value and gradient."""

import math

import pytest
import torch

from modeling_gadms.losses_gadms import mtp_loss, sdm_loss, sigmoid_loss, swapped_logits


def sdm_by_loops(images, texts, ids, temperature, eps=1e-8):
    count = len(ids)
    cosine = [[(image / image.norm()) @ (text / text.norm()) / temperature for text in texts] for image in images]
    total = 0
    for row in range(count):
        matches = [float(ids[row] == ids[column]) for column in range(count)]
        for logits in (cosine[row], [cosine[column][row] for column in range(count)]):
            largest = max(logits)
            normaliser = largest + torch.stack([(logit - largest).exp() for logit in logits]).sum().log()
            for logit, match in zip(logits, matches, strict=True):
                log_p = logit - normaliser
                total = total + log_p.exp() * (log_p - math.log(match / sum(matches) + eps)) / count
    return total


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [7, 7, 2, 7, 2], [1, 1, 1, 1, 1], [5]])
def test_sdm_equals_its_definition_with_gradients(ids):
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(len(ids), 6, generator=generator, requires_grad=True) for _ in range(2))
    loss = sdm_loss(images, texts, torch.tensor(ids), temperature=0.1)
    expected = sdm_by_loops(images, texts, ids, temperature=0.1)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(
        torch.autograd.grad(loss, (images, texts)), torch.autograd.grad(expected, (images, texts)), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def swapped_sdm_by_loops(images, texts, ids, swaps, weights, temperature, eps=1e-8):
    """Of image to text, a row ends with the image's own copies, each counted `weight` times, where nothing matches."""
    total = sdm_by_loops(images, texts, ids, temperature, eps)
    for row, image in enumerate(images):
        cosines = [(image / image.norm()) @ (text / text.norm()) for text in [*texts, *swaps[row]]]
        matches = [float(other == ids[row]) for other in ids] + [0.0] * len(swaps[row])
        counts = [1.0] * len(texts) + weights[row].tolist()
        for with_copies, last in ((True, len(cosines)), (False, len(texts))):  # the first in the place of the second
            powers = [n * (c / temperature).exp() for n, c in zip(counts[:last], cosines[:last], strict=True)]
            for power, match in zip(powers, matches[:last], strict=True):
                p = power / sum(powers)
                if p > 0:
                    part = p * (p.log() - math.log(match / sum(matches) + eps)) / len(images)
                    total = total + part if with_copies else total - part
    return total


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [7, 7, 2, 7], [5]])
def test_swapped_captions_are_negatives_of_their_own_image_with_gradients(ids):
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(len(ids), 6, generator=generator, requires_grad=True) for _ in range(2))
    near = texts.detach()[:, None] + 0.3 * torch.randn(len(ids), 3, 6, generator=generator)
    swaps, weights = near.requires_grad_(), torch.rand(len(ids), 3, generator=generator)
    weights[0, 1] = 0

    def loss_of(temperature=0.1):
        logits = swapped_logits(images, swaps, weights, temperature)
        return sdm_loss(images, texts, torch.tensor(ids), temperature, swap_logits=logits)

    loss, expected = loss_of(), swapped_sdm_by_loops(images, texts, ids, swaps, weights, 0.1)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    leaves = (images, texts, swaps)
    for got, want in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(), loss)
    plain = sdm_loss(images, texts, torch.tensor(ids), 0.1)
    weights.zero_()
    torch.testing.assert_close(loss_of(), plain)
    cold = loss_of(0.001)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(cold, leaves)) and cold.isfinite()


def sigmoid_by_loops(images, texts, image_ids, text_ids, temperature, bias):
    total = 0
    for image, image_id in zip(images, image_ids, strict=True):
        for text, text_id in zip(texts, text_ids, strict=True):
            logit = (image / image.norm()) @ (text / text.norm()) / temperature + bias
            belong = 1 / (1 + (-logit).exp())
            total = total - (belong if image_id == text_id else 1 - belong).log()
    return total / len(images)


@pytest.mark.parametrize("image_ids, text_ids", [([0, 1, 2], [0, 1, 2]), ([7, 7, 2], [7, 2, 7, 3, 7]), ([5], [5])])
def test_the_sigmoid_loss_equals_its_definition_with_gradients(image_ids, text_ids):
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.randn(len(ids), 6, generator=generator, requires_grad=True) for ids in (image_ids, text_ids)
    )
    loss = sigmoid_loss(images, texts, torch.tensor(image_ids), torch.tensor(text_ids), temperature=0.2, bias=-1.5)
    expected = sigmoid_by_loops(images, texts, image_ids, text_ids, 0.2, -1.5)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(each, (images, texts)) for each in (loss, expected)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = sigmoid_loss(images, texts, torch.tensor(image_ids), torch.tensor(text_ids), 0.2, -1.5)
    assert half.dtype == torch.float32 and torch.equal(half, loss)


def test_the_sigmoid_loss_of_far_and_of_equal_embeddings_is_finite_with_its_gradient():
    embeds = torch.cat([torch.ones(2, 4), -torch.ones(2, 4)]).requires_grad_()
    for ids in (torch.arange(4), torch.tensor([0, 1, 0, 1])):
        loss = sigmoid_loss(embeds, embeds, ids, ids, temperature=0.001, bias=-10.0)
        (gradient,) = torch.autograd.grad(loss, embeds)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_sdm_is_near_zero_when_similarities_match_identities():
    embeds = torch.eye(4)[[0, 0, 1, 2]]
    assert sdm_loss(embeds, embeds, torch.tensor([0, 0, 1, 2])).item() == pytest.approx(0, abs=1e-5)
    assert sdm_loss(embeds, embeds.flip(0), torch.tensor([0, 0, 1, 2])).item() > 1


def test_sdm_of_identical_captions_is_finite_with_finite_gradient():
    images = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = sdm_loss(images, torch.ones(6, 8), torch.arange(6))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(images.grad).all()


def test_mtp_equals_its_definition_with_gradients():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 8, 3, 3, 1])
    expected = sum(logits[row].exp().sum().log() - logits[row, label] for row, label in enumerate(labels.tolist())) / 5
    loss = mtp_loss(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


def test_mtp_of_nothing_masked_is_zero_with_a_gradient_of_zeros():
    logits = torch.randn(0, 9, requires_grad=True)
    loss = mtp_loss(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 9)


def test_processes_with_unequal_counts_average_to_the_joint_mtp():
    logits = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7)
    mean_count = torch.tensor(3.5)
    parts = [mtp_loss(logits[:2], labels[:2], mean_count), mtp_loss(logits[2:], labels[2:], mean_count)]
    torch.testing.assert_close(sum(parts) / 2, mtp_loss(logits, labels))


def test_half_precision_embeddings_are_compared_in_float32():
    embeds = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = sdm_loss(embeds, embeds, torch.arange(4))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sdm_loss(embeds.float(), embeds.float(), torch.arange(4)))


def test_sdm_under_autocast_is_the_loss_and_the_gradient_of_float32():
    torch.manual_seed(0)
    embeds = [torch.randn(16, 64, requires_grad=True) for _ in range(2)]
    ids = torch.arange(16) // 2
    expected = sdm_loss(*embeds, ids)
    gradients = torch.autograd.grad(expected, embeds)
    with torch.autocast("cpu", torch.bfloat16):
        assert (embeds[0] @ embeds[1].T).dtype == torch.bfloat16, "autocast is on"
        found = sdm_loss(*embeds, ids)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for gradient, right in zip(torch.autograd.grad(found, embeds), gradients, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-7)
