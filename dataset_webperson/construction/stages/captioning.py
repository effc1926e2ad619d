"""The stage that captions persons: two captioners, a random template for each image, every caption checked.

A caption that breaks a rule is asked for once more; of two faulty answers the one with fewer problems stays and its
problems are written beside it. Nothing is dropped here. A run that stops, by a kill or by a server that is gone, has
its answers in the cache and continues from there. Where nearly all answers are of no use the run stops, and the next
asks for these again (`BrakeOptions`).
"""

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ...rows.cleaning import is_unicode
from ...rows.joined_parquet import without_images
from ..captions.brake import BrakeOptions, brake_of
from ..captions.cache import TOKENS, Answer, AnswerCache, cache_key
from ..captions.client import Captioner, CaptionServerError, RequestFailed, ServerClient
from ..captions.prompts import PROMPT_VERSION, ask_again, caption_messages
from ..captions.rules import CaptionRules, broken_rules, tidy_caption
from ..captions.templates import Template, choose_template, load_templates
from ..shards import CHANGEABLE, EDITABLE, ShardWriter, read_rows, shard_writer

_TEXT = pa.string()
NEW_COLUMNS = {
    "template_id": _TEXT,
    "prompt_version": _TEXT,
    "captioner1": _TEXT,
    "captioner2": _TEXT,
    "caption1": _TEXT,
    "caption2": _TEXT,
    "caption1_problems": pa.list_(_TEXT),
    "caption2_problems": pa.list_(_TEXT),
}


@dataclass(frozen=True)
class CaptionOptions:
    """How persons are captioned.

    Args:
        captioner1, captioner2: the paper's are Qwen2.5-VL-7B-Instruct and Qwen2.5-VL-32B-Instruct.
        templates: reviewed file of `template_writing`; "" for the templates that ship.
        seed: of the choice of a template, together with the image's hash.
        rules: what a caption must keep to.
        brake: when to stop because answers are of no use.
        cache: folder of the answers; "" for `caption_cache` beside the stage's folder.
    """

    captioner1: Captioner
    captioner2: Captioner
    templates: str = field(default="", metadata=EDITABLE)
    seed: int = 0
    rules: CaptionRules = field(default_factory=CaptionRules)
    brake: BrakeOptions = field(default_factory=BrakeOptions, metadata=CHANGEABLE)
    cache: str = field(default="", metadata=CHANGEABLE)

    def cache_folder(self, stage_folder: str) -> str:
        """Where the answers lie, for shards written to `stage_folder`."""
        return self.cache or os.path.join(os.path.dirname(os.path.abspath(stage_folder)), "caption_cache")

    def cost(self, tokens: Mapping[str, int]) -> float:
        """Dollars for tokens as `AnswerCache.spent` counts them."""
        captioners = enumerate((self.captioner1, self.captioner2), 1)
        return sum(one.cost(*(tokens.get(f"{name}{number}", 0) for name in TOKENS)) for number, one in captioners)


@dataclass
class _Caption:
    text: str = ""
    problems: list[str] = field(default_factory=list)
    asked_again: bool = False


def caption_shard(source: str, target: str, options: CaptionOptions) -> dict[str, int]:
    """Caption every row of a shard.

    Counts, beside `rows_in` and `rows_out`: `captions`, `captions_asked_again`, `captions_marked`, `rows_fine` (both
    captions are), and `caption_<problem>` for each problem of `caption_rules` that stayed, `caption_no-answer` and
    `caption_refused` among them.

    Raises:
        CaptionServerError: a server is gone, or its answers are of no use. Run again when it is mended.
        `DataError`: a shard or a file of templates that cannot be used.
    """
    templates = load_templates(options.templates or None)
    name = os.path.splitext(os.path.basename(target))[0]
    folder = options.cache_folder(os.path.dirname(os.path.abspath(target)))
    schema = without_images(source, target)
    for column, kind in NEW_COLUMNS.items():
        schema = schema.append(pa.field(column, kind))
    with shard_writer(target, schema) as shard, AnswerCache(os.path.join(folder, f"{name}.jsonl")) as cache:
        asyncio.run(_caption_rows(source, options, templates, cache, shard))
        counts = dict(shard.counts)
    return counts | {"rows_out": counts["rows_in"]}


