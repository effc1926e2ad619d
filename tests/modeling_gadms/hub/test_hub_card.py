"""The model card: filled from what was written down, silent about the rest, and the paper's figures marked as such."""

import ast
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from places import REPO
from tiny import tiny_model, tiny_processor

from modeling_gadms.evaluation.published_results import published
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.hub.listings import METRICS
from modeling_gadms.hub.model_card import model_card
from modeling_gadms.hub.run_facts import metrics_of_weights, recipe_of
from modeling_gadms.training.arguments import GADMSTrainingArguments

NAMES = ("R@1", "R@5", "R@10", "mAP", "mINP")
UNFILLED = re.compile(r"\$|TODO|To be filled|More Information Needed|\bNone\b|\bnan\b|\{\w+\}\}", re.IGNORECASE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "gadms"
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    copy = tmp_path / "gadms"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).symlink_to(saved / name)
    return copy


def head_of(text):
    return yaml.safe_load(text.split("---")[1])


def results_of(model, value):
    interval = {"mean": value, "low": value - 2, "high": value + 2}
    metrics = {way: dict.fromkeys(NAMES, interval) for way in ("t2i", "i2t")}
    facts = {"benchmark": "RSTPReid", "dataset_type": "rstpreid", "split": "test", "images": 1000, "scoring": "cosine"}
    return {"model": model, "metrics": metrics, **facts}


def test_a_card_without_a_run_says_what_is_not_known_and_invents_nothing(folder):
    with pytest.raises(ValueError, match="training data is not recorded"):
        model_card(str(folder), "org/gadms")
    text = model_card(str(folder), "org/gadms", data="drawings of pedestrians")
    assert "This checkpoint has not been evaluated." in text and "Emissions were not measured." in text
    assert "hardware" not in text and "| data | drawings of pedestrians |" in text
    assert "model-index" not in head_of(text) and "co2_eq_emissions" not in head_of(text)
    assert "with two CLIP towers: one for upright" in text
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()  # a link to what other tests read
    (folder / "config.json").write_text(json.dumps({**config, "tower": "siglip"}))
    assert "with two SigLIP towers: one for upright" in model_card(str(folder), "org/gadms", data="drawings")
    assert not UNFILLED.search(text)


def test_figures_of_an_evaluation_come_with_intervals_and_go_into_the_model_index(folder, tmp_path):
    results = {"results": [results_of("gadms", 44.444), results_of("clip", 11.0)]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = model_card(str(folder), "org/gadms", data="x", evaluation=str(tmp_path))
    assert "44.44 [42.4, 46.4]" in text and "11.00" not in text
    entries = head_of(text)["model-index"][0]["results"]
    assert {metric["value"] for entry in entries for metric in entry["metrics"]} == {44.44}
    assert "somebody else for 55.6 % of the descriptions of RSTPReid" in text and not UNFILLED.search(text)
    (tmp_path / "results.json").write_text(json.dumps({"results": [results_of("clip", 11.0)]}))
    with pytest.raises(ValueError, match="no figures of gadms, only of clip"):
        model_card(str(folder), "org/gadms", data="x", evaluation=str(tmp_path))


def test_figures_of_an_incomplete_copy_are_marked_and_never_indexed(folder, tmp_path):
    why = "test has 2 ids; official: 200 ids"
    whole, part = results_of("gadms", 44.0), {**results_of("gadms", 99.0), "incomplete": why}
    part["benchmark"] = "CUHK-PEDES (incomplete copy)"
    (tmp_path / "results.json").write_text(json.dumps({"results": [whole, part]}))
    text = model_card(str(folder), "org/gadms", data="x", evaluation=str(tmp_path))
    entries = head_of(text)["model-index"][0]["results"]
    assert {entry["dataset"]["name"] for entry in entries} == {"RSTPReid"}
    assert text.count("| CUHK-PEDES (incomplete copy), test |") == 2
    assert f"**CUHK-PEDES (incomplete copy): not figures of the benchmark.** Of this copy, {why}." in text
    metrics = {f"{way}_{name}": 50.0 for way in ("t2i", "i2t") for name in NAMES}
    run = {"metrics": {"before": metrics, "after": metrics}, "arguments": {"dataset_name": "rstpreid"}}
    (folder / "metrics.json").write_text(json.dumps({**run, "incomplete": why}))
    text = model_card(str(folder), "org/gadms")
    assert "model-index" not in head_of(text) and "| rstpreid (incomplete copy), test |" in text and why in text
    assert "somebody else for" not in text


def test_the_paper_s_figures_are_marked_and_never_indexed(folder, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"results": [results_of("gadms", 44.44)]}))
    text = model_card(str(folder), "org/gadms", data="x", evaluation=str(tmp_path))
    figures = [f"{published('fine-tuned')['GA-DMS (5M)'][name]['R@1']:.2f}" for name in ("CUHK-PEDES", "RSTPReid")]
    before, after = text.split("*as published* by the authors")
    assert all(figure in after and figure not in before for figure in figures)
    assert "not measured here" in after[:200]


