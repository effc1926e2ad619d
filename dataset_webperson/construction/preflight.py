"""What is checked before the first stage: everything that a configuration names, so that no fault shows later."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib import resources

from ..files import file_size
from ..findings import DataError
from .captions.client import Captioner, CaptionServerError, served_models
from .captions.templates import load_templates
from .config import BuildConfig
from .opt_out import OptOut
from .persons.detectors import open_models
from .persons.nsfw import open_classifier
from .stages.captioning import CaptionOptions
from .stages.embedding_duplicates import open_embedder
from .stages.quality import open_scorer
from .stages.repair import open_repairer


def check_files(config: BuildConfig) -> None:
    """Read every small file that the configuration names.

    Raises:
        `DataError`: one is missing, or not what it should be.
    """
    if config.opt_out:
        OptOut.from_file(config.opt_out)
    if config.crop.robots and not os.path.isdir(config.crop.robots.folder):
        raise DataError(f"{config.crop.robots.folder}: no such folder; check `crop.robots.folder`")
    if config.caption:
        load_templates(config.caption.templates or None)
    if config.release:
        told = config.release.settings().about()["provenance"]
        paper = resources.files("dataset_webperson").joinpath("release_files", "provenance.md")
        if told and told == paper.read_text(encoding="utf-8").strip():
            raise DataError(
                f"{config.release.provenance}: says how the paper's data was made, not this; write what this "
                "configuration does not say, or leave `release.provenance` out"
            )


def check_captioners(options: CaptionOptions) -> None:
    """Ask both servers for their models.

    Raises:
        CaptionServerError: a server cannot be reached, refuses the key, or has no such model.
    """
    for captioner in (options.captioner1, options.captioner2):
        for address in captioner.addresses:
            _check_model(captioner, address, served_models(captioner, address))


def _check_model(captioner: Captioner, address: str, served: list[str]) -> None:
    # Ollama names a model with its tag, and takes it without.
    if served and captioner.model not in {name for full in served for name in (full, full.partition(":")[0])}:
        shown = ", ".join(served[:5]) + (", ..." if len(served) > 5 else "")
        raise CaptionServerError(f"{address}: no model {captioner.model!r}; it has {shown}")


def check_embedder(config: BuildConfig) -> None:
    """Load the model that finds near-duplicates, once. Raises `DataError`."""
    if embedding := config.dedup.embedding:
        _try(lambda: open_embedder(embedding.model, embedding.revision), embedding.model, "dedup.embedding.model")


def check_nsfw_model(config: BuildConfig) -> None:
    """Load the model that looks for unsafe pictures, once. Raises `DataError`."""
    if nsfw := config.crop.nsfw:
        _try(lambda: open_classifier(nsfw), nsfw.model, "crop.nsfw.model")


def check_quality_model(config: BuildConfig) -> None:
    """Load the model that scores captions, and the reader that repairs them, once. Raises `DataError`."""
    if (quality := config.quality) and quality.model:
        _try(lambda: open_scorer(quality.model), quality.model, "quality.model")
        if quality.reader:
            options = (quality.model, quality.reader, quality.families)
            _try(lambda: open_repairer(*options), quality.reader, "quality.reader")


def _try(load: Callable[[], object], model: str, option: str) -> None:
    try:
        load()
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{model}: `{option}` cannot be opened ({reason})") from error


def forget_models() -> None:
    """Give back the memory of the models that were loaded here, where others do the work."""
    for opened in (open_models, open_classifier, open_embedder, open_scorer, open_repairer):
        opened.cache_clear()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_disk(work: str, needed: int) -> None:
    """Raises `DataError` if the disk of `work` has less than `needed` bytes."""
    free = shutil.disk_usage(work).free
    if needed > free:
        raise DataError(
            f"{os.path.abspath(work)}: {file_size(free)} are free, and this construction is estimated to need "
            f"{file_size(needed)}; make room, or set `work` to a folder on a larger disk"
        )
