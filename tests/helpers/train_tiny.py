"""A tiny training run in its own process, for tests that need several or that interrupt one.

python tests/helpers/train_tiny.py --output_dir DIR [training arguments]
"""

import json
import sys

from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.distributed_gadms import num_processes
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.command_line import parse_arguments
from modeling_gadms.training.trainer import GADMSTrainer


def train(argv: list[str]) -> GADMSTrainer:
    defaults = ["--use_cpu", "True", "--disable_tqdm", "True", "--save_strategy", "no", "--logging_steps", "1"]
    defaults += ["--learning_rate", "1e-3", "--crop_padding", "1", "--max_steps", "4"]
    (args,) = parse_arguments((GADMSTrainingArguments,), defaults + argv)
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer))
    trainer = GADMSTrainer(model, args, processor, train_dataset=tiny_rows(), eval_dataset=tiny_rows(10, seed=2))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer


if __name__ == "__main__":
    trainer = train(sys.argv[1:])
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        with open(f"{trainer.args.output_dir}/run.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "metrics": metrics, "processes": num_processes()}, file)