def test_emissions_are_reported_where_they_were_measured(folder):
    (folder / "emissions.csv").write_text("run_id,emissions,energy_consumed\na,0.0015,0.01\nb,0.0005,0.02\n")
    text = model_card(str(folder), "org/gadms", data="x")
    assert "Measured by codecarbon: 2 g CO2 equivalent, 0.03 kWh." in text
    assert head_of(text)["co2_eq_emissions"]["emissions"] == 2.0


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metrics.json", "{", "metrics.json: cannot be read as JSON"),
        ("run_facts.json", "[]", "run_facts.json: holds a list, not a JSON object"),
        ("emissions.csv", "run_id,emissions\na,much\n", "emissions.csv: has no numbers for emissions"),
        ("config.json", '{"vision_config": {"image_size": 224}}', "config.json: is not that of a GA-DMS"),
    ],
)
def test_a_damaged_record_is_named_with_a_cure(folder, name, content, message):
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        model_card(str(folder), "org/gadms", data="x")


def test_a_checkpoint_chosen_on_the_test_set_says_so(folder):
    metrics = {f"{way}_{name}": 50.0 for way in ("t2i", "i2t") for name in NAMES}
    run = {"metrics": {"before": metrics, "after": metrics}, "arguments": {"dataset_name": "rstpreid"}}
    (folder / "metrics.json").write_text(json.dumps({**run, "warning": "the best epoch was chosen on the test set"}))
    text = model_card(str(folder), "org/gadms")
    assert "**The best epoch was chosen on the test set.**" in text and not UNFILLED.search(text)


def test_the_starting_point_s_figures_stand_below_those_of_the_run(folder, tmp_path):
    metrics = {f"{way}_{name}": 50.0 for way in ("t2i", "i2t") for name in NAMES}
    own, before = {**metrics, "t2i_R@1": 33.333}, {**metrics, "t2i_R@1": 22.222}
    run = {"metrics": {"base, 48x48": own, "before": before, "after": metrics}, "arguments": {"dataset_name": "x"}}
    (folder / "metrics.json").write_text(json.dumps(run))
    start = "the starting point had R@1 22.22 text to image and 50.00 image to text"
    text = model_card(str(folder), "org/gadms")
    assert f"{start}; with images of 48x48, as it was trained, 33.33 text to image and 50.00 image to text." in text
    del run["metrics"]["base, 48x48"]
    (folder / "metrics.json").write_text(json.dumps(run))
    assert f"{start}.\n" in model_card(str(folder), "org/gadms")
    (tmp_path / "results.json").write_text(json.dumps({"results": [results_of("gadms", 44.44)]}))
    assert start not in model_card(str(folder), "org/gadms", evaluation=str(tmp_path))


def test_what_is_said_of_the_data_follows_from_its_name(folder):
    run = {"metrics": {"after": {"t2i_R@1": 50.0}}}
    for name, drawn in (("synthetic", True), ("org/synthetic-people", False), ("cuhk-pedes", False)):
        (folder / "metrics.json").write_text(json.dumps({**run, "arguments": {"dataset_name": name}}))
        text = model_card(str(folder), "org/gadms")
        said = "data of this run are drawings", "generated captions", "no photographs"
        assert all((words in text) == drawn for words in said), name
        assert all(
            (words in text) != drawn for words in ("the persons shown", "never agreed to be in it", "skin tone")
        )


def test_fine_tuning_is_called_so_and_says_which_weights_were_kept(folder):
    (folder / "emissions.csv").write_text("emissions,energy_consumed\n0.001,0.002\n")
    run = {"metrics": {"after": {"t2i_R@1": 50.0}}, "arguments": {"dataset_name": "synthetic"}, "seconds": 90.0}
    run |= {"best": {"step": 4000}, "best_epoch_chosen_on": "validation"}
    (folder / "metrics.json").write_text(json.dumps(run))
    facts = {"recipe": {"masking": "random", "id_weight": 1.0}}
    (folder / "run_facts.json").write_text(json.dumps(facts))
    text = model_card(str(folder), "org/gadms")
    assert head_of(text)["co2_eq_emissions"]["training_type"] == "fine-tuning"
    assert "| kept | the weights of step 4,000, the best on validation |" in text
    assert "| time | 1.5 minutes, including evaluation |" in text
    (folder / "run_facts.json").write_text(json.dumps({"recipe": {"masking": "gradient_attention"}}))
    assert head_of(model_card(str(folder), "org/gadms"))["co2_eq_emissions"]["training_type"] == "pre-training"


