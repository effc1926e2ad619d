"""A gallery of a Hub model asks by the revision that made it, whatever has been pushed since."""

import forked
from hub_server import Repository, environment, running_hub
from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.settings import change_settings

ASK = """
from modeling_gadms.gallery import Gallery
print(*[hit.id for hit in Gallery.open("people").search("a red coat", k=3)])
"""


def saved(folder, processor, seed):
    tiny_model(vocab_size=len(processor.tokenizer), seed=seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_model_is_loaded_at_its_recorded_revision(tmp_path):
    processor = tiny_processor()
    first, second = (saved(tmp_path / f"model_{seed}", processor, seed) for seed in (0, 1))
    assert first["model.safetensors"] != second["model.safetensors"]
    gallery = Gallery.create(tmp_path / "people", str(tmp_path / "model_0"))
    gallery.add([row["image"] for row in tiny_rows(8)])
    with running_hub() as hub:
        hub.repositories["models", "org/search"] = repository = Repository()
        revision = repository.commit("main", first, "first")
        repository.commit("main", second, "second")
        change_settings(gallery.path, model={**gallery.model_facts, "id": "org/search", "revision": revision})
        done = forked.run(["-c", ASK], env=environment(hub.endpoint, tmp_path / "home"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hit.id for hit in gallery.search("a red coat", k=3)]
