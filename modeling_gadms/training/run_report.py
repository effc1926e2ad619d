"""Results of a run for the eye: a table of metrics, a curve, pictures of retrievals and of what words contribute."""

import os
import textwrap
from collections.abc import Callable
from typing import Any

import datasets
import torch
from PIL import Image, ImageDraw, ImageFont

from dataset_webperson.files import replacing
from dataset_webperson.images import to_rgb

from ..evaluation.encoding import RetrievalSet
from ..evaluation.metrics import Evaluation
from ..modeling_gadms import GADMSModel
from ..person_retrieval.ranking import METRICS
from ..processing_gadms import GADMSProcessor
from ..rows import captions_of

RIGHT, WRONG, INK, PAPER = (30, 150, 60), (210, 50, 50), (20, 20, 20), (255, 255, 255)
FOR, AGAINST = (255, 150, 0), (90, 150, 255)  # words that speak for their image, and against it


def metrics_table(columns: dict[str, dict[str, float]]) -> str:
    """A Markdown table of `{"before": {"t2i_R@1": 3.1, ...}, "after": ...}`, a row per direction and model."""
    lines = [f"| direction | {'model':12} | " + " | ".join(f"{name:>5}" for name in METRICS) + " |"]
    lines.append("|---|---|" + "---:|" * len(METRICS))
    for direction, words in (("t2i", "text->image"), ("i2t", "image->text")):
        for model, metrics in columns.items():
            values = " | ".join(f"{metrics[f'{direction}_{name}']:5.1f}" for name in METRICS)
            lines.append(f"| {words} | {model:12} | {values} |")
    return "\n".join(lines)


def gallery_facts(evaluation: Evaluation) -> dict[str, Any]:
    """What figures need beside them: `test_images`, `test_captions`, and `intervals`, `{"t2i_R@1": [low, high], ...}`.

    The intervals are of 95 % and draw persons anew, as those of `evaluation`.
    """
    found, persons = evaluation.metrics, evaluation.person_ids
    intervals = {f"{way}_{name}": [i.low, i.high] for way, metrics in found.items() for name, i in metrics.items()}
    return {"test_images": len(persons["i2t"]), "test_captions": len(persons["t2i"]), "intervals": intervals}


def save_curve(
    log_history: list[dict[str, Any]], path: str | os.PathLike[str], before: dict[str, float] | None = None
) -> None:
    """Draw losses by step above retrieval on the test set, from a `Trainer`'s log history.

    Args:
        before: retrieval at step 0, where the history lacks it: `{"t2i_R@1": ...}`. Of losses and retrieval, what was
            never logged has no panel; where nothing was, no file is written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    history = list(log_history)
    if before and not any(entry["step"] == 0 and "eval_t2i_R@1" in entry for entry in history):
        history.insert(0, {"step": 0} | {f"eval_{name}": value for name, value in before.items()})
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for key, label, unit in (
        ("sdm_loss", "SDM", "loss"),
        ("sigmoid_loss", "sigmoid loss", "loss"),
        ("mtp_loss", "MTP", "loss"),
        ("eval_t2i_R@1", "text->image R@1", "%"),
        ("eval_i2t_R@1", "image->text R@1", "%"),
    ):
        if points := [(entry["step"], entry[key]) for entry in history if key in entry]:
            panels.setdefault(unit, {})[label] = points
    if not panels:
        return
    height = 3 * len(panels)
    figure, all_axes = pyplot.subplots(
        len(panels), sharex=True, squeeze=False, figsize=(7, height), layout="constrained"
    )
    for axes, (unit, lines) in zip(all_axes[:, 0], panels.items(), strict=True):
        for label, points in lines.items():
            few = len(points) < 20  # a single point has no line
            axes.plot(*zip(*points, strict=True), marker="o" if few else None, label=label)
        axes.set(ylabel=unit, ylim=(0, 100) if unit == "%" else None)
        axes.grid(alpha=0.3)
        if axes.lines:  # a run of few steps may have logged none
            axes.legend(loc="best" if unit == "loss" else "lower right")
    all_axes[-1, 0].set_xlabel("step")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def save_retrievals(
    dataset: datasets.Dataset,
    encoded: RetrievalSet,
    path: str | os.PathLike[str],
    num_queries: int = 6,
    top: int = 5,
) -> None:
    """Write what [`draw_retrievals`] draws."""
    sheet = draw_retrievals(dataset, encoded, num_queries, top)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def draw_retrievals(
    dataset: datasets.Dataset, encoded: RetrievalSet, num_queries: int = 6, top: int = 5
) -> Image.Image:
    """Draw the first queries, one per person, beside their `top` best images, framed green if right and red if not.

    Args:
        dataset (`datasets.Dataset`): the set that was encoded.
        encoded ([`RetrievalSet`]): its embeddings.
    """
    first_of_person: dict[int, int] = {}
    for row, person in enumerate(encoded.text_person_ids.tolist()):
        first_of_person.setdefault(person, row)
    queries = list(first_of_person.values())[:num_queries]
    similarity = encoded.text_embeds[queries] @ encoded.image_embeds.T
    ranking = similarity.topk(min(top, len(dataset))).indices.tolist()

    font, text_width = ImageFont.load_default(13), 330
    height, gap = 128, 14
    width = height // 2
    sheet = Image.new("RGB", (text_width + len(ranking[0]) * (width + gap), len(queries) * (height + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    captions = _captions_of(dataset, encoded)
    for line, (query, images) in enumerate(zip(queries, ranking, strict=True)):
        y = line * (height + gap) + 6
        draw.multiline_text((8, y), "\n".join(textwrap.wrap(captions(query), 50)[:8]), INK, font)
        for place, index in enumerate(images):
            x = text_width + place * (width + gap)
            sheet.paste(to_rgb(dataset[index]["image"]).resize((width, height)), (x, y))
            right = encoded.image_person_ids[index] == encoded.text_person_ids[query]
            frame = (x - 4, y - 4, x + width + 3, y + height + 3)
            draw.rectangle(frame, outline=RIGHT if right else WRONG, width=4)
    return sheet


def _captions_of(dataset: datasets.Dataset, encoded: RetrievalSet) -> Callable[[int], str]:
    """A function from the number of a query to its caption; an image's captions are numbered in order."""
    starts = torch.searchsorted(encoded.text_image_index, encoded.text_image_index)

    def caption(query: int) -> str:
        row = dataset[int(encoded.text_image_index[query])]
        return captions_of(row)[query - int(starts[query])]

    return caption


