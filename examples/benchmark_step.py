"""Where a GA-DMS training step spends its time, beside a plain CLIP step with the same towers, in one run.

    python examples/benchmark_step.py                                  # ViT-B/16 at 384x128, captions of 40 tokens
    python examples/benchmark_step.py --batch_size 4 --caption_length 77 --repeats 5

Everything is timed forward and backward, in turn, `--repeats` times; medians are printed. Weights are random: they do
not change the time.
"""

import argparse
import statistics
import time

import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from modeling_gadms import GADMSConfig, GADMSForPreTraining
from modeling_gadms.masking_gadms import DualMasking, draw_uniforms
from modeling_gadms.token_scores_gadms import gradient_attention_scores


def make_batch(config, batch_size, caption_length):
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, config.mask_token_id, (batch_size, caption_length), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = config.text_config.bos_token_id, config.text_config.eos_token_id
    pixel_values = torch.randn(batch_size, 3, *config.vision_config.image_size, generator=generator)
    return pixel_values, input_ids, draw_uniforms(batch_size, caption_length, generator)


def parts(model, pixel_values, input_ids, uniforms):
    """Each part as a function that runs it, forward and, where it has gradients, backward."""
    gadms, rows = model.gadms, len(input_ids)
    with torch.no_grad():
        image_tokens = gadms.project_image_tokens(gadms.vision_model(pixel_values).last_hidden_state)
        text_tokens = gadms.text_projection(gadms.text_model(input_ids).last_hidden_state)
    masked = uniforms[:, 0] < DualMasking().alpha_info / 2  # about as many as the step predicts
    masked[:, 0] = masked[:, -1] = False
    own = torch.ones_like(input_ids, dtype=torch.bool)
    both = torch.cat([input_ids, input_ids])

    def clip_step():
        image_embeds = torch.nn.functional.normalize(gadms.get_image_features(pixel_values).pooler_output, dim=-1)
        text_embeds = torch.nn.functional.normalize(gadms.get_text_features(input_ids).pooler_output, dim=-1)
        image_text_contrastive_loss(text_embeds @ image_embeds.T / 0.07).backward()

    def scores():
        gradient_attention_scores(gadms.text_model, gadms.text_projection, image_tokens[:rows, 0], input_ids)

    return {
        "plain CLIP step": clip_step,
        "GA-DMS step": lambda: model(pixel_values, input_ids, mask_uniforms=uniforms).loss.backward(),
        "  image tower": lambda: gadms.get_image_features(pixel_values).pooler_output.sum().backward(),
        "  text tower, one view": lambda: gadms.get_text_features(input_ids).pooler_output.sum().backward(),
        "  text tower, both views": lambda: gadms.get_text_features(both).pooler_output.sum().backward(),
        "  token scores": scores,
        "  decoder": lambda: model.decoder(text_tokens, image_tokens, own, masked).sum().backward(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--caption_length", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = GADMSForPreTraining(GADMSConfig()).train()
    functions = parts(model, *make_batch(model.config, args.batch_size, args.caption_length))
    times = {name: [] for name in functions}
    for repeat in range(args.repeats + 1):
        for name, function in functions.items():
            model.zero_grad()
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    plain = statistics.median(times["plain CLIP step"])
    print(
        f"ViT-B/16, 384x128, batch {args.batch_size}, {args.caption_length} tokens, {torch.get_num_threads()} threads"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:24} {median:7.2f} s  {median / plain:5.2f} x the plain CLIP step")


if __name__ == "__main__":
    main()
