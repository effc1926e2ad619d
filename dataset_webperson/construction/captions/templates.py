"""Sentence templates for captions: their placeholders, what makes one valid, reading a reviewed file, the choice.

A file of templates is json: `{"templates": [{"text": "...", "approved": true, ...}, ...]}`. Only approved ones are
used. `templates.json` beside this file is a small set of our own writing.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass

from ...caption_checks import foreign_characters
from ...findings import DataError
from .rules import CaptionRules, broken_rules
from .words import find_attributes

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates.json")
MIN_PLACEHOLDERS = 3
MIN_WORDS, MAX_WORDS = 5, 60

# What stands in the square brackets, and what a captioner puts there.
PLACEHOLDERS = {
    "person": "what the person is: man, woman, boy, girl, child, or person where it cannot be told",
    "hairstyle": "colour and length of the hair, how it is worn, or a beard",
    "colored headwear": "hat, cap, hood or scarf on the head, with its colour",
    "glasses": "glasses or sunglasses",
    "colored top": "garment on the upper body with its colour, pattern and sleeves",
    "colored outerwear": "jacket, coat or vest over the top, with its colour",
    "colored bottoms": "trousers, jeans, shorts or skirt with their colour",
    "colored dress": "dress or one-piece garment with its colour",
    "colored shoes": "shoes, boots or sandals with their colour",
    "colored bag": "backpack, handbag, suitcase with its colour",
    "colored accessory": "scarf, belt, tie, gloves, watch with its colour",
    "held object": "what the person holds, pushes or pulls",
    "pattern": "stripes, checks, print or other pattern",
    "action": "what the person is doing, as in walking or standing",
}
_PLACEHOLDER = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Template:
    """A sentence with placeholders. Its id is made of its text, so an edited template is another one."""

    text: str

    @property
    def template_id(self) -> str:
        """Ten hex digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:10]


def template_problems(text: str) -> list[str]:
    """What keeps a sentence from being a template, in words; empty when it is one.

    >>> template_problems("The [person] in red [shoe] has [hairstyle].")
    ['unknown placeholder [shoe]', 'attribute left: red', 'fewer than 3 known placeholders']
    """
    names = _PLACEHOLDER.findall(text)
    bare = _PLACEHOLDER.sub(" ", text)
    problems = [f"unknown placeholder [{name}]" for name in dict.fromkeys(names) if name not in PLACEHOLDERS]
    if any(sign in bare for sign in "[]{}<>"):
        problems.append("a bracket that is no placeholder")
    if left := dict.fromkeys(word for _, word, _, _ in find_attributes(bare)):
        problems.append(f"attribute left: {', '.join(left)}")
    if len({name for name in names if name in PLACEHOLDERS}) < MIN_PLACEHOLDERS:
        problems.append(f"fewer than {MIN_PLACEHOLDERS} known placeholders")
    if "\n" in text.strip():
        problems.append("more than one line")
    if not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
        problems.append(f"not between {MIN_WORDS} and {MAX_WORDS} words")
    if foreign_characters(text):
        problems.append("letters that are not Latin")
    # The frame must not lead captions into what the rules forbid. Length and language are those of the frame's few
    # words, so they do not count here.
    frame = _PLACEHOLDER.sub("someone", text)
    bad = set(broken_rules(frame, CaptionRules(1, 1000))) & {
        "refusal",
        "speculation",
        "mood",
        "background",
        "other-people",
    }
    problems += [f"leads to {name}" for name in sorted(bad)]
    return problems


def load_templates(path: str | None = None) -> tuple[Template, ...]:
    """The approved templates of a file, in its order; by default those that ship.

    Raises:
        `DataError`: no such file, not of this form, an approved template that is not valid or stands there twice, or
            none approved.
    """
    path = SHIPPED if path is None else os.fspath(path)
    entries = read_review(path)
    templates = [Template(entry["text"].strip()) for entry in entries if entry["approved"]]
    for template in templates:
        if problems := template_problems(template.text):
            raise DataError(f"{path}: approved, but {'; '.join(problems)}: {template.text[:90]!r}")
    if len(set(templates)) < len(templates):
        twice = next(template for template in templates if templates.count(template) > 1)
        raise DataError(f"{path}: a template stands there twice: {twice.text[:90]!r}")
    if not templates:
        raise DataError(f'{path}: no template is approved. Read them and write "approved": true beside the good ones.')
    return tuple(templates)


def read_review(path: str) -> list[dict]:
    """All entries of a file of templates, approved or not. Raises `DataError` for one of another form."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["templates"]
        if not all(isinstance(entry["text"], str) and isinstance(entry["approved"], bool) for entry in entries):
            raise TypeError("a template has a `text` and `approved`, true or false")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as templates ({error}); see {SHIPPED} for the form") from error
    return entries


def choose_template(templates: tuple[Template, ...], image_sha256: str, seed: int) -> Template:
    """A template for an image, equally likely each, and the same one for the same image and seed."""
    digest = hashlib.sha256(f"{seed}-{image_sha256}".encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]
