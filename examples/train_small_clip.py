"""Train a small CLIP from scratch on drawn pedestrians with true captions: what the demo's GA-DMS starts from.

    accelerate launch examples/train_small_clip.py --output_dir runs/small-clip

GA-DMS always starts from a CLIP, and no published one is small enough to pre-train on two cores in minutes. This one
is trained where it is used rather than shipped, so that nothing in the demo has to be believed. As the real CLIP, it
learns by the symmetric contrastive loss: from scratch, SDM at its temperature of 0.02 stays on a plateau for hundreds
of steps.
"""

import os
import sys
from dataclasses import dataclass, field

from transformers import set_seed
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from dataset_webperson import WebPerson
from modeling_gadms import GADMSConfig, GADMSImageProcessor, GADMSModel, GADMSProcessor
from modeling_gadms.command_line import parse_arguments, refuse_used_folder
from modeling_gadms.tokenizer_training import train_tokenizer
from modeling_gadms.trainer import GADMSTrainer
from modeling_gadms.training_arguments import GADMSTrainingArguments

FIRST_TEMPERATURE = 0.07  # where CLIP's own, learnt, temperature starts; it ends near that of GA-DMS, as this one does


@dataclass
class SmallClipArguments:
    image_size: list[int] = field(default_factory=lambda: [64, 32], metadata={"help": "Height and width in pixels."})
    patch_size: int = field(default=8, metadata={"help": "Side of a patch in pixels."})
    hidden_size: int = field(default=128, metadata={"help": "Width of both towers and of the joint space."})
    num_layers: int = field(default=3, metadata={"help": "Depth of both towers."})
    context_length: int = field(default=48, metadata={"help": "Longest caption in tokens."})
    num_persons: int = field(default=4000, metadata={"help": "Persons drawn for training, two images each."})


class SmallClipTrainer(GADMSTrainer):
    """Trains a [`GADMSModel`] by the contrastive loss of CLIP."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        last_temperature = self.accelerator.unwrap_model(model).config.temperature
        done = self.state.global_step / self.state.max_steps
        temperature = FIRST_TEMPERATURE ** (1 - done) * last_temperature**done
        loss = image_text_contrastive_loss(outputs.logits_per_text * last_temperature / temperature)
        return (loss, outputs) if return_outputs else loss


def train_small_clip(args: SmallClipArguments, training: GADMSTrainingArguments) -> str:
    """Train, save model and processor to `training.output_dir`, and return that folder."""
    set_seed(training.seed)
    builder = WebPerson(
        config_name="synthetic",
        image_size=tuple(args.image_size),
        num_train_persons=args.num_persons,
        noise_rate=0.0,
        seed=training.seed + 1,  # other people than those that GA-DMS is trained and tested on
    )
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    height, width = args.image_size
    tokenizer = train_tokenizer(rows["caption1"][:] + rows["caption2"][:], vocab_size=2048)
    tokenizer.model_max_length = args.context_length
    processor = GADMSProcessor(GADMSImageProcessor(size={"height": height, "width": width}), tokenizer)
    tower = {
        "hidden_size": args.hidden_size,
        "intermediate_size": 4 * args.hidden_size,
        "num_attention_heads": args.hidden_size // 64,
        "num_hidden_layers": args.num_layers,
    }
    config = GADMSConfig(
        text_config={**tower, "vocab_size": len(tokenizer), "max_position_embeddings": args.context_length},
        vision_config={**tower, "image_size": (height, width), "patch_size": args.patch_size},
        projection_dim=args.hidden_size,
        decoder_num_layers=2,
    )
    trainer = SmallClipTrainer(GADMSModel(config), training, processor, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    return training.output_dir


def main(argv: list[str]) -> None:
    # on drawings this small the paper's erasing and padding would hide most of a person
    defaults = ["--crop_padding", "2", "--erasing_probability", "0", "--num_train_epochs", "10"]
    defaults += [
        "--learning_rate",
        "1e-3",
        "--adam_epsilon",
        "1e-8",
        "--warmup_epochs",
        "0.5",
        "--save_strategy",
        "no",
    ]
    defaults += ["--per_device_train_batch_size", "64", "--output_dir", os.path.join("runs", "small-clip")]
    args, training = parse_arguments((SmallClipArguments, GADMSTrainingArguments), defaults + argv)
    refuse_used_folder(training.output_dir, training.resume_from_checkpoint)
    print(f"small CLIP saved to {train_small_clip(args, training)}")


if __name__ == "__main__":
    main(sys.argv[1:])
