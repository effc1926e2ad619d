"""datatrove's executors do the work of a build: the same bytes as without them, requests to Slurm, Jobs of the Hub."""

import hashlib
import os
import re
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from caption_server import CaptionServer, serve
from made_up_persons import STUB_CROP, person_rows, stub_crop_shard, write_crops, write_source
from places import HELPERS, REPO
from test_construction_build import write_config
from test_construction_select import coyo

from dataset_webperson import build
from dataset_webperson.construction import shards
from dataset_webperson.construction.engine_options import EngineSection, JobsOptions, SlurmOptions
from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.shards import on_engine, run_missing, run_stage
from dataset_webperson.findings import DataError

pytest.importorskip("datatrove", reason="datatrove is not installed: pip install datatrove")


def engine_of(kind, work, num_workers, **options):
    from dataset_webperson.construction.engines import DatatroveEngine

    return DatatroveEngine(kind, str(work), num_workers, EngineSection(**options))


def contents(folder):
    """What a build leaves, but for what holds times, paths or the order in which a server answered."""
    files = {path.relative_to(folder): path for path in Path(folder).rglob("*") if path.is_file()}
    other = {"config.yaml", "opted_out.json", "release.json", "build.lock", "statistics", "caption_cache"}
    return {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if not other & {*name.parts}
    }


def test_two_workers_of_datatrove_leave_the_bytes_of_the_build_without_an_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "crop_shard", stub_crop_shard)
    monkeypatch.setattr(shards, "FEW_PARTS", 0)  # short parts go to the engine too, as those of many shards do
    source = tmp_path / "source"
    write_source(source, shards=2, images=2, copies=1)
    (tmp_path / "list.txt").write_text("domain:site2.org\n")
    for number in range(2):
        coyo(tmp_path / "coyo" / f"{number:05d}.parquet", 60, number, 1_000 * number)
    with serve(CaptionServer()) as server:
        for name, engine in (("alone", []), ("datatrove", ["--engine", "local"])):
            (tmp_path / name).mkdir()
            changes = {"source": str(source), "select": {"metadata": str(tmp_path / "coyo")}}
            changes |= {"opt_out": str(tmp_path / "list.txt"), "quality": {"max_same_caption": 50}}
            config = write_config(tmp_path / name, server.url, num_workers=1 + len(engine) // 2, **changes)
            assert build.main([config, *engine]) == 0
    alone = contents(tmp_path / "alone")
    assert contents(tmp_path / "datatrove") == alone
    for name in ("0_urls/00001", "2_dedup/00000", "4_quality/00001"):
        assert f"work/{name}.parquet" in alone
    assert "work/report.html" in alone and "out/README.md" in alone


def which_gpu(source, target, options):
    Path(target).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(0.5)  # so that one process does not do it all


def test_each_worker_of_this_machine_takes_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    targets = [str(tmp_path / name) for name in "ab"]
    with on_engine(engine_of("local", tmp_path, 2)):
        run_missing(which_gpu, [(target, target) for target in targets], None, 2, "gpus")
    assert sorted(Path(target).read_text() for target in targets) == ["4", "7"]


def test_a_few_short_parts_are_done_here_and_many_by_the_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    asked: list[int] = []

    def engine(part, pairs, options, name):
        asked.append(len(pairs))
        return iter(())

    targets = [str(tmp_path / f"{number}") for number in range(shards.FEW_PARTS + 1)]
    pairs = [(target, target) for target in targets]
    with on_engine(engine):
        run_missing(which_gpu, pairs[1:], None, 2, "few", short=True)
        run_missing(which_gpu, pairs[:1], None, 2, "long")
        run_missing(which_gpu, [(f"{name}x", f"{name}x") for name in targets], None, 2, "many", short=True)
    assert asked == [1, shards.FEW_PARTS + 1] and len(list(tmp_path.iterdir())) == shards.FEW_PARTS


def refuse(source, target, options):
    raise DataError(f"{source}: cannot be used; mend it")


def forget(source, target, options):
    pass


def test_a_mistake_in_a_task_is_one_line_and_a_shard_that_is_not_made_is_named(tmp_path):
    with on_engine(engine_of("local", tmp_path, 1)):
        with pytest.raises(DataError, match=r"^a.tar: cannot be used; mend it$"):
            run_missing(refuse, [("a.tar", str(tmp_path / "a"))], None, 1, "refused")
        with pytest.raises(DataError, match="1 of 1 shards of `1_crop` were not made; its logs are here"):
            run_stage(forget, ["a.tar"], str(tmp_path / "1_crop"), {})


def test_rows_are_opted_out_of_finished_shards_on_an_engine_too(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_FEW", 0)
    rows = person_rows(20, seed=0)
    paths = write_crops(tmp_path / "1_crop", rows, 2)
    with on_engine(engine_of("local", tmp_path, 1)):
        shards.recheck(paths, str(tmp_path / "1_crop"), OptOut(domains=["site1.org"]), 1)
    left = {row["url"] for path in paths for row in shards.read_rows(path)}
    assert left == {row["url"] for row in rows if "site1.org" not in row["url"]} and 0 < len(left) < 20
    assert sorted(path.name for path in (tmp_path / "1_crop").iterdir()) == [
        "00000.parquet",
        "00001.parquet",
        "opted_out.json",
    ]


def script(path, text):
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of commands in the place of Slurm's; a script that is submitted stays there and is run."""
    place = tmp_path / "slurm"
    place.mkdir()
    script(place / "srun", 'while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done; exec "$@"\n')
    script(place / "scontrol", "echo localhost\n")
    script(
        place / "sbatch",
        'while [[ $1 == --* ]]; do shift; done\ncount=$(ls "$(dirname "$0")" | grep -c "job-[0-9]*$")\n'
        'job="$(dirname "$0")/job-$count"\ncp "$1" "$job"\n'
        "last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' \"$job\")\n"
        'for task in $(seq 0 "$last"); do\n'
        '  SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=7 SLURM_NODELIST=localhost bash "$job" &>> "$job.out" || exit 1\n'
        'done\necho "Submitted batch job 7"\n',
    )
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{HELPERS}:{Path(__file__).parent}:{REPO}")
    return place


def test_slurm_is_asked_for_gpus_and_memory_and_makes_the_same_shards(tmp_path, slurm):
    sources = write_source(tmp_path / "source", shards=1, images=2, copies=0)
    options = SlurmOptions("cpu", "gpu", "3:00:00", cpus=6, memory_per_cpu=5, gpus=1, sbatch={"account": "persons"})
    counts = run_stage(stub_crop_shard, sources, str(tmp_path / "alone" / "1_crop"), STUB_CROP)
    with on_engine(engine_of("slurm", tmp_path / "work", 1, slurm=options)):
        assert run_stage(stub_crop_shard, sources, str(tmp_path / "work" / "1_crop"), STUB_CROP) == counts
        with pytest.raises(DataError, match=r"^a.tar: cannot be used; mend it$"):
            run_missing(refuse, [("a.tar", str(tmp_path / "a"))], None, 1, "dedup: keys")
    assert contents(tmp_path / "work" / "1_crop") == contents(tmp_path / "alone" / "1_crop")
    asked = [dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (slurm / f"job-{n}").read_text(), re.M)) for n in (0, 1)]
    wanted = {"cpus-per-task": "6", "mem-per-cpu": "5G", "time": "3:00:00", "account": "persons", "wait": ""}
    assert all(wanted.items() <= one.items() for one in asked)
    assert (asked[0]["partition"], asked[0]["gpus"], asked[0]["array"]) == ("gpu", "1", "0-0%1")
    assert asked[1]["partition"] == "cpu" and "gpus" not in asked[1]


