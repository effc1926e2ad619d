"""Evaluation as a user runs it: any model, any set, one process or two, and every file it leaves."""

import importlib.util
import json
import os
import re
from io import BytesIO
from pathlib import Path

import datasets
import forked
import pytest
import torch
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_up_datasets import BENCHMARK_WRITERS
from safetensors.torch import load_file
from test_examples import REPO, run
from tiny import tiny_model, tiny_processor, tiny_rows
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from dataset_webperson import DataError
from dataset_webperson.readers.benchmark_copy import Counts, KnownCopy
from dataset_webperson.readers.benchmarks import benchmark_class
from modeling_gadms import GADMSProcessor
from modeling_gadms.evaluation import embedding_cache
from modeling_gadms.evaluation.benchmarks import load_evaluation_set, load_with_fault
from modeling_gadms.evaluation.embedding_cache import cached_retrieval_set, data_hash, model_hash
from modeling_gadms.evaluation.encoding import encode_retrieval_set
from modeling_gadms.evaluation.metrics import compare, evaluate_embeddings, mean_similarity_distribution
from modeling_gadms.evaluation.models import load_retriever
from modeling_gadms.evaluation.published_results import (
    AT_TEST_TIME,
    PAPER_BENCHMARKS,
    PROTOCOLS,
    protocol_table,
    published,
)
from modeling_gadms.evaluation.rescoring import RESCORINGS, rescore
from modeling_gadms.evaluation.twins import twin_accuracy
from modeling_gadms.person_retrieval.ranking import retrieval_metrics, summarize_ranks

METRICS = ["R@1", "R@5", "R@10", "mAP", "mINP"]


def example():
    path = REPO / "examples" / "evaluate_retrieval.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_gadms(folder, seed=0):
    processor = tiny_processor()
    tiny_model(seed, vocab_size=len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def word_tokenizer(ending: list[tuple[str, int]]):
    """A whole word an id; the last ids, or the first, are the marks that the model's family puts around a caption."""
    rows = tiny_rows(48, seed=1)
    captions = [row[name] for row in rows for name in ("caption1", "caption2")]
    words = sorted({word for caption in captions for word in re.findall(r"\w+|[^\w\s]+", caption)})
    vocabulary = {
        word: number for number, word in enumerate(["<pad>", "<unk>", *words, *(name for name, _ in ending)])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(name, vocabulary[name]) for name, _ in ending]
    template = f"{marks[0][0]} $A {marks[-1][0]}" if len(marks) > 1 else f"$A {marks[0][0]}"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token=marks[-1][0]
    )


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_clip(folder):
    torch.manual_seed(0)
    tokenizer = word_tokenizer([("<bos>", 0), ("<eos>", 0)])
    ids = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": 0}
    text = {**TOWER, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 8}))
    model.save_pretrained(folder)
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessorPil(**sides), tokenizer).save_pretrained(folder)
    return str(folder)


def save_siglip(folder):
    torch.manual_seed(0)
    tokenizer = word_tokenizer([("<eos>", 0)])
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "projection_size": 32}
    ids = {"bos_token_id": 0, "eos_token_id": len(tokenizer) - 1, "pad_token_id": 0}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config={**text, **ids}, vision_config=vision)).save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gadms(tmp_path_factory):
    return save_gadms(tmp_path_factory.mktemp("models") / "gadms")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return save_gadms(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def folder(tmp_path):
    """24 images of 12 persons as files beside a metadata.jsonl; persons by name, captions as lists."""
    rows = tiny_rows(24)
    (tmp_path / "data").mkdir()
    lines = []
    for row in rows:
        row["image"].save(tmp_path / "data" / row["image_path"])
        captions = [row["caption1"], row["caption2"]]
        line = {"file_name": row["image_path"], "captions": captions, "person_id": f"person-{row['person_id']}"}
        lines.append(json.dumps(line))
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "data")


# ---- models


