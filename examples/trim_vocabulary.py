"""Trim the vocabulary of towers to the captions of a data set, before pre-training from them.

    python examples/trim_vocabulary.py --model_name_or_path google/siglip2-base-patch16-224 \
        --dataset_name org/webperson --output_dir runs/siglip2_trimmed
    accelerate launch examples/pretrain.py --model_name_or_path runs/siglip2_trimmed --dataset_name org/webperson ...

Captions of the data set keep their embeddings; other words are cut into smaller pieces. Beside the model and its
processor, kept_ids.json lists the old id of each new one.
"""

import os
import sys
from dataclasses import dataclass, field

from dataset_webperson.command_line import command
from dataset_webperson.files import write_json
from dataset_webperson.rows.captioned import load_captioned
from modeling_gadms.rows import caption_columns
from modeling_gadms.training.command_line import parse_arguments, refuse_used_folder
from modeling_gadms.training.starting_points import load_starting_point
from modeling_gadms.training.vocabulary import trim_vocabulary


@dataclass
class TrimArguments:
    _argument_group_name = "model and data"

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of a SigLIP, SigLIP 2, TIPSv2, MetaCLIP 2."})
    dataset_name: str = field(metadata={"help": "A folder or a Hub id with the columns of WebPerson."})
    output_dir: str = field(metadata={"help": "Folder of the trimmed model and its processor."})
    image_size: list[int] = field(default_factory=lambda: [384, 128], metadata={"help": "Height and width in pixels."})


@command
def main(arguments: list[str] | None = None) -> None:
    argv = sys.argv[1:] if arguments is None else arguments
    (args,) = parse_arguments((TrimArguments,), argv, description=__doc__)
    refuse_used_folder(args.output_dir, None)
    splits = [rows for rows in load_captioned(args.dataset_name, num_test_images=1, seed=0) if rows is not None]
    captions = (caption for rows in splits for name in caption_columns(rows.column_names) for caption in rows[name])
    model, processor = load_starting_point(args.model_name_or_path, (args.image_size[0], args.image_size[1]))
    weights, pieces = model.num_parameters(), model.config.text_config.vocab_size
    old_ids = trim_vocabulary(model, processor, captions)
    left = model.num_parameters()
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    write_json(os.path.join(args.output_dir, "kept_ids.json"), old_ids.tolist())
    print(f"{len(old_ids):,} of {pieces:,} pieces kept; {left:,} of {weights:,} weights left, the decoder's included")
    print(f"{100 * (1 - left / weights):.1f} % of the weights saved; model and processor in {args.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
