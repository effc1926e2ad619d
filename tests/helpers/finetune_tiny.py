"""A tiny fine-tuning run in its own process, for tests that need several or that interrupt one.

python tests/helpers/finetune_tiny.py --output_dir DIR [fine-tuning and LoRA arguments]
"""

import json
import sys

import torch
from tiny import tiny_captions, tiny_images, tiny_model, tiny_processor, tiny_rows

from modeling_gadms.distributed_gadms import num_processes
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.lora import LoraArguments, add_lora
from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.finetuning.trainer import GADMSFineTuningTrainer
from modeling_gadms.training.command_line import parse_arguments


def tiny_tuned_model(num_persons=12, **kwargs) -> GADMSForFineTuning:
    model = tiny_model(vocab_size=len(tiny_processor().tokenizer), **kwargs)
    return GADMSForFineTuning.from_pre_training(model, num_persons).eval()


def finetune(argv: list[str], rows=None, validation=None) -> GADMSFineTuningTrainer:
    """12 persons with two images of two captions each: 48 pairs, 6 batches of 8 per epoch."""
    defaults = ["--use_cpu", "True", "--disable_tqdm", "True", "--logging_steps", "1", "--learning_rate", "1e-3"]
    defaults += ["--crop_padding", "1", "--per_device_train_batch_size", "8", "--num_train_epochs", "1"]
    lora, args = parse_arguments((LoraArguments, GADMSFineTuningArguments), defaults + argv)
    model = tiny_tuned_model()
    model.set_matching_head(args.matching_weight > 0)
    model = add_lora(model, lora) if lora.lora else model
    rows, validation = tiny_rows() if rows is None else rows, validation or tiny_rows(10, seed=2)
    trainer = GADMSFineTuningTrainer(model, args, tiny_processor(), train_dataset=rows, eval_dataset=validation)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer


def embeddings(model):
    model = model.eval()
    captions = tiny_captions([5, 9, 7], vocab_size=model.config.text_config.vocab_size)
    with torch.no_grad():
        return torch.cat(
            [
                model.get_image_features(tiny_images(3)).pooler_output,
                model.get_text_features(captions).pooler_output,
            ]
        )


if __name__ == "__main__":
    trainer = finetune(sys.argv[1:])
    trainer.save_model()
    if trainer.is_world_process_zero():
        with open(f"{trainer.args.output_dir}/run.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "processes": num_processes()}, file)