@pytest.mark.parametrize("save", [save_gadms, save_clip, save_siglip])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_any_clip_like_model_gives_the_embeddings_of_one_item_at_a_time(save, num_workers, tmp_path):
    model, processor = load_retriever(save(tmp_path / "model"))
    rows = tiny_rows(5)
    encoded = encode_retrieval_set(model, processor, rows, 2, progress=False, num_workers=num_workers)
    padding = "max_length" if save is save_siglip else True
    with torch.no_grad():
        for index, row in enumerate(rows):
            pixels = processor(images=[row["image"]], return_tensors="pt")
            image = model.get_image_features(**pixels).pooler_output[0]
            torch.testing.assert_close(encoded.image_embeds[index], image / image.norm(), atol=1e-5, rtol=0)
            for number, name in enumerate(("caption1", "caption2")):
                # 12 positions: the longer captions are cut
                options = {"padding": padding, "truncation": True, "max_length": 12, "return_tensors": "pt"}
                options |= {"return_attention_mask": save is not save_siglip}  # which was trained without
                if save is save_gadms:
                    options = {}
                text = model.get_text_features(**processor(text=[row[name]], **options)).pooler_output[0]
                expected = text / text.norm()
                torch.testing.assert_close(encoded.text_embeds[2 * index + number], expected, atol=1e-5, rtol=0)


def test_half_precision_is_near_and_compared_in_float32(gadms):
    rows = tiny_rows(6)
    whole, half = (encode_retrieval_set(*load_retriever(gadms, bf16=bf16), rows, progress=False) for bf16 in (0, 1))
    assert load_retriever(gadms, bf16=True)[0].dtype == torch.bfloat16
    assert half.image_embeds.dtype == torch.float32
    for name in ("image_embeds", "text_embeds"):
        cosine = (getattr(whole, name) * getattr(half, name)).sum(dim=1)
        assert 0.99 < cosine.min() and (getattr(half, name) != getattr(whole, name)).any()


def test_models_that_are_not_retrievers_are_refused_by_name(tmp_path, gadms):
    with pytest.raises(OSError, match="gone: no model can be read there"):
        load_retriever(str(tmp_path / "gone"))
    clip = CLIPModel.from_pretrained(save_clip(tmp_path / "clip"))
    CLIPTextModel.from_pretrained(tmp_path / "clip").save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="CLIPTextModel, which does not embed images"):
        load_retriever(str(tmp_path / "text"))
    weights = {name: tensor for name, tensor in clip.state_dict().items() if "visual_projection" not in name}
    clip.save_pretrained(tmp_path / "half", state_dict=weights)
    with pytest.raises(ValueError, match="1 weights of CLIPModel are missing"):
        load_retriever(str(tmp_path / "half"))
    clip.save_pretrained(tmp_path / "bare")
    with pytest.raises((OSError, ValueError), match="processor"):
        load_retriever(str(tmp_path / "bare"))


# ---- the cache


def test_embeddings_are_read_again_only_for_the_same_model_and_data(gadms, tmp_path, monkeypatch):
    model, processor = load_retriever(gadms)
    rows = tiny_rows(6)
    first, note = cached_retrieval_set(model, processor, rows, str(tmp_path), progress=False)
    assert not note["was_cached"] and [path.name for path in tmp_path.iterdir()] == [Path(note["file"]).name]

    def encoded_again(*args):
        raise AssertionError("encoded again")

    monkeypatch.setattr(embedding_cache, "encode_retrieval_set", encoded_again)
    second, note = cached_retrieval_set(*load_retriever(gadms), tiny_rows(6), str(tmp_path), progress=False)
    assert note["was_cached"]
    for name, tensor in vars(first).items():
        assert torch.equal(tensor, getattr(second, name)) and tensor.dtype == getattr(second, name).dtype
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1e-6
    with pytest.raises(AssertionError, match="encoded again"):
        cached_retrieval_set(model, processor, rows, str(tmp_path), progress=False)


def test_a_damaged_file_of_embeddings_is_written_again(gadms, tmp_path):
    model, processor = load_retriever(gadms)
    first, note = cached_retrieval_set(model, processor, tiny_rows(6), str(tmp_path), progress=False)
    Path(note["file"]).write_bytes(Path(note["file"]).read_bytes()[:200])
    again, note = cached_retrieval_set(model, processor, tiny_rows(6), str(tmp_path), progress=False)
    assert not note["was_cached"] and torch.equal(again.text_embeds, first.text_embeds)
    assert torch.equal(load_file(note["file"])["text_embeds"], first.text_embeds)


