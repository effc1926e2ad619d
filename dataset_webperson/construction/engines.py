"""The parts of a build on datatrove's executors: processes of this machine, Slurm, or Jobs of the Hub.

    python -m dataset_webperson.build CONFIG.yaml --engine local | slurm | jobs

The command stays where it is given: it hands out the parts of one stage after the other, waits for them, and goes on.
When it is ended, tasks that run already go on to their end; cancel them before the command is given again. Functions,
folders and bytes are those of `shards.run_stage` without an engine: what was begun with one is finished with another.

All machines must see the same folders under the same names. What datatrove writes lies in `WORK/engine` while a stage
runs, and stays there if it failed. Needs `pip install datatrove`.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..command_line import in_one_line, is_mistake
from ..files import write_text
from ..findings import DataError
from ..worker_processes import end_with_parent
from .engine_options import EngineSection, JobsOptions, SlurmOptions
from .progress import take_gpu
from .shards import Pairs, threads_for

try:
    import multiprocess
    from datatrove.executor import JobsPipelineExecutor, LocalPipelineExecutor, SlurmPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from loguru import logger
except ImportError as error:
    raise DataError(f"--engine needs datatrove 0.10 or newer ({error}): pip install --upgrade datatrove") from error

Part = Callable[[str, str, Any], Any]

# Stages that take long, so that each task gets few shards, and those of them that run a model.
_LONG = ("1_crop", "embeddings", "3_caption", "4_quality")
_WITH_MODELS = ("1_crop", "embeddings", "4_quality")
_MOST_TASKS = 1_000  # Slurm's own limit for an array is 1,001
_FOR_WORKERS = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
_LOOK_S = 0.2
_SETTLE_S = 90  # until files of another machine must be seen here; NFS keeps what it knows of a folder for a minute

# Its log would stand between the lines and bars of the build; errors end the command or lie in `WORK/engine`.
logger.disable("datatrove")


class PartStep(PipelineStep):
    """Some shards of a stage as a step of a pipeline: task `rank` of `world_size` takes every `world_size`-th pair.

    A user's mistake ends the task and is left in the folder of mistakes, for the command to tell; other tasks then
    begin nothing more.

    Args:
        part: `part(source, target, options)`.
        pairs: of sources and targets.
        options: the stage's dataclass.
        folder: of mistakes.
        num_workers: processes that share this machine's GPUs; 1 leaves the choice of a GPU to others.
    """

    type = "WebPerson"
    name = "shards"

    def __init__(self, part: Part, pairs: Pairs, options: Any, folder: str, num_workers: int = 1):
        super().__init__()
        self.part, self.pairs, self.options, self.folder = part, pairs, options, folder
        self.num_workers = num_workers
        self.environment = {name: os.environ[name] for name in _FOR_WORKERS if name in os.environ}

    def run(self, data: Iterable | None = None, rank: int = 0, world_size: int = 1) -> Iterable:
        if self.num_workers > 1:
            _begin_worker(self.folder, self.environment)
        for source, target in self.pairs[rank::world_size]:
            if _mistakes(self.folder):
                break
            if os.path.exists(target):
                continue
            try:
                self.part(source, target, self.options)
            except Exception as error:
                if not is_mistake(error):
                    raise
                write_text(os.path.join(self.folder, f"{rank:05d}.txt"), in_one_line(error))
        yield from data or ()


_begun: set[str] = set()


def _begin_worker(folder: str, environment: dict[str, str]) -> None:
    """Once in each process of a pool: a GPU of its own, a share of the cores, and an end when the command is gone."""
    if folder in _begun:
        return
    _begun.add(folder)
    os.environ.update(environment)  # the server of these processes has that of the time at which it began
    number = 0
    while True:  # the first number that no other process has taken
        try:
            os.close(os.open(os.path.join(folder, f"worker-{number}"), os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            number += 1
    take_gpu(number)
    end_with_parent(multiprocess.parent_process())


def _mistakes(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".txt")]


class _Slurm(SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Counts lie in the shards: nothing to merge, and no further job to wait for."""


class _Jobs(JobsPipelineExecutor):
    """Jobs with the bucket mounted, which datatrove has no option for."""

    def __init__(self, pipeline: list, options: JobsOptions, **settings: Any):
        super().__init__(pipeline, dependencies=list(options.dependencies), image=options.image, **settings)
        self.options = options

    def _submit_array_index(self, array_index: int, pik_path: str, token: str) -> str:
        from datatrove.executor.jobs import ARRAY_INDEX_ENV_VAR
        from datatrove.tools import launch_pickled_pipeline
        from huggingface_hub import Volume, run_uv_job

        job = run_uv_job(
            launch_pickled_pipeline.__file__,
            script_args=[pik_path],
            dependencies=self.dependencies,
            python=self.python,
            image=self.image,
            env={ARRAY_INDEX_ENV_VAR: str(array_index), "PYTHONUNBUFFERED": "1"},
            secrets={"HF_TOKEN": token},
            flavor=self.flavor,
            timeout=self.timeout,
            labels={"webperson": self.job_name},
            volumes=[Volume(type="bucket", source=self.options.bucket, mount_path=self.options.mount)],
            token=token,
        )
        return job.id


