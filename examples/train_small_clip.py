r"""Train a small CLIP from scratch on drawn pedestrians: the starting point of the demo, or of the studies.

    accelerate launch examples/train_small_clip.py --alt_texts True --num_train_epochs 10 \
        --output_dir runs/alt-text-clip                                                # 14 minutes on one core
    accelerate launch examples/train_small_clip.py --output_dir runs/small-clip        # 15 minutes
    accelerate launch examples/train_small_clip.py --noise_rate 0.5 --output_dir runs/noisy-clip    # half false

GA-DMS always starts from a CLIP, and no published one is small enough to pre-train on two cores in minutes. The
first two are shipped: examples/alt_text_clip has read texts such as "red coat, woman, grey loafers" and no sentence,
and examples/small_clip true captions. Like OpenAI's, they see square images and learn by the symmetric contrastive
loss: from scratch, SDM at its temperature of 0.02 stays on a plateau for hundreds of steps.
"""

import math
import os
import random
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, set_seed
from transformers.modeling_outputs import ModelOutput
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from dataset_webperson import WebPerson
from dataset_webperson.command_line import command
from modeling_gadms import GADMSConfig, GADMSModel, GADMSProcessor
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.command_line import parse_arguments, refuse_used_folder
from modeling_gadms.training.tokenizers import train_clip_tokenizer
from modeling_gadms.training.trainer import GADMSTrainer

FIRST_TEMPERATURE = 0.07  # CLIP's learnt temperature starts here and ends near that of GA-DMS; so does this one
TEXTS, THINGS = 4, (3, 5)  # alt-texts made of each caption; fewest and most things that one names


@dataclass
class SmallClipArguments:
    _argument_group_name = "small CLIP"

    image_size: int = field(default=48, metadata={"help": "Side of the square images, in pixels."})
    patch_size: int = field(default=8, metadata={"help": "Side of a patch, in pixels."})
    hidden_size: int = field(default=128, metadata={"help": "Width of both towers and of the joint space."})
    num_layers: int = field(default=3, metadata={"help": "Depth of both towers."})
    context_length: int = field(default=48, metadata={"help": "Longest caption, in tokens."})
    num_persons: int = field(default=8000, metadata={"help": "Persons to draw for training, two images each."})
    noise_rate: float = field(default=0.0, metadata={"help": "Share of false words in the captions, from 0 to 1."})
    alt_texts: bool = field(default=False, metadata={"help": "Learn short alt-texts in place of whole captions."})

    def __post_init__(self) -> None:
        for name, unit in (("image_size", self.patch_size), ("hidden_size", 64)):
            if getattr(self, name) < 1 or unit < 1 or getattr(self, name) % unit:
                raise ValueError(f"{name} must be a multiple of {unit}; got {getattr(self, name)}")


class SmallClipTrainer(GADMSTrainer):
    """Trains a [`GADMSModel`] with the contrastive loss of CLIP."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        outputs = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        last_temperature = self.accelerator.unwrap_model(model).config.temperature
        done = self.state.global_step / self.state.max_steps
        temperature = FIRST_TEMPERATURE ** (1 - done) * last_temperature**done
        loss = image_text_contrastive_loss(outputs.logits_per_text * last_temperature / temperature)
        return (loss, outputs) if return_outputs else loss


def alt_texts(row: dict[str, Any]) -> dict[str, str]:
    """Short texts about a drawing, as stand beside images of the web: `{"caption1": "red coat, woman", ...}`."""
    rng, texts = random.Random(row["image_path"]), []
    for name in ("caption1", "caption2"):
        things: dict[str, tuple[int, int]] = {}
        for word in row[f"{name}_words"]:
            thing = word["attribute"].split(".")[0]
            things[thing] = (things.get(thing, (word["start"],))[0], word["end"])
        phrases = [row[name][start:end].lower() for start, end in things.values()]
        for _ in range(TEXTS):
            named = rng.sample(phrases, min(len(phrases), rng.randint(*THINGS)))
            texts.append(", ".join(named))
    return {f"caption{number}": text for number, text in enumerate(texts, start=1)}


def save_as_clip(model: GADMSModel, folder: str) -> None:
    """Write a square model as the `CLIPModel` that it is, for [`GADMSModel.from_clip_pretrained`]."""
    vision = {**model.config.vision_config.to_dict(), "image_size": model.config.vision_config.image_size[0]}
    text = model.config.text_config.to_dict()
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=model.config.projection_dim))
    scale = torch.tensor(-math.log(model.config.temperature))
    clip.load_state_dict({**model.state_dict(), "logit_scale": scale})
    clip.save_pretrained(folder)


def train_small_clip(args: SmallClipArguments, training: GADMSTrainingArguments) -> None:
    """Train, and save model and processor to `training.output_dir` as a CLIP folder."""
    set_seed(training.seed)
    side, folder = args.image_size, training.output_dir
    drawn = {"image_size": (side, side), "num_train_persons": args.num_persons, "noise_rate": args.noise_rate}
    seed = training.seed + 1  # other people than those that GA-DMS is trained and tested on
    builder = WebPerson(config_name="synthetic", seed=seed, **drawn)
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    tokenizer = train_clip_tokenizer(rows["caption1"][:] + rows["caption2"][:], vocab_size=2048)
    if args.alt_texts:
        rows = rows.map(alt_texts)
    tokenizer.model_max_length = args.context_length
    tokenizer.save_pretrained(folder)
    processor = GADMSProcessor.from_clip_pretrained(folder, image_size=(side, side))
    tower = {
        "hidden_size": args.hidden_size,
        "intermediate_size": 4 * args.hidden_size,
        "num_attention_heads": args.hidden_size // 64,
        "num_hidden_layers": args.num_layers,
    }
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GADMSConfig(
        text_config={**tower, **special, "vocab_size": len(tokenizer), "max_position_embeddings": args.context_length},
        vision_config={**tower, "image_size": (side, side), "patch_size": args.patch_size},
        projection_dim=args.hidden_size,
    )
    model = GADMSModel(config)
    SmallClipTrainer(model, training, processor, train_dataset=rows).train()
    save_as_clip(model, folder)
    size = {"height": side, "width": side}
    CLIPImageProcessorPil(size=size, do_center_crop=False).save_pretrained(folder)


@command
def main(arguments: list[str] | None = None) -> None:
    # on drawings this small the paper's erasing and padding would hide most of a person
    defaults = "--crop_padding 2 --erasing_probability 0 --warmup_epochs 0.5 --learning_rate 1e-3 --adam_epsilon 1e-8"
    defaults += " --num_train_epochs 14 --per_device_train_batch_size 64 --save_strategy no --use_cpu True"
    defaults += f" --output_dir {os.path.join('runs', 'small-clip')}"
    argv = defaults.split() + (sys.argv[1:] if arguments is None else arguments)
    args, training = parse_arguments((SmallClipArguments, GADMSTrainingArguments), argv, description=__doc__)
    refuse_used_folder(training.output_dir, training.resume_from_checkpoint)
    train_small_clip(args, training)
    print(f"small CLIP saved to {training.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
