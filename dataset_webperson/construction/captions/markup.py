"""What stands around a caption in an answer: thoughts, the marks of a chat template, boxes, fences, labels, json."""

import json
import re
from typing import Any

# `<think>`, `<thinking>`, `<thought>`, `<reasoning>`, and Kimi's own signs
_THOUGHT = re.compile(r"[<◁](/?)(?:think(?:ing)?|thoughts?|reasoning)[>▷]", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>(\w+)(?:(?!<\|).){0,60}<\|message\|>", re.DOTALL)
_TURN_BEGINS = re.compile(
    r"<\|(?:im_start|start|start_header_id)\|>\s*\w{0,20}(?:<\|end_header_id\|>)?|<start_of_turn>\s*(?:model|user)?"
    r"|<\|(?:begin_of_text|assistant|bos)\|>|<s>|<bos>",
    re.IGNORECASE,
)
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|end|return|eot_id|eom_id|endoftext|end_of_text|end_of_turn|eos|user)\|>|<end_of_turn>|</s>|<eos>"
    r"|<pad>",
    re.IGNORECASE,
)
_BOXES = re.compile(r"<\|(?:begin|end)_of_box\|>|</?(?:answer|caption|output|response)>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*\s*(.*?)\s*(?:```|\Z)", re.DOTALL)
_NAMES = r"(?:(?:final|revised|image|new|short)\s+)?(?:caption|description|answer|output|response|sentence)"
_HEADING = re.compile(rf"^\s*#{{1,6}}[ \t]*{_NAMES}[^\n]{{0,20}}\n\s*", re.IGNORECASE)
_LABEL = re.compile(
    rf"^\s*(?:#{{1,6}}\s*)?(?:\*\*|__|\*)?{_NAMES}(?:\*\*|__|\*)?\s*[:：]\s*(?:\*\*|__|\*)?\s*", re.IGNORECASE
)
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_BULLET = re.compile(r"^\s*[-*•]\s+(?=[^\n]+$)")  # a list of one
_KEYS = ("caption", "description", "sentence", "answer", "output", "response", "text")
_TEXT_PARTS = (None, "text", "output_text")


def without_markup(answer: str) -> str:
    """What an answer says to its reader, stripped of spaces; "" where nothing but thoughts came.

    A thought that does not end takes all that follows. Where one ends that never began (the chat template had opened
    it), it takes all that stands before.

    >>> without_markup("He wears... a coat?</think><|begin_of_box|>A man in a coat.<|end_of_box|><|im_end|>")
    'A man in a coat.'
    """
    channels = list(_CHANNEL.finditer(answer))
    if channels:  # those of thoughts, and at last the one to be shown
        answer = answer[channels[-1].end() :] if channels[-1][1] == "final" else ""
    said: list[str] = []
    thinking, place = False, 0
    for mark in _THOUGHT.finditer(answer):
        if not thinking:
            said = [] if mark[1] else [*said, answer[place : mark.start()]]
        thinking, place = not mark[1], mark.end()
    if not thinking:
        said.append(answer[place:])
    text = _TURN_BEGINS.sub(" ", " ".join(said))
    turns = (turn.strip() for turn in _TURN_ENDS.split(text))
    # behind the end of its turn a model may go on with turns of others
    return _BOXES.sub(" ", next((turn for turn in turns if turn), "")).strip()


def unwrapped(text: str) -> str:
    """The caption within a code fence, a json object, a label or bold type; other text as it is.

    >>> unwrapped('```json\\n{"caption": "A man in a coat."}\\n```'), unwrapped("**Caption:** A man in **red**.")
    ('A man in a coat.', 'A man in red.')
    """
    if (fence := _FENCE.search(text)) and fence[1]:
        text = fence[1]
    if text.lstrip()[:1] in ("{", "["):
        text = _of_json(text) or text
    text = _LABEL.sub("", _HEADING.sub("", text))
    return _BULLET.sub("", _BOLD.sub(r"\2", text)).strip()


def _of_json(text: str) -> str:
    """The caption in a json object, or the first in a list; "" where there is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    while isinstance(content, list) and content:
        content = content[0]
    if isinstance(content, dict):
        named = {str(key).lower(): value for key, value in content.items() if isinstance(value, str)}
        only = list(named.values()) if len(content) == 1 else []
        content = next((named[key] for key in _KEYS if key in named), only[0] if only else "")
    return content if isinstance(content, str) else ""


def text_of(content: Any) -> str | None:
    """The text of a message's `content`: itself, or its parts that are text; None for anything else."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = []
    for part in content:
        fields = part if isinstance(part, dict) else getattr(part, "__dict__", {"text": part})
        text = fields.get("text")
        if fields.get("type") in _TEXT_PARTS and isinstance(text, str):
            texts.append(text)
    return "".join(texts)
