"""Upload folders to the Hub: the listed files and no others; an interrupted upload can be continued."""

import os

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from .listings import Listing

LAST_CHECKPOINT = "last-checkpoint"


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

    Unchanged files are not sent again, so after an interruption the same call continues where it stopped. With
    `files_per_commit` the files go up in several commits. The last one adds the card and deletes listed files that are
    no longer in the folder; until then the repository is incomplete, which readers who pin a tag or a commit do not
    see.

    Args:
        folder (`str`): the folder to upload.
        repository (`str`): `org/name`; it must exist.
        listing ([`Listing`]): which files.
        message (`str`): title of the commits.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        revision (`str`, *optional*): branch; `main` by default.
        path_in_repo (`str`): folder in the repository.
        files_per_commit (`int`, *optional*): by default all files go in one commit.
        token (`str`, *optional*): by default the token of `hf auth login`.

    Raises:
        FileNotFoundError: a required file is missing.
        `huggingface_hub.errors.HfHubHTTPError`: the Hub refuses, or cannot be reached.
    """
    api = HfApi(token=token)
    prefix = f"{path_in_repo}/" if path_in_repo else ""
    files = listing.files(folder)
    # the card comes with the last commit: a repository without one shows that it is incomplete
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
        added = part + card if last else part
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        operations += [CommitOperationAdd(prefix + path, os.path.join(folder, path)) for path in added]
        if last:
            operations += [CommitOperationDelete(path) for path in stale]
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
    """Download the checkpoint that `hub_strategy="checkpoint"` keeps on the Hub to `output_dir`; returns its folder.

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
