"""Pushes of the Trainer: whole checkpoints with code and card, in one commit each, without pickles or secrets."""

import os
import shutil
import tempfile
from concurrent.futures import Future
from functools import partial
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from ..training.arguments import GADMSTrainingArguments
from .listings import MODEL, PICTURES, TRAINING_STATE, Listing, model_listing, write_sentence_transformers
from .model_card import write_card
from .run_facts import facts_of_run
from .upload import LAST_CHECKPOINT, upload

logger = logging.get_logger(__name__)


class Pushes(PushInProgress):
    """Several pushes under way, in the form in which the parent class tracks them."""

    jobs: list[Future]


class HubPushes(Trainer):
    """Replaces [`Trainer`]'s handling of `push_to_hub`, `hub_model_id`, `hub_strategy`, `hub_revision`, `hub_token`.

    The parent would push checkpoints without the model's code, everything else in `output_dir`, an unfilled card,
    and its pickled arguments, including the token.
    """

    args: GADMSTrainingArguments
    push_in_progress: Pushes | None = None  # type: ignore[assignment]  # the parent declares no `None`

    def create_model_card(self, **options: Any) -> None:  # type: ignore[override]  # another card, other options
        """Write README.md into `output_dir`.

        Args:
            options: of [`model_card.model_card`]: `licence`, `data`, `base_model`, `evaluation`,
                `pictures_of_persons`.
        """
        if self.is_world_process_zero():
            folder = self.args.output_dir
            write_card(folder, self.hub_model_id or os.path.basename(os.path.abspath(folder)), **self._known(options))

    def push_to_hub(  # type: ignore[override]  # gives the commit, not the parent's CommitInfo
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **options: Any,
    ) -> str | Future | None:
        """Save, fill the card and push, as one commit; `options` are those of `create_model_card`.

        Returns the commit, with `blocking=False` a `Future` of it, and `None` in all processes but the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**options)
        write_sentence_transformers(self.args.output_dir)
        self._finish_current_push()
        push = partial(
            upload,
            self.args.output_dir,
            self._repository(),
            model_listing(self.args.output_dir),
            commit_message or "End of training",
            revision=revision or self.args.hub_revision,
            token=token,
        )
        return push() if blocking else hf_api().run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
        else:
            self._finish_current_push()
            for name in os.listdir(self.args.output_dir):
                if name.startswith(".push-"):  # left by a run that was killed, or a push that ends in its thread now
                    shutil.rmtree(os.path.join(self.args.output_dir, name), ignore_errors=True)
            self.push_in_progress = Pushes([])  # type: ignore[arg-type]  # as the parent makes it, with a list
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        self._push_later(checkpoint_folder, MODEL, message)
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            kept = self.args.hub_strategy == HubStrategy.CHECKPOINT
            place = LAST_CHECKPOINT if kept else os.path.basename(checkpoint_folder)
            self._push_later(checkpoint_folder, TRAINING_STATE, f"{message}, checkpoint", place)

    def _push_later(self, folder: str, listing: Listing, message: str, path_in_repo: str = "") -> None:
        """Upload in the background, from links: training may delete or overwrite the folder meanwhile."""
        links = tempfile.mkdtemp(prefix=".push-", dir=self.args.output_dir)
        for name in os.listdir(folder):
            if listing.owns(name):
                link_or_copy(os.path.join(folder, name), os.path.join(links, name))
        if listing is MODEL:
            for name in PICTURES:
                if os.path.exists(os.path.join(self.args.output_dir, name)):
                    link_or_copy(os.path.join(self.args.output_dir, name), os.path.join(links, name))
            write_card(folder, self._repository(), card_folder=links, pictures_folder=links, **self._known({}))
            write_sentence_transformers(links)
            listing = model_listing(links)
        job = hf_api().run_as_future(
            upload,
            links,
            self._repository(),
            listing,
            message,
            path_in_repo=path_in_repo,
            revision=self.args.hub_revision,
            token=self.args.hub_token,
        )
        job.add_done_callback(lambda _: shutil.rmtree(links, ignore_errors=True))
        assert self.push_in_progress is not None  # begun by `_push_from_checkpoint`
        self.push_in_progress.jobs.append(job)

    def _finish_current_push(self) -> None:
        """Wait for pushes under way; a failed push is reported and does not stop training."""
        super()._finish_current_push()
        if self.push_in_progress is not None:
            for job in self.push_in_progress.jobs:
                if error := job.exception():
                    logger.warning(f"a push to {self.hub_model_id} failed; the checkpoint is in the folder: {error}")
            self.push_in_progress = None

    def _repository(self) -> str:
        assert self.hub_model_id is not None  # `init_hf_repo` has named it
        return self.hub_model_id

    def _known(self, options: dict) -> dict:
        """`options`, where a data set without a name is described by its length unless `data` says more."""
        facts = facts_of_run(self)
        if "data" in options or self.train_dataset is None or facts["training_data"]:
            return options
        rows = facts["training_items"]
        return {**options, "data": f"{rows:,} captioned images" if rows else "a stream of captioned images"}


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
