"""What is wrong with a generated caption, as names of problems; a caption without any is fine.

| problem | what it means |
|---|---|
| `empty` | no text |
| `too-short`, `too-long` | fewer or more words than `CaptionRules` allows |
| `cut-off` | the captioner ran out of tokens in the middle |
| `language` | letters of another script, or more of the small words of another language than of English ones |
| `placeholder` | a slot of the template is left, as in "[colored top]" |
| `refusal` | the captioner speaks of itself or of its task, or says that it cannot |
| `speculation` | "appears to be", "possibly", "suggesting": what is not seen |
| `mood` | "confident", "relaxed": what no search by clothes needs |
| `background` | the place, the light or the picture's setting |
| `other-people` | somebody beside the person |
| `garbage` | code, markup, lists, repetition, or signs in the place of words |

The rules are for English. They are lists of words, so they err: see `quality_report` for what they let through.
"""

import re
from collections import Counter
from dataclasses import dataclass

from ...caption_checks import foreign_characters, has_code
from ...rows.cleaning import is_unicode, repair_caption, shows_template
from .markup import unwrapped, without_markup
from .words import find_attributes

PROBLEMS = (
    "empty",
    "too-short",
    "too-long",
    "cut-off",
    "language",
    "placeholder",
    "refusal",
    "speculation",
    "mood",
    "background",
    "other-people",
    "garbage",
)


@dataclass(frozen=True)
class CaptionRules:
    """Limits of a caption in words. The prompt names `max_words` too; the paper says "shorter than N words".

    Raises:
        ValueError: limits that leave nothing.
    """

    min_words: int = 8
    max_words: int = 60

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(f"min_words={self.min_words}, max_words={self.max_words}: at least 1, and min <= max")


def _any_of(*patterns: str) -> re.Pattern:
    return re.compile(r"\b(?:" + "|".join(patterns) + r")\b", re.IGNORECASE)


_TASK = (
    r"i(?:(?:'|’)ve| have)? (?:followed|used|kept|described|omitted|left out|replaced|wrote|written|avoided|filled|"
    r"adhered|included|excluded|focused)",
    r"(?:the|this|your|given|provided|requested) (?:template|instructions?|prompt|placeholders?|guidelines|format)",
    r"(?:sentence|template) structure",
    r"(?:the|this) (?:caption|description) (?:above|is|was|follows|adheres|uses|has|avoids|keeps|does)",
    r"as (?:requested|instructed|you asked)",
    r"word (?:limit|count)",
)
_ABOUT_TASK = _any_of(*_TASK)
# "Note: ...", in brackets or bold too, from where it begins
_NOTE = re.compile(r"(?:^|(?<=\s))[(\[*_]*(?:please )?notes?[*_]*\s*[:：].*", re.IGNORECASE | re.DOTALL)

