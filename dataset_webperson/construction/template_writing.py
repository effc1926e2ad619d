"""Sentence templates made from people's captions, for a person to review.

python -m dataset_webperson.construction.template_writing --benchmark cuhk-pedes --data_root CUHK-PEDES \
    --base_url http://localhost:8000/v1 --model Qwen/Qwen2.5-72B-Instruct --output_file templates_review.json

A language model replaces attributes by placeholders; an answer that is not a template is asked for once more.
Templates are embedded and clustered; in each cluster the one nearest to the centre and five random ones are kept, and
the model writes variations of them. Edit `--output_file`: write `"approved": true` beside good templates, and give the
file to the captioning stage as `templates`. Run again, the command keeps approvals and does not repeat requests.
"""

import argparse
import asyncio
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..command_line import CommandParser, command
from ..files import replacing
from ..findings import DataError
from ..readers.benchmarks import load_benchmark
from .captions.cache import AnswerCache, cache_key
from .captions.client import Captioner, CaptionServerError, RequestFailed, ServerClient
from .captions.templates import MAX_WORDS, MIN_PLACEHOLDERS, PLACEHOLDERS, read_review, template_problems

WRITER_VERSION = "1"  # raise it with any change of the prompts below
RANDOM_OF_CLUSTER = 5  # the paper's

Ask = Callable[[list], Awaitable[str]]

_SYSTEM = "You edit sentences about people in photographs. You answer with what is asked for and nothing else."
_PLACEHOLDER_LIST = "\n".join(f"[{name}]: {meaning}" for name, meaning in PLACEHOLDERS.items())
_TO_TEMPLATE = (
    "Turn this description of a person into a template: keep how the sentence is built, and put one of the "
    "placeholders below in the place of everything that is true of this person alone, colours, garments, things, sex, "
    "age, hair and actions. Write they and their for he, she, his and her. Leave out the place, the background, moods "
    f"and other people. Use at least {MIN_PLACEHOLDERS} different placeholders and at most {MAX_WORDS} words, on one "
    f"line.\n\n{_PLACEHOLDER_LIST}\n\nDescription: "
)
_VARY = (
    "Write {count} variations of this template, one per line, without numbers. Change the order of the parts and the "
    "way the sentence is built; use placeholders of the list below only, written exactly so, at least "
    f"{MIN_PLACEHOLDERS} different ones each. Add no colour, garment, place or mood.\n\n{_PLACEHOLDER_LIST}"
    "\n\nTemplate: "
)
_AGAIN = "That cannot be used: {faults}. Write it again, nothing else."


@dataclass(frozen=True)
class WritingOptions:
    """How many templates to make.

    Args:
        num_captions: captions given to the model, drawn at random.
        num_clusters: clusters of k-means.
        variations: variations that the model writes of each chosen template.
        seed: seed of the draws and of k-means.
    """

    num_captions: int = 2000
    num_clusters: int = 50
    variations: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_captions, self.num_clusters) < 1 or self.variations < 0:
            raise ValueError("num_captions and num_clusters must be at least 1, variations at least 0")


async def caption_to_template(ask: Ask, caption: str) -> tuple[str, list[str]]:
    """A template made from a caption by a language model, and the problems that it still has after one retry.

    Args:
        ask: returns the answer to a conversation.
    """
    text, problems, _ = await _ask_twice(ask, _TO_TEMPLATE + caption, lambda answer: template_problems(_line(answer)))
    return _line(text), problems


async def write_variations(ask: Ask, template: str, count: int) -> list[str]:
    """Valid variations of a template, at most `count`, none equal to it; lines that are not templates are left out."""

    def problems(answer: str) -> list[str]:
        return [] if any(map(_is_template, _lines(answer))) else ["no line of it is a template"]

    answer, _, _ = await _ask_twice(ask, _VARY.format(count=count) + template, problems)
    lines = dict.fromkeys(line for line in _lines(answer) if _is_template(line) and line != template)
    return list(lines)[:count]


async def _ask_twice(ask: Ask, prompt: str, problems_of: Callable[[str], list[str]]) -> tuple[str, list[str], int]:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": prompt}]
    answer = await ask(messages)
    problems = problems_of(answer)
    if not problems:
        return answer, [], 1
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": _AGAIN.format(faults="; ".join(problems))},
    ]
    answer = await ask(messages)
    return answer, problems_of(answer), 2