@pytest.mark.parametrize(
    "kind, options, masks",
    [
        (GADMSTrainingArguments, {}, {"alpha_noise", "alpha_info", "mtp_weight"}),
        (GADMSTrainingArguments, {"masking": "none"}, set()),
        (GADMSFineTuningArguments, {}, {"mask_probability", "mtp_weight"}),
        (GADMSFineTuningArguments, {"masking": "gradient_attention"}, {"alpha_noise", "alpha_info", "mtp_weight"}),
    ],
)
def test_a_run_records_the_settings_that_it_uses(kind, options, masks, tmp_path):
    recipe = recipe_of(kind(output_dir=str(tmp_path), **options))
    assert recipe.keys() & {"alpha_noise", "alpha_info", "mask_probability", "mtp_weight"} == masks
    assert ("id_weight" in recipe) == (kind is GADMSFineTuningArguments) and recipe["precision"] == "float32"


def test_what_lies_on_the_hub_is_linked_and_no_path_of_the_publisher_is_shown(folder):
    run = {"arguments": {"dataset_name": "org/webperson", "model_name_or_path": "openai/clip-vit-base-patch16"}}
    (folder / "metrics.json").write_text(json.dumps({**run, "metrics": {"after": {"t2i_R@1": 50.0}}}))
    text = model_card(str(folder), "org/gadms")
    head = ModelCard(text, ignore_metadata_errors=False).data
    assert head.datasets == ["org/webperson"] and head.base_model == "openai/clip-vit-base-patch16"
    assert "sentence-transformers" in head.tags and '`SentenceTransformer("org/gadms"' in text
    assert "[`org/webperson`](https://huggingface.co/datasets/org/webperson)" in text
    assert "[`openai/clip-vit-base-patch16`](https://huggingface.co/openai/clip-vit-base-patch16)" in text

    data, base = folder.parent / "secret" / "pictures", folder.parent / "runs" / "small_clip"
    base.mkdir(parents=True)
    for name in (str(base), "runs/small_clip"):  # a relative path looks like an id
        run = {"arguments": {"dataset_name": str(data), "model_name_or_path": name}}
        (folder / "metrics.json").write_text(json.dumps({**run, "metrics": {"after": {"t2i_R@1": 50.0}}}))
        text = model_card(str(folder), "org/gadms")
        head = head_of(text)
        assert "datasets" not in head and "base_model" not in head
        assert "| started from | `small_clip`, not on the Hub |" in text and "`pictures`, not on the Hub" in text
        assert "secret" not in text and "runs/" not in text and str(folder.parent) not in text
    # the publisher knows better
    text = model_card(str(folder), "org/gadms", data="org/other", base_model="openai/clip-vit-base-patch16")
    assert head_of(text)["datasets"] == ["org/other"] and head_of(text)["base_model"].startswith("openai/")


def test_a_run_s_figures_stand_with_intervals_gallery_and_what_they_mean(folder):
    run = {"metrics": {"after": {"t2i_R@1": 50.0, "t2i_mINP": 20.0}}, "arguments": {"dataset_name": "synthetic"}}
    run |= {"test_images": 800, "test_captions": 1600, "intervals": {"t2i_R@1": [48.0, 52.0]}}
    (folder / "metrics.json").write_text(json.dumps(run))
    text = model_card(str(folder), "org/gadms")
    line = "| synthetic, test | 800 | 1,600 | text to image | cosine | 50.00 [48.0, 52.0] | - | - | - | 20.00 |"
    assert line in text and "mINP: mean over queries of the number of matches divided by the rank" in text
    assert "In brackets: 95 % intervals" in text and not UNFILLED.search(text)


def test_the_snippet_of_the_card_defines_what_it_uses(folder):
    text = model_card(str(folder), "org/gadms", data="x")
    tree = ast.parse(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    defined = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    defined |= {alias.asname or alias.name for node in tree.body if hasattr(node, "names") for alias in node.names}
    assert {node.id for node in names if isinstance(node.ctx, ast.Load)} <= defined


@pytest.mark.parametrize("name", METRICS)
def test_the_space_of_a_metric_has_a_page(name):
    folder = REPO / "modeling_gadms" / name
    page = (folder / "index.html").read_text()
    assert "index.html" in METRICS[name].files(str(folder)) and "sdk: static" in (folder / "README.md").read_text()
    assert page.count(f'evaluate.load("./modeling_gadms/{name}")') == 1  # becomes the Space's id


def test_figures_of_other_weights_are_not_claimed():
    early, late = {"step": 2, "eval_t2i_R@1": 10.0}, {"step": 4, "eval_t2i_R@1": 20.0}
    end = {"step": 4, "train_runtime": 1.0}
    assert metrics_of_weights([early], 4, False) == {}
    assert metrics_of_weights([early, late], 4, False) == {"": {"t2i_R@1": 20.0}}
    assert metrics_of_weights([early, late, end], 4, best_at_end=True) == {}
    again = {"step": 4, "eval_t2i_R@1": 10.0}
    assert metrics_of_weights([early, late, end, again], 4, best_at_end=True) == {"": {"t2i_R@1": 10.0}}
    named = [{"step": 4, "test_rstp_t2i_mAP": 5.0}, late]
    assert metrics_of_weights(named, 4, False) == {"rstp": {"t2i_mAP": 5.0}}