def test_jobs_of_the_hub_get_the_bucket_and_the_hardware_of_the_stage(tmp_path, monkeypatch):
    import dill
    import fsspec
    import huggingface_hub
    from datatrove.executor import jobs

    asked = []

    def run_uv_job(launcher, script_args, env, **settings):
        asked.append(settings)
        with monkeypatch.context() as inside, fsspec.open(script_args[0], "rb") as file:
            for name, value in env.items():
                inside.setenv(name, value)
            dill.load(file).run()
        return SimpleNamespace(id=str(len(asked)), url="")

    done = SimpleNamespace(status=SimpleNamespace(stage="COMPLETED"))
    monkeypatch.setattr(huggingface_hub, "run_uv_job", run_uv_job)
    monkeypatch.setattr(huggingface_hub, "inspect_job", lambda **_: done)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_made_up")
    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=lambda seconds: None))
    options = JobsOptions("me/webperson", str(tmp_path), ("gadms[construction,scale]",), logs="memory://logs")
    sources = write_source(tmp_path / "source", shards=2, images=2, copies=0)
    counts = run_stage(stub_crop_shard, sources, str(tmp_path / "alone" / "1_crop"), STUB_CROP)
    with on_engine(engine_of("jobs", tmp_path / "work", 2, jobs=options)):
        assert run_stage(stub_crop_shard, sources, str(tmp_path / "work" / "1_crop"), STUB_CROP) == counts
    assert contents(tmp_path / "work" / "1_crop") == contents(tmp_path / "alone" / "1_crop")
    assert [(one["flavor"], one["dependencies"]) for one in asked] == 2 * [("l4x1", ["gadms[construction,scale]"])]
    (volume,) = asked[0]["volumes"]
    assert (volume.type, volume.source, volume.mount_path) == ("bucket", "me/webperson", str(tmp_path))


def test_an_engine_without_what_it_needs_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path, "http://127.0.0.1:9/v1")
    assert build.main([config, "--engine", "slurm"]) == 2
    assert "no section `engine: {slurm: ...}`" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no command `sbatch` here; build on a login node"):
        engine_of("slurm", tmp_path, 1, slurm=SlurmOptions("cpu"))
    with pytest.raises(DataError, match="not below `engine.jobs.mount`"):
        engine_of("jobs", tmp_path, 1, jobs=JobsOptions("me/a", "/mnt", ()))
    for wrong in (lambda: SlurmOptions("cpu", gpus=-1), lambda: JobsOptions("me", "/mnt", ())):
        with pytest.raises(ValueError, match="not"):
            wrong()
