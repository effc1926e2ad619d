"""A decoder that has learnt to predict masked words before a cell begins to train, from towers that stay as they are.

One pass over few images does not train a decoder: what it asks of the towers meanwhile is noise.
"""

import argparse
import os

import torch
from masking_cells import demo_trainer, kept_cell
from safetensors.torch import load_file, save_file

from dataset_webperson.files import replacing

LEARNING_RATE = 1e-3


def warm_decoder(noise_rate: float, args: argparse.Namespace) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights of the decoder, and the mean loss of prediction (nats a word) in each epoch; both kept in `output_dir`.

    Args:
        noise_rate: share of false words in the captions.
        args: `image_size`, `num_persons`, `decoder_epochs` and `output_dir`.
    """
    file = os.path.join(args.output_dir, f"decoder_{noise_rate}.safetensors")

    def learn() -> dict[str, list[float]]:
        trainer = demo_trainer(
            "random MTP",
            noise_rate,
            0,
            args.image_size,
            args.num_persons,
            args.model_name_or_path,
            output_dir=os.path.join(args.output_dir, "trainer"),
            num_train_epochs=args.decoder_epochs,
            learning_rate=LEARNING_RATE,
            logging_strategy="epoch",
        )
        trainer.model.gadms.requires_grad_(False)
        trainer.train()
        with replacing(file) as temporary:
            state = trainer.model.decoder.state_dict()
            save_file({name: weight.contiguous() for name, weight in state.items()}, temporary)
        return {"mtp_loss": [entry["mtp_loss"] for entry in trainer.state.log_history if "mtp_loss" in entry]}

    names = "image_size", "num_persons", "decoder_epochs", "model_name_or_path"
    setting = {name: getattr(args, name) for name in names}
    found = kept_cell(os.path.join(args.output_dir, f"decoder_{noise_rate}.json"), setting, learn)
    return load_file(file), found["mtp_loss"]
