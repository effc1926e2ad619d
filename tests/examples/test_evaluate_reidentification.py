"""Re-identification by the image tower against loops that were written from its rules, before any other code."""

import importlib.util
import json
import random
import warnings

import numpy as np
import pytest
import torch
import yaml
from made_up_reidentification import write_copy
from places import REPO
from tiny import tiny_model, tiny_processor

from dataset_webperson.readers.reidentification import load_reidentification
from modeling_gadms.evaluation.encoding import encode_images
from modeling_gadms.evaluation.models import load_retriever
from modeling_gadms.evaluation.reidentification import of_queries
from modeling_gadms.evaluation.tables import eval_result
from modeling_gadms.hub.model_card import describe_results, measured_by_evaluation
from modeling_gadms.person_retrieval.ranking import rank_queries, same_camera


def slow_reid(similarity, query, query_cameras, gallery, gallery_cameras):
    """Per query: place of first match, average precision, inverse negative penalty; None without any match."""
    found = []
    for scores, person, camera in zip(similarity, query, query_cameras, strict=True):
        seen = []
        for score, other, where in zip(scores, gallery, gallery_cameras, strict=True):
            if other == -1:  # junk: neither right nor wrong
                continue
            if other == person and where == camera:  # the same scene again
                continue
            seen.append((score, other == person))
        seen.sort(key=lambda pair: (-pair[0], pair[1]))
        places = [place for place, (_, match) in enumerate(seen, 1) if match]
        if not places:
            found.append(None)
            continue
        precisions = [number / place for number, place in enumerate(places, 1)]
        found.append((places[0], sum(precisions) / len(places), len(places) / places[-1]))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_ranks_agree_with_loops(seed):
    rng = random.Random(seed)
    embeds = [torch.randn(size, 6, generator=torch.Generator().manual_seed(seed + size)) for size in (15, 40)]
    ids = [[rng.randrange(1, 9) for _ in range(15)], [rng.randrange(0, 8) for _ in range(40)]]  # 0 is a distractor
    cameras = [[rng.randrange(3) for _ in range(size)] for size in (15, 40)]
    ids[0][3] = 77  # nowhere in the gallery
    units = [torch.nn.functional.normalize(part.double(), dim=1) for part in embeds]
    slow = slow_reid((units[0] @ units[1].T).tolist(), ids[0], cameras[0], ids[1], cameras[1])
    ranks = rank_queries(*embeds, *ids, exclude=same_camera(*ids, *cameras), on_missing="skip")
    kept = ranks.num_matches > 0
    assert kept.tolist() == [found is not None for found in slow] and not kept[3]
    got = of_queries(ranks, kept)
    rows = zip(got.first_match_rank, got.average_precision, got.inverse_negative_penalty, strict=True)
    np.testing.assert_allclose(list(rows), [found for found in slow if found], rtol=1e-9)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two tiny models, saved."""
    folder, paths = tmp_path_factory.mktemp("models"), []
    processor = tiny_processor()
    for seed, name in enumerate(("first", "second")):
        tiny_model(seed, vocab_size=len(processor.tokenizer)).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        paths.append(str(folder / name))
    return paths


@pytest.fixture(scope="module")
def command():
    path = REPO / "examples" / "evaluate_reidentification.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_the_command_measures_both_layouts_as_loops_do(models, command, tmp_path, capsys):
    for name in ("market-1501", "msmt17"):
        write_copy(name, tmp_path / "data")
    options = ["--cache_dir", str(tmp_path / "cache"), "--use_cpu", "True", "--data_root", str(tmp_path / "data")]
    options += ["--benchmark", "market-1501", "msmt17", "--output_dir", str(tmp_path / "out"), "--model", *models]
    assert command(options) == 2
    assert "counts differ" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="counts differ"):
        assert not command([*options, "--on_count_mismatch", "warn"])
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    shown = ["Market-1501 (incomplete copy)", "MSMT17 (incomplete copy)"]
    assert [(r["model"], r["benchmark"]) for r in content["results"]] == [
        (model, name) for name in shown for model in ("first", "second")
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data = load_reidentification("market-1501", tmp_path / "data", on_count_mismatch="warn")
    ids = [data[part]["person_id"][:] for part in data]
    cameras = [data[part]["camera"][:] for part in data]
    for model, result in zip(models, content["results"], strict=False):
        tower = load_retriever(model)
        query, gallery = (encode_images(*tower, data[part], progress=False).double() for part in data)
        slow = slow_reid((query @ gallery.T).tolist(), ids[0], cameras[0], ids[1], cameras[1])
        means = {name: entry["mean"] for name, entry in result["metrics"]["i2i"].items()}
        assert means["R@1"] == pytest.approx(100 * np.mean([place == 1 for place, _, _ in slow]))
        assert means["mAP"] == pytest.approx(100 * np.mean([precision for _, precision, _ in slow]))
        assert means["mINP"] == pytest.approx(100 * np.mean([penalty for _, _, penalty in slow]))
        assert result["queries"] == 3 and result["skipped"] == 0 and result["images"] == 9
    text = (tmp_path / "out" / "results.md").read_text()
    assert text.strip() in capsys.readouterr().out and text.count("| image to image |") == 4 + 2 * 5
    assert "| second | first | Market-1501 (incomplete copy) | image to image | mAP |" in text
    assert "have no match that counts" not in text
    assert "not figures of the benchmark.** Of this copy, query has 2 ids, 3 images; official: 750 ids" in text
    assert yaml.safe_load((tmp_path / "out" / "model-index.yaml").read_text()) == {"model-index": []}
    # a model card takes the figures as they are
    rows = measured_by_evaluation(str(tmp_path / "out"), "second")
    described = describe_results(rows, None, "")
    assert described.count("| image to image | cosine |") == 2 and "by the query's camera" in described
    one = eval_result("i2i", "msmt17", "MSMT17", "query", "cosine", "mAP", 50.0)
    assert one.task_type == "image-to-image-retrieval"
    # embeddings are kept
    options[options.index("--output_dir") + 1] = str(tmp_path / "again")
    with pytest.warns(UserWarning):
        command([*options, "--on_count_mismatch", "warn"])
    again = json.loads((tmp_path / "again" / "results.json").read_text())["results"]
    assert [result["metrics"] for result in again] == [result["metrics"] for result in content["results"]]
    assert all(note["was_cached"] for result in again for note in result["embeddings"].values())