def test_embeddings_not_used_for_longest_are_deleted_beyond_the_limit(gadms, tmp_path):
    model, processor = load_retriever(gadms)

    def kept(count, limit):
        rows = tiny_rows(count)
        return Path(
            cached_retrieval_set(model, processor, rows, str(tmp_path), limit=limit, progress=False)[1]["file"]
        )

    (tmp_path / "notes.safetensors").write_bytes(b"0" * 10_000)  # no embeddings: neither counted nor deleted
    files = [kept(count, limit=1) for count in (4, 5, 6)]
    for age, file in enumerate(files):
        os.utime(file, ns=(0, age))
    kept(4, limit=1)  # the oldest is used again
    two = (files[0].stat().st_size + files[2].stat().st_size) / 1e9
    assert kept(6, limit=two) == files[2]
    assert [file.exists() for file in files] == [True, False, True]
    last = kept(7, limit=0)
    assert {path.name for path in tmp_path.iterdir()} == {last.name, "notes.safetensors"}
    for limit in (-1, float("nan")):
        with pytest.raises(ValueError, match="must be 0 GB or more, not"):
            kept(4, limit=limit)


def test_every_part_of_a_model_enters_its_hash(gadms, tmp_path):
    model, processor = load_retriever(gadms)
    hashes = [model_hash(model, processor)]
    processor(text=["a person", "a person in a coat"])  # leaves its padding behind in the tokenizer
    assert model_hash(*load_retriever(gadms)) == model_hash(model, processor) == hashes[0]
    hashes.append(model_hash(*load_retriever(gadms, bf16=True)))
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    hashes.append(model_hash(model, processor))
    processor = GADMSProcessor.from_pretrained(gadms)
    model.config.projection_dim += 64
    hashes.append(model_hash(model, processor))
    assert len(set(hashes)) == 4


def test_every_part_of_a_row_enters_the_hash_of_the_data(tmp_path):
    rows = tiny_rows(4)
    hashes = [data_hash(rows, progress=False)]
    assert data_hash(tiny_rows(4), progress=False) == hashes[0]
    for column, value in (("caption2", "someone else"), ("person_id", 7), ("image_path", "b.png")):
        changed = rows[column][:]
        changed[1] = value
        feature = rows.features[column]
        hashes.append(data_hash(rows.remove_columns(column).add_column(column, changed, feature=feature), False))
    hashes.append(data_hash(rows.select([1, 0, 2, 3]), False))
    # images that lie in files are hashed by what the files hold, not by their names
    files = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "image_path": ["a"], "captions": [["b"]]})
    files = files.cast_column("image", datasets.Image())
    for row in rows.select([0, 2]):
        row["image"].save(tmp_path / "a.png")
        hashes.append(data_hash(files, False))
    assert len(set(hashes)) == len(hashes) == 7
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="image a: cannot be read"):
        data_hash(files, False)


# ---- data


def test_a_folder_of_images_gives_what_its_rows_give(gadms, folder, tmp_path):
    model, processor = load_retriever(gadms)
    direct = encode_retrieval_set(model, processor, tiny_rows(24), progress=False)
    (tmp_path / "parquet").mkdir()
    tiny_rows(24).to_parquet(tmp_path / "parquet" / "test-0.parquet")
    for path in (folder, str(tmp_path / "parquet")):
        found = encode_retrieval_set(model, processor, load_evaluation_set(path), progress=False)
        assert torch.equal(found.image_embeds, direct.image_embeds)
        assert torch.equal(found.text_image_index, direct.text_image_index)
        torch.testing.assert_close(found.text_embeds, direct.text_embeds, atol=1e-6, rtol=0)
        same = [ids[:, None] == ids[None] for ids in (found.image_person_ids, direct.image_person_ids)]
        assert torch.equal(*same)


