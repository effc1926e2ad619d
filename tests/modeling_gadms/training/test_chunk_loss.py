"""A chunk's part in the loss of its batch: the batch's value, and the gradient it was given."""

from types import SimpleNamespace

import torch

from modeling_gadms.chunk_gadms import BatchChunk
from modeling_gadms.losses_gadms import sdm_loss
from modeling_gadms.training.accumulation import plan_replays


def test_the_value_is_the_batch_s_and_the_gradient_the_given_one():
    generator = torch.Generator().manual_seed(0)
    images, texts, image_gradient, text_gradient = torch.randn(4, 3, 8, generator=generator)
    chunk = BatchChunk(torch.tensor(5.0), image_gradient, text_gradient, torch.tensor(2.0), 3.0)
    embeds = images.requires_grad_(), texts.requires_grad_()
    loss = chunk.alignment_loss(*embeds)
    assert loss.item() == 5
    for found, expected in zip(torch.autograd.grad(loss, embeds), (image_gradient, text_gradient), strict=True):
        torch.testing.assert_close(found, expected)


class KnownEmbeddings:
    """Two chunks of known embeddings, in place of a model's."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.pairs = [
            SimpleNamespace(
                image_embeds=torch.randn(5, 32, generator=generator),
                text_embeds=torch.randn(5, 32, generator=generator),
                views=None,
            )
            for _ in range(2)
        ]

    def encode_pairs(self, pixel_values, input_ids, mask_uniforms, masking, kept_patches):
        return self.pairs[int(input_ids[0, 0])]

    def joint_alignment_loss(self, image_embeds, text_embeds, person_ids, sigmoid_bias):
        return sdm_loss(image_embeds, text_embeds, person_ids)


def test_a_batch_is_planned_in_float32_under_autocast_the_gradient_included():
    chunks = [
        {"input_ids": torch.full((5, 4), number), "person_ids": torch.arange(5) // 2, "pixel_values": None}
        for number in range(2)
    ]
    chunks = [{**chunk, "mask_uniforms": None} for chunk in chunks]
    expected = plan_replays(KnownEmbeddings(), chunks, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = plan_replays(KnownEmbeddings(), chunks, None)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.chunk.batch_loss, other.chunk.batch_loss)
        assert torch.equal(one.chunk.image_gradient, other.chunk.image_gradient)
        assert torch.equal(one.chunk.text_gradient, other.chunk.text_gradient)
