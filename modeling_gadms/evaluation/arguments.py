"""What `examples/evaluate_retrieval.py` and `examples/evaluate_reidentification.py` are told."""

import os
from dataclasses import dataclass, field

from .caption_bank import BANK_SCORINGS, PHRASINGS_NNN, BankSettings
from .embedding_cache import DEFAULT_FOLDER, DEFAULT_LIMIT
from .matching import MatchingSettings
from .published_results import PROTOCOLS
from .rescoring import MATCHING, SCORINGS


@dataclass
class EvaluationArguments:
    model: list[str] = field(
        metadata={"help": "Folder or Hub id: one for all benchmarks, or one per benchmark in order."}
    )
    benchmark: list[str] = field(metadata={"help": "Names of benchmarks, `synthetic`, or folders."})
    data_root: str | None = field(default=None, metadata={"help": "Folder that holds the benchmarks."})
    split: str = field(default="test", metadata={"help": "Which part of each benchmark."})
    annotations: list[str] = field(
        default_factory=list, metadata={"help": "Its json (or one for each benchmark), if not below --data_root."}
    )
    image_root: list[str] = field(
        default_factory=list, metadata={"help": "Where its images lie (or of each), if not below --data_root."}
    )
    on_count_mismatch: str = field(
        default="error",
        metadata={"help": "A copy with other counts than the official ones.", "choices": ["error", "warn"]},
    )
    on_missing_images: str = field(
        default="error", metadata={"help": "`skip` leaves out images that are missing.", "choices": ["error", "skip"]}
    )
    image_size: list[int] = field(default_factory=lambda: [128, 64], metadata={"help": "Synthetic: height, width."})
    num_persons: int = field(default=400, metadata={"help": "Synthetic: persons of the split."})
    views_per_person: int = field(default=2, metadata={"help": "Synthetic: images of each person."})
    twins: bool = field(
        default=False,
        metadata={"help": "Synthetic: test has pairs of persons who differ in one attribute, which captions name."},
    )
    compare: list[str] = field(default_factory=list, metadata={"help": "Another model (or one for each benchmark)."})
    protocol: str | None = field(default=None, metadata={"help": "A table to lay out.", "choices": PROTOCOLS})
    trained_on: list[str] = field(default_factory=list, metadata={"help": "cross-domain: what `model` has seen."})
    rescore: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Score anew too; `nnn`, `inverted-softmax`, `query-bank` and `phrasings-nnn` read the captions "
            "of train, and `matching` needs a model trained with matching_weight.",
            "choices": [*SCORINGS, MATCHING, *BANK_SCORINGS, PHRASINGS_NNN],
        },
    )
    bank_alpha: float = field(default=BankSettings.alpha, metadata={"help": "`nnn`: weight of what is subtracted."})
    bank_neighbours: int = field(
        default=BankSettings.neighbours, metadata={"help": "`nnn`: nearest captions of the bank that are averaged."}
    )
    bank_beta: float = field(
        default=BankSettings.beta,
        metadata={"help": "`inverted-softmax` and `query-bank`: inverse temperature."},
    )
    similarity_distribution: bool = field(
        default=False, metadata={"help": "Measure mSD of UFineBench too: how far matches stand above the rest."}
    )
    matching_top: int = field(
        default=MatchingSettings.top, metadata={"help": "`matching`: best images of each caption that it ranks anew."}
    )
    matching_factor: float = field(
        default=MatchingSettings.factor, metadata={"help": "`matching`: weight of its log odds beside the cosine."}
    )
    breakdown: bool = field(
        default=False, metadata={"help": "Also by attribute word, caption length, camera and person."}
    )
    robustness: bool = field(default=False, metadata={"help": "Measure on damaged captions and images too."})
    output_dir: str = field(default=os.path.join("runs", "evaluation"), metadata={"help": "Where to write."})
    cache_dir: str = field(default=DEFAULT_FOLDER, metadata={"help": "Where embeddings are kept."})
    cache_limit: float = field(
        default=DEFAULT_LIMIT, metadata={"help": "GB they may take; the least recently used are deleted."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images, and captions, at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that prepare images ahead."})
    bf16: bool = field(default=False, metadata={"help": "Encode in bfloat16."})
    use_cpu: bool = field(default=False, metadata={"help": "Even where there is a GPU."})
    seed: int = field(default=0, metadata={"help": "Decides intervals, tests, damaged inputs and synthetic persons."})

    def __post_init__(self) -> None:
        if self.twins and (self.split != "test" or "synthetic" not in self.benchmark):
            raise ValueError(f"twins are drawn for test of synthetic, not for {self.split} of {self.benchmark[0]}")
        self.matching_settings()
        self.bank_settings()  # what is out of range is refused before the work

    def bank_settings(self) -> BankSettings:
        return BankSettings(self.bank_alpha, self.bank_neighbours, self.bank_beta)

    def matching_settings(self) -> MatchingSettings:
        return MatchingSettings(self.matching_top, self.matching_factor)

    def of_each_benchmark(self, name: str) -> list:
        """The values of an option, one per benchmark."""
        values = getattr(self, name) or [None]
        if len(values) not in (1, len(self.benchmark)):
            raise ValueError(
                f"--{name}: {len(values)} values for {len(self.benchmark)} benchmarks; give one or as many"
            )
        return values * len(self.benchmark) if len(values) == 1 else values


@dataclass
class ReidentificationArguments:
    model: list[str] = field(metadata={"help": "Folders or Hub ids; all after the first are compared with it."})
    benchmark: list[str] = field(metadata={"help": "`market-1501`, `msmt17`, or both."})
    data_root: str = field(default="data", metadata={"help": "Its folder, or the one above them."})
    on_count_mismatch: str = field(
        default="error",
        metadata={"help": "A copy with other counts than the official ones.", "choices": ["error", "warn"]},
    )
    on_missing_images: str = field(
        default="error", metadata={"help": "`skip` leaves out images that are missing.", "choices": ["error", "skip"]}
    )
    output_dir: str = field(default=os.path.join("runs", "reidentification"), metadata={"help": "Where to write."})
    cache_dir: str = field(default=DEFAULT_FOLDER, metadata={"help": "Where embeddings are kept."})
    cache_limit: float = field(
        default=DEFAULT_LIMIT, metadata={"help": "GB they may take; the least recently used are deleted."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that prepare images ahead."})
    bf16: bool = field(default=False, metadata={"help": "Encode in bfloat16."})
    use_cpu: bool = field(default=False, metadata={"help": "Even where there is a GPU."})
    seed: int = field(default=0, metadata={"help": "Decides intervals and tests."})
