"""Publish on the Hugging Face Hub: a model with its code and card, a data set, the metric, or a gallery's Space.

    python examples/publish.py model runs/webperson org/gadms --tag v1.0 --base_model openai/clip-vit-base-patch16 \
        --evaluation runs/evaluation
    python examples/publish.py model runs/webperson org/gadms --training_state runs/webperson/checkpoint-100000
    python examples/publish.py dataset release/webperson org/webperson --tag v1.0
    python examples/publish.py metric org/person_retrieval    # or org/false_words
    python examples/publish.py space examples/space org/gallery

Log in first (`hf auth login`, or HF_TOKEN). The card of a model is filled with the facts its run recorded
(run_facts.json, metrics.json, emissions.csv), with --evaluation also from examples/evaluate_retrieval.py. If a fact
that the card needs is missing, nothing is published. A data set is a folder of `python -m dataset_webperson.release`;
it goes up in parts, its card last, and the same command continues after a break. Each command prints the commit, which
readers can pin by `revision=`.
"""

import argparse
import os
import shutil
import sys
import tempfile

from huggingface_hub import HfApi

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import write_text
from modeling_gadms.hub.listings import (
    DATASET,
    METRICS,
    SCRIPT,
    TRAINING_STATE,
    model_listing,
    refuse_classifier,
    write_sentence_transformers,
)
from modeling_gadms.hub.model_card import DEFAULT_LICENCE, write_card
from modeling_gadms.hub.spaces import APP, gather_space
from modeling_gadms.hub.upload import LAST_CHECKPOINT, upload

HERE = os.path.dirname(os.path.abspath(__file__))
SHARDS_PER_COMMIT = 25  # of 200 MB: a break costs a few GB at most


def publish_model(args: argparse.Namespace, api: HfApi) -> str:
    if args.card:
        shutil.copyfile(args.card, os.path.join(args.folder, "README.md"))
    else:
        options = {"licence": args.licence, "data": args.data, "base_model": args.base_model}
        options |= {"evaluation": args.evaluation, "pictures_of_persons": args.pictures_of_persons}
        write_card(args.folder, args.repository, **options)
    write_sentence_transformers(args.folder)
    for folder in filter(None, (args.folder, args.training_state)):
        refuse_classifier(folder)
    listing = model_listing(args.folder)
    listing.files(args.folder)  # a missing file is found before anything is created
    begin(args, api, "model")
    if args.training_state:
        message = f"Training state of {os.path.basename(args.training_state)}"
        where = {"path_in_repo": LAST_CHECKPOINT, "revision": args.branch}
        upload(args.training_state, args.repository, TRAINING_STATE, message, **where)
    return upload(args.folder, args.repository, listing, args.message or "Model and card", revision=args.branch)


def publish_dataset(args: argparse.Namespace, api: HfApi) -> str:
    DATASET.files(args.folder)
    with open(os.path.join(args.folder, "README.md"), encoding="utf-8") as file:
        if f'load_dataset("{args.repository}"' not in file.read():
            raise ValueError(
                f"{args.folder}/README.md: is the card of another repository; write the release with --repository "
                f"{args.repository}, or edit the card"
            )
    begin(args, api, "dataset")
    if os.path.isdir(script := f"{os.path.abspath(args.folder)}-script"):
        api.create_branch(args.repository, branch="script", repo_type="dataset", exist_ok=True)
        where = {"repo_type": "dataset", "revision": "script"}
        upload(script, args.repository, SCRIPT, "Loading script for datasets 3.x", **where)
    parts = {"repo_type": "dataset", "revision": args.branch, "files_per_commit": args.shards_per_commit}
    return upload(args.folder, args.repository, DATASET, args.message or "Data and card", **parts)


def publish_metric(args: argparse.Namespace, api: HfApi) -> str:
    name = args.repository.split("/")[-1]
    if name not in METRICS:
        raise ValueError(f"{args.repository}: `evaluate` finds a metric only in a Space named {' or '.join(METRICS)}")
    begin(args, api, "space", "static")
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(HERE, "..", "modeling_gadms", name)
        for file_name in METRICS[name].files(source):
            with open(os.path.join(source, file_name), encoding="utf-8") as file:
                text = file.read().replace(f"./modeling_gadms/{name}", args.repository)
            write_text(os.path.join(folder, file_name), text)
        where = {"repo_type": "space", "revision": args.branch}
        return upload(folder, args.repository, METRICS[name], args.message or "Metric and its card", **where)


def publish_space(args: argparse.Namespace, api: HfApi) -> str:
    with tempfile.TemporaryDirectory() as folder:
        gather_space(args.folder, os.path.join(HERE, "small_clip"), folder)
        begin(args, api, "space", "docker")
        where = {"repo_type": "space", "revision": args.branch}
        return upload(folder, args.repository, APP, args.message or "Page, code and model", **where)


def begin(args: argparse.Namespace, api: HfApi, repo_type: str, sdk: str | None = None) -> None:
    api.create_repo(args.repository, repo_type=repo_type, private=args.private, exist_ok=True, space_sdk=sdk)
    if args.branch:
        api.create_branch(args.repository, branch=args.branch, repo_type=repo_type, exist_ok=True)
    if args.tag:
        refs = api.list_repo_refs(args.repository, repo_type=repo_type)
        if args.tag in [tag.name for tag in refs.tags]:
            raise ValueError(f"{args.repository} has a tag {args.tag}, which readers may have pinned: choose another")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    model, dataset, metric, space = map(kinds.add_parser, ("model", "dataset", "metric", "space"))
    model.add_argument("folder", help="folder of a saved model")
    dataset.add_argument("folder", help="folder that dataset_webperson.release wrote")
    space.add_argument("folder", help="folder of the Space's own files: app.py, Dockerfile, README.md")
    for kind in (model, dataset, metric, space):
        kind.add_argument("repository", help="ORG/NAME on the Hub; created if it is not there")
        kind.add_argument("--branch", help="branch instead of main; created if it is not there")
        kind.add_argument("--tag", help="name for the revision that this publishes")
        kind.add_argument("--private", action="store_true", default=None, help="create the repository as private")
        kind.add_argument("--message", help="title of the commit")
    model.add_argument("--licence", default=DEFAULT_LICENCE, help="licence of the weights (default: %(default)s)")
    model.add_argument("--data", help="the training data, if the run did not record it")
    model.add_argument("--base_model", help="Hub id of the model that training started from")
    model.add_argument("--evaluation", help="output folder of examples/evaluate_retrieval.py")
    model.add_argument("--pictures_of_persons", action="store_true", help="show retrievals that are not drawings")
    model.add_argument("--card", help="publish this file as the card, in place of the filled template")
    model.add_argument("--training_state", help="folder of a checkpoint, so that others can continue training")
    dataset.add_argument("--shards_per_commit", type=int, default=SHARDS_PER_COMMIT, help="(default: %(default)s)")
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    args, api = parse(arguments), HfApi()
    kinds = {"model": publish_model, "dataset": publish_dataset, "metric": publish_metric, "space": publish_space}
    publish, repo_type = kinds[args.kind], args.kind if args.kind in ("model", "dataset") else "space"
    commit = publish(args, api)
    if args.tag:
        api.create_tag(args.repository, tag=args.tag, revision=commit, repo_type=repo_type)
    print(f"published {args.repository}, revision {commit}" + (f", tag {args.tag}" if args.tag else ""))


if __name__ == "__main__":
    sys.exit(main())
