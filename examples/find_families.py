r"""Find the families of words that captions use in each other's place, as a file to read and edit.

    python examples/find_families.py --dataset_name synthetic --output_file runs/families.json          # offline
    python examples/find_families.py --dataset_name org/webperson --output_file families.json
    python examples/repair_captions.py --dataset_name org/webperson --families families.json ...

Words between the same neighbours are one family; words that both captions of an image use for the same thing are
synonyms, and one value. Prints the families, the largest first. It is a draft: in the file, take out what no picture
shows ("also, who"), split families of different things, and join synonyms that were missed. Needs
`pip install '.[construction]'`.
"""

import os
import sys
from dataclasses import dataclass, field

from pretrain import PretrainArguments, load_pairs

from dataset_webperson import DataError
from dataset_webperson.command_line import command
from dataset_webperson.rows.streaming import ShuffledParquet
from modeling_gadms.noise.found_families import find_families
from modeling_gadms.noise.repaired_captions import refuse_repaired
from modeling_gadms.noise.word_families import write_families
from modeling_gadms.rows import caption_columns, some_places
from modeling_gadms.training.command_line import parse_arguments


@dataclass
class FindArguments:
    """What counts as a family."""

    _argument_group_name = "families"

    output_file: str = field(metadata={"help": "JSON to write; must not exist."})
    num_rows: int = field(default=20_000, metadata={"help": "Rows whose captions are read, drawn at random."})
    least_count: int = field(default=20, metadata={"help": "Words said less often are left out."})
    similarity: float = field(
        default=0.5, metadata={"help": "Mean cosine of the neighbours within a family; higher makes smaller ones."}
    )
    seed: int = field(default=42, metadata={"help": "Random seed."})

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.least_count < 1:
            raise ValueError(
                f"num_rows and least_count must be at least 1; got {self.num_rows} and {self.least_count}"
            )
        if not 0 < self.similarity < 1:
            raise ValueError(f"similarity must lie between 0 and 1; got {self.similarity}")


@command
def main(arguments: list[str] | None = None) -> None:
    source, args = parse_arguments((PretrainArguments, FindArguments), arguments, description=__doc__)
    if os.path.exists(args.output_file):
        raise FileExistsError(f"{args.output_file} already exists: delete it, or choose another --output_file")
    if source.streaming:
        raise DataError("streaming: rows are drawn at random here; load the data set without it")
    train = load_pairs(source, args.seed).train
    assert not isinstance(train, ShuffledParquet)  # a stream was refused above
    refuse_repaired(train.column_names)
    names = caption_columns(train.column_names)
    texts = train.select_columns(names).select(some_places(len(train), args.num_rows, args.seed))
    found = find_families(
        list(zip(*(texts[name][:] for name in names), strict=True)), args.least_count, args.similarity
    )
    write_families(found, args.output_file)
    for name, family in found.items():
        print(f"{name:20} {'; '.join(', '.join(words) for words in family.values.values())}")
    count = sum(len(family.value_of) for family in found.values())
    print(f"{len(found)} families of {count} words from {len(texts)} rows in {args.output_file}: correct them")


if __name__ == "__main__":
    sys.exit(main())