@dataclass(frozen=True)
class DatatroveEngine:
    """An engine for `shards.on_engine`.

    Args:
        kind: one of `engine_options.ENGINES`.
        work: folder of the build.
        num_workers: tasks at a time.
        options: of the engines.

    Raises:
        `DataError`: when it works: a user's mistake in a task, or tasks that ended without their shards.
    """

    kind: str
    work: str
    num_workers: int
    options: EngineSection

    def __post_init__(self) -> None:
        if self.kind != "local" and getattr(self.options, self.kind) is None:
            raise DataError(f"--engine {self.kind}: the configuration has no section `engine: {{{self.kind}: ...}}`")
        if self.kind == "slurm" and not shutil.which("sbatch"):
            raise DataError("--engine slurm: no command `sbatch` here; build on a login node of the cluster")
        if self.kind == "jobs" and (jobs := self.options.jobs):
            if os.path.commonpath([os.path.realpath(self.work), jobs.mount]) != jobs.mount:
                raise DataError(
                    f"{self.work}: not below `engine.jobs.mount`, {jobs.mount}, where Jobs can write to it"
                )

    def __call__(self, part: Part, pairs: Pairs, options: Any, name: str) -> Iterator[str]:
        plain = re.sub(r"\W+", "-", name)
        # A folder of its own: tasks of an earlier command may still run, and datatrove would take theirs for done.
        folder = os.path.join(os.path.abspath(self.work), "engine", f"{plain}-{uuid.uuid4().hex[:8]}")
        told = os.path.join(folder, "mistakes")
        os.makedirs(told)
        tasks = min(len(pairs), _MOST_TASKS if name in _LONG else self.num_workers)
        workers = min(self.num_workers, tasks)
        with threads_for(workers):
            step = PartStep(part, pairs, options, told, workers if self.kind == "local" else 1)
        executor = self._executor(step, tasks, workers, plain, os.path.join(folder, "logs"), name in _WITH_MODELS)
        waiting = {target for _, target in pairs}
        # A daemon: who interrupts the command need not wait for a pool whose processes were interrupted with it.
        errors: list[BaseException] = []
        thread = threading.Thread(target=_run, args=(executor, errors), daemon=True)
        thread.start()
        while waiting:
            over = not thread.is_alive()  # asked before the files are looked for, so that none is missed
            if over and self.kind != "local" and not errors and not _mistakes(told):
                _settle(waiting)
            for target in sorted(filter(os.path.exists, waiting)):
                waiting.remove(target)
                yield target
            if over:
                break
            thread.join(_LOOK_S)
        thread.join()
        failed = errors[0] if errors else None
        if mistakes := _mistakes(told):
            with open(mistakes[0], encoding="utf-8") as file:
                raise DataError(file.read())
        if isinstance(failed, subprocess.CalledProcessError | OSError) or (waiting and not failed):
            why = f" ({failed})" if failed else ""
            raise DataError(
                f"{folder}: {len(waiting)} of {len(pairs)} shards of `{name}` were not made{why}; its logs are here. "
                "Give the command again: finished shards are kept"
            )
        if failed:
            raise failed
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # another stage's, which failed, may lie beside it
            os.rmdir(os.path.dirname(folder))

    def _executor(self, step: PartStep, tasks: int, workers: int, name: str, logs: str, with_models: bool) -> Any:
        if self.kind == "slurm" and self.options.slurm:
            return _slurm(self.options.slurm, step, tasks, workers, name, logs, with_models)
        if self.kind == "jobs" and (jobs := self.options.jobs):
            return _Jobs(
                [step],
                jobs,
                tasks=tasks,
                workers=workers,
                flavor=jobs.gpu_flavor if with_models else jobs.flavor,
                timeout=jobs.timeout,
                logging_dir=f"{jobs.logs or f'hf://buckets/{jobs.bucket}/engine'}/{os.path.basename(os.path.dirname(logs))}",
                job_name=name,
            )
        # Their processes come from one server that has imported this: each starts at once.
        multiprocess.set_forkserver_preload([__name__, "dataset_webperson.build", "openai"])
        return LocalPipelineExecutor([step], tasks=tasks, workers=workers, logging_dir=logs)


def _run(executor: Any, errors: list[BaseException]) -> None:
    try:
        executor.run()
    except BaseException as error:  # told where it is waited for
        errors.append(error)


def _settle(waiting: set[str]) -> None:
    """Wait for files of other machines to be seen here, a while."""
    end = time.monotonic() + _SETTLE_S
    while not all(map(os.path.exists, waiting)) and time.monotonic() < end:
        time.sleep(_LOOK_S)


def _slurm(
    options: SlurmOptions, step: PartStep, tasks: int, workers: int, name: str, logs: str, with_models: bool
) -> SlurmPipelineExecutor:
    setup = options.setup or f'export PATH="{os.path.dirname(sys.executable)}:$PATH"'
    return _Slurm(
        [step],
        tasks=tasks,
        workers=workers,
        time=options.time,
        partition=(with_models and options.gpu_partition) or options.partition,
        cpus_per_task=options.cpus,
        mem_per_cpu_gb=options.memory_per_cpu,
        gpus_per_task=options.gpus if with_models else 0,
        job_name=name,
        qos=options.qos,
        env_command=f"{setup}\nexport OMP_NUM_THREADS={options.cpus}",
        sbatch_args={"wait": "", **options.sbatch},  # `sbatch` returns when all tasks have ended
        logging_dir=logs,
        requeue=False,  # a task that was ended is begun again by the next command
    )
