"""Repairs generated captions: `/n` left as two characters, unfilled placeholders, templates that leak, preambles.

A repair never makes words up. What cannot be repaired is dropped, and the image's other caption takes its place.
"""

import re
from collections import Counter
from typing import Any

from ..caption_checks import is_placeholder, is_template_leak

MIN_WORDS = 4  # a caption of fewer words after a repair says too little to keep
MAX_EXAMPLES = 12

# `/n` between lower-case letters belongs to a word ("black/navy"); anywhere else it is a line break.
_BREAK = re.compile(r"(?:\\r)?\\n|(?<![^\W\d_])/n|/n(?![a-z])|[\r\n\t\f\v]")
_SPACES = re.compile(r"\s{2,}|^\s+|\s+$")
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course)[,.!]\s*)?"
    r"(?:(?:here(?:'s| is)|this is) (?:the|a|your) [^:.]{0,40}\b(?:caption|description)[^:.]{0,40}"
    r"|(?:caption|description|answer|output))\s*:\s*",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_BRACES = re.compile(r"\{[^{}]{0,60}\}")


def shows_template(text: str) -> bool:
    """Whether `[slot]`, `{slot}`, `description]` or `<` of a generator's template is left in the text."""
    return is_template_leak(text) or _BRACES.search(text) is not None


def repair_caption(caption: str) -> tuple[str, tuple[str, ...]]:
    """The repaired caption and the names of the repairs, in the order they were made.

    `line-break`: `/n`, `\\n` and real line breaks become a space. `preamble`: "Here is the caption:" goes. `quotes`:
    the pair around the whole caption goes. `template-sentence`: a sentence that shows its template goes. `spaces`:
    runs of spaces become one. `dropped`: fewer than `MIN_WORDS` words were left of a caption with a template, and
    the result is empty.

    >>> repair_caption("A man in a red coat./nHe wears [colored shoes].")
    ('A man in a red coat.', ('line-break', 'template-sentence'))
    """
    repairs = []

    def use(name: str, text: str) -> str:
        if text != caption:
            repairs.append(name)
        return text

    caption = use("line-break", _BREAK.sub(" ", caption))
    caption = use("preamble", _PREAMBLE.sub("", caption.lstrip()) if _PREAMBLE.match(caption.lstrip()) else caption)
    bare = caption.strip()
    quoted = len(bare) > 1 and bare[0] + bare[-1] in ('""', "“”") and not set('"“”') & set(bare[1:-1])
    caption = use("quotes", bare[1:-1] if quoted else caption)
    if shows_template(caption):
        kept = " ".join(part for part in _SENTENCE.split(caption) if not shows_template(part))
        if len(kept.split()) < MIN_WORDS or shows_template(kept):
            return "", (*repairs, "dropped")
        caption = use("template-sentence", kept)
    spaced = _SPACES.sub(" ", caption).strip()
    if "line-break" in repairs or "template-sentence" in repairs:
        return spaced, tuple(repairs)  # the spaces are those that the repair left
    return use("spaces", spaced), tuple(repairs)


class CaptionCleaner:
    """Cleans the captions of a row and counts what it changed, with the first examples of each repair."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}

    def clean(self, caption: str, where: str) -> str:
        cleaned, repairs = repair_caption(caption)
        for repair in repairs:
            self.counts[repair] += 1
            examples = self.examples.setdefault(repair, [])
            if len(examples) < MAX_EXAMPLES:
                examples.append({"where": where, "before": caption[:400], "after": cleaned[:400]})
        return cleaned


def usable_captions(captions: list[Any]) -> list[str]:
    """Those of a row's captions that are text and say something; "nan" and half of a surrogate pair do not."""
    texts = [caption for caption in captions if isinstance(caption, str) and not is_placeholder(caption)]
    return [caption for caption in texts if is_unicode(caption)]


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
