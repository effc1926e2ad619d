"""What `datasets` must hash to find its caches again: every class that ships, as remote code, in two processes."""

import functools
import json
import os
import subprocess
import sys

import datasets
import forked
from tiny import save_published

HASHES = """
import json, sys
sys.modules["modeling_gadms"] = None
from datasets import load_dataset
from datasets.fingerprint import Hasher
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor


def main(folder, rows, cache):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    models = [kind.from_pretrained(folder, trust_remote_code=True) for kind in (AutoModel, AutoModelForPreTraining)]
    kept = [processor, processor.tokenizer, processor.image_processor, *models, models[0].config]
    hashes = {type(each).__name__: [Hasher.hash(each), Hasher.hash(type(each))] for each in kept}

    def encode(batch):
        return processor.tokenizer(batch["caption1"], truncation=True, padding=True)

    table = load_dataset("parquet", data_files=rows, split="train", cache_dir=cache)
    table = table.map(encode, batched=True)
    print(json.dumps({"hashes": hashes, "fingerprint": table._fingerprint, "files": table.cache_files}))


main(*sys.argv[1:])
"""


def test_every_shipped_class_hashes_alike_in_two_processes_so_that_map_finds_its_cache(tmp_path):
    save_published(tmp_path / "published")
    rows = str(tmp_path / "rows.parquet")
    datasets.Dataset.from_dict({"caption1": ["a red coat", "a person in blue trousers"] * 4}).to_parquet(rows)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "hashes.py").write_text(HASHES)  # whose name is in the code that is hashed
    command = [str(tmp_path / name) for name in ("hashes.py", "published", "rows.parquet", "cache")]
    found, written = [], []
    # forks of one process share the seed of its sets, so that one of the two is started by itself
    started = functools.partial(subprocess.run, [sys.executable, "-I", *command], capture_output=True, text=True)
    for begin in (started, functools.partial(forked.run, command)):
        run = begin(cwd=tmp_path, env=environment)
        assert run.returncode == 0, run.stderr[-2000:]
        found.append(json.loads(run.stdout.splitlines()[-1]))
        written.append([os.stat(file["filename"]).st_mtime_ns for file in found[-1]["files"]])
    assert found[0] == found[1] and len(found[0]["hashes"]) == 6
    assert written[0] == written[1], "the second process read what the first had written"
