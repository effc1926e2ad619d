r"""Find the caption words that speak against their image, and write a data set in which they are mended or hidden.

    python examples/repair_captions.py --dataset_name synthetic --image_size 64 32 --tower_learning_rate 5e-4 \
        --mode sample --output_dir runs/repaired                                       # offline, some minutes
    accelerate launch examples/pretrain.py examples/pretrain_demo.yaml --dataset_name runs/repaired \
        --draw_words True --output_dir runs/demo-repaired

    python examples/repair_captions.py --model_name_or_path openai/clip-vit-base-patch16 --dataset_name org/webperson \
        --steps 20000 --num_workers 8 --output_dir data/webperson-repaired

For `repair` and `sample`, a reader (`modeling_gadms/noise/value_reader.py`) learns from the captions as they are which
value of a word's family an image shows, for `hide` patch evidence (`patch_evidence.py`) which words go with which
patches. Then, by MODE:

- repair: each word of a family gives way to the likeliest value; `caption1_as_found` keeps the old caption
- sample: captions stay, and `caption1_posterior` lists what could be true, for training with --draw_words
- hide: tokens that make their image much less likely are listed in `caption1_hidden_spans`, for --hidden_spans

OUTPUT_DIR is written as parquet, its galleries unchanged; OUTPUT_DIR-report.json sums up what was changed,
OUTPUT_DIR.html shows some of it, and OUTPUT_DIR-reader.safetensors (of `hide`: OUTPUT_DIR-evidence.safetensors) holds
what was learnt. An interrupted run, started again, keeps finished files and, if learning had finished, its result.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from typing import Any

from pretrain import PretrainArguments, load_pairs
from transformers import set_seed

from dataset_webperson import DataError
from dataset_webperson.command_line import command
from dataset_webperson.files import replacing, write_json, written_once
from dataset_webperson.release_shards import write_whole
from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms.noise.arguments import RepairArguments
from modeling_gadms.noise.changes import change_of
from modeling_gadms.noise.patch_evidence import refuse_unfit
from modeling_gadms.noise.repair_report import summarize, write_repair_page
from modeling_gadms.noise.repaired_captions import refuse_repaired, refuse_unnamed, refuse_untold, with_same_columns
from modeling_gadms.noise.word_families import families_for
from modeling_gadms.noise.written_shards import write_shards
from modeling_gadms.training.command_line import parse_arguments
from modeling_gadms.training.starting_points import load_starting_point


def refuse_taken(output_dir: str, learnt: str) -> None:
    """Stop before writing over an earlier result; what an interrupted run left is its own."""
    names = [output_dir]
    if not os.path.exists(output_dir + ".partial"):
        names += [f"{output_dir}-{learnt}.safetensors", f"{output_dir}-report.json", f"{output_dir}.html"]
    for path in names:
        if os.path.exists(path):
            raise FileExistsError(f"{path} already exists: delete it, or choose another --output_dir")


def begin(work: str, settings: dict[str, Any]) -> None:
    """Make the folder of the work, or continue in it if it was started alike."""
    if written_once(os.path.join(work, "settings.json"), settings) != settings:
        raise FileExistsError(f"{work} was started with other data or options: delete it to start over")


@command
def main(arguments: list[str] | None = None) -> None:
    kinds, renamed = (PretrainArguments, RepairArguments), {"--out": "--output_dir"}
    source, args = parse_arguments(kinds, arguments, description=__doc__, renamed=renamed)
    out = os.path.abspath(args.output_dir)
    work = out + ".partial"
    learnt = "evidence" if args.mode == "hide" else "reader"
    refuse_taken(out, learnt)
    if source.streaming:
        raise DataError("streaming: rows are read in any order here; load the data set without it")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DataError("this runs as one process: start it with `python`, not with a launcher")

    train, validation, test = load_pairs(source, args.seed)
    assert not isinstance(train, ShuffledParquet)  # a stream was refused above
    refuse_unfit(train)
    refuse_repaired(train.column_names)
    families = families_for(train.column_names, args.families)
    if args.mode != "hide":
        refuse_unnamed(train, families)
        refuse_untold(train)
    set_seed(args.seed)
    model, processor = load_starting_point(source.model_name_or_path, tuple(source.image_size))
    gadms = model.gadms.to(args.device).eval()
    settings = {**asdict(source), **asdict(args), "rows": len(train), "data": train._fingerprint}
    settings["families"] = {name: asdict(family) for name, family in families.items()}  # the file may change
    settings = json.loads(json.dumps(settings))
    free = ("output_dir", "device", "num_workers")  # they may differ between a run and its continuation
    begin(work, {name: value for name, value in settings.items() if name not in free})

    folder, kept = os.path.join(work, "main", "data"), os.path.join(work, f"{learnt}.safetensors")
    for split, rows in (("validation", validation), ("test", test)):
        file = os.path.join(folder, f"{split}-00000-of-00001.parquet")
        if rows is not None and not os.path.exists(file):  # first, so that a missing image is reported now
            write_whole(with_same_columns(rows, args.mode), file)
    fresh, began = not os.path.exists(kept), time.perf_counter()
    change, estimated = change_of(args, gadms, processor, train, families, kept)
    learned = time.perf_counter()
    files = write_shards(train, folder, change, args.rows_per_shard)
    rates = {}
    if fresh:  # what an interrupted run has finished took no time
        rates["learning"] = args.steps * args.batch_size / (learned - began)
        rates["changing captions"] = len(train) / (time.perf_counter() - learned)
    summary = estimated | summarize(files)
    write_json(f"{out}-report.json", settings | summary | {"images_per_second": rates})
    write_repair_page(f"{out}.html", files, summary)
    with replacing(f"{out}-{learnt}.safetensors") as temporary:
        shutil.copyfile(kept, temporary)
    os.replace(os.path.join(work, "main"), out)  # last: the folder is there only when all else is
    shutil.rmtree(work)

    for name, value in summary.items():
        unit = "words" if name == "share_false" else "characters"
        print(f"{name:20} {f'{value:.1%} of {unit}' if isinstance(value, float) else ', '.join(value) or 'none'}")
    if not summary.get("families_shown", True):
        print("No word was doubted: what was learnt shows no family; take more --steps, rows or --tower_learning_rate")
    for name, rate in rates.items():
        print(f"{name:20} {rate:.0f} images/s")
    print(f"{len(train)} training rows and {len(test)} test rows in {out}; figures in {out}-report.json,")
    print(f"examples in {out}.html")


if __name__ == "__main__":
    sys.exit(main())
