"""`examples/publish.py` against a Hub: models, data sets in parts and after a break, the metric as a Space."""

import json
import shutil
import signal
import threading

import forked
import pytest
import torch
from hub_server import TOKEN, environment, running_hub
from made_up_webperson import write_images
from places import REPO
from safetensors.torch import save_file
from tiny import tiny_model, tiny_processor

from dataset_webperson.release import main as release
from modeling_gadms.hub.listings import DATASET, METRICS, MODEL, TRAINING_STATE

FIGURES = {f"{way}_{name}": 50.0 for way in ("t2i", "i2t") for name in ("R@1", "R@5", "R@10", "mAP", "mINP")}


def start(hub, cache, *arguments, token=TOKEN):
    return forked.start([REPO / "examples" / "publish.py", *arguments], env=environment(hub.endpoint, cache, token))


def run(hub, cache, code, *arguments, token=None):
    process = forked.run(["-c", code, *arguments], env=environment(hub.endpoint, cache, token))
    assert process.returncode == 0, process.stderr[-3000:]
    assert TOKEN not in process.stdout + process.stderr and "hf_wrong" not in process.stdout
    return json.loads(process.stdout.splitlines()[-1])


def publish(hub, cache, *commands, token=TOKEN):
    """What each command line ends with, the commit or the error, from one process, as imports take longest."""
    code = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
from publish import main
results = []
for command in json.loads(sys.argv[2]):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(command)
    done = out.getvalue().partition("revision ")[2].split(",")[0].strip()
    results.append(errors.getvalue().splitlines()[-1] if code else done)
print(json.dumps(results))
"""
    commands = json.dumps([list(map(str, command)) for command in commands])
    return run(hub, cache, code, REPO / "examples", commands, token=token)


@pytest.fixture
def checkpoint(tmp_path):
    """As `examples/pretrain.py` leaves one, with other files beside it that must not be published."""
    folder = tmp_path / "run"
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    run = {"metrics": {"before": FIGURES, "after": FIGURES}, "test_images": 12, "seconds": 7200.0}
    run["arguments"] = {
        "dataset_name": "synthetic",
        "noise_rate": 0.3,
        "model_name_or_path": "openai/clip-vit-base-patch16",
    }
    (folder / "metrics.json").write_text(json.dumps(run))
    for name in ("training_args.bin", "optimizer.pt", ".env", "notes.txt", "retrievals.png", "token_cache.json"):
        (folder / name).write_bytes(b"x")
    state = folder / "checkpoint-3"
    state.mkdir()
    (state / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for name in (
        "trainer_state.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "secret.txt",
    ):
        (state / name).write_bytes(b"y")
    return folder


def test_a_model_is_published_with_exactly_its_files_and_its_tag(checkpoint, tmp_path):
    with running_hub() as hub:
        model = ["model", checkpoint, "org/gadms"]
        first, again, branched = publish(
            hub,
            tmp_path / "cache",
            [*model, "--training_state", checkpoint / "checkpoint-3", "--tag", "v1"],
            [*model, "--tag", "v1"],
            [*model, "--branch", "try", "--licence", "mit", "--data", "`some/photographs`"],
        )
        repository = hub["models/org/gadms"]
        wanted = set(MODEL.files(checkpoint)) | {".gitattributes"}
        wanted |= {f"last-checkpoint/{name}" for name in TRAINING_STATE.files(checkpoint / "checkpoint-3")}
        assert set(repository.tree()) == wanted and "retrievals.png" in wanted
        assert not {path for path in wanted if path.endswith((".bin", ".env", ".txt")) or path == "optimizer.pt"}
        assert repository.tags == {"v1": first} and repository.branches["main"] == first
        card = repository.tree()["README.md"].decode()
        assert "![Descriptions" in card and "captions are false); no photographs" in card and "50.00" in card
        assert "base_model: openai/clip-vit-base-patch16" in card
        assert "has a tag v1" in again
        assert repository.branches["try"] == branched and b"license: mit" in repository.tree("try")["README.md"]


def test_pictures_of_persons_go_up_only_when_asked_for(checkpoint, tmp_path):
    run_facts = json.loads((checkpoint / "metrics.json").read_text())
    run_facts["arguments"]["dataset_name"] = "org/photographs"
    (checkpoint / "metrics.json").write_text(json.dumps(run_facts))
    with running_hub() as hub:
        model = ["model", checkpoint, "org/gadms"]
        shown, hidden = publish(hub, tmp_path / "cache", [*model, "--pictures_of_persons"], model)
        trees = hub["models/org/gadms"].trees
        assert "retrievals.png" in trees[shown] and "retrievals.png" not in trees[hidden]


def test_what_cannot_be_published_stops_before_anything_is_created(checkpoint, tmp_path):
    with running_hub() as hub:
        (refused,) = publish(hub, tmp_path / "cache", ["model", checkpoint, "org/gadms"], token="hf_wrong")
        assert "401" in refused
        tuned = checkpoint / "checkpoint-3"
        save_file({"classifier.weight": torch.zeros(3, 2)}, tuned / "model.safetensors")
        broken = shutil.copytree(checkpoint, tmp_path / "broken")
        (broken / "metrics.json").unlink()
        (broken / "tokenizer.json").unlink()
        (broken / "processor_config.json").unlink()
        classifier, unknown, incomplete, misnamed = publish(
            hub,
            tmp_path / "cache",
            ["model", checkpoint, "org/gadms", "--training_state", tuned],
            ["model", broken, "org/gadms"],
            ["model", broken, "org/gadms", "--data", "drawings"],
            ["metric", "org/metric"],
        )
        assert "holds a classifier of the training set's persons" in classifier
        assert "training data is not recorded" in unknown and "--data" in unknown
        assert "no processor_config.json, without which" in incomplete
        assert "only in a Space named person_retrieval or false_words" in misnamed
        assert not hub.repositories


@pytest.fixture
def released(tmp_path):
    source = write_images(tmp_path / "source", 23)
    options = ["--contact", "x@example.org", "--repository", "org/webperson", "--row_group_rows", "2"]
    assert (
        release(["--source", str(source), "--output_dir", str(tmp_path / "out"), "--rows_per_shard", "4", *options])
        == 0
    )
    return tmp_path / "out"


def test_a_data_set_continues_after_a_break_and_sends_nothing_twice(released, tmp_path):
    arguments = ["dataset", released, "org/webperson", "--shards_per_commit", "2", "--tag", "v1"]
    with running_hub() as hub:
        second, killed = threading.Event(), threading.Event()

        def watch(method, path):
            commits = [request for request in hub.requests if request.endswith("/webperson/commit/main")]
            if len(commits) == 2:
                second.set()
                killed.wait(300)
                raise ConnectionAbortedError  # the commit is never made, however late this thread goes on

        hub.watch = watch
        process = start(hub, tmp_path / "cache", *arguments)
        assert second.wait(300)
        process.send_signal(signal.SIGKILL)
        process.wait()
        hub.watch = None
        killed.set()
        repository = hub["datasets/org/webperson"]
        partial = set(repository.tree())
        assert (
            0 < len([path for path in partial if path.startswith(("captions/", "data/"))]) < 12
            and "README.md" not in partial
        )
        assert not repository.tags

        publish(hub, tmp_path / "cache", arguments)
        files = {path: (released / path).read_bytes() for path in DATASET.files(released)}
        assert len(files) == 14 and b"$" not in files["README.md"]
        assert {path: body for path, body in repository.tree().items() if path != ".gitattributes"} == files
        sent = [request for request in hub.requests if request.startswith("PUT")]
        assert len(sent) == len(set(sent)) == 13
        assert "README.md" not in repository.tree(repository.log[repository.branches["main"]][1][0])
        assert set(repository.tree("script")) >= {"README.md", "webperson.py"}


def test_a_new_revision_takes_old_shards_down_and_the_tag_keeps_them(released, tmp_path):
    code = """