async def _caption_rows(
    source: str, options: CaptionOptions, templates: tuple[Template, ...], cache: AnswerCache, shard: ShardWriter
) -> None:
    captioners = (options.captioner1, options.captioner2)
    total, first_image = pq.read_metadata(source).num_rows, ""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(ServerClient(captioner)) for captioner in captioners]
        bar = stack.enter_context(tqdm(total=2 * total, desc=os.path.basename(source), unit=" captions", leave=False))
        work = _Work(options, cache, clients, bar)
        window = 2 * max(captioner.max_in_flight * len(captioner.addresses) for captioner in captioners)
        async for row, captions in _in_order(read_rows(source), templates, options.seed, work, window):
            first_image = first_image or row["image_sha256"]
            shard.counts["rows_in"] += 1
            shard.counts["rows_fine"] += not any(caption.problems for caption in captions)
            for number, caption in enumerate(captions, 1):
                row |= {f"captioner{number}": captioners[number - 1].name, f"caption{number}": caption.text}
                row[f"caption{number}_problems"] = caption.problems
                shard.counts["captions"] += 1
                shard.counts["captions_asked_again"] += caption.asked_again
                shard.counts["captions_marked"] += bool(caption.problems)
                shard.counts.update(f"caption_{problem}" for problem in caption.problems)
            shard.write(row)
        work.show(refresh=True)
        for number in (0, 1):  # a small run may end before the window is full
            work.stop_if_useless(number, max(1, options.brake.window // 2))
        for client in clients:
            if total and not work.usable[id(client)]:
                why = f" (the last: {client.last_failure})" if client.last_failure else ", every caption is empty"
                raise CaptionServerError(
                    f"{client.captioner.where} ({client.captioner.model}): answered none of "
                    f"{client.failed or total} requests for {source} with a caption{why}. Repair the server and run "
                    "the same command again. Pictures that it will never answer go by lines in the file `opt_out`, "
                    f"the first of these by `sha256:{first_image}`."
                )


async def _in_order(
    rows: Iterator[dict[str, Any]], templates: tuple[Template, ...], seed: int, work: "_Work", window: int
) -> AsyncIterator[tuple[dict[str, Any], list[_Caption]]]:
    """Rows in order, with their captions; only a limited number are in memory at a time."""
    running: deque = deque()
    try:
        while True:
            while len(running) < window and (row := next(rows, None)) is not None:
                template = choose_template(templates, row["image_sha256"], seed)
                row |= {"template_id": template.template_id, "prompt_version": PROMPT_VERSION}
                image = row["image"]["bytes"]
                both = [work.caption(number, row["image_sha256"], image, template) for number in (0, 1)]
                tasks = [asyncio.create_task(one) for one in both]
                running.append((row, tasks))
            if not running:
                return
            row, tasks = running[0]
            # The first error of any row ends the run at once, not when its turn comes.
            pending = [task for _, tasks_of_row in running for task in tasks_of_row]
            while not all(task.done() for task in tasks):
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                pending = [task for task in pending if not task.done()]
            captions = [task.result() for task in tasks]
            running.popleft()
            yield row, captions
    finally:
        left = [task for _, tasks in running for task in tasks]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@dataclass
class _Asked:
    """A caption that is being asked for: by which captioner, and the keys of its answers."""

    number: int
    image_sha256: str
    template: Template
    keys: list[str] = field(default_factory=list)
    is_new: bool = False  # not all of it comes from the cache


class _Work:
    """State shared by the captions of one shard."""

    def __init__(self, options: CaptionOptions, cache: AnswerCache, clients: list[ServerClient], bar: tqdm):
        self.options, self.cache, self.clients, self.bar = options, cache, clients, bar
        self.usable = {id(client): 0 for client in clients}
        self.asked_again = 0
        folder = os.path.dirname(os.path.abspath(cache.path))
        self.brakes = [brake_of(folder, number, options.brake) for number in (1, 2)]
        # more than a window: the other captioner goes on until one of the two is stopped
        self.useless: list[deque[list[str]]] = [deque(maxlen=4 * options.brake.window) for _ in clients]
        self.unfinished: list[dict[int, list[str]]] = [{} for _ in clients]  # the keys of captions being asked for
        for number, client in enumerate(clients, 1):
            client.on_wait = partial(self.show, refresh=True)
            client.on_waste = partial(cache.waste, number)

    async def caption(self, number: int, image_sha256: str, image: bytes, template: Template) -> _Caption:
        """A caption of an image by captioner `number`, with its problems."""
        client, rules = self.clients[number], self.options.rules
        messages = caption_messages(image, template.text, rules.max_words)
        made, asked = _Caption(), _Asked(number, image_sha256, template)
        self.unfinished[number][id(asked)] = asked.keys
        try:
            answer = await self._answer(asked, [], messages)
            made.text, made.problems = _checked(answer, rules)
            self.usable[id(client)] += bool(made.text)
            if made.problems:
                made.asked_again = True
                self.asked_again += 1
                again = ask_again(messages, made.text, made.problems)
                answer = await self._answer(asked, made.problems, again)
                text, problems = _checked(answer, rules)
                self.usable[id(client)] += bool(text)
                if len(problems) < len(made.problems):
                    made.text, made.problems = text, problems
        except RequestFailed as error:
            # A first answer with problems that could not be asked for again stays as it is.
            made.problems = made.problems or [error.problem]
            asked.is_new = True
        if asked.is_new:
            self.brakes[number].add(not made.problems)
            if made.problems:
                self.useless[number].append(asked.keys)
                self.stop_if_useless(number, self.options.brake.window, made)
        del self.unfinished[number][id(asked)]
        self.bar.update()
        self.show()
        return made

    def stop_if_useless(self, number: int, least: int, last: _Caption | None = None) -> None:
        """Raises `CaptionServerError` if too few of a captioner's latest captions, `least` or more, are usable."""
        brake, captioner = self.brakes[number], self.clients[number].captioner
        if not brake.is_pulled(least):
            return
        usable, seen = sum(brake.latest), len(brake.latest)
        for other, useless, unfinished in zip(self.brakes, self.useless, self.unfinished, strict=True):
            if not other.is_pulled(1):
                continue
            other.latest.clear()  # the next run begins to count afresh
            for key in (key for keys in (*useless, *unfinished.values()) for key in keys):
                self.cache.forget(key)
        example = f" (the last: {', '.join(last.problems)}, {last.text[:80]!r})" if last else ""
        raise CaptionServerError(
            f"{captioner.where} ({captioner.model}): {usable} of its last {seen} captions are usable{example}, a "
            f"smaller share than `brake.min_usable: {self.options.brake.min_usable:g}`. Finished shards are kept, and "
            f"{len(self.cache)} answers of this one; the others will be asked for again. Repair the captioner or its "
            "rules and run the same command again."
        )

    async def _answer(self, asked: "_Asked", faults: list[str], messages: list[dict[str, Any]]) -> Answer:
        """From the cache or the server; `faults` are those of the first answer when this is the second."""
        client = self.clients[asked.number]
        captioner = client.captioner
        key = cache_key(
            asked.image_sha256,
            asked.template.template_id,
            captioner.model,
            PROMPT_VERSION,
            *faults,
            self.options.rules.max_words,
            captioner.temperature,
            captioner.max_tokens,
            captioner.seed,
            # only where there are any: the answers of older runs stay
            *([json.dumps(captioner.extra_body, sort_keys=True)] if captioner.extra_body else []),
        )
        answer = self.cache.get(key)
        if answer is None:
            asked.is_new = True
            answer = await client.ask(messages)
            self.cache.put(key, answer, asked.number + 1)
        asked.keys.append(key)
        return answer

    def show(self, refresh: bool = False) -> None:
        """Figures beside the bar, on the screen at once or with the bar's next move."""
        figures: dict[str, int | str] = {"asked again": self.asked_again}
        if any(client.captioner.input_price or client.captioner.output_price for client in self.clients):
            figures["cost"] = f"${self.options.cost(self.cache.spent):.4f}"
        if waiting := next((client.waiting for client in self.clients if client.waiting), ""):
            figures["waiting"] = waiting[:40]
        self.bar.set_postfix(figures, refresh=refresh)


def _checked(answer: Answer, rules: CaptionRules) -> tuple[str, list[str]]:
    text = tidy_caption(answer.text)
    # Half of a surrogate pair cannot be written as UTF-8; it is garbage, and shows as `?`.
    problems = broken_rules(text, rules, answer.cut_off)
    return (text if is_unicode(text) else text.encode("utf-8", "replace").decode("utf-8")), problems
