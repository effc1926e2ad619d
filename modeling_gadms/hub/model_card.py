"""The model card: the template `model_card.md` filled with recorded facts, and nothing else."""

import csv
import os
import re
from string import Template
from typing import Any

from huggingface_hub import ModelCardData

from dataset_webperson.files import replacing
from dataset_webperson.safe_paths import last_part

from ..evaluation.benchmarks import INCOMPLETE
from ..evaluation.published_results import PAPER_BENCHMARKS, published
from ..evaluation.tables import WAYS, eval_result, incomplete_notes
from ..person_retrieval.ranking import DIRECTIONS, METRICS
from .listings import PICTURES, PICTURES_OF_PERSONS, read_json, weight_counts
from .run_facts import FACTS_FILE

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model_card.md")
CARD = "README.md"
DEFAULT_LICENCE = "apache-2.0"
TOWER_NAMES = {
    **{"clip": "CLIP", "eva02": "EVA02-CLIP", "pe_core": "PE-Core"},
    **{"metaclip_2": "MetaCLIP 2", "siglip": "SigLIP", "tipsv2": "TIPSv2"},
}


def write_card(folder: str, repository: str, card_folder: str | None = None, **options: Any) -> str:
    """Fill the template with the facts of `folder` and write `README.md`, whole, into `card_folder` or `folder`.

    Returns the text. Arguments and errors as [`model_card`].
    """
    text = model_card(folder, repository, **options)
    with replacing(os.path.join(card_folder or folder, CARD)) as temporary, open(temporary, "w") as file:
        file.write(text)
    return text


def model_card(
    folder: str,
    repository: str,
    licence: str = DEFAULT_LICENCE,
    data: str | None = None,
    base_model: str | None = None,
    evaluation: str | None = None,
    pictures_of_persons: bool = False,
    pictures_folder: str | None = None,
) -> str:
    """The card of a model folder.

    Args:
        folder (`str`): holds config.json and the weights; run_facts.json of the Trainer, metrics.json of the examples
            and emissions.csv of codecarbon are read if present.
        repository (`str`): `org/name` on the Hub, or what a reader passes to `from_pretrained`.
        licence (`str`): the Hub's id of the weights' licence.
        data (`str`, *optional*): what it was trained on, in Markdown; by default what the run recorded.
        base_model (`str`, *optional*): Hub id that training started from; by default what the run recorded.
        evaluation (`str`, *optional*): folder of `examples/evaluate_retrieval.py`; its figures take the place of the
            run's own.
        pictures_of_persons (`bool`): show retrievals even if the images are not drawings.
        pictures_folder (`str`, *optional*): where the pictures are, if not in `folder`.

    Raises:
        FileNotFoundError: no config.json or weights.
        ValueError: the training data is not recorded, or `evaluation` has no figures of this model.
    """
    config = read_json(folder, "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder}: no config.json; give the folder of a saved model")
    height, width, tokens = input_sizes(folder, config)
    facts = read_json(folder, FACTS_FILE) or {}
    run = read_json(folder, "metrics.json") or {}
    arguments = run.get("arguments", {})
    described = described_data(data, folder) if data else describe_data(facts, arguments, folder)
    if described is None:
        raise ValueError(f"{folder}: its training data is not recorded; describe it with --data")
    base_model = base_model or arguments.get("model_name_or_path")
    if evaluation is None:
        measured = measured_by_run(facts, run, folder)
        start = describe_start(run.get("metrics", {}))
    else:
        measured = measured_by_evaluation(evaluation, os.path.basename(os.path.abspath(folder)))
        start = ""  # it was measured on the run's test set
    carbon = emissions(folder)
    names = (data, arguments.get("dataset_name"))
    trained_on = [name for name in names if name is not None and is_hub_id(name, folder)][:1]
    drawn = data is None and is_drawn(arguments.get("dataset_name") or facts.get("training_data"))
    title = repository.split("/")[-1]
    weights, counted = weight_counts(folder)
    kind = "fine-tuning" if "id_weight" in facts.get("recipe", {}) else "pre-training"
    co2 = carbon and {"emissions": carbon["grams"], "source": "codecarbon", "training_type": kind}
    values = {
        "metadata": f"---\n{metadata(title, licence, base_model, trained_on, measured, co2, folder)}\n---",
        "title": title,
        "repository": repository,
        "towers": TOWER_NAMES[config.get("tower", "clip")],
        "height": height,
        "width": width,
        "tokens": tokens,
        "parameters": f"{counted:,}",
        "decoder": f", and {weights - counted:,} for pre-training alone" if weights > counted else "",
        "pictures": show_pictures(pictures_folder or folder, drawn or pictures_of_persons),
        "training": describe_training(facts, run, described, base_model and linked(base_model, folder)),
        "results": describe_results(measured, run.get("warning"), start),
        "published": describe_published(),
        "first_answer": describe_first_answer(measured),
        "carbon": describe_carbon(carbon, facts),
        "limits_of_data": describe_limits(drawn),
        "licence": f"The weights: `{licence}`. The code beside them: `apache-2.0`."
        + ("" if drawn else " The rights in training images remain with their owners and with the persons shown."),
    }
    with open(TEMPLATE, encoding="utf-8") as file:
        text = Template(file.read()).substitute(values)
    return re.sub(r"\n{3,}", "\n\n", text)


