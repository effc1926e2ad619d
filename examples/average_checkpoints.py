"""Average the weights of several checkpoints of one model into one ("model soup").

    python examples/average_checkpoints.py --model runs/cuhk/checkpoint-400 runs/cuhk/checkpoint-500 \\
        --output_dir runs/cuhk-mean

They are to be of one run, or of runs that began from the same weights: the mean of models that have nothing in common
is none. What is written is a GA-DMS like any other, with a decoder if all have one; measure it on validation before
you take it. An average over all steps of a run is `--ema_decay` of the training.
"""

import sys

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSForPreTraining, GADMSModel, GADMSProcessor
from modeling_gadms.training.averaging import mean_of_weights
from modeling_gadms.training.command_line import refuse_used_folder
from modeling_gadms.training.starting_points import config_of


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--model", nargs="+", required=True, help="folders of checkpoints, two or more")
    parser.add_argument("--output_dir", required=True, help="where the mean goes")
    args = parser.parse_args(arguments)
    if len(args.model) < 2:
        parser.error("--model: a mean takes two checkpoints or more")
    refuse_used_folder(args.output_dir, None)
    plain = any(config_of(folder).architectures == ["GADMSModel"] for folder in args.model)  # has no decoder
    kind = GADMSModel if plain else GADMSForPreTraining
    models = []
    for folder in args.model:
        model, report = kind.from_pretrained(folder, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):
            raise DataError(
                f"{folder}: {len(missing)} weights are missing ({missing[0]}, ...); give whole checkpoints"
            )
        models.append(model)
    models[0].load_state_dict(mean_of_weights(models))
    models[0].save_pretrained(args.output_dir)
    GADMSProcessor.from_pretrained(args.model[0]).save_pretrained(args.output_dir)
    print(f"the mean of {len(models)} checkpoints is in {args.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
