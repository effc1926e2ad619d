"""Rates of training steps on a device: plain CLIP and GA-DMS, with and without the score, eager and compiled."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from studies.step_costs import count_flops
from studies.training_steps import make_batch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from modeling_gadms import GADMSConfig, GADMSForPreTraining
from modeling_gadms.masking_gadms import RandomMasking
from modeling_gadms.training.compiling import compile_layers

LONGEST = 30.0  # seconds in which the steps of a kind are timed
NO_WAIT = "no", "unknown"  # where a step does not wait for the device, and where torch cannot tell
PLAIN, WITHOUT_SCORE, WHOLE = "plain CLIP", "GA-DMS without the score", "GA-DMS"
# dense bfloat16 TFLOP/s of a card, by a part of its name, the longer first: the makers' data sheets
PEAKS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "A10G": 70.0,
    "L4": 121.0,
}


def peak_tflops(name: str) -> float | None:
    """What the card of this name can do in bfloat16, or `None` where that is not known here."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def card_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def losses(model: GADMSForPreTraining, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], torch.Tensor]]:
    def plain() -> torch.Tensor:
        image = F.normalize(model.gadms.get_image_features(batch["pixel_values"]).pooler_output.float(), dim=-1)
        text = F.normalize(model.gadms.get_text_features(batch["input_ids"]).pooler_output.float(), dim=-1)
        return image_text_contrastive_loss(text @ image.T / 0.07)

    return {
        PLAIN: plain,
        WITHOUT_SCORE: lambda: model(**batch, masking=RandomMasking()).loss,
        WHOLE: lambda: model(**batch).loss,
    }


def step_rates(
    device: torch.device, config: GADMSConfig, batch_size: int, steps: int, length: int
) -> list[dict[str, Any]]:
    """A row for each kind of step: its rate, memory, and share of the card's peak.

    Args:
        device: the device to measure.
        config: of the model, whose weights are random.
        batch_size: pairs in a step.
        steps: training steps of each kind, of which a tenth warms up; fewer on a device that takes long for them.
        length: tokens of every caption.
    """
    rows: list[dict[str, Any]] = []
    peak = peak_tflops(card_name(device))
    for mode in ("eager", "compiled"):
        for name in (PLAIN, WITHOUT_SCORE, WHOLE):
            row = {"step": name, "mode": mode, **one_rate(device, config, batch_size, steps, length, name, mode)}
            base = next(each for each in (*rows, row) if each["mode"] == mode)  # plain CLIP comes first
            row["time of plain CLIP"] = round(base["samples/s"] / row["samples/s"], 3)
            flops = row["GFLOP per sample"] * row["samples/s"] / 1000
            row["share of peak"] = "unknown" if peak is None else round(flops / peak, 3)
            rows.append(row)
    return rows


def one_rate(
    device: torch.device, config: GADMSConfig, batch_size: int, steps: int, length: int, name: str, mode: str
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = GADMSForPreTraining(config).to(device).train()
    batch = {key: tensor.to(device) for key, tensor in make_batch(config, [length] * batch_size).items()}
    loss = losses(model, batch)[name]
    with torch.autocast(device.type, torch.bfloat16):
        flops, _ = count_flops(lambda: loss().backward())
    model.zero_grad()
    if mode == "compiled":
        compile_layers(model)
    fused = device.type == "cuda"
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-5, eps=1e-3, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()

    start = time.perf_counter()
    step()
    wait(device)
    first = time.perf_counter() - start
    if fused:
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(steps // 10):
        step()
    waits = waits_for_device(device, step)
    wait(device)
    start, timed = time.perf_counter(), 0
    while not timed or (timed < steps - steps // 10 and time.perf_counter() - start < LONGEST):
        step()
        timed += 1
    wait(device)
    seconds = (time.perf_counter() - start) / timed
    return {
        "steps": timed,
        "samples/s": round(batch_size / seconds, 1),
        "ms per step": round(1000 * seconds, 2),
        "first step s": round(first, 1),
        "GB": round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if fused else "unknown",
        "GFLOP per sample": round(flops / batch_size / 1e9, 3),
        "waits for the device": waits,
    }


def waits_for_device(device: torch.device, step: Callable[[], None]) -> str:
    """One of `NO_WAIT`, or what torch says of the first place in a step where the CPU waits for the device."""
    no, unknown = NO_WAIT
    if device.type != "cuda":
        return unknown
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return " ".join(str(error).split())[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return no