def input_sizes(folder: str, config: dict) -> tuple[int, int, int]:
    """Height and width of the images in pixels, and the length of the captions in tokens.

    Raises:
        ValueError: the configuration is that of another model.
    """
    try:
        height, width = config["vision_config"]["image_size"]
        return height, width, config["text_config"]["max_position_embeddings"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder}/config.json: is not that of a GA-DMS; give the folder of a saved GA-DMS") from None


def is_hub_id(name: str | None, folder: str) -> bool:
    """Whether `name` is an id `org/name` on the Hub, and no folder here or about the model's `folder`."""
    if name is None or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return False
    place, about = os.path.abspath(folder), [os.getcwd()]
    while place != (place := os.path.dirname(place)):
        about.append(place)
    return not any(os.path.exists(os.path.join(where, name)) for where in about)


def linked(name: str, folder: str, kind: str = "") -> str:
    """A link to what lies on the Hub, with `kind` "datasets/" for data; of a path only the last part, for a reader has
    no use for the publisher's folders."""
    if is_hub_id(name, folder):
        return f"[`{name}`](https://huggingface.co/{kind}{name})"
    return f"`{last_part(name)}`" + (", not on the Hub" if last_part(name) != name or os.path.isdir(name) else "")


def metadata(
    title: str,
    licence: str,
    base_model: str | None,
    trained_on: list[str],
    measured: list[dict],
    co2: dict | None,
    folder: str,
) -> str:
    """The YAML head: what the Hub indexes."""
    results = [
        eval_result(
            row["direction"], row["dataset_type"], row["dataset"], row["split"], row["scoring"], name, value[0]
        )
        for row in measured
        if not row["incomplete"]
        for name, value in row["metrics"].items()
    ]
    return ModelCardData(
        language="en",
        license=licence,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["gadms", "person-retrieval", "text-to-image-retrieval", "clip", "sentence-transformers"],
        base_model=base_model if is_hub_id(base_model, folder) else None,
        datasets=trained_on or None,
        model_name=title if results else None,
        eval_results=results or None,
        co2_eq_emissions=co2,
    ).to_yaml()


# ---- what was measured


def measured_by_run(facts: dict, run: dict, folder: str) -> list[dict]:
    """Rows `{dataset, dataset_type, split, images, incomplete, direction, scoring, metrics}`.

    `metrics` is `{name: (value, low, high)}`; `incomplete` says why the figures are not those of the set that they are
    named after, and is None where they are.
    """
    if "sets" in run:
        found = {name: (one["after"], one) for name, one in run["sets"].items()}
    elif "metrics" in run:
        found = {"": (run["metrics"]["after"], run)}
    else:
        found = {name: (metrics, {**facts, "intervals": {}}) for name, metrics in facts.get("metrics", {}).items()}
    arguments = run.get("arguments", {})
    rows = []
    for name, (metrics, about) in found.items():
        dataset = name or facts.get("test_data") or arguments.get("dataset_name") or "held-out rows"
        on_the_hub = is_hub_id(dataset, folder)
        dataset = dataset if on_the_hub else last_part(dataset)
        intervals = about.get("intervals", {})
        for direction in DIRECTIONS:
            values = {
                m: (metrics[key], *intervals.get(key, (None, None)))
                for m in METRICS
                if (key := f"{direction}_{m}") in metrics
            }
            if values:
                rows.append(
                    {
                        "dataset": dataset,
                        "dataset_type": dataset if on_the_hub else re.sub(r"[^\w.-]+", "-", dataset),
                        "split": about.get("splits", {}).get("test", "test"),
                        "images": about.get("test_images") or facts.get("test_images"),
                        "captions": about.get("test_captions"),
                        "incomplete": about.get("incomplete"),
                        "direction": direction,
                        "scoring": "cosine",
                        "metrics": values,
                    }
                )
    return rows


