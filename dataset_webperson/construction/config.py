"""The description of a construction: one YAML file with a section per stage and every threshold in it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import yaml

from ..findings import DataError
from ..release import ReleaseSettings
from ..release_card import Made
from ..release_shards import ROW_GROUP_ROWS, ROWS_PER_SHARD, Layout
from ..rows.preparation import RowOptions
from .engine_options import EngineSection
from .source_scan import ON_BAD_SHARD
from .stages.captioning import CaptionOptions
from .stages.crop import CropOptions
from .stages.duplicates import DedupOptions
from .stages.quality import QualityOptions
from .stages.select_urls import SelectOptions
from .typed_yaml import fill


@dataclass(frozen=True)
class ReleaseSection:
    """The folder for the Hub; see `python -m dataset_webperson.release --help`."""

    out: str
    contact: str
    repository: str = "org/webperson"
    licence: str = "cc-by-4.0"
    provenance: str | None = None
    rows_per_shard: int = ROWS_PER_SHARD
    row_group_rows: int = ROW_GROUP_ROWS

    def __post_init__(self) -> None:
        self.settings()  # a value that makes no sense is an error now, not after every caption

    def settings(
        self, num_workers: int = 1, made: Made | None = None, removed: Mapping[str, str] | None = None
    ) -> ReleaseSettings:
        return ReleaseSettings(
            contact=self.contact,
            repository=self.repository,
            licence=self.licence,
            provenance=self.provenance,
            source_format="parquet",
            rows=RowOptions(on_bad_images="warn", only_jpeg=True),
            layout=Layout(self.rows_per_shard, self.row_group_rows),
            num_workers=num_workers,
            made=made or Made(),
            removed=removed or {},
        )


@dataclass(frozen=True)
class BuildConfig:
    """A construction.

    Args:
        source: folder of images: the output of img2dataset, tars, or plain files.
        work: folder for the stages' shards; created if it does not exist.
        num_workers: number of processes, or of tasks at a time on an engine.
        on_bad_shard: what becomes of a cut or empty tar, and of files whose name or address is no text: "error" stops
            before anything is paid for, "skip" leaves them out. Either way `work/rejected.parquet` lists every file
            that is not taken, with its reason.
        opt_out: file with an opt-out list, used by every stage.
        select: rules for COYO's metadata; without them the images must already be in `source`.
        crop, dedup, caption, quality, release: the stages. Without `caption` the work ends after `dedup`; without
            `quality` or `release` it ends after the stage before.
        engine: what `--engine slurm` and `--engine jobs` are to ask for.
    """

    source: str
    work: str
    num_workers: int = 1
    on_bad_shard: str = "error"
    opt_out: str | None = None
    select: SelectOptions | None = None
    crop: CropOptions = field(default_factory=CropOptions)
    dedup: DedupOptions = field(default_factory=DedupOptions)
    caption: CaptionOptions | None = None
    quality: QualityOptions | None = None
    release: ReleaseSection | None = None
    engine: EngineSection = field(default_factory=EngineSection)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {self.num_workers}")
        if self.on_bad_shard not in ON_BAD_SHARD:
            raise ValueError(f"on_bad_shard is one of {', '.join(ON_BAD_SHARD)}, not {self.on_bad_shard!r}")
        for later, earlier in (("quality", "caption"), ("release", "quality")):
            if getattr(self, later) is not None and getattr(self, earlier) is None:
                raise ValueError(f"a section `{later}` needs a section `{earlier}`")

    def resolved(self) -> "BuildConfig":
        """A copy with the paths that follow from others filled in: opt-out lists, plans of `dedup` and `quality`."""
        select, crop = self.select, self.crop
        if self.opt_out:
            select, crop = select and replace(select, opt_out=self.opt_out), replace(crop, opt_out=self.opt_out)
        plan = os.path.join(self.work, "2_dedup", "plan")
        quality = self.quality and replace(self.quality, plan=os.path.join(self.work, "4_quality", "plan"))
        return replace(self, select=select, crop=crop, dedup=replace(self.dedup, plan=plan), quality=quality)


def read_config(path: str | os.PathLike) -> BuildConfig:
    """Read a construction from YAML.

    Raises:
        `DataError`: no such file, not YAML, an unknown name, a missing one, or a value that makes no sense.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{name}: cannot be read ({error})") from error
    config: BuildConfig = fill(BuildConfig, values, name)
    return config
