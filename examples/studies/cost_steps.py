"""The steps, and the parts of a step, that `cost.py` measures."""

from collections.abc import Callable, Iterable
from statistics import mean

import numpy as np
from scored_words import load_rows
from starting_point import SMALL_CLIP
from training_steps import (
    bfloat16_step,
    checkpointed_step,
    gadms_step,
    make_batch,
    pad_captions,
    parts_of_step,
    plain_step,
    released_loss,
)

from modeling_gadms import GADMSForPreTraining, GADMSProcessor

SHORT, FULL = 40, 77
PLAIN = f"plain CLIP, {SHORT} tokens padded to {FULL}"
OURS = f"GA-DMS, {SHORT} tokens"
RELEASED = f"released schedule, {SHORT} tokens padded to {FULL}"
TEXT_SIDE = ("text tower, both views", "token scores", "decoder and MTP")  # the parts that depend on caption length
PARTS = ("image tower", *TEXT_SIDE, "SDM")


def caption_lengths(count: int) -> list[int]:
    """Tokens of captions of the synthetic WebPerson, from the shortest of 512 to the longest in even steps of rank."""
    tokenizer = GADMSProcessor.from_clip_pretrained(SMALL_CLIP).tokenizer
    rows = load_rows((16, 8), 256, noise_rate=0.0, seed=0)
    captions = [row[name] for row in rows for name in ("caption1", "caption2")]
    lengths = [len(ids) for ids in tokenizer(captions, verbose=False)["input_ids"]]
    return np.quantile(lengths, np.linspace(0, 1, count)).round().astype(int).tolist()


def steps_to_measure(model: GADMSForPreTraining, lengths: list[int]) -> dict[str, Callable[[], None]]:
    """Every row of the table as a function without arguments; `lengths` are those of the captions of mixed length."""
    by_length = {SHORT: [SHORT] * len(lengths), FULL: [FULL] * len(lengths), "mixed": lengths}
    by_length["even"] = [round(mean(lengths))] * len(lengths)
    batches = {name: make_batch(model.config, one) for name, one in by_length.items()}
    parts = {name: parts_of_step(model, batch) for name, batch in batches.items()}
    padded = pad_captions(batches[SHORT], FULL)

    def text_side(name: str) -> None:
        for part in TEXT_SIDE:
            parts[name][part]()

    return {
        f"plain CLIP, {SHORT} tokens": lambda: plain_step(model, batches[SHORT]),
        PLAIN: lambda: plain_step(model, padded),
        OURS: lambda: gadms_step(model, batches[SHORT]),
        f"GA-DMS, {span(lengths)}": lambda: gadms_step(model, batches["mixed"]),
        f"GA-DMS, {FULL} tokens": lambda: gadms_step(model, batches[FULL]),
        RELEASED: lambda: released_loss(model, **batches[SHORT]).backward(),
        f"{OURS}, activation checkpointing": lambda: checkpointed_step(model, batches[SHORT]),
        f"{OURS}, bfloat16 autocast": lambda: bfloat16_step(model, batches[SHORT]),
        **{f"{part}, {SHORT} tokens": parts[SHORT][part] for part in (*PARTS, "text tower, view after view")},
        **{f"{part}, {FULL} tokens": parts[FULL][part] for part in TEXT_SIDE},
        f"text side, {span(lengths)}": lambda: text_side("mixed"),
        "text side, as many tokens without padding": lambda: text_side("even"),
    }


def order_of_steps(names: Iterable[str], lengths: list[int], repeats: int) -> list[str]:
    """Names to time in turn: in each round all, and thrice those of the aim, a third of the others after each time."""
    watched = [PLAIN, OURS, f"GA-DMS, {span(lengths)}"]
    others = [name for name in names if name not in watched]
    return [name for _ in range(repeats) for third in range(3) for name in (*watched, *others[third::3])]


def span(lengths: list[int]) -> str:
    return f"{min(lengths)} to {max(lengths)} tokens"
