"""The `datasets` builder of WebPerson; its config "synthetic" draws its own pedestrians.

builder = WebPerson(config_name="synthetic", image_size=(64, 32), num_train_persons=4000)
builder.download_and_prepare(num_proc=2)
train = builder.as_dataset(split="train")
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets

from .attributes import VERSION
from .synthetic import generate_rows

# Persons in a unit of work; `num_proc` processes share the units, in order.
CHUNK = 50
# Persons of a split are numbered below this, see `synthetic.FIRST_PERSON_ID`.
MAX_PERSONS = 100_000_000

WORD = {
    "start": datasets.Value("int32"),
    "end": datasets.Value("int32"),
    "attribute": datasets.Value("string"),
    "is_false": datasets.Value("bool"),
}


@dataclass
class WebPersonConfig(datasets.BuilderConfig):
    """What a WebPerson holds. A value that makes no sense raises one `ValueError` that says so.

    Args:
        image_size: (height, width) in pixels, the height 32 to 1024, the width 16 to 1024, and height/width between
            1 and 4. Persons and captions do not depend on it.
        num_train_persons, num_validation_persons, num_test_persons: Persons of each split, at least two each, for
            retrieval needs a wrong answer. Persons of one split never appear in another.
        views_per_person: Pictures of each person, at least 1; each has two captions.
        noise_rate: Probability that an attribute word of a training caption is false, in [0, 1]; the captions of
            validation and test are true.
        seed: A whole number. The same seed gives the same rows on any machine.
    """

    name: str = "synthetic"
    image_size: tuple[int, int] = (128, 64)
    num_train_persons: int = 4000
    num_validation_persons: int = 100
    num_test_persons: int = 400
    views_per_person: int = 2
    noise_rate: float = 0.3
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.name not in WebPerson.CONFIG_NAMES:
            raise ValueError(f"WebPerson has no config {self.name!r}; it has {', '.join(WebPerson.CONFIG_NAMES)}")
        size = self.image_size
        if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(_is_whole(side) for side in size):
            raise ValueError(f"image_size must be two whole numbers (height, width), not {size!r}")
        height, width = self.image_size = tuple(size)
        if not (32 <= height <= 1024 and 16 <= width <= 1024 and width <= height <= 4 * width):
            raise ValueError(
                f"image_size is (height, width) with height 32..1024, width 16..1024 and height 1 to 4 times the "
                f"width, not {size!r}"
            )
        for option in ("num_train_persons", "num_validation_persons", "num_test_persons"):
            persons = getattr(self, option)
            if not _is_whole(persons) or not 2 <= persons <= MAX_PERSONS:
                raise ValueError(f"{option} must be a whole number of at least 2 persons, not {persons!r}")
        if not _is_whole(self.views_per_person) or not 1 <= self.views_per_person <= 100:
            raise ValueError(f"views_per_person must be a whole number from 1 to 100, not {self.views_per_person!r}")
        rate = self.noise_rate
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
            raise ValueError(f"noise_rate is a probability between 0 and 1, not {rate!r}")
        self.noise_rate = float(rate)
        if not _is_whole(self.seed):
            raise ValueError(f"seed must be a whole number, not {self.seed!r}")

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """The name of the cache folder: every option counts, whether given or left at its default."""
        options = {name: value for name, value in vars(self).items() if name not in ("name", "version", "description")}
        text = json.dumps([options, repr(custom_features)], sort_keys=True, default=str)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class WebPerson(datasets.GeneratorBasedBuilder):
    """Captioned pedestrians: `image, image_path, caption1, caption2`, and `person_id` where it is known.

    The config "synthetic" has columns more, for study: `caption1_words` and `caption2_words`, the character span,
    attribute and truth of every attribute word; `caption1_false_spans` and `caption2_false_spans`, the [start, end]
    of the false ones; `attributes`, a JSON object of what is true of the person in this view.
    """

    VERSION = datasets.Version(VERSION)
    BUILDER_CONFIG_CLASS = WebPersonConfig
    CONFIG_NAMES = ("synthetic",)
    # Rows of a record batch: a few megabytes of pictures.
    DEFAULT_WRITER_BATCH_SIZE = 256

    def __init__(self, *args, dataset_name: str = "webperson", **kwargs):
        super().__init__(*args, dataset_name=dataset_name, **kwargs)

    def _info(self) -> datasets.DatasetInfo:
        features: dict[str, Any] = {
            "image": datasets.Image(),
            "image_path": datasets.Value("string"),
            "caption1": datasets.Value("string"),
            "caption2": datasets.Value("string"),
            "person_id": datasets.Value("int64"),
            "attributes": datasets.Value("string"),
        }
        for caption in ("caption1", "caption2"):
            features[f"{caption}_words"] = datasets.List(WORD)
            features[f"{caption}_false_spans"] = datasets.List(datasets.List(datasets.Value("int32")))
        return datasets.DatasetInfo(
            description="Drawn pedestrians with captions of which a known part is false.",
            features=datasets.Features(features),
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        persons = {
            datasets.Split.TRAIN: self.config.num_train_persons,
            datasets.Split.VALIDATION: self.config.num_validation_persons,
            datasets.Split.TEST: self.config.num_test_persons,
        }
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={
                    "chunks": [(str(split), start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
                },
            )
            for split, count in persons.items()
        ]

    def _generate_examples(self, chunks: list[tuple[str, int, int]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Rows of chunks of persons, each chunk (split, first person, one past the last)."""
        for split, start, stop in chunks:
            rows = generate_rows(
                split,
                start,
                stop,
                image_size=self.config.image_size,
                views_per_person=self.config.views_per_person,
                noise_rate=self.config.noise_rate,
                seed=self.config.seed,
            )
            for row in rows:
                yield row["image_path"], row
