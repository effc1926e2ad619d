"""The `evaluate` metric: loads from its folder alone, gives the function's numbers, and its card's examples hold."""

import doctest
import os

import evaluate
import forked
import numpy as np
import pytest
import torch
from places import REPO

from modeling_gadms.person_retrieval.ranking import retrieval_metrics

FOLDER = REPO / "modeling_gadms" / "person_retrieval"


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("metric")))


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(40, 16, generator=generator), torch.randn(70, 16, generator=generator)
    return queries, gallery, torch.arange(40) % 7 + 2**60, torch.arange(70) % 7 + 2**60


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_metric_gives_the_numbers_of_the_function(metric, example, dtype):
    queries, gallery, query_ids, gallery_ids = example
    queries, gallery = queries.to(dtype), gallery.to(dtype)
    expected = retrieval_metrics(queries, gallery, query_ids, gallery_ids)
    kinds = (
        (queries, gallery, query_ids, gallery_ids),
        (x.numpy() for x in (queries, gallery, query_ids, gallery_ids)),
    )
    for q, g, q_ids, g_ids in kinds:
        assert metric.compute(predictions=q, references=q_ids, gallery_embeds=g, gallery_ids=g_ids) == expected


def test_queries_may_come_in_batches_and_options_reach_the_function(metric, example):
    queries, gallery, query_ids, gallery_ids = example
    gallery, query_ids = gallery.repeat(2, 1), query_ids.clone()
    query_ids[3] = 1
    gallery_ids = torch.cat([gallery_ids, gallery_ids.flip(0)])
    options = {"ties": "optimistic", "on_missing": "skip", "exclude": torch.rand(40, 140) < 0.2}
    for start in range(0, 40, 16):
        metric.add_batch(predictions=queries[start : start + 16], references=query_ids[start : start + 16])
    result = metric.compute(gallery_embeds=gallery, gallery_ids=gallery_ids, **options)
    assert result == retrieval_metrics(queries, gallery, query_ids, gallery_ids, **options)
    assert result["skipped"] == 1


def test_vectors_of_several_lengths_are_refused(metric):
    with pytest.raises(ValueError, match="vectors of 2 lengths, 1 to 2"):
        metric.compute(predictions=[[1.0, 0.0], [1.0]], references=[1, 1], gallery_embeds=[[1.0, 0]], gallery_ids=[1])


def test_metric_loads_from_elsewhere_without_the_package(tmp_path):
    script = f"""
import sys
sys.path = [path for path in sys.path if path not in ("", {str(REPO)!r})]
import evaluate
metric = evaluate.load({str(FOLDER)!r})
gallery = [[0.0, 1.0], [1.0, 1.0]]
print(metric.compute(predictions=[[1.0, 0.0]], references=[7], gallery_embeds=gallery, gallery_ids=[8, 7]))
assert not any(name.startswith("modeling_gadms") for name in sys.modules), "the metric needs the package"
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONPATH", None)
    done = forked.run(["-c", script], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str({"R@1": 100.0, "R@5": 100.0, "R@10": 100.0, "mAP": 100.0, "mINP": 100.0})


def test_examples_of_the_card_and_of_the_metric_hold(metric, monkeypatch):
    monkeypatch.chdir(REPO)
    result = doctest.testfile(str(FOLDER / "README.md"), module_relative=False)
    assert result.attempted >= 8 and not result.failed
    parsed = doctest.DocTestParser().get_doctest(metric.inputs_description, {"evaluate": evaluate}, "metric", None, 0)
    result = doctest.DocTestRunner().run(parsed)
    assert result.attempted == 2 and not result.failed


def test_only_queries_and_their_ids_pass_through_arrow(metric):
    assert set(metric.features) == {"predictions", "references"}
    assert np.dtype(metric.features["references"].dtype) == np.int64