def _is_template(line: str) -> bool:
    return not template_problems(line)


def _line(answer: str) -> str:
    """The answer without quotes and a leading "Template:"."""
    text = answer.strip().removeprefix("Template:").strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _lines(answer: str) -> list[str]:
    return [_line(line.strip().lstrip("-*0123456789.) ")) for line in answer.splitlines() if line.strip()]


def embed_texts(texts: list[str], embedder: str | None) -> np.ndarray:
    """Unit embeddings `(N, D)`, float32.

    Args:
        texts: sentences.
        embedder: Hub id or folder of a text model for `transformers` (sentence-transformers models will do);
            its last states are averaged over the tokens. `None` counts words and pairs of words instead, which needs
            no model and distinguishes templates by how they are built.
    """
    if embedder is None:
        text = _sklearn("feature_extraction.text")
        counts = text.HashingVectorizer(n_features=4096, ngram_range=(1, 2), alternate_sign=False).transform(texts)
        return counts.toarray().astype(np.float32)
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(embedder), AutoModel.from_pretrained(embedder).eval()
    parts = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(texts), 64), desc="embed", leave=False):
            inputs = tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            states = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=-1).float())
    return torch.cat(parts).numpy()


def choose_of_clusters(embeds: np.ndarray, num_clusters: int, seed: int) -> list[int]:
    """From each k-means cluster, the text nearest to the centre and five random others, or as many as it has.

    Args:
        embeds (`np.ndarray` of shape `(N, D)`): unit norm.
        num_clusters: number of clusters; at most `N` are made.
        seed: seed of k-means and of the draw.

    Returns:
        Indices, sorted.
    """
    num_clusters = min(num_clusters, len(embeds))
    means = _sklearn("cluster").KMeans(num_clusters, init="random", n_init=1, random_state=seed).fit(embeds)
    rng, chosen = np.random.default_rng(seed), []
    for cluster, centre in enumerate(means.cluster_centers_):
        members = np.flatnonzero(means.labels_ == cluster)
        if len(members) == 0:
            continue  # fewer different texts than clusters
        nearest = members[np.argmin(np.linalg.norm(embeds[members] - centre, axis=1))]
        others = members[members != nearest]
        chosen += [int(nearest), *map(int, rng.permutation(others)[:RANDOM_OF_CLUSTER])]
    return sorted(chosen)


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise DataError("clustering templates needs scikit-learn: pip install scikit-learn") from error


