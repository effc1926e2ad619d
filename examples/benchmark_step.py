"""Time a GA-DMS training step and its parts beside a plain contrastive step with the same towers, in one run.

    python examples/benchmark_step.py                                  # ViT-B/16 at 384x128, captions of 40 tokens
    python examples/benchmark_step.py --batch_size 4 --caption_length 77 --repeats 5
    python examples/benchmark_step.py --tower siglip                   # its base size, with a vocabulary of 32,000
    python examples/benchmark_step.py --tower pe_core --caption_length 32

Each is timed forward and backward, in turn, `--repeats` times, and its median is printed. Weights are random, which
does not change the time. Text towers other than CLIP's have the vocabulary that `trim_vocabulary.py` may leave.
"""

import statistics
import sys
import time

import torch
from studies.training_steps import gadms_step, make_batch, parts_of_step, plain_step

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSConfig, GADMSForPreTraining
from modeling_gadms.configuration_gadms import TOWERS

PLAIN = "plain contrastive step"
VOCABULARY = 32_000
IDS = {  # of what frames a caption, as in the towers' own tokenizers
    "metaclip_2": {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    "siglip": {"bos_token_id": None, "pad_token_id": 0, "eos_token_id": 1},
    "tipsv2": {},
}


def base_config(tower: str) -> GADMSConfig:
    """The base size of a kind of towers, as transformers or open_clip has it: ViT-B, and its text tower."""
    if tower == "clip":
        return GADMSConfig()
    if tower == "eva02":
        return GADMSConfig(tower=tower, text_config={"hidden_act": "gelu"})
    if tower == "pe_core":  # whose text tower is larger than its image tower
        text = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
        text |= {"hidden_act": "gelu", "max_position_embeddings": 32}
        return GADMSConfig(tower=tower, text_config=text, projection_dim=1024)
    text = {**IDS[tower], "vocab_size": VOCABULARY}
    width = 512 if tower == "metaclip_2" else 768
    return GADMSConfig(tower=tower, text_config=text, projection_dim=width, mask_token_id=VOCABULARY - 1)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--tower", choices=TOWERS, default="clip", help="kind of towers (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="pairs per step (default: %(default)s)")
    parser.add_argument("--caption_length", type=int, default=40, help="tokens per caption (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    args = parser.parse_args(arguments)
    config = base_config(args.tower)
    longest = config.text_config.max_position_embeddings
    parser.refuse_outside(args, batch_size=(2, None), caption_length=(3, longest), repeats=(1, None))

    model = GADMSForPreTraining(config).train()
    batch = make_batch(config, [args.caption_length] * args.batch_size)
    functions = {
        PLAIN: lambda: plain_step(model, batch),
        "GA-DMS step": lambda: gadms_step(model, batch),
        **{f"  {name}": function for name, function in parts_of_step(model, batch).items()},
    }
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(args.repeats + 1):
        for name, function in functions.items():
            model.zero_grad()
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)

    plain = statistics.median(times[PLAIN])
    threads = torch.get_num_threads()
    vision = config.vision_config
    size = f"ViT-B/{vision.patch_size}, {vision.image_size[0]}x{vision.image_size[1]}"
    print(f"{args.tower}, {size}, batch {args.batch_size}, {args.caption_length} tokens, {threads} threads")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:30} {median:7.2f} s  {median / plain:5.2f} x the {PLAIN}")


if __name__ == "__main__":
    sys.exit(main())