def measured_by_evaluation(folder: str, model: str) -> list[dict]:
    """The same rows with intervals, from the results.json of an evaluation.

    Raises:
        ValueError: no results.json, or none of its results is of `model`.
    """
    content = read_json(folder, "results.json")
    if content is None or "results" not in content:
        raise ValueError(
            f"{folder}: no results in a results.json; give the --output_dir of examples/evaluate_retrieval.py"
        )
    rows = []
    for result in content["results"]:
        for direction, metrics in result["metrics"].items() if result["model"] == model else ():
            rows.append(
                {
                    "dataset": result["benchmark"],
                    "dataset_type": result["dataset_type"],
                    "split": result["split"],
                    "images": result.get("images"),
                    "captions": result.get("captions"),
                    "incomplete": result.get("incomplete"),
                    "direction": direction,
                    "scoring": result["scoring"],
                    "metrics": {name: (m["mean"], m["low"], m["high"]) for name, m in metrics.items()},
                }
            )
    if not rows:
        names = sorted({result["model"] for result in content["results"]})
        raise ValueError(f"{folder}/results.json: no figures of {model}, only of {', '.join(names)}")
    return rows


def emissions(folder: str) -> dict | None:
    """Grams of CO2 and kWh, if codecarbon ran with the training (`--report_to codecarbon`)."""
    path = os.path.join(folder, "emissions.csv")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        totals = [sum(float(row[column]) for row in rows) for column in ("emissions", "energy_consumed")]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: has no numbers for emissions and energy_consumed; copy codecarbon's file again, or delete it"
        ) from None
    return {"grams": round(1000 * totals[0], 3), "kwh": round(totals[1], 4)}


# ---- words


def described_data(words: str, folder: str) -> str:
    """What a publisher says of the data, with a link where it is an id alone."""
    return linked(words, folder, "datasets/") if is_hub_id(words, folder) else words


def is_drawn(name: str | None) -> bool:
    """Whether a run's data is named as the drawings of this package are, by its arguments or by the builder."""
    return name in ("synthetic", "webperson synthetic")


def describe_limits(drawn: bool) -> str:
    """What follows from the training data."""
    if drawn:
        return (
            "- The data of this run are drawings of pedestrians with captions from templates; figures on drawings say "
            "nothing about photographs."
        )
    return (
        "- Machine-written captions and detector-filtered data sets carry the biases of the models that made them: "
        "who is detected, and which words describe whom. Expect results to vary with skin tone, age, gender "
        "presentation, clothing and disability. This was not measured.\n"
        "- Training data may contain people who never agreed to be in it; to have an image removed, ask those who "
        "publish the data."
    )


def describe_data(facts: dict, arguments: dict, folder: str) -> str | None:
    name = arguments.get("dataset_name") or facts.get("training_data")
    if name is None:
        return None
    if is_drawn(name):
        noise = arguments.get("noise_rate")
        false = f", {100 * noise:.0f} % of the attributes in training captions are false" if noise else ""
        return f"drawings of pedestrians with generated captions (`synthetic` of WebPerson{false}); no photographs"
    return linked(name, folder, "datasets/")


def describe_training(facts: dict, run: dict, data: str, base_model: str | None) -> str:
    """A table of the recorded facts; a fact that was not recorded has no row."""
    recipe = facts.get("recipe", {})
    finished = facts.get("steps") and facts["steps"] >= facts.get("max_steps", 0)
    seconds = run.get("seconds") or facts.get("seconds")
    processes = facts.get("processes", 1)
    known = {
        "data": data,
        "items per epoch": facts.get("training_items") and f"{facts['training_items']:,}",
        "started from": base_model,
        "optimiser steps": facts.get("steps")
        and f"{facts['steps']:,}" + ("" if finished else f" of {facts['max_steps']:,}: **training is in progress**"),
        "epochs": facts.get("epochs") and f"{facts['epochs']:.2f}".rstrip("0").rstrip("."),
        "pairs per step": facts.get("pairs_a_step") and f"{facts['pairs_a_step']:,}",
        "trained parameters": run.get("trainable_parameters") and f"{run['trainable_parameters']:,}",
        **{
            name.replace("_", " "): f"{value:g}" if isinstance(value, float) else value
            for name, value in recipe.items()
        },
        "hardware": facts.get("hardware") and f"{processes} x {facts['hardware']}" if facts else None,
        "kept": run.get("best", {}).get("step")
        and f"the weights of step {run['best']['step']:,}, the best on {run['best_epoch_chosen_on']}",
        "time": seconds and f"{duration(seconds)}, including evaluation" if run else None,
        "software": facts.get("software") and ", ".join(f"{name} {v}" for name, v in facts["software"].items()),
    }
    lines = [f"| {name} | {value} |" for name, value in known.items() if value not in (None, "", 0)]
    return "\n".join(["| | |", "|---|---|", *lines])


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def describe_start(metrics: dict[str, dict[str, float]]) -> str:
    """What the starting point had on the run's test set: `metrics` are those of the run by model."""
    if "before" not in metrics:
        return ""
    ways = "{t2i_R@1:.2f} text to image and {i2t_R@1:.2f} image to text"
    text = "On the same test set the starting point had R@1 " + ways.format_map(metrics["before"])
    for name, found in metrics.items():
        if name.startswith("base, "):
            size = name.removeprefix("base, ")
            text += f"; with images of {size}, as it was trained, " + ways.format_map(found)
    return text + "."