def write_review(path: str, candidates: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """Write a file in which a person approves templates; its existing entries stay as the person left them.

    Args:
        path: JSON file, one template per line.
        candidates: (text, origin); new ones are appended, not approved.

    Returns:
        Number of templates in the file, and number of approved ones.
    """
    entries = read_review(path) if os.path.exists(path) else []
    known = {entry["text"] for entry in entries}
    for text, origin in candidates:
        if text not in known:
            known.add(text)
            entries.append({"approved": False, "text": text, "origin": origin})
    lines = ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write(f'{{"templates": [\n{lines}\n]}}\n')
    return len(entries), sum(entry["approved"] for entry in entries)


async def propose_templates(
    captions: list[str], writer: Captioner, cache: AnswerCache, options: WritingOptions, embedder: str | None
) -> tuple[list[tuple[str, str]], Counter[str]]:
    """From captions to candidates for review.

    Returns:
        (text, origin) of the candidates, and counts: `captions`, `templates` (valid and different), `dropped`, one
        `dropped: <problem>` each, `chosen`, `variations`.

    Raises:
        CaptionServerError: the server does not answer.
        `DataError`: none of its answers is a template.
    """
    counts: Counter[str] = Counter(captions=len(captions))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(ServerClient(writer))

        async def ask(messages: list[dict[str, Any]]) -> str:
            key = cache_key(
                writer.model, WRITER_VERSION, writer.temperature, writer.max_tokens, writer.seed, json.dumps(messages)
            )
            if (answer := cache.get(key)) is None:
                answer = await client.ask(messages)
                cache.put(key, answer)
            return answer.text

        async def template_of(caption: str) -> tuple[str, list[str]]:
            try:
                return await caption_to_template(ask, caption)
            except RequestFailed as error:
                return "", [error.problem]

        async def variations_of(template: str) -> list[str]:
            try:
                return await write_variations(ask, template, options.variations)
            except RequestFailed:
                return []

        made = await _all(map(template_of, captions), len(captions), "templates")
        templates = list(dict.fromkeys(text for text, problems in made if not problems))
        for _, problems in made:
            counts["dropped"] += bool(problems)
            counts.update(f"dropped: {problem.split(':')[0]}" for problem in problems)
        counts["templates"] = len(templates)
        if not templates:
            raise DataError(f"{writer.model}: made no template from {len(captions)} captions; use a larger model")
        chosen = choose_of_clusters(embed_texts(templates, embedder), options.num_clusters, options.seed)
        chosen_texts = [templates[index] for index in chosen]
        varied: list[list[str]] = []
        if options.variations:
            varied = await _all(map(variations_of, chosen_texts), len(chosen_texts), "variations")
    candidates = dict.fromkeys(chosen_texts, "caption") | {
        text: "variation" for texts in varied for text in texts if text not in set(chosen_texts)
    }
    counts |= {"chosen": len(chosen_texts), "variations": len(candidates) - len(chosen_texts)}
    return list(candidates.items()), counts


async def _all(work: Iterable[Awaitable], total: int, name: str) -> list:
    """The results in order; the first error cancels the rest."""
    with tqdm(total=total, desc=name) as bar:

        async def counted(one: Awaitable) -> Any:
            result = await one
            bar.update()
            return result

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(counted(one)) for one in work]
        except* CaptionServerError as errors:
            raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def draw_captions(benchmark: str, root: str, count: int, seed: int) -> list[str]:
    """Distinct captions of a benchmark's training split, drawn at random."""
    # An incomplete copy of the benchmark is good enough: only its captions are used.
    rows = load_benchmark(benchmark, root, on_count_mismatch="warn", on_missing_images="skip")["train"]
    captions = sorted({caption for captions in rows["captions"] for caption in captions if caption.strip()})
    order = np.random.default_rng(seed).permutation(len(captions))[:count]
    return [captions[index] for index in order]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m dataset_webperson.construction.template_writing",
        description=__doc__,
        renamed={"--root": "--data_root", "--out": "--output_file"},
    )
    parser.add_argument("--benchmark", required=True, help="name of a benchmark, such as cuhk-pedes")
    parser.add_argument("--data_root", required=True, metavar="FOLDER", help="the benchmark's folder")
    parser.add_argument("--base_url", required=True, help="address of an OpenAI-compatible server, http://.../v1")
    parser.add_argument("--model", required=True, help="its name on the server; the paper used Qwen2.5-72B-Instruct")
    parser.add_argument("--embedder", help="Hub id or folder of a text embedding model (default: word counts)")
    parser.add_argument(
        "--output_file", required=True, metavar="FILE.json", help="the review file; approvals in it are kept"
    )
    numbers = {
        "num_captions": "captions to start from",
        "num_clusters": "clusters of templates",
        "variations": "variations written per template",
        "seed": "decides which captions are drawn",
    }
    for name, words in numbers.items():
        default = getattr(WritingOptions, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{words} (default: %(default)s)")
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    args = _parse(arguments)
    options = WritingOptions(args.num_captions, args.num_clusters, args.variations, args.seed)
    captions = draw_captions(args.benchmark, args.data_root, options.num_captions, options.seed)
    writer = Captioner(args.base_url, args.model, max_tokens=600)
    with AnswerCache(args.output_file + ".answers.jsonl") as cache:
        candidates, counts = asyncio.run(propose_templates(captions, writer, cache, options, args.embedder))
    total, approved = write_review(args.output_file, candidates)
    for name, count in counts.items():
        sys.stdout.write(f"{count:>8,} {name}\n")
    sys.stdout.write(
        f'{args.output_file}: {total} templates, {approved} approved. Write "approved": true beside good ones.\n'
    )


if __name__ == "__main__":
    sys.exit(main())
