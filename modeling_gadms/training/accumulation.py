"""Gradient accumulation for a contrastive loss: a batch in chunks, with the loss and gradient of the whole.

Averaging the losses of chunks, the usual accumulation, would compare each pair with its own chunk alone. Here the
batch is embedded chunk by chunk without a graph; SDM over all embeddings gives the gradient of each; then every chunk
runs again with a graph, and its embeddings' gradient flows on into the weights. The memory is that of one chunk, the
price one more forward of both towers (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory
limited setup").
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..chunk_gadms import BatchChunk
from ..distributed_gadms import mean_over_processes


@dataclass
class Replay:
    """A chunk about to run with its graph: its part in the batch, and the randomness of its first run."""

    chunk: BatchChunk
    random_states: list[torch.Tensor]
    device: torch.device

    @contextmanager
    def same_randomness(self) -> Iterator[None]:
        """Dropout inside draws what it drew when the chunk was embedded; generators outside do not notice."""
        before = random_states(self.device)
        set_random_states(self.random_states, self.device)
        try:
            yield
        finally:
            set_random_states(before, self.device)


def random_states(device: torch.device) -> list[torch.Tensor]:
    """States of the generators that a forward on `device` draws from: the CPU's and, if another, the device's."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return states


def set_random_states(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])


def plan_replays(model, chunks: list[dict], masking) -> list[Replay]:
    """Embed a batch chunk by chunk, without a graph, and find each chunk's part in its loss.

    Run `model(**chunk, masking=masking, chunk=replay.chunk)` within `replay.same_randomness()` for every chunk, and
    average the losses: value and gradient are those of the batch in one piece. With several processes, each has chunks
    of its own, and all enter SDM.

    Args:
        model ([`GADMSForPreTraining`]): in training mode.
        chunks (`list[dict]`): what its `forward` takes, with `person_ids` and `mask_uniforms`.
        masking: as in its `forward`.
    """
    states, images, texts, counts = [], [], [], []
    device = chunks[0]["input_ids"].device
    with torch.no_grad():
        for chunk in chunks:
            states.append(random_states(device))
            pairs = model.encode_pairs(chunk["pixel_values"], chunk["input_ids"], chunk["mask_uniforms"], masking)
            images.append(pairs.image_embeds.float())
            texts.append(pairs.text_embeds.float())
            counts.append(torch.zeros((), device=device) if masking is None else pairs.views.prediction_mask.sum())
    sizes = [len(image) for image in images]
    images, texts = torch.cat(images).requires_grad_(), torch.cat(texts).requires_grad_()
    loss = model.joint_sdm_loss(images, texts, torch.cat([chunk["person_ids"] for chunk in chunks]))
    gradients = torch.autograd.grad(len(chunks) * loss, (images, texts))
    num_masked = mean_over_processes(torch.stack(counts).float().mean())
    parts = zip(*(gradient.split(sizes) for gradient in gradients), states, strict=True)
    return [
        Replay(BatchChunk(loss.detach(), image, text, num_masked, sum(sizes) / len(sizes)), state, device)
        for image, text, state in parts
    ]