@pytest.mark.parametrize(
    "style, benchmark, images",
    [
        ("cuhk", "cuhk-pedes", 4),
        ("icfg", "ICFG_PEDES", 4),
        ("rstp", "rstpreid", 4),
        ("ufine", "ufine6926", 4),
        ("ufine3c", "ufine3c", 8),
        ("iiitd", "iiitd-20k", 2),
    ],
)
def test_every_benchmark_is_measured_on_its_test_split(style, benchmark, images, gadms, tmp_path):
    root = str(BENCHMARK_WRITERS[style][1](tmp_path / "copy"))
    with pytest.raises(DataError):
        load_evaluation_set(benchmark, root)
    with pytest.warns(UserWarning):
        rows = load_evaluation_set(benchmark, root, on_count_mismatch="warn")
    assert set(rows["split"]) == {"test"} and len(rows) == images
    encoded = encode_retrieval_set(*load_retriever(gadms), rows, progress=False)
    assert len(encoded.text_embeds) == sum(map(len, rows["captions"]))
    assert evaluate_embeddings(encoded, num_resamples=10).metrics["t2i"]["R@10"].mean == 100


def test_images_of_equal_base_names_are_images_of_their_own(gadms, tmp_path):
    rows = tiny_rows(20).remove_columns(["person_id", "image_path"])
    files = []
    for number, row in enumerate(rows):  # two cameras' folders, of which parquet keeps `0.jpg` and `1.jpg`
        buffer = BytesIO()
        row["image"].save(buffer, format="png")
        files.append({"bytes": buffer.getvalue(), "path": f"{number % 2}.png"})
    rows = rows.remove_columns("image").add_column("image", files).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "test.parquet")
    dataset = load_evaluation_set(str(tmp_path))
    assert len(set(dataset["image_path"])) == 20 and dataset["image_path"][3] == "row 3, 1.png"
    encoded = encode_retrieval_set(*load_retriever(gadms), dataset, progress=False)
    assert len(encoded.image_person_ids.unique()) == 20
    assert torch.equal(encoded.text_person_ids, encoded.image_person_ids[encoded.text_image_index])
    own = retrieval_metrics(encoded.text_embeds, encoded.image_embeds, encoded.text_image_index, torch.arange(20))
    assert encoded.metrics()["t2i_mAP"] == pytest.approx(own["mAP"])


def test_data_that_cannot_be_measured_on_is_named_with_a_cure(tmp_path, folder):
    for benchmark, message in (
        ("cuhk-pedes", "--data_root is missing"),
        ("market", "neither a benchmark .* nor a folder that exists"),
        (str(tmp_path / "empty"), "cannot be read as a data set"),
        (str(tmp_path / "bare"), "the columns are image, text; rename them"),
        (str(tmp_path / "holes"), "row 1 has no person_id"),
    ):
        if benchmark.startswith(str(tmp_path)):
            Path(benchmark).mkdir()
        rows = tiny_rows(2)
        if benchmark.endswith("bare"):
            rows = rows.select_columns(["image", "caption1"]).rename_column("caption1", "text")
            rows.to_parquet(tmp_path / "bare" / "test.parquet")
        if benchmark.endswith("holes"):
            ids = datasets.Dataset.from_dict({"person_id": [1, None]})
            rows = datasets.concatenate_datasets([rows.remove_columns("person_id"), ids], axis=1)
            rows.to_parquet(tmp_path / "holes" / "test.parquet")
        with pytest.raises(DataError, match=message):
            load_evaluation_set(benchmark)
    with pytest.raises(DataError, match="no split 'extra'; it has train, validation, test"):
        load_evaluation_set("synthetic", split="extra", synthetic_options={"num_train_persons": 2})


# ---- numbers


def test_figures_with_intervals_are_those_of_the_ranking(gadms):
    encoded = encode_retrieval_set(*load_retriever(gadms), tiny_rows(24), progress=False)
    evaluation = evaluate_embeddings(encoded, num_resamples=200)
    texts, images = (encoded.text_embeds, encoded.text_person_ids), (encoded.image_embeds, encoded.image_person_ids)
    for way, (query, gallery) in {"t2i": (texts, images), "i2t": (images, texts)}.items():
        expected = retrieval_metrics(query[0], gallery[0], query[1], gallery[1])
        assert list(expected) == list(evaluation.metrics[way]) == METRICS
        for name, interval in evaluation.metrics[way].items():
            assert interval.mean == pytest.approx(expected[name]) and interval.low <= interval.mean <= interval.high
    assert evaluation.metrics["t2i"]["mAP"].low < evaluation.metrics["t2i"]["mAP"].high


