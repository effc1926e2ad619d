"""What a configuration says of the engines that `--engine` names; see `engines`."""

from dataclasses import dataclass, field

ENGINES = ("local", "slurm", "jobs")


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of Slurm for each task. A value that makes no sense raises `ValueError`.

    Args:
        partition: for the stages that need no GPU.
        gpu_partition: for those that do (crop, embeddings, quality); "" for the same.
        time: limit of a task; what it has not done then, the next run of the command does.
        cpus: of a task.
        memory_per_cpu: in GB.
        gpus: of a task that needs any; 0 where models run on processors.
        qos: quality of service; "" for the cluster's own.
        setup: lines of shell before a task, such as `module load python`. By default the Python of this command is
            put first on the PATH.
        sbatch: further options, as `{account: persons}`.
    """

    partition: str
    gpu_partition: str = ""
    time: str = "20:00:00"
    cpus: int = 4
    memory_per_cpu: int = 4
    gpus: int = 1
    qos: str = ""
    setup: str = ""
    sbatch: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.memory_per_cpu < 1 or self.gpus < 0:
            raise ValueError(
                f"cpus and memory_per_cpu must be at least 1 and gpus at least 0, not {self.cpus}, "
                f"{self.memory_per_cpu} and {self.gpus}"
            )


@dataclass(frozen=True)
class JobsOptions:
    """What is asked of the Hub for each Job. A value that makes no sense raises `ValueError`.

    Args:
        bucket: of the Hub, `OWNER/NAME`. `source`, `work` and `release.out` lie in it.
        mount: where the bucket is mounted, both here and in every Job.
        dependencies: what pip installs in a Job: this package with its extras, and datatrove.
        flavor: hardware for the stages that need no GPU.
        gpu_flavor: hardware for those that do.
        image: of a Job; it must have `uv`. By default the Hub's.
        timeout: of a Job.
        logs: remote folder in which datatrove keeps its records; "" for `engine` in the bucket.
    """

    bucket: str
    mount: str
    dependencies: tuple[str, ...]
    flavor: str = "cpu-upgrade"
    gpu_flavor: str = "l4x1"
    image: str | None = None
    timeout: str = "12h"
    logs: str = ""

    def __post_init__(self) -> None:
        if self.bucket.count("/") != 1 or not self.mount.startswith("/"):
            raise ValueError(
                f"bucket is OWNER/NAME and mount an absolute path, not {self.bucket!r} and {self.mount!r}"
            )


@dataclass(frozen=True)
class EngineSection:
    """A section for each engine that needs one; `--engine local` does not."""

    slurm: SlurmOptions | None = None
    jobs: JobsOptions | None = None
