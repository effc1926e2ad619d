"""Which files of a folder belong on the Hub, and what their headers say."""

import fnmatch
import json
import math
import os
import re
from dataclasses import dataclass, replace

from safetensors import SafetensorError, safe_open

from dataset_webperson.files import write_json

PICTURES = {
    "curve.png": "Losses and retrieval over the run",
    "retrievals.png": "Descriptions, and the images that are found first; right ones framed green",
    "token_scores.png": "Scores of the words of a caption",
}
# what shows persons goes on a card only where they are drawings, or the publisher says so
PICTURES_OF_PERSONS = ("retrievals.png", "token_scores.png")


def read_json(folder: str, name: str) -> dict | None:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def weight_sizes(folder: str) -> dict[str, int]:
    """Elements of each weight in the folder, from the files' headers alone.

    Raises:
        FileNotFoundError: no weights.
        ValueError: a file that is not whole; names it.
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
            raise ValueError(f"{os.path.join(folder, name)}: is not a whole file, copy it again ({error})") from None
    return sizes


def weight_counts(folder: str) -> tuple[int, int]:
    """Parameters of all weights in the folder, and of those that retrieval uses; errors as [`weight_sizes`]."""
    sizes = weight_sizes(folder)
    unused = sum(size for key, size in sizes.items() if key.startswith(("decoder.", "classifier.")))
    return sum(sizes.values()), sum(sizes.values()) - unused


@dataclass(frozen=True)
class Listing:
    """Which files of a folder belong on the Hub, as patterns of paths.

    Args:
        allowed: what goes up where it exists, and is taken down where it no longer does.
        required: patterns of which each must match a file.
        withheld: of the allowed, what does not go up this time.
    """

    allowed: tuple[str, ...]
    required: tuple[str, ...]
    withheld: tuple[str, ...] = ()

    def owns(self, path: str) -> bool:
        return any(path.count("/") == p.count("/") and fnmatch.fnmatchcase(path, p) for p in self.allowed)

    def files(self, folder: str) -> list[str]:
        """Paths relative to `folder`, sorted.

        Raises:
            FileNotFoundError: names the first required file that is missing.
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
# each a few lines: which methods of the model `sentence-transformers` calls; no code
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
        *SENTENCE_TRANSFORMERS,
        *PICTURES,
    ),
    required=("README.md", "config.json", "model*.safetensors", "modeling_gadms.py", "processor_config.json"),
)
# the optimiser's state is torch's format; it is read with weights_only=True, by who resumes, and by nobody else
TRAINING_STATE = Listing(
    allowed=(
        "config.json",
        *WEIGHTS,
        "optimizer.pt",
        "scheduler.pt",
        "scaler.pt",
        "rng_state*.pth",
        "trainer_state.json",
    ),
    required=("trainer_state.json", "optimizer.pt", "scheduler.pt"),
)
DATASET = Listing(allowed=("README.md", "data/*.parquet"), required=("README.md", "data/*.parquet"))
SCRIPT = Listing(allowed=("README.md", "*.py"), required=("README.md", "*.py"))
METRIC = Listing(
    allowed=("README.md", "index.html", "person_retrieval.py", "ranking.py"),
    required=("README.md", "index.html", "person_retrieval.py", "ranking.py"),
)


def refuse_classifier(folder: str) -> None:
    """Raise `ValueError` for a checkpoint amid fine-tuning: its classifier has a row for each person trained on."""
    if any(name.startswith("classifier.") for name in weight_sizes(folder)):
        raise ValueError(
            f"{folder}: holds a classifier of the training set's persons, which does not belong on the Hub; publish "
            "the folder that fine-tuning wrote at its end"
        )


def model_listing(folder: str) -> Listing:
    """Of a model folder; pictures go up only where the card shows them, for they may be of persons."""
    with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
        card = file.read()
    return replace(MODEL, withheld=tuple(name for name in PICTURES if f"]({name})" not in card))


def write_sentence_transformers(folder: str) -> None:
    """The settings by which `SentenceTransformer(folder, trust_remote_code=True)` encodes sentences and images."""
    for name, content in SENTENCE_TRANSFORMERS.items():
        write_json(os.path.join(folder, name), content)