def test_a_model_does_not_differ_from_itself_and_the_sign_is_that_of_the_first(gadms):
    encoded = encode_retrieval_set(*load_retriever(gadms), tiny_rows(24), progress=False)
    evaluation = evaluate_embeddings(encoded, num_resamples=50)
    for differences in compare(evaluation, evaluation, num_resamples=50).values():
        assert all((d.mean, d.p_value) == (0, 1) for d in differences.values())
    encoded.text_embeds = encoded.image_embeds[encoded.text_image_index]  # every caption finds its own image
    perfect = evaluate_embeddings(encoded, num_resamples=50)
    better = compare(perfect, evaluation, num_resamples=500)["t2i"]["R@1"]
    assert better.mean == pytest.approx(100 - evaluation.metrics["t2i"]["R@1"].mean)
    assert better.low > 0 and better.p_value < 0.05


# ---- tables


def test_published_figures_stand_in_their_cells_and_nothing_is_made_up():
    assert published("fine-tuned")["GA-DMS (5M)"] == {
        "CUHK-PEDES": {"R@1": 77.60, "mAP": 69.82},
        "ICFG-PEDES": {"R@1": 69.51, "mAP": 42.30},
        "RSTPReid": {"R@1": 71.25, "mAP": 55.43},
    }
    assert published("fine-tuned")["CECA"] == {
        "CUHK-PEDES": {"R@1": 79.65},
        "ICFG-PEDES": {"R@1": 74.32},
        "RSTPReid": {"R@1": 73.45},
    }
    assert set(AT_TEST_TIME) < set(published("fine-tuned"))
    assert published("direct-transfer")["CLIP"]["ICFG-PEDES"] == {"R@1": 6.67}
    for protocol in PROTOCOLS:
        head, _, *rows = [
            line for line in protocol_table(protocol, []).markdown().splitlines() if line.startswith("|")
        ]
        names = [cell.strip() for cell in head.strip("|").split("|")]
        figures = published(protocol)
        assert {"CLIP", "IRRA", "NAM", "RDE"} < set(figures) and len(rows) == len(figures)
        for row in rows:
            cells = dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
            assert cells.pop("source") == "*published*"
            method = cells.pop("method")
            assert cells.pop("at test time") == AT_TEST_TIME.get(method, "cosine")
            of_method = figures[method]
            for column, cell in cells.items():
                benchmark, metric = column.rsplit(" ", 1)
                value = of_method.get(benchmark, {}).get(metric)
                assert cell == ("-" if value is None else f"{value:.2f}"), (protocol, column)


def test_own_figures_stand_beside_the_published_ones_where_they_belong(gadms):
    encoded = encode_retrieval_set(*load_retriever(gadms), tiny_rows(24), progress=False)
    metrics = evaluate_embeddings(encoded, num_resamples=10).metrics
    result = {"model": "mine", "benchmark": "RSTPReid", "scoring": "cosine", "trained_on": None, "metrics": metrics}
    table = protocol_table("direct-transfer", [result]).markdown()
    expected = " | ".join(f"{metrics['t2i'][name].mean:.2f}" for name in METRICS[:4])
    assert f"| mine | **measured here** | cosine | {'- | ' * 8}{expected} |" in table
    with pytest.raises(ValueError, match="mine on RSTPReid: cross-domain needs --trained_on"):
        protocol_table("cross-domain", [result])
    with pytest.raises(ValueError, match="it must differ from the one it is tested on"):
        protocol_table("cross-domain", [{**result, "trained_on": "RSTPReid"}])
    crossed = protocol_table("cross-domain", [{**result, "trained_on": "CUHK-PEDES"}]).markdown()
    head, _, *rows = [line for line in crossed.splitlines() if line.startswith("|")]
    place = head.split("|").index(" CUHK-PEDES → RSTPReid R@1 ")
    assert rows[-1].split("|")[place].strip() == f"{metrics['t2i']['R@1'].mean:.2f}"
    assert head.count("→") == 4 * len(PAPER_BENCHMARKS) * (len(PAPER_BENCHMARKS) - 1)
    with pytest.raises(ValueError, match="protocol 'zero-shot'; choose one of"):
        protocol_table("zero-shot", [])


