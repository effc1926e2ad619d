"""The metric as a Space: loaded by its id from a Hub, alone, it gives the numbers of the function."""

import json

import forked
import torch
from hub_server import Repository, environment, running_hub
from places import REPO

from modeling_gadms.person_retrieval.ranking import retrieval_metrics

FOLDER = REPO / "modeling_gadms" / "person_retrieval"
SCRIPT = """
import json, sys
import evaluate

metric = evaluate.load("org/person_retrieval")
print(json.dumps(metric.compute(**json.load(open(sys.argv[1])))))
assert not any(name.startswith("modeling_gadms") for name in sys.modules), "the metric needs the package"
"""


def test_metric_of_a_space_gives_the_numbers_of_the_function(tmp_path):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(30, 8, generator=generator), torch.randn(50, 8, generator=generator)
    query_ids, gallery_ids = torch.arange(30) % 6, torch.arange(50) % 6
    inputs = {"predictions": queries, "references": query_ids, "gallery_embeds": gallery, "gallery_ids": gallery_ids}
    (tmp_path / "inputs.json").write_text(json.dumps({name: tensor.tolist() for name, tensor in inputs.items()}))
    with running_hub() as hub:
        hub.repositories["spaces", "org/person_retrieval"] = space = Repository()
        space.commit(
            "main", {file.name: file.read_bytes() for file in FOLDER.iterdir() if file.is_file()}, "the metric"
        )
        # by itself: outside the repository, without its path
        kept = environment(hub.endpoint, tmp_path / "home")
        kept.pop("PYTHONPATH", None)
        done = forked.run(["-c", SCRIPT, "inputs.json"], env=kept, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        asked = [request for request in hub.requests if request.endswith("/ranking.py")]
    assert json.loads(done.stdout) == retrieval_metrics(queries, gallery, query_ids, gallery_ids)
    assert asked, "what was loaded is not the Space's"