def save_word_contributions(
    model: GADMSModel, processor: GADMSProcessor, row: dict[str, Any], path: str | os.PathLike[str]
) -> None:
    """Draw an image and its `caption1`, each word shaded by what it does to the match, false words underlined.

    See [`GADMSModel.word_contributions`]. Shades are scaled to the strongest word of the caption.
    """
    caption = row["caption1"]
    words = torch.tensor([processor.word_ids(caption)])
    inputs = processor(images=row["image"], text=caption)
    drops = model.word_contributions(**inputs.to(model.device), word_ids=words.to(model.device))[0].tolist()
    false_spans = row.get("caption1_false_spans") or []
    legend = f"orange: masking the word lowers the cosine (darkest: {max(map(abs, drops)):.3f}); blue: raises it"
    legend += "; red line: false word" if false_spans else ""
    sheet = _shaded_caption(processor, row["image"], caption, drops, legend, false_spans)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def draw_token_scores(model: GADMSModel, processor: GADMSProcessor, row: dict[str, Any]) -> Image.Image:
    """Draw an image and its first caption, each token shaded by [`GADMSModel.token_scores`], which masks follow."""
    caption = captions_of(row)[0]
    inputs = processor(images=row["image"], text=caption).to(model.device)
    scores = model.token_scores(inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"])[0].tolist()
    legend = f"token scores, from which masks are drawn (darkest: {max(scores):.3f})"
    return _shaded_caption(processor, row["image"], caption, scores, legend, [])


def _shaded_caption(
    processor: GADMSProcessor,
    image: Image.Image,
    caption: str,
    values: list[float],
    legend: str,
    false_spans: list[list[int]],
) -> Image.Image:
    """An image beside its caption, whose tokens are shaded by their values, scaled to the strongest."""
    offsets = processor.tokenizer(**processor.caption_options(caption), return_offsets_mapping=True)["offset_mapping"]
    strongest = max(map(abs, values)) or 1.0
    font, height, width = ImageFont.load_default(18), 200, 900
    sheet = Image.new("RGB", (width, height + 40), PAPER)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(to_rgb(image).resize((height // 2, height)), (12, 20))

    left = height // 2 + 40
    x, y, previous = float(left), 24, 0
    for (start, end), value in zip(offsets, values, strict=True):
        if start == end:  # a special token
            continue
        x += 6 if start > previous else 0  # a space between words
        previous = end
        length = draw.textlength(caption[start:end], font)
        if x + length > width - 20:
            x, y = float(left), y + 34
        full, share = FOR if value > 0 else AGAINST, abs(value) / strongest
        red, green, blue = (round(255 - share * (255 - channel)) for channel in full)
        draw.rectangle((x - 1, y, x + length + 1, y + 24), fill=(red, green, blue))
        draw.text((x, y + 1), caption[start:end], INK, font)
        if any(low <= start < high for low, high in false_spans):
            draw.line((x, y + 26, x + length, y + 26), fill=WRONG, width=3)
        x += length

    draw.text((left, height), legend, INK, ImageFont.load_default(13))
    return sheet
