"""Gradient accumulation for a contrastive loss: a batch in chunks, with the loss and gradient of the whole.

The usual accumulation averages the losses of chunks and so compares each pair only with its own chunk. Here the batch
is embedded chunk by chunk without a graph; the loss over all embeddings gives the gradient of each embedding; then
every chunk runs again with a graph, through which that gradient flows into the weights. Memory is that of one chunk;
the cost is one more forward pass of both towers (Gao et al. 2021, "Scaling deep contrastive learning batch size under
memory limited setup").
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..chunk_gadms import BatchChunk
from ..distributed_gadms import mean_over_processes
from ..masking_gadms import Masking
from ..modeling_gadms import GADMSForPreTraining


@dataclass
class Replay:
    """A chunk that is to run again, with a graph: its part in the batch, and the randomness of its first run."""

    chunk: BatchChunk
    random_states: list[torch.Tensor]
    device: torch.device

    @contextmanager
    def same_randomness(self) -> Iterator[None]:
        """Inside, dropout repeats its draws from when the chunk was embedded; afterwards generators are as before."""
        before = random_states(self.device)
        set_random_states(self.random_states, self.device)
        try:
            yield
        finally:
            set_random_states(before, self.device)


def random_states(device: torch.device) -> list[torch.Tensor]:
    """States of the generators that a forward pass on `device` draws from: the CPU's and, if another, the device's."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return states


def set_random_states(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])


def plan_replays(
    model: GADMSForPreTraining,
    chunks: list[dict[str, Any]],
    masking: Masking | None,
    sigmoid_bias: float | None = None,
) -> list[Replay]:
    """Embed a batch chunk by chunk, without a graph, and find each chunk's part in the loss.

    Run `model(**chunk, masking=masking, chunk=replay.chunk)` within `replay.same_randomness()` for every chunk, and
    average the losses: value and gradient are those of the batch in one piece. Each of several processes has chunks of
    its own, and all enter the loss.

    Args:
        model ([`GADMSForPreTraining`]): in training mode.
        chunks (`list[dict]`): arguments of its `forward`, with `person_ids` and `mask_uniforms`.
        masking, sigmoid_bias: as in its `forward`, which is given `sigmoid_bias` again.
    """
    states, images, texts, counts = [], [], [], []
    device = chunks[0]["input_ids"].device
    with torch.no_grad():
        for chunk in chunks:
            states.append(random_states(device))
            pairs = model.encode_pairs(
                chunk["pixel_values"], chunk["input_ids"], chunk["mask_uniforms"], masking, chunk.get("kept_patches")
            )
            images.append(pairs.image_embeds.float())
            texts.append(pairs.text_embeds.float())
            nothing = torch.zeros((), device=device)
            counts.append(nothing if pairs.views is None else pairs.views.prediction_mask.sum())

    # the alignment of the whole batch, and its gradient with respect to every embedding
    all_images, all_texts = torch.cat(images).requires_grad_(), torch.cat(texts).requires_grad_()
    person_ids = torch.cat([chunk["person_ids"] for chunk in chunks])
    with torch.autocast(device.type, enabled=False):  # which would reach into the backward pass too
        loss = model.joint_alignment_loss(all_images, all_texts, person_ids, sigmoid_bias)
        # times the number of chunks, since their losses are averaged
        image_gradient, text_gradient = torch.autograd.grad(len(chunks) * loss, (all_images, all_texts))

    sizes = [len(image) for image in images]
    num_rows = sum(sizes) / len(sizes)
    num_masked = mean_over_processes(torch.stack(counts).float().mean())
    parts = zip(image_gradient.split(sizes), text_gradient.split(sizes), states, strict=True)
    return [
        Replay(BatchChunk(loss.detach(), of_images, of_texts, num_masked, num_rows), state, device)
        for of_images, of_texts, state in parts
    ]
