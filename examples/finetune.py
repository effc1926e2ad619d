r"""Fine-tune GA-DMS, or a CLIP, on a benchmark of persons with captions, by the recipe of IRRA.

    accelerate launch examples/finetune.py --model_name_or_path runs/webperson --dataset_name cuhk-pedes \
        --data_root data/CUHK-PEDES --bf16 True --output_dir runs/cuhk
    accelerate launch examples/finetune.py ... --per_device_train_batch_size 16 --gradient_accumulation_steps 4
    accelerate launch examples/finetune.py ... --masking gradient_attention --instances_per_person 4 --lora True
    accelerate launch examples/finetune.py ... --dataset_name cuhk-pedes icfg-pedes rstpreid --data_root data
    accelerate launch examples/finetune.py --model_name_or_path runs/demo --dataset_name synthetic \
        --seeds 0 1 2 --output_dir runs/synthetic

The data set is cuhk-pedes, icfg-pedes, rstpreid or another of examples/data.md below `--data_root`, or `synthetic`.
Several are trained on jointly, with an identity head over all persons, and each is tested; `--sampling_temperature 2`
draws small ones more often than their size. Persons in the training of one who are in the validation or test of
another are left out, unless `--keep_overlap`. The best epoch is chosen on validation, on the mean over several; where
a benchmark has no such split, `--validation_persons 200` holds persons out of train. Test is measured before training
(direct transfer) and once at the end. `--gradient_accumulation_steps` gives the loss and gradient of the whole batch;
`--activation_checkpointing True` saves more memory. The default optimiser settings are for whole towers: with `--lora
True`, use `--learning_rate 1e-4 --adam_epsilon 1e-8`.
Beside the checkpoint, a plain GA-DMS into which adapters are merged, it writes metrics.json and, with LoRA, adapter/.
`--seeds` trains once by each, and writes a table with their mean and deviation; finished runs are kept.
"""

import os
import sys
import time

from accelerate import PartialState
from peft import PeftModel
from transformers import set_seed

from dataset_webperson.command_line import command
from modeling_gadms.evaluation.metrics import Evaluation, evaluate_embeddings
from modeling_gadms.evaluation.run_folders import write_run
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.data import (
    FineTuningDataArguments,
    TuningSet,
    held_out_rows,
    load_sets,
    training_rows,
)
from modeling_gadms.finetuning.lora import LoraArguments, add_lora, count_parameters, save_adapter
from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.finetuning.overlap import leave_out_overlap
from modeling_gadms.finetuning.sweep import SweepArguments, runs_to_do, settings_of, write_sweep
from modeling_gadms.finetuning.trainer import GADMSFineTuningTrainer
from modeling_gadms.person_retrieval.ranking import DIRECTIONS, METRICS
from modeling_gadms.training.command_line import parse_arguments, refuse_used_folder
from modeling_gadms.training.run_report import gallery_facts, metrics_table
from modeling_gadms.training.starting_points import load_starting_point


def report(
    trainer: GADMSFineTuningTrainer, sets: list[TuningSet], metrics: dict[str, dict], run: dict, tests: dict
) -> None:
    """Write what compare_runs.py reads, and print the table.

    Args:
        metrics: by model, and of several sets also by set and model.
        tests: by set, the final model's evaluation.
    """
    state, chosen = trainer.state, sets[0].splits["validation"]
    if len(sets) > 1:
        chosen = "the mean over " + ", ".join(f"{one.splits['validation']} of {one.name}" for one in sets)
    results = {"metrics": {model: metrics[model] for model in ("before", "after")}, **run}
    if trainer.args.load_best_model_at_end:
        best = {"step": state.best_global_step, trainer.args.metric_for_best_model: state.best_metric}
        results |= {"best_epoch_chosen_on": chosen, "best": best}
        if "test" in [one.splits["validation"] for one in sets]:
            results["warning"] = "the best epoch was chosen on the test set: these figures are optimistic"
    rows = {one.name: (one.rows["test"], tests[one.name]) for one in sets}
    write_run(trainer.args.output_dir, results, state.log_history, rows)
    print(f"\n{metrics_table(metrics)}\n", flush=True)
    for one in sets:
        if one.incomplete:
            print(f"not figures of {one.name}: {one.incomplete}")
    print(f"best epoch chosen on {chosen}" if "best" in results else "last epoch, none chosen", flush=True)
    print(f"{results['seconds']:.0f} s; checkpoint and metrics.json in {trainer.args.output_dir}", flush=True)