_REFUSAL = _any_of(
    *_TASK,
    r"notes?\s*:",
    r"i(?:'|’)?m sorry",
    r"i am sorry",
    r"i apologi[sz]e",
    r"i (?:can(?:no|')?t|cannot|can not|am unable|am not able|do not|don(?:'|’)t|won(?:'|’)t|could not)",
    r"i can(?:'|’)t",
    r"i(?:'|’)m (?:unable|not able)",
    r"as an? (?:ai|language model|assistant|artificial)",
    r"unable to (?:assist|help|describe|identify|provide|see|view|determine)",
    r"cannot (?:assist|help|identify|provide|be determined|determine|describe)",
    r"no (?:image|picture|photo|person) (?:is|was|has been|can be)",
    r"please (?:provide|upload|share)",
    r"not (?:visible|clear|discernible|identifiable) (?:in|from) (?:the|this)",
    r"(?:would|let me know if) you (?:like|need|want)",
)
_SPECULATION = _any_of(
    r"appears?",
    r"seems?",
    r"seemingly",
    r"apparently",
    r"possibl[ye]",
    r"perhaps",
    r"maybe",
    r"might",
    r"may (?:be|have)",
    r"could (?:be|have)",
    r"likely",
    r"probabl[ye]",
    r"presumably",
    r"suggest(?:s|ing|ive)?",
    r"impl(?:y|ies|ying)",
    r"indicat(?:es?|ing)",
    r"looks? (?:like|as)",
    r"as (?:if|though)",
    r"what (?:seems|looks|appears)",
    r"difficult to (?:tell|see|say|determine)",
    r"hard to (?:tell|see|say|determine)",
    r"unclear",
    r"unknown",
)
_MOOD = _any_of(
    r"confident(?:ly)?",
    r"relaxed",
    r"happy",
    r"sad",
    r"cheerful(?:ly)?",
    r"serious(?:ly)?",
    r"focused",
    r"pensive",
    r"thoughtful(?:ly)?",
    r"elegant(?:ly)?",
    r"stylish(?:ly)?",
    r"fashionable",
    r"trendy",
    r"mood",
    r"vibes?",
    r"aura",
    r"demeano[u]?r",
    r"carefree",
    r"joyful(?:ly)?",
    r"calm(?:ly)?",
    r"sense of",
    r"exud(?:es?|ing)",
    r"atmosphere",
)
_PLACE = (
    r"streets?|roads?|sidewalks?|pavements?|parks?|walls?|buildings?|stores?|shops?|malls?|stations?|rooms?|crowds?|"
    r"cars?|trees?|fields?|beach(?:es)?|hallways?|corridors?|stairs?|steps|platforms?|crosswalks?|intersections?|"
    r"gardens?|fences?|windows?|doors?|cit(?:y|ies)|plazas?|courtyards?|bridges?|grass|sand|snow|runway|stage|benches|"
    r"bench|escalators?|office|studio|gym|court|stadium|classroom|airport|kitchen|forest|path|pathway|lawn"
)
_BACKGROUND = _any_of(
    r"backgrounds?",
    r"backdrops?",
    r"foregrounds?",
    r"surroundings?",
    r"surrounded by",
    r"environments?",
    r"scener(?:y|ies)",
    r"scenes?",
    r"settings?",
    r"outdoors?",
    r"indoors?",
    r"in the distance",
    r"sunlight",
    r"lighting",
    r"sunny",
    r"daylight",
    r"night-?time",
    rf"(?:in|on|along|at|near|beside|by|against|down|across|through|outside|inside|past|next to|in front of|under|"
    rf"into) (?:a|an|the|some|what \w+) (?:[\w-]+ ){{0,3}}?(?:{_PLACE})(?!-)",
)
_OTHERS = _any_of(
    r"(?:an)?other (?:person|people|man|woman|men|women|pedestrians?|individuals?)",
    r"(?:two|three|four|several|many|multiple) (?:people|persons|men|women|pedestrians|individuals|girls|boys)",
    r"people",
    r"passers-?by",
    r"couple of",
    r"(?:his|her|their) (?:friends?|companions?|partner|wife|husband|mother|father|children|family)",
    r"group of",
    r"the left one|the one on the (?:left|right)",
)

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
# The small words that a sentence can hardly do without. A word of two languages counts for neither.
_ENGLISH = frozenset(
    "the is are and with of an on at his her their this that who it has wearing wears wear dressed by from while "
    "carrying holding also over below above for she he they there where which".split()
)
_OTHER_LANGUAGES = frozenset(
    "une le la les des et avec dans sur est qui porte elle il aux du ses homme femme "
    "el los las con y lleva una del hombre mujer está vestido vestida "
    "der die das und mit ein eine einen einem ist trägt sie er mann frau von auf "
    "il lo gli e di che indossa uomo donna ha della nel "
    "o os uma um com de que está homem mulher usa veste "
    "een het en van met draagt vrouw op zijn".split()
)
_SENTENCE = re.compile(r"(?<=[.!?])[)\]*_]*\s+")
MAX_CHARACTERS = 4000  # of an answer that are read; no caption is so long
_LIST = re.compile(r"^\s*(?:[-*•#]|\d+[.)])\s|\*\*|__|```|^\s*#{1,6}\s", re.MULTILINE)


