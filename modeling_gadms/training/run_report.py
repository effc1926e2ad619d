"""What a run leaves to look at: its table, its curve, and pictures of retrievals and token scores."""

import textwrap

import torch
from PIL import Image, ImageDraw, ImageFont

from dataset_webperson.files import replacing

from ..person_retrieval.ranking import METRICS

RIGHT, WRONG, INK, PAPER = (30, 150, 60), (210, 50, 50), (20, 20, 20), (255, 255, 255)


def metrics_table(columns: dict[str, dict[str, float]]) -> str:
    """A Markdown table, a row for each direction and column: `{"before": {"t2i_R@1": 3.1, ...}, "after": ...}`."""
    lines = [f"| direction | {'model':12} | " + " | ".join(f"{name:>5}" for name in METRICS) + " |"]
    lines.append("|---|---|" + "---:|" * len(METRICS))
    for direction, words in (("t2i", "text->image"), ("i2t", "image->text")):
        for model, metrics in columns.items():
            values = " | ".join(f"{metrics[f'{direction}_{name}']:5.1f}" for name in METRICS)
            lines.append(f"| {words} | {model:12} | {values} |")
    return "\n".join(lines)


def save_curve(log_history: list[dict], path) -> None:
    """Losses by step above, retrieval on the test set below, from a `Trainer`'s log history."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, sharex=True, figsize=(7, 6), layout="constrained")
    for key, label in (("sdm_loss", "SDM"), ("mtp_loss", "MTP")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            above.plot(*zip(*points, strict=True), label=label)
    for key, label in (("eval_t2i_R@1", "text->image R@1"), ("eval_i2t_R@1", "image->text R@1")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        below.plot(*zip(*points, strict=True), marker="o", label=label)
    above.set_ylabel("loss")
    below.set(xlabel="step", ylabel="%", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def save_retrievals(dataset, encoded, path, num_queries=6, top=5) -> None:
    """The first queries, one a person, beside their best `top` images: framed green when right, red when not.

    Args:
        dataset (`datasets.Dataset`): the set that was encoded.
        encoded ([`RetrievalSet`]): its embeddings.
    """
    persons, first = set(), []
    for row, person in enumerate(encoded.text_person_ids.tolist()):
        if person not in persons:
            persons.add(person)
            first.append(row)
    first = first[:num_queries]
    ranking = (encoded.text_embeds[first] @ encoded.image_embeds.T).topk(min(top, len(dataset))).indices
    font, height, text_width = ImageFont.load_default(13), 128, 330
    width = text_width + ranking.shape[1] * (height // 2 + 14)
    sheet = Image.new("RGB", (width, len(first) * (height + 14)), PAPER)
    draw = ImageDraw.Draw(sheet)
    captions = _captions_of(dataset, encoded)
    for line, (query, images) in enumerate(zip(first, ranking.tolist(), strict=True)):
        y = line * (height + 14) + 6
        draw.multiline_text((8, y), "\n".join(textwrap.wrap(captions(query), 50)[:8]), INK, font)
        for place, index in enumerate(images):
            right = encoded.image_person_ids[index] == encoded.text_person_ids[query]
            x = text_width + place * (height // 2 + 14)
            sheet.paste(dataset[index]["image"].convert("RGB").resize((height // 2, height)), (x, y))
            frame = (x - 4, y - 4, x + height // 2 + 3, y + height + 3)
            draw.rectangle(frame, outline=RIGHT if right else WRONG, width=4)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _captions_of(dataset, encoded):
    """A function from a query's number to its caption; an image's captions are numbered in order."""
    starts = torch.searchsorted(encoded.text_image_index, encoded.text_image_index)

    def caption(query: int) -> str:
        row = dataset[int(encoded.text_image_index[query])]
        return row[f"caption{query - int(starts[query]) + 1}"]

    return caption


def save_token_scores(model, processor, row: dict, path) -> None:
    """One image and its `caption1`, each token on a ground as dark as its score; false words, if known, underlined."""
    caption = row["caption1"]
    inputs = processor(images=row["image"], text=caption, return_tensors="pt").to(model.device)
    scores = model.token_scores(**inputs)[0].tolist()
    spans = processor.tokenizer(caption, return_offsets_mapping=True)["offset_mapping"]
    false_spans = row.get("caption1_false_spans") or []
    font, height, width = ImageFont.load_default(18), 200, 900
    sheet = Image.new("RGB", (width, height + 40), PAPER)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(row["image"].convert("RGB").resize((height // 2, height)), (12, 20))
    x, y, previous = height // 2 + 40, 24, 0
    for (start, end), score in list(zip(spans, scores, strict=False))[1:-1]:
        x += 6 if start > previous else 0
        previous = end
        length = draw.textlength(caption[start:end], font)
        if x + length > width - 20:
            x, y = height // 2 + 40, y + 34
        ground = tuple(round(255 - score * (255 - channel)) for channel in (255, 150, 0))
        draw.rectangle((x - 1, y, x + length + 1, y + 24), fill=ground)
        draw.text((x, y + 1), caption[start:end], INK, font)
        if any(low <= start < high for low, high in false_spans):
            draw.line((x, y + 26, x + length, y + 26), fill=WRONG, width=3)
        x += length
    legend = "darker: carried more of the match" + ("; red line: false word" if false_spans else "")
    draw.text((height // 2 + 40, height), legend, INK, ImageFont.load_default(13))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