import json, sys
from datasets import load_dataset
rows = [load_dataset("org/webperson", split="train", revision=revision) for revision in sys.argv[1:]]
print(json.dumps([len(part) for part in rows]))
"""
    with running_hub() as hub:
        dataset = ["dataset", released, "org/webperson"]
        publish(hub, tmp_path / "cache", [*dataset, "--tag", "v1"])
        (released / "data" / "train-00005-of-00006.parquet").unlink()  # as after a request to remove its rows
        commit, refused = publish(hub, tmp_path / "cache", dataset, [*dataset[:2], "org/another"])
        assert len([path for path in hub["datasets/org/webperson"].tree() if path.startswith("data/")]) == 5
        assert "is the card of another repository" in refused
        tree = hub["datasets/org/webperson"].trees
        readme = tree[commit]["README.md"].replace(b"num_examples: 23", b"num_examples: 20")
        tree[commit] = {**tree[commit], "README.md": readme}
        assert run(hub, tmp_path / "load", code, "v1", commit) == [23, 20]


def test_the_metrics_are_spaces_that_evaluate_loads(tmp_path):
    code = """
import json, evaluate
metric = evaluate.load("org/person_retrieval")
gallery = {"gallery_embeds": [[0.8, 0.6], [0.0, 1.0], [1.0, 0.1]], "gallery_ids": [7, 9, 8]}
found = [metric.compute(predictions=[[1.0, 0.0], [0.0, 1.0]], references=[7, 9], **gallery)]
words = [{"start": n, "end": n + 1, "attribute": "color", "is_false": n > 0} for n in range(2)]
found.append(evaluate.load("org/false_words").compute(predictions=[[0.1, 0.7]], references=[words])["AUROC"])
print(json.dumps(found))
"""
    with running_hub() as hub:
        publish(hub, tmp_path / "cache", *(["metric", f"org/{name}"] for name in METRICS))
        for name, listing in METRICS.items():
            tree = hub[f"spaces/org/{name}"].tree()
            assert set(tree) == {".gitattributes", *listing.required}
            assert b"./modeling_gadms" not in b"".join(tree.values())
        found = run(hub, tmp_path / "evaluate", code)
        assert found == [{"R@1": 50.0, "R@5": 100.0, "R@10": 100.0, "mAP": 75.0, "mINP": 75.0}, 1.0]
