"""What servers leave around an answer: thoughts, the marks of a chat template, boxes, parts of content."""

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