def describe_results(measured: list[dict], warning: str | None, start: str) -> str:
    if not measured:
        return "This checkpoint has not been evaluated."
    lines = ["Measured on this checkpoint, 0-100; ties count against the model.", ""]
    lines += [f"**{warning[0].upper()}{warning[1:]}.**", ""] if warning else []
    lines += [
        "| test set | images | captions | direction | scoring | " + " | ".join(METRICS) + " |",
        "|---|---:|---:|---|---|" + "---:|" * 5,
    ]
    for row in measured:
        cells = [format_figure(*row["metrics"][name]) if name in row["metrics"] else "-" for name in METRICS]
        sizes = [f"{row[kind]:,}" if row[kind] else "-" for kind in ("images", "captions")]
        name = row["dataset"]
        if row["incomplete"] and INCOMPLETE not in name:
            name = f"{name} ({INCOMPLETE})"
        head = [f"{name}, {row['split']}", *sizes, WAYS[row["direction"]], row["scoring"]]
        lines.append("| " + " | ".join(head + cells) + " |")
    by_image = any(row["direction"] == "i2i" for row in measured)
    bounds = any(value[1] is not None for row in measured for value in row["metrics"].values())
    lines += [
        "",
        "The gallery of text to image is all the images, of image to text all the captions"
        + (", of image to image all but those of the person by the query's camera" if by_image else "")
        + ". R@k: share of queries "
        "with a match among the first k. mAP: mean average precision. mINP: mean over queries of the number of "
        "matches divided by the rank of the last one, so of how deep one must look to find them all."
        + (" In brackets: 95 % intervals over persons drawn anew." if bounds else " Intervals were not computed."),
    ]
    lines += ["", start] if start else []
    for note in incomplete_notes([{**row, "benchmark": row["dataset"]} for row in measured]):
        lines += ["", note]
    return "\n".join(lines)


def format_figure(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.1f}, {high:.1f}]"


def describe_published() -> str:
    """The paper's figures, marked as such."""
    lines = [
        "For comparison, *as published* by the authors of the method (arXiv 2509.09118) for their own "
        "checkpoints; not measured here. Text to image, R@1:",
        "",
        "| published model | setting | " + " | ".join(PAPER_BENCHMARKS) + " |",
        "|---|---|" + "---:|" * len(PAPER_BENCHMARKS),
    ]
    for protocol in ("direct-transfer", "fine-tuned"):
        figures = published(protocol)["GA-DMS (5M)"]
        cells = [f"{figures[benchmark]['R@1']:.2f}" for benchmark in PAPER_BENCHMARKS]
        lines.append(f"| GA-DMS (5M) | {protocol} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe_first_answer(measured: list[dict]) -> str:
    rows = [
        row
        for row in measured
        if row["direction"] == "t2i"
        and row["scoring"] == "cosine"
        and "R@1" in row["metrics"]
        and not row["incomplete"]
    ]
    if not rows:
        return ""
    wrong = [f"{100 - row['metrics']['R@1'][0]:.1f} % of the descriptions of {row['dataset']}" for row in rows]
    return (
        f"Even though the person was always in the gallery, its first answer was somebody else for "
        f"{' and '.join(wrong)}; in larger galleries this happens more often."
    )


def describe_carbon(carbon: dict | None, facts: dict) -> str:
    if carbon:
        return f"Measured by codecarbon: {carbon['grams']:g} g CO2 equivalent, {carbon['kwh']:g} kWh."
    return "Emissions were not measured." + (" Hardware and time are in the table above." if facts else "")


def show_pictures(folder: str, of_persons: bool) -> str:
    return "\n\n".join(
        f"![{words}]({name})"
        for name, words in PICTURES.items()
        if os.path.exists(os.path.join(folder, name)) and (of_persons or name not in PICTURES_OF_PERSONS)
    )
