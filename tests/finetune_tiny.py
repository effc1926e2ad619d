"""A tiny fine-tuning as a process of its own, for tests that need several or that interrupt one.

python tests/finetune_tiny.py --output_dir DIR [fine-tuning and LoRA arguments]
"""

import json
import sys

from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.command_line import parse_arguments
from modeling_gadms.distributed_gadms import num_processes
from modeling_gadms.finetuning import GADMSFineTuningTrainer
from modeling_gadms.finetuning_arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning_model import GADMSForFineTuning
from modeling_gadms.lora import LoraArguments, add_lora


def tiny_tuned_model(num_persons=12, **kwargs) -> GADMSForFineTuning:
    model = tiny_model(vocab_size=len(tiny_processor().tokenizer), **kwargs)
    return GADMSForFineTuning.from_pre_training(model, num_persons).eval()


def finetune(argv: list[str], rows=None) -> GADMSFineTuningTrainer:
    """12 persons with two images of two captions each: 48 pairs, 6 batches of 8 an epoch."""
    defaults = ["--use_cpu", "True", "--disable_tqdm", "True", "--logging_steps", "1", "--learning_rate", "1e-3"]
    defaults += ["--crop_padding", "1", "--per_device_train_batch_size", "8", "--num_train_epochs", "1"]
    lora, args = parse_arguments((LoraArguments, GADMSFineTuningArguments), defaults + argv)
    model = tiny_tuned_model()
    model = add_lora(model, lora) if lora.lora else model
    rows, validation = tiny_rows() if rows is None else rows, tiny_rows(10, seed=2)
    trainer = GADMSFineTuningTrainer(model, args, tiny_processor(), train_dataset=rows, eval_dataset=validation)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer


if __name__ == "__main__":
    trainer = finetune(sys.argv[1:])
    trainer.save_model()
    if trainer.is_world_process_zero():
        with open(f"{trainer.args.output_dir}/run.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "processes": num_processes()}, file)
