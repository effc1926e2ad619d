"""A chunk's part in the loss of its batch: the batch's value, and the gradient it was given."""

import torch

from modeling_gadms.chunk_gadms import BatchChunk


def test_the_value_is_the_batch_s_and_the_gradient_the_given_one():
    generator = torch.Generator().manual_seed(0)
    images, texts, image_gradient, text_gradient = torch.randn(4, 3, 8, generator=generator)
    chunk = BatchChunk(torch.tensor(5.0), image_gradient, text_gradient, torch.tensor(2.0), 3.0)
    embeds = images.requires_grad_(), texts.requires_grad_()
    loss = chunk.sdm_loss(*embeds)
    assert loss.item() == 5
    for found, expected in zip(torch.autograd.grad(loss, embeds), (image_gradient, text_gradient), strict=True):
        torch.testing.assert_close(found, expected)