def tidy_caption(answer: str) -> str:
    """The caption in a captioner's answer: without thoughts, marks of the server, wrappers, preamble, quotes, doubled
    spaces, and notes on the task.

    What is unwrapped need not be paid for again. A sentence that shows its template stays, so that `broken_rules` sees
    it.

    >>> tidy_caption("A man in a red coat walks to the left. Note: I followed the template.")
    'A man in a red coat walks to the left.'
    """
    answer = _without_notes(unwrapped(without_markup(answer)[:MAX_CHARACTERS]))
    cleaned, repairs = repair_caption(answer)
    if "dropped" in repairs or "template-sentence" in repairs:
        return " ".join(answer.split())
    return cleaned


def _without_notes(text: str) -> str:
    """Without sentences on the task, where a caption is left; else as it was."""
    said = [part for part in _SENTENCE.split(_NOTE.sub("", text)) if part and not _ABOUT_TASK.search(part)]
    if not said:  # the note comes first
        said = [part for part in _SENTENCE.split(text) if not _ABOUT_TASK.search(part) and not _NOTE.search(part)]
    kept = " ".join(said).strip().rstrip("([*_").rstrip()
    return kept if kept else text


def broken_rules(caption: str, rules: CaptionRules, cut_off: bool = False) -> list[str]:
    """The names of what is wrong with a tidy caption, in the order of `PROBLEMS`; empty when it is fine.

    >>> broken_rules("A man in a [colored top] who appears to be near a wall.", CaptionRules())
    ['placeholder', 'speculation', 'background']

    Args:
        caption: made by `tidy_caption`.
        rules: limits.
        cut_off: the captioner reported that it ran out of tokens (`client.CUT_OFF`).
    """
    if not caption.strip():
        return ["empty"]
    words = _WORD.findall(caption)
    found = {
        "too-short": len(words) < rules.min_words,
        "too-long": len(words) > rules.max_words,
        "cut-off": cut_off,
        "language": _is_foreign(caption, words),
        "placeholder": shows_template(caption),
        "refusal": _REFUSAL.search(caption),
        "speculation": _SPECULATION.search(caption),
        "mood": _MOOD.search(caption),
        "background": _BACKGROUND.search(caption),
        "other-people": _OTHERS.search(caption),
        "garbage": _is_garbage(caption, words),
    }
    return [problem for problem in PROBLEMS if found.get(problem)]


def _is_foreign(caption: str, words: list[str]) -> bool:
    if foreign_characters(caption):
        return True
    lower = [word.lower() for word in words]
    english = sum(word in _ENGLISH for word in lower)
    other = sum(word in _OTHER_LANGUAGES for word in lower)
    return other > english or (len(words) >= 8 and english == 0 and not find_attributes(caption))


def _is_garbage(caption: str, words: list[str]) -> bool:
    """Whether the text is no prose."""
    if not is_unicode(caption) or "\ufffd" in caption or any(not sign.isprintable() for sign in caption):
        return True
    if has_code(caption) or _LIST.search(caption) or not words:
        return True
    letters = sum(sign.isalpha() or sign == " " for sign in caption)
    if letters < 0.8 * len(caption) or max(map(len, words)) > 30:
        return True
    lower = [word.lower() for word in words]
    if len(lower) >= 20 and len(set(lower)) < 0.35 * len(lower):
        return True
    if any(lower[i] == lower[i + 1] == lower[i + 2] for i in range(len(lower) - 2)):
        return True
    fours = Counter(zip(*(lower[offset:] for offset in range(4)), strict=False))
    return any(count > 2 for count in fours.values())
