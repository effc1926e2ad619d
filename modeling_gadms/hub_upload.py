"""Uploads folders to the Hub: the listed files and no others, in commits that an interrupted upload goes on from."""

import fnmatch
import os
from dataclasses import dataclass, replace

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from .model_card import PICTURES, weight_sizes
from .run_report import save_json

LAST_CHECKPOINT = "last-checkpoint"


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
    allowed=("README.md", "person_retrieval.py", "ranking.py"),
    required=("README.md", "person_retrieval.py", "ranking.py"),
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


def upload(
    folder: str,
    repository: str,
    listing: Listing,
    message: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    path_in_repo: str = "",
    files_per_commit: int | None = None,
    token: str | None = None,
) -> str:
    """Make a repository hold the listed files of a folder, and return the commit.

    Files that are there already, unchanged, are not sent again, so that after a break the same call goes on where it
    was. With `files_per_commit` the files come in several commits, the card in the last: with it, what an earlier
    revision had beyond the folder is deleted. Until then the repository is not whole; readers who pin a tag or a
    commit do not see it change.

    Args:
        folder (`str`): what to upload.
        repository (`str`): `org/name`; it must exist.
        listing ([`Listing`]): which files.
        message (`str`): title of the commits.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        revision (`str`, *optional*): branch; `main` by default.
        path_in_repo (`str`): folder in the repository.
        files_per_commit (`int`, *optional*): by default all in one.
        token (`str`, *optional*): by default the one of `hf auth login`.

    Raises:
        FileNotFoundError: a required file is missing.
        `huggingface_hub.errors.HfHubHTTPError`: the Hub refuses, or cannot be reached.
    """
    api = HfApi(token=token)
    prefix = f"{path_in_repo}/" if path_in_repo else ""
    files = listing.files(folder)
    card = [path for path in files if path == "README.md"]
    files = [path for path in files if path not in card]
    size = files_per_commit or max(len(files), 1)
    parts = [files[start : start + size] for start in range(0, len(files), size)] or [[]]
    there = api.list_repo_files(repository, repo_type=repo_type, revision=revision)
    wanted = {*files, *card}
    stale = [
        path
        for path in there
        if path.startswith(prefix)
        and listing.owns(path.removeprefix(prefix))
        and path.removeprefix(prefix) not in wanted
    ]
    if files_per_commit:
        parts.append([])
    for number, part in enumerate(parts, 1):
        last = number == len(parts)
        operations = [
            CommitOperationAdd(prefix + path, os.path.join(folder, path)) for path in part + (card if last else [])
        ]
        operations += [CommitOperationDelete(path) for path in stale] if last else []
        commit = api.create_commit(
            repository,
            operations,
            commit_message=message if len(parts) == 1 else f"{message} ({number} of {len(parts)})",
            repo_type=repo_type,
            revision=revision,
        )
    return commit.oid


def download_last_checkpoint(
    repository: str, output_dir: str, revision: str | None = None, token: str | None = None
) -> str:
    """Bring the checkpoint that `hub_strategy="checkpoint"` keeps on the Hub into `output_dir`, and return its folder.

    Raises:
        FileNotFoundError: the repository has none.
    """
    snapshot_download(
        repository, revision=revision, token=token, allow_patterns=f"{LAST_CHECKPOINT}/*", local_dir=output_dir
    )
    folder = os.path.join(output_dir, LAST_CHECKPOINT)
    if not os.path.exists(os.path.join(folder, "trainer_state.json")):
        raise FileNotFoundError(
            f"{repository} has no {LAST_CHECKPOINT}: train with --push_to_hub True --hub_strategy checkpoint first"
        )
    return folder


def write_sentence_transformers(folder: str) -> None:
    """The settings by which `SentenceTransformer(folder, trust_remote_code=True)` encodes sentences and images."""
    for name, content in SENTENCE_TRANSFORMERS.items():
        save_json(content, os.path.join(folder, name))
