"""The stages on datatrove's executors, for work that one machine is too small for: Slurm, Ray, or local processes.

    from datatrove.executor import SlurmPipelineExecutor
    step = ShardStep(crop_shard, sources, "work/1_crop", options)
    SlurmPipelineExecutor([step], tasks=len(sources), time="20:00:00", partition="gpu", logging_dir="logs/crop").run()

Functions, files and bytes are those of the local pool, `shards.run_stage`: work begun with one can be finished with
the other. Needs `pip install datatrove`. Its log folder also records which tasks are done, so delete that folder to
have missing shards looked for again. All machines must see the same folders.
"""

import os
from collections.abc import Iterable
from typing import Any

from .opt_out import OptOut
from .shards import Stage, begin_stage, remove_opted_out, shard_targets

try:
    from datatrove.pipeline.base import PipelineStep
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"datatrove is missing ({error.name}): pip install datatrove") from error


class ShardStep(PipelineStep):
    """One stage as a step of a datatrove pipeline. Task `rank` of `world_size` takes every `world_size`-th source.

    Args:
        stage: a function `stage(source, target, options)`.
        sources: input shards.
        folder: where the outputs go.
        options: the stage's dataclass.
        opt_out: rows that it excludes are removed from old and new shards.

    Raises:
        `DataError`: the folder was begun with other options.
    """

    type = "WebPerson"
    name = "shards"

    def __init__(self, stage: Stage, sources: list[str], folder: str, options: Any, opt_out: OptOut | None = None):
        super().__init__()
        self.stage, self.options, self.opt_out = stage, options, opt_out
        self.targets = sorted(shard_targets(sources, folder).items())
        begin_stage(folder, options)  # once, here, not in the tasks: it removes half-written files

    def run(self, data: Iterable | None = None, rank: int = 0, world_size: int = 1) -> Iterable:
        for source, target in self.targets[rank::world_size]:
            if not os.path.exists(target):
                for name, count in self.stage(source, target, self.options).items():
                    self.stat_update(name, value=count)
            if self.opt_out:
                remove_opted_out(target, self.opt_out)
        yield from data or ()
