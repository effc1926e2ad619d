"""Lists of the files that belong on the Hub, and facts from the headers of weight files."""

import fnmatch
import json
import math
import os
import re
from dataclasses import dataclass, replace

from safetensors import SafetensorError, safe_open

from dataset_webperson.files import write_json

PICTURES = {
    "curve.png": "The run: R@1 of the test set, and losses where they were logged",
    "retrievals.png": "Descriptions and the images ranked first for them; correct ones are framed in green",
    "word_contributions.png": "What each word of a caption does to its match: how far masking it lowers the cosine",
}
# pictures of persons appear on a card only if they are drawings, or at the publisher's request
PICTURES_OF_PERSONS = ("retrievals.png", "word_contributions.png")


def read_json(folder: str, name: str) -> dict | None:
    """The object in a JSON file; `None` without the file.

    Raises:
        ValueError: the file does not hold a JSON object.
    """
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}); copy or write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a JSON object; copy or write it again")
    return content


def weight_sizes(folder: str) -> dict[str, int]:
    """Number of elements of each weight in the folder, from the files' headers alone.

    Raises:
        FileNotFoundError: no weights.
        ValueError: a file is cut short or damaged; the message names it.
    """
    files = sorted(name for name in os.listdir(folder) if re.fullmatch(r"model(-.*)?\.safetensors", name))
    if not files:
        raise FileNotFoundError(f"{folder}: no model.safetensors; give the folder of a saved model")
    sizes: dict[str, int] = {}
    for name in files:
        try:
            with safe_open(os.path.join(folder, name), framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118 - not a dict
                    sizes[key] = math.prod(weights.get_slice(key).get_shape())
        except SafetensorError as error:
            raise ValueError(
                f"{os.path.join(folder, name)}: is cut short or damaged; copy it again ({error})"
            ) from None
    return sizes


def weight_counts(folder: str) -> tuple[int, int]:
    """Number of parameters in the folder, and of those that retrieval uses; errors as in [`weight_sizes`]."""
    sizes = weight_sizes(folder)
    unused = sum(size for key, size in sizes.items() if key.startswith(("decoder.", "classifier.")))
    return sum(sizes.values()), sum(sizes.values()) - unused


@dataclass(frozen=True)
class Listing:
    """Which files of a folder belong on the Hub, as patterns of paths.

    Args:
        allowed: uploaded if it exists here, deleted from the Hub if it no longer does.
        required: patterns, each of which must match a file.
        withheld: allowed files that are not uploaded this time.
    """

    allowed: tuple[str, ...]
    required: tuple[str, ...]
    withheld: tuple[str, ...] = ()

    def owns(self, path: str) -> bool:
        return any(path.count("/") == p.count("/") and fnmatch.fnmatchcase(path, p) for p in self.allowed)

    def files(self, folder: str) -> list[str]:
        """Paths relative to `folder`, sorted.

        Raises:
            FileNotFoundError: a required file is missing; the message names the first.
        """
        found = []
        for place, _, names in os.walk(folder):
            found += [os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/") for name in names]
        files = sorted(path for path in found if self.owns(path) and path not in self.withheld)
        for pattern in self.required:
            if not any(fnmatch.fnmatchcase(path, pattern) for path in files):
                raise FileNotFoundError(f"{folder}: no {pattern}, without which it cannot be published")
        return files


WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# a few lines each: the methods of the model that `sentence-transformers` calls; no code
SENTENCE_TRANSFORMERS = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.base.modules.Normalize"},
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"similarity_fn_name": "cosine", "prompts": {}},
}
MODEL = Listing(
    allowed=(
        "README.md",
        "config.json",
        *WEIGHTS,
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "*_gadms.py",
        "token_selection.safetensors",
        *SENTENCE_TRANSFORMERS,
        *PICTURES,
    ),
    required=("README.md", "config.json", "model*.safetensors", "modeling_gadms.py", "processor_config.json"),
)
# the optimiser's state is torch's format; it is read with weights_only=True, and only to resume training
TRAINING_STATE = Listing(
    allowed=(
        "config.json",
        *WEIGHTS,
        "optimizer.pt",
        "scheduler.pt",
        "scaler.pt",
        "rng_state*.pth",
        "trainer_state.json",
        "weight_average.safetensors",
    ),
    required=("trainer_state.json", "optimizer.pt", "scheduler.pt"),
)
DATASET = Listing(
    allowed=("README.md", "removed.parquet", "data/*.parquet", "captions/*.parquet"),
    required=("README.md", "data/*.parquet"),
)
SCRIPT = Listing(allowed=("README.md", "*.py"), required=("README.md", "*.py"))
_METRIC_FILES = {
    "person_retrieval": ("README.md", "index.html", "person_retrieval.py", "ranking.py"),
    "false_words": ("README.md", "index.html", "false_words.py", "word_detection.py"),
}
# `evaluate` finds a metric only in a Space of its own name
METRICS = {name: Listing(allowed=files, required=files) for name, files in _METRIC_FILES.items()}


def refuse_classifier(folder: str) -> None:
    """Raise `ValueError` for a checkpoint saved during fine-tuning: its classifier has a row per training identity."""
    if any(name.startswith("classifier.") for name in weight_sizes(folder)):
        raise ValueError(
            f"{folder}: holds a classifier of the training set's persons, which does not belong on the Hub; publish "
            "the folder that fine-tuning wrote at its end"
        )


def model_listing(folder: str) -> Listing:
    """The listing of a model folder; pictures are uploaded only if the card shows them, for they may be of persons."""
    with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
        card = file.read()
    return replace(MODEL, withheld=tuple(name for name in PICTURES if f"]({name})" not in card))


def write_sentence_transformers(folder: str) -> None:
    """Write the settings with which `SentenceTransformer(folder, trust_remote_code=True)` encodes text and images."""
    for name, content in SENTENCE_TRANSFORMERS.items():
        write_json(os.path.join(folder, name), content)