def tune(args: FineTuningDataArguments, lora: LoraArguments, training: GADMSFineTuningArguments) -> None:
    start, settings = time.time(), settings_of(args, lora, training)  # the trainer will change some
    set_seed(training.seed)
    pretrained, processor = load_starting_point(
        args.model_name_or_path, tuple(args.image_size), training.matching_weight > 0
    )
    sets = load_sets(args, pretrained.config.vision_config.image_size, training.seed)
    notes = []
    if len(sets) > 1:
        with PartialState().main_process_first():  # the others read what it has found
            notes = leave_out_overlap(sets, keep=args.keep_overlap)
    train, validation = training_rows(sets), held_out_rows(sets, "validation")
    model = GADMSForFineTuning.from_pre_training(pretrained, num_persons=len(set(train["person_id"])))
    tuned = add_lora(model, lora) if lora.lora else model
    trainable, total = count_parameters(tuned)
    trainer = GADMSFineTuningTrainer(tuned, training, processor, train_dataset=train, eval_dataset=validation)
    facts: dict[str, dict] = {}
    tests: dict[str, Evaluation] = {}

    def measure(when: str, prefix: str) -> dict[str, dict[str, float]]:
        """Each set by its name, and `when` for the mean over them."""
        found = {}
        for one in sets:
            logged = prefix if len(sets) == 1 else f"{prefix}_{one.name}"
            measured = trainer.evaluate(one.rows["test"], metric_key_prefix=logged)
            keys = [f"{way}_{name}" for way in DIRECTIONS for name in METRICS]
            found[f"{when}, {one.name}"] = {key: measured[f"{logged}_{key}"] for key in keys}
            tests[one.name] = evaluate_embeddings(trainer.measured)
            facts[one.name] = gallery_facts(tests[one.name]) | {"incomplete": one.incomplete, "splits": one.splits}
        means = {name: sum(each[name] for each in found.values()) / len(sets) for name in next(iter(found.values()))}
        return {when: means} if len(sets) == 1 else {**found, when: means}

    metrics = measure("before", "before")
    if trainer.is_world_process_zero():
        print(*notes, sep="\n")
        print(f"training {trainable:,} of {total:,} parameters ({trainable / total:.1%})", flush=True)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    metrics |= measure("after", "test")
    trainer.save_model()
    if trainer.is_world_process_zero():
        if isinstance(trainer.model, PeftModel):
            save_adapter(trainer.model, os.path.join(training.output_dir, "adapter"))
        run = {"trainable_parameters": trainable, "parameters": total, "seconds": time.time() - start, **settings}
        for one in sets if len(sets) > 1 else []:
            facts[one.name] |= {when: metrics[f"{when}, {one.name}"] for when in ("before", "after")}
        run |= facts[sets[0].name] if len(sets) == 1 else {"sets": facts, "overlap": notes}
        report(trainer, sets, metrics, run, tests)


@command
def main(arguments: list[str] | None = None) -> None:
    kinds = (FineTuningDataArguments, LoraArguments, GADMSFineTuningArguments, SweepArguments)
    words = sys.argv[1:] if arguments is None else arguments
    args, lora, training, sweep = parse_arguments(kinds, words, description=__doc__)
    if not sweep.seeds:
        refuse_used_folder(training.output_dir, training.resume_from_checkpoint)
        return tune(args, lora, training)
    for of_seed in runs_to_do(words, kinds, training, sweep):
        tune(*of_seed)
    if PartialState().is_main_process:
        print(f"{write_sweep(training.output_dir)}\n\nseeds.md, .tex and .json in {training.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