# ---- the command


def run_example(*argv):
    return example().main([str(argument) for argument in argv])


def test_the_command_leaves_a_table_json_model_index_and_pages(gadms, other, folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--cache_dir", tmp_path / "cache", "--output_dir", out, "--use_cpu", "True"]
    options += ["--similarity_distribution", "True", "--breakdown", "True"]
    run_example("--model", gadms, "--compare", other, "--benchmark", folder, "--protocol", "direct-transfer", *options)
    printed = capsys.readouterr().out
    text = (out / "results.md").read_text()
    assert text.strip() in printed and "| text to image |" in text and "**measured here**" in text
    names = sorted(path.name for path in out.iterdir())
    pages = ["1-data-gadms.html", "1-data-other.html"]
    assert names == [*pages, "model-index.yaml", "results.json", "results.md", "results.tex"]
    content = json.loads((out / "results.json").read_text())
    first, second = content["results"]
    assert len(first["breakdown"]["groups"]) > 12 and f"## {first['model']} on data in parts" in text
    encoded = encode_retrieval_set(*load_retriever(gadms), load_evaluation_set(folder), progress=False)
    expected = encoded.metrics()
    for way in ("t2i", "i2t"):
        for name in METRICS:
            assert first["metrics"][way][name]["mean"] == pytest.approx(expected[f"{way}_{name}"])
            gap = content["comparisons"][0]["differences"][way][name]["mean"]
            wanted = first["metrics"][way][name]["mean"] - second["metrics"][way][name]["mean"]
            assert gap == pytest.approx(wanted)
    distribution = mean_similarity_distribution(encoded).mean
    assert first["similarity_distribution"]["mean"] == pytest.approx(distribution, abs=1e-4)
    (row,) = [line for line in text.split("## Similarity distribution")[1].splitlines() if "| gadms | data |" in line]
    assert f" {distribution:.2f} [" in row
    card = yaml.safe_load((out / "model-index.yaml").read_text())["model-index"]
    assert [entry["name"] for entry in card] == ["gadms", "other"]
    _, results = model_index_to_eval_results(card[:1])
    values = {(result.task_type, result.metric_type): result.metric_value for result in results}
    assert len(results) == 10
    assert values["text-to-image-retrieval", "mAP"] == pytest.approx(expected["t2i_mAP"], abs=0.0051)
    assert (results[0].dataset_name, results[0].dataset_split) == ("data", "test")

    # once more: nothing is encoded, nothing overwritten
    run_example("--model", gadms, "--benchmark", folder, "--rescore", "phrasings", "k-reciprocal", *options)
    content = json.loads((tmp_path / "out-2" / "results.json").read_text())
    again, *rescored = content["results"]
    assert again["was_cached"] and again["metrics"] == first["metrics"]
    # a re-scoring is named wherever it stands, and set against the plain ranking
    assert [result["scoring"] for result in rescored] == list(RESCORINGS.values())
    for name, result, difference in zip(RESCORINGS, rescored, content["comparisons"], strict=True):
        expected = summarize_ranks(rescore(name, encoded, progress=False))
        assert {metric: value["mean"] for metric, value in result["metrics"]["t2i"].items()} == pytest.approx(expected)
        assert difference["other"] == "gadms" and RESCORINGS[name] in difference["model"]
        gap = expected["mAP"] - first["metrics"]["t2i"]["mAP"]["mean"]
        assert difference["differences"]["t2i"]["mAP"]["mean"] == pytest.approx(gap)
        assert f"mAP ({RESCORINGS[name]})" in (tmp_path / "out-2" / "model-index.yaml").read_text()


def test_twins_are_drawn_and_told_apart_on_request(gadms, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--cache_dir", tmp_path / "cache", "--output_dir", out, "--use_cpu", "True", "--image_size", "32", "16"]
    command = ["--model", gadms, "--benchmark", "synthetic", "--twins", "True", *options]
    run_example(*command, "--num_persons", "8")
    (result,) = json.loads((out / "results.json").read_text())["results"]
    persons = {f"num_{split}_persons": 2 for split in ("train", "validation")} | {"num_test_persons": 8}
    rows = load_evaluation_set("synthetic", synthetic_options={"image_size": (32, 16), "twins": True, **persons})
    encoded = encode_retrieval_set(*load_retriever(gadms), rows, progress=False)
    expected = twin_accuracy(encoded, [person ^ 1 for person in rows["person_id"]])
    assert result["twin_accuracy"] == pytest.approx(vars(expected)) and result["captions"] == 32
    assert f"| gadms | synthetic | {expected.mean:.2f} [" in capsys.readouterr().out.split("## Twins")[1]
    assert run_example(*command, "--num_persons", "7") == 2
    assert "twins come in pairs: the number of test persons must be even, got 7" in capsys.readouterr().err
    assert run_example(*command, "--split", "validation") == 2
    assert "twins are drawn for test of synthetic, not for validation" in capsys.readouterr().err


@pytest.fixture
def two_copies(tmp_path):
    """Made-up copies of two benchmarks, tiny and so not whole; an image of the first one's test set is missing."""
    for style in ("cuhk", "icfg"):
        name, write = BENCHMARK_WRITERS[style]
        write(tmp_path / "copies" / name)
    rows = json.loads((tmp_path / "copies" / "CUHK-PEDES" / "reid_raw.json").read_text())
    lost = next(row["file_path"] for row in rows if row["split"] == "test")
    (tmp_path / "copies" / "CUHK-PEDES" / "imgs" / lost).unlink()
    return tmp_path / "copies"


def test_an_incomplete_copy_is_marked_wherever_it_stands_and_never_compared(gadms, two_copies, tmp_path, capsys):
    out = tmp_path / "out"
    copies = ["--benchmark", "cuhk-pedes", "icfg-pedes", "--data_root", two_copies, "--on_count_mismatch", "warn"]
    options = ["--model", gadms, "--output_dir", out, "--cache_dir", tmp_path / "cache", "--use_cpu", "True"]
    assert run_example(*copies, *options) == 2
    assert "on_missing_images" in capsys.readouterr().err and not out.exists()
    options += ["--on_missing_images", "skip", "--protocol", "direct-transfer", "--rescore", "phrasings"]
    with pytest.warns(UserWarning):
        assert not run_example(*copies, *options)
    text = (out / "results.md").read_text()
    retrieval, protocol = text.split("## Protocol")[0], text.split("## Protocol")[1].split("## Differences")[0]
    assert "| CUHK-PEDES |" not in text and retrieval.count("| CUHK-PEDES (incomplete copy) |") == 3
    assert (
        "**CUHK-PEDES (incomplete copy): not figures of the benchmark.** Of this copy, test has 2 ids, 3 images"
        in text
    )
    assert "official: 1,000 ids, 3,074 images, 6,156 captions" in text
    assert "**measured here** |" not in protocol and "Left out: gadms on ICFG-PEDES (incomplete copy)" in protocol
    results = json.loads((out / "results.json").read_text())["results"]
    assert all("official" in result["incomplete"] for result in results)
    assert yaml.safe_load((out / "model-index.yaml").read_text()) == {"model-index": []}
    for page in out.glob("*.html"):
        assert "(incomplete copy)" in page.read_text() and "Not the benchmark: test has" in page.read_text()
    # one caption an image: that re-scoring is left out by name, and the other benchmark keeps its figures
    scorings = [(result["benchmark"][:4], result["scoring"]) for result in results]
    assert scorings == [("CUHK", "cosine"), ("CUHK", RESCORINGS["phrasings"]), ("ICFG", "cosine")]
    assert results[2]["not_rescored"] == [
        "re-scoring by phrasings needs images with two captions or more; here each has one"
    ]


def test_a_whole_split_is_not_marked_and_old_splits_are(tmp_path, monkeypatch):
    kind = benchmark_class("rstpreid")
    BENCHMARK_WRITERS["rstp"][1](tmp_path / "RSTPReid")
    counts = {split: Counts(2, 4, 8) for split in ("validation", "test")}
    monkeypatch.setattr(kind, "official", {"train": Counts(6, 12, 24), **counts})
    with pytest.warns(UserWarning):  # train lacks a person, which is nothing to the test set
        assert load_with_fault("rstpreid", str(tmp_path), on_count_mismatch="warn")[1] is None
    monkeypatch.setattr(kind, "official", {"test": Counts(4, 8, 16)})
    monkeypatch.setattr(kind, "known_copies", (KnownCopy({"train": 5, "validation": 2, "test": 2}, "an old json"),))
    with pytest.warns(UserWarning):
        fault = load_with_fault("rstpreid", str(tmp_path), on_count_mismatch="warn")[1]
    assert fault == "test has 2 ids, 4 images, 8 captions; official: 4 ids, 8 images, 16 captions; an old json"
    BENCHMARK_WRITERS["ufine"][1](tmp_path / "UFine6926")  # of which only the whole is known
    with pytest.warns(UserWarning):
        fault = load_with_fault("ufine6926", str(tmp_path), on_count_mismatch="warn")[1]
    assert fault.startswith("the whole has 7 ids, 14 images")


def test_figures_of_one_benchmark_outlast_a_fault_of_the_next(gadms, folder, tmp_path, capsys):
    rows = load_evaluation_set(folder)
    broken = tmp_path / "broken"
    broken.mkdir()
    for row in rows.cast_column("image", datasets.Image(decode=False)):
        (broken / row["image_path"]).write_bytes(b"no image")
    (broken / "metadata.jsonl").write_text((Path(folder) / "metadata.jsonl").read_text())
    options = ["--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache", "--use_cpu", "True"]
    assert run_example("--model", gadms, "--benchmark", folder, broken, *options) == 2
    assert "cannot be read" in capsys.readouterr().err
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["benchmark"] == "data"
    # what is not there at all is found before anything is encoded
    options[1] = tmp_path / "none"
    assert run_example("--model", gadms, "--benchmark", folder, "market", *options) == 2
    assert not (tmp_path / "none").exists()


def test_two_processes_give_the_numbers_of_one(gadms, folder, tmp_path):
    for count in (1, 2):
        options = ["--output_dir", tmp_path / f"{count}", "--cache_dir", tmp_path / f"cache{count}", "--batch_size", 5]
        arguments = ["--model", gadms, "--benchmark", folder, "--use_cpu", "True", *options]
        run(REPO / "examples" / "evaluate_retrieval.py", *arguments, cwd=tmp_path, processes=count)
    one, two = (json.loads((tmp_path / str(n) / "results.json").read_text())["results"][0] for n in (1, 2))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["metrics"] == two["metrics"] and one["model_hash"] == two["model_hash"]
    kept = [load_file(next((tmp_path / f"cache{count}").iterdir())) for count in (1, 2)]
    for name, tensor in kept[0].items():
        assert torch.equal(tensor, kept[1][name]), name


def test_a_wrong_command_is_answered_in_one_line(gadms, tmp_path, capsys):
    script = REPO / "examples" / "evaluate_retrieval.py"
    command = [script, "--benchmark", "market", "--model", gadms, "--use_cpu", "True"]
    result = forked.run(command, cwd=tmp_path)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 2 and lines == [
        line for line in lines if line.startswith("error: 'market' is neither")
    ]
    assert run_example("--benchmark", "a", "b", "c", "--model", "x", "y", "--use_cpu", "True") == 2
    assert "--model: 2 values for 3 benchmarks; give one or as many" in capsys.readouterr().err
    assert run_example("--benchmark", "cuhk", "--model", "x", "--protocol", "cross-domain", "--use_cpu", "True") == 2
    assert "x on cuhk: cross-domain needs --trained_on" in capsys.readouterr().err
    for option, value in (("--protocol", "zero-shot"), ("--rescore", "magic"), ("--on_count_mismatch", "ignore")):
        with pytest.raises(SystemExit):
            run_example("--benchmark", "a", "--model", "x", option, value)
    assert not (tmp_path / "runs").exists()


def test_the_model_of_each_benchmark_is_the_one_in_its_place():
    module = example()
    (args,) = module.parse_arguments(
        module.EvaluationArguments, ["--benchmark", "a", "b", "--model", "x", "y", "--trained_on", "c"]
    )
    assert args.of_each_benchmark("model") == ["x", "y"]
    assert args.of_each_benchmark("trained_on") == ["c", "c"] and args.of_each_benchmark("compare") == [None, None]
