"""Defects of a single caption, and its length in tokens."""

import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from .findings import DataError

MAX_TOKENS = 77  # of CLIP, and of a tokenizer that says nothing else
UNLIMITED = 1_000_000  # transformers writes a number above this for "no limit"

_LEAK = re.compile(
    r"description\]"  # the end of a captioner's own template, as in "[detailed description]"
    r"|<(?!\d)"  # a tag or an unfilled slot; "<5" is left alone
    r"|\[[^\[\]]{0,60}\]",  # a placeholder such as [colored top]
    re.IGNORECASE,
)
_CODE = re.compile(
    r"[{}]"
    r"|</?[a-z][^<>]*>"  # markup
    r"|==|!=|=>|&&|\|\|"
    r"|&(?:[a-z]{2,8}|#\d+);"  # entities
    r"|https?://|www\."
    r"|\\[nrtu\"']|(?<!\w)/n"  # escapes left as two characters
    r"|\w+\.\w+\(|\w\(\)|\);"  # calls
    r"|\b\w+\s?=\s?[\"'\w]"  # assignments
    r"|\b(?:var|const|def|elif|nullptr|undefined|NaN)\b",
)
_MISSING = {"", "nan", "none", "null", "n/a", "na", "<na>", "nat", "undefined", "-"}
# The text pieces CLIP's tokenizer splits a caption into before it applies its merges.
_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)


def is_placeholder(caption: str) -> bool:
    """Whether nothing is said: blank, or what tools write for a missing value, such as "nan"."""
    return caption.strip().lower() in _MISSING


def is_template_leak(caption: str) -> bool:
    """Whether a generator's template shows in the caption: `description]`, `<`, or an unfilled `[slot]`."""
    return _LEAK.search(caption) is not None


def has_code(caption: str) -> bool:
    """Whether the caption holds markup, an entity, an address, an escape, a call or an assignment."""
    return _CODE.search(caption) is not None


def foreign_characters(caption: str) -> str:
    """The letters of `caption` that belong to no Latin script, and full-width or CJK punctuation."""
    if caption.isascii():
        return ""
    return "".join(
        character
        for character in caption
        if "\u3000" <= character <= "\u303f"
        or "\uff00" <= character <= "\uffef"
        or (character.isalpha() and not unicodedata.name(character, "").startswith(("LATIN", "FEMININE", "MASCULINE")))
    )


def caption_problems(caption: str) -> list[str]:
    """The kinds of defect (codes of `findings.KINDS`) that this caption has on its own."""
    if is_placeholder(caption):
        return ["caption-empty"]
    problems = []
    if foreign_characters(caption):
        problems.append("caption-foreign-script")
    if has_code(caption):
        problems.append("caption-code")
    if is_template_leak(caption):
        problems.append("caption-template-leak")
    return problems


def estimate_tokens(caption: str) -> int:
    """A lower bound of the caption's CLIP tokens, the two ends included: every word, digit and run of marks is one.

    Rare words take two tokens or more, so true lengths are a few percent higher.
    """
    return 2 + len(_PIECES.findall(caption))


@dataclass
class TokenCounter:
    """How long captions are to a text tower, what frames them included.

    Attributes:
        method (`str`): how tokens are counted, in words.
        limit (`int`): tokens that the tower takes.
        count (`Callable`): captions -> their numbers of tokens.
    """

    method: str
    limit: int
    count: Callable[[list[str]], list[int]]


@dataclass
class CaptionLengths:
    """The captions of a data set, as long as one text tower finds them.

    Attributes:
        method, limit: as in [`TokenCounter`].
        longest (`int`): tokens of the longest.
        over_limit (`int`): captions of more tokens than the limit.
    """

    method: str
    limit: int
    longest: int = 0
    over_limit: int = 0


def token_counter(tokenizer_folder: str | None) -> TokenCounter:
    """Exact counts by the tokenizer in a folder, and the limit of the model beside it; else estimates for CLIP.

    Args:
        tokenizer_folder (`str`, *optional*): a folder saved by `save_pretrained`, of a tokenizer or a whole model.

    Raises:
        DataError: no such folder, or no tokenizer in it.
    """
    if tokenizer_folder is None:
        method = "estimated: one token per word, digit or mark"
        return TokenCounter(method, MAX_TOKENS, lambda captions: [estimate_tokens(caption) for caption in captions])
    if not os.path.isdir(tokenizer_folder):
        raise DataError(f"{tokenizer_folder}: no such folder; pass the folder of a tokenizer saved by save_pretrained")
    from transformers import AutoTokenizer  # only this option needs transformers

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    except Exception as error:  # a broken tokenizer folder raises nearly every type there is
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{tokenizer_folder}: no readable tokenizer ({reason}); save it again") from error
    said = tokenizer.model_max_length
    limit = _context_length(tokenizer_folder) or (said if said < UNLIMITED else MAX_TOKENS)

    def count(captions: list[str]) -> list[int]:
        # longer captions are what is looked for: no warning of them
        return [len(ids) for ids in tokenizer(captions, truncation=False, padding=False, verbose=False)["input_ids"]]

    return TokenCounter(f"counted by the tokenizer in {tokenizer_folder}", limit, count)


def _context_length(folder: str) -> int | None:
    """Tokens that the text tower of the model in a folder takes, if there is one and its configuration says so."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            text_config = json.load(file).get("text_config") or {}
        return text_config.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
