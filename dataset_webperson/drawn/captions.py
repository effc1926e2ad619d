"""Sentences about a synthetic pedestrian, with the place and the truth of every attribute word.

A template is a sentence with slots, ``{subject}`` and the like, and with parts in angle brackets that are left out
when a slot in them has nothing to say. A slot becomes a phrase with attributes in square brackets,
``a [top.color] [top.garment]``; each attribute becomes one of the words of its value, or, by mistake, of a false one.
"""

import random
import re
from dataclasses import dataclass, field

from .attributes import (
    WORDS,
    Person,
    View,
    absent_things,
    chance,
    false_values,
    make_up,
    pick,
    pick_weighted,
    shuffled,
    stream,
    true_attributes,
    visible_attributes,
)

MIN_WORDS, MAX_WORDS = 12, 45
MIN_VALUES = 5
# Of the mistakes in a phrase about an object, the share that name an object which is not there at all.
ABSENT_SHARE = 0.4

# Slots: {subject} "a woman"; {outfit} top (and coat) with lower, or a one-piece; {upper} and {lower}, which only
# people with both have; {feet}; {hair}; {extras} "carrying a red backpack and wearing glasses"; {things} the same as
# nouns; {doing} "walking"; {seen} "from behind". Every template has subject, feet, and hair or extras.
OUTFIT_TEMPLATES = (
    "{subject} wearing {outfit}<, with {feet}><, {extras}><, {doing}>.",
    "{subject}< with {hair}> is dressed in {outfit}<, along with {feet}><, {extras}>.",
    "{subject}< {doing}> in {outfit}<, {feet}>< and {things}><, seen {seen}>.",
    "This is {subject}< with {hair}>, wearing {outfit}<, plus {feet}>.< The person is {extras}.>",
    "In this picture {subject} is wearing {outfit}.< On the feet there are {feet}.>< The person has {hair}.>",
    "Wearing {outfit}<, with {feet}>, {subject} is< {doing} and> {extras}.",
    "Dressed in {outfit}<, {feet} on the feet>, {subject}< with {hair}> is< {doing} and> shown here< {seen}>.",
    "{subject}, {extras}, has on {outfit}<, together with {feet}>.",
    "The photo shows {subject}<, {doing},> in {outfit}<, and {feet}>.< There is {things} too.>",
    "Seen here< {seen}>, {subject}< with {hair}> wears {outfit}<, and {feet}><, {extras}>.",
    "There is {subject} in {outfit}.< The person has {hair}.>< The shoes are {feet}.>< {extras}.>",
    "{subject}< with {hair}>; the clothes are {outfit}<, the footwear {feet}><, and the person is {extras}>.",
    "We see {subject}< {doing}>, {extras}, wearing {outfit}< with {feet}>.",
    "With {hair}, {subject} wears {outfit}<, finished with {feet}><, while {extras}>.",
    "{subject}<, {hair},> dressed in {outfit}<, in {feet}><, {extras}><, {doing}>.",
    "The picture is of {subject}< with {hair}> who wears {outfit}<, with {feet} below><, {extras}>.",
    "{subject} is {doing}<, {extras},> and has chosen {outfit}<, with {feet} to go with it>.",
    "Someone, {subject}< with {hair}>, in {outfit}<, with {feet}><; also {extras}>.",
    "Viewed {seen}, {subject} has {outfit}<, and {feet}>.< Other details: {things}.>",
    "{outfit}: this is what {subject}< with {hair}> is wearing<, with {feet}><, {extras}>.",
)
PARTS_TEMPLATES = (
    "{subject} in {upper}, {lower}<, and {feet}><, {extras}>.",
    "{subject}< with {hair}> wears {upper} with {lower}<, and {feet} on the feet><, {extras}>.",
    "{subject} has {upper} above {lower}.< The shoes are {feet}.>< The person is {extras}.>",
    "The upper body is covered by {upper} and the legs by {lower}<, with {feet}>; it is {subject}<, {extras}>.",
    "{subject} is wearing {lower} and {upper}<, {feet}><, {extras}><, {doing}>.",
    "From top to bottom: <{hair}, >{upper}, {lower}<, {feet}>. It is {subject}<, {extras}>.",
    "From bottom to top, {subject} wears< {feet},> {lower} and {upper}<, and has {hair}><, {extras}>.",
    "{subject}<, {doing}>. The person wears {upper}. Below that: {lower}<, then {feet}>.< {extras}.>",
    "In {lower}< and {feet}>, {subject}< with {hair}> also wears {upper}<, {extras}>.",
    "{subject} can be seen< {seen}>: {upper}, {lower}<, {feet}><, {things}>.",
    "Look for {subject} with {upper}; the person also has {lower}<, {feet}>< and {things}>.",
    "{subject}< who is {doing}> has {upper} on, matched with {lower}<, with {feet}><, {extras}>.",
    "{upper} and {lower} are worn by {subject}<, who has {hair}><, with {feet}><, {extras}>.",
    "The clothing is {upper} over {lower}<, with {feet}>. The wearer is {subject}< with {hair}><, {extras}>.",
    "{subject}<, {extras},> wears {lower} below {upper}<, and {feet}>.",
    "This image shows {subject}< {seen}>. On top is {upper}, below {lower}<, with {feet}>.< {extras}.>",
    "{lower}< with {feet}>, {upper}<, {hair}>: that is how {subject} is dressed<, {extras}>.",
    "{subject} combines {upper} with {lower}<, and steps in {feet}><, {extras}><, {doing}>.",
    "{subject}<, {hair},> pairs {lower} with {upper}<, wears {feet}>< and is {extras}>.",
    "A full view< {seen}> of {subject}: {upper}, then {lower}<, then {feet}>< and {things}>.",
    "{extras}, {subject}< with {hair}> goes about in {upper} and {lower}<, with {feet}>.",
    "With {things}, {subject} is< {doing},> clothed in {upper} and {lower}<, and has {feet}>.",
    "On top {subject} wears {upper}; at the bottom {lower}<, and {feet}>.< The hair: {hair}.>< {extras}.>",
    "What stands out is {upper}, worn with {lower}< and {feet}> by {subject}<, {extras}>.",
)

# Template -> the slots that it cannot do without.
_REQUIRED = {
    template: set(re.findall(r"{(\w+)}", re.sub(r"<[^>]*>", "", template)))
    for template in (*PARTS_TEMPLATES, *OUTFIT_TEMPLATES)
}

SUBJECTS = ("a [person.gender]", "a [person.gender]", "one [person.gender]", "a person", "a pedestrian", "an adult")
UPPERS = (
    "a [top.color] [top.garment]",
    "a [top.pattern] [top.color] [top.garment]",
    "a [top.color] [top.pattern] [top.garment]",
    "a [top.sleeve] [top.color] top",
    "a [top.sleeve] [top.pattern] [top.color] top",
    "a [top.garment] in [top.color]",
)
COATED_UPPERS = (
    "a [coat.color] [coat.garment] over a [top.color] top",
    "a [coat.color] [coat.garment] and a [top.color] top under it",
    "a [top.color] top beneath a [coat.color] [coat.garment]",
)
COATS = (
    "a [coat.color] [coat.garment]",
    "a [coat.garment] in [coat.color]",
)
LOWERS = ("~[lower.color] [lower.garment]", "~[lower.garment] in [lower.color]")
DRESSES = ("a [dress.color] [dress.garment]", "a [dress.garment] in [dress.color]")
COATED_DRESSES = (
    "a [coat.color] [coat.garment] over a [dress.color] [dress.garment]",
    "a [dress.color] [dress.garment] under a [coat.color] [coat.garment]",
)
FEET = ("[shoes.color] [shoes.kind]", "a pair of [shoes.color] [shoes.kind]", "[shoes.kind] in [shoes.color]")
HAIRS = ("[hair.length] [hair.color] hair", "[hair.color] [hair.length] hair")
BALD = "a [hair.length] head"
PHONE = "a [carry.kind]"  # phones have no colour
SHORT_HAIRS = ("[hair.length] hair", "[hair.color] hair")
THINGS = {
    "bag": ("carrying", ("a [bag.color] [bag.kind]", "a [bag.color] [bag.kind]", "a [bag.kind] in [bag.color]")),
    "hat": ("wearing", ("a [hat.color] [hat.kind]", "a [hat.color] [hat.kind]", "a [hat.kind] in [hat.color]")),
    "glasses": ("wearing", ("[glasses.kind]", "a pair of [glasses.kind]")),
    "carry": (
        "holding",
        ("a [carry.color] [carry.kind]", "a [carry.color] [carry.kind]", "a [carry.kind] in [carry.color]"),
    ),
}


@dataclass(frozen=True)
class Word:
    """The word, or words that stand for one value ("dark blue"), of one attribute: `caption[start:end]`."""

    start: int
    end: int
    attribute: str
    is_false: bool


@dataclass(frozen=True)
class Caption:
    """A caption and its attribute words, from left to right."""

    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True)
class _Phrase:
    """Text with attributes in square brackets, and how often they go wrong; `~` is an article where one is due."""

    text: str
    noise_rate: float
    # Attribute -> value, when the phrase is about an object that is not there.
    made_up: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Mistakes:
    """Where the mistakes of a caption come from: its own stream or, about some things, one that captions share.

    About a thing that is shared, the captions of an image are wrong together, and in the same way. What is made up in
    its place may differ, for each caption makes up only what it has not made up before, in its own order.
    """

    own: random.Random
    correlation: float
    shared: tuple[object, ...]  # coordinates that the captions have in common

    def about(self, thing: str) -> random.Random:
        """The stream for an attribute, or for an object that may be made up."""
        if self.correlation and chance(stream(*self.shared, thing, "is shared"), self.correlation):
            return stream(*self.shared, thing, "mistake")
        return self.own


_Slots = dict[str, list[str | _Phrase]]


def _names(text: str) -> list[str]:
    return re.findall(r"\[([^]]+)\]", text)


def _plan(person: Person, view: View, noise_rate: float, rng: random.Random, mistakes: _Mistakes) -> _Slots:
    """What there is to say: slot -> phrases and glue. A slot that has nothing to say is missing."""
    truth, seen = true_attributes(person, view), visible_attributes(person, view)

    def phrase(texts: tuple[str, ...]) -> list[str | _Phrase]:
        return [_Phrase(pick(rng, texts), noise_rate)]

    slots: _Slots = {"subject": phrase(SUBJECTS)}
    if "coat.garment" not in seen:
        uppers = tuple(text for text in UPPERS if all(name in seen for name in _names(text)))
    else:
        uppers = COATED_UPPERS if "top.color" in seen and chance(rng, 0.75) else COATS
    if "lower.garment" in seen:
        slots["upper"], slots["lower"] = phrase(uppers), phrase(LOWERS)
        slots["outfit"] = [*slots["upper"], pick(rng, (" and ", " with ")), *slots["lower"]]
    else:
        slots["outfit"] = phrase(COATED_DRESSES if "coat.garment" in seen else DRESSES)

    if chance(rng, 0.75):
        slots["feet"] = phrase(FEET)
    if "hair.length" in seen and chance(rng, 0.6):
        if seen["hair.length"] == "bald":
            slots["hair"] = phrase((BALD,))
        else:
            slots["hair"] = phrase(HAIRS if chance(rng, 0.75) else SHORT_HAIRS)
    if chance(rng, 0.4):
        slots["doing"] = phrase(("[pose.action]",))
    if chance(rng, 0.4):
        slots["seen"] = phrase(("[view.direction]",))

    things = [thing for thing in THINGS if f"{thing}.kind" in seen and chance(rng, 0.85)]
    absent = absent_things(person)
    extras: list[list[str | _Phrase]] = []
    nouns: list[list[str | _Phrase]] = []
    verb_before = ""
    for thing in shuffled(rng, things):
        # One draw for the whole object, then one per word at the rate that makes a word false at `noise_rate` in all.
        # Glasses have no kind that is plainly another one, so theirs is always the whole object.
        replaced = noise_rate * (1.0 if thing == "glasses" else ABSENT_SHARE)
        rate = (noise_rate - replaced) / (1 - replaced) if replaced < 1 else 0.0
        made_up = {}
        noise = mistakes.about(thing)
        if chance(noise, replaced):
            rate = 1.0
            if absent:
                made_up = make_up(noise, absent, truth)
                thing = next(iter(made_up)).split(".")[0]
                del absent[thing]
            elif thing == "glasses":
                continue
        verb, texts = THINGS[thing]
        text = pick(rng, texts)
        if thing == "carry" and "carry.color" not in seen and not made_up:
            text = PHONE
        nouns.append([_Phrase(text, rate, made_up)])
        extras.append(["" if verb == verb_before else f"{verb} ", *nouns[-1]])
        verb_before = verb
    if nouns:
        slots["extras"], slots["things"] = _listed(extras), _listed(nouns)
    return slots


def _listed(items: list[list[str | _Phrase]]) -> list[str | _Phrase]:
    """The items with commas and an "and" between them."""
    pieces: list[str | _Phrase] = [*items[0]]
    for position, item in enumerate(items[1:], start=2):
        pieces += [" and " if position == len(items) else ", ", *item]
    return pieces


class _Writer:
    """Text that grows, and the attribute words in it."""

    def __init__(self, truth: dict[str, str], rng: random.Random, mistakes: _Mistakes):
        self.truth, self.rng, self.mistakes = truth, rng, mistakes
        self.text = ""
        self.words: list[Word] = []

    def add(self, text: str) -> None:
        """Append text; a sentence starts with a capital letter."""
        if text and (not self.text or self.text.endswith(". ")):
            text = text[0].upper() + text[1:]
        self.text += text

    def add_word(self, attribute: str, value: str, is_false: bool) -> None:
        """Append one of the words of a value, with the right article before it."""
        word = pick(self.rng, WORDS[attribute][value])
        if re.search(r"(^|\W)[Aa] $", self.text) and word[0] in "aeiou":
            self.text = f"{self.text[:-1]}n "
        start = len(self.text)
        self.add(word)
        self.words.append(Word(start, len(self.text), attribute, is_false))

    def add_phrase(self, phrase: _Phrase) -> None:
        """Append a phrase, each of its attributes false at the phrase's rate."""
        said: dict[str, tuple[str, bool]] = {}
        for attribute in _names(phrase.text):
            value = phrase.made_up.get(attribute, self.truth[attribute])
            noise = self.mistakes.about(attribute)
            if not phrase.made_up and chance(noise, phrase.noise_rate):
                others = false_values(attribute, self.truth)
                value = pick_weighted(noise, others) if others else value
            said[attribute] = (value, value != self.truth[attribute])
        for piece in re.split(r"(\[[^]]+\])", _fitting_text(phrase.text, said)):
            if piece.startswith("["):
                attribute = piece[1:-1]
                self.add_word(attribute, *said[attribute])
            else:
                self.add(piece)

    def fill(self, template: str, slots: _Slots) -> None:
        """Append a template, without the optional parts that have nothing to say."""
        for part in re.findall(r"<[^>]*>|[^<]+", template):
            if part.startswith("<") and not all(name in slots for name in re.findall(r"{(\w+)}", part)):
                continue
            for piece in re.split(r"({\w+})", part.strip("<>")):
                for item in slots[piece[1:-1]] if piece.startswith("{") else [piece]:
                    if isinstance(item, _Phrase):
                        self.add_phrase(item)
                    else:
                        self.add(item)


def _fitting_text(text: str, said: dict[str, tuple[str, bool]]) -> str:
    """The phrase in the form that its values need, so that grammar never gives a false word away."""
    values = {attribute: value for attribute, (value, _) in said.items()}
    if "hair.length" in values:
        if values["hair.length"] == "bald":
            return BALD
        if text == BALD:
            return "[hair.length] hair"
    if values.get("carry.kind") == "phone":
        return PHONE
    return text.replace("~", "a " if values.get("lower.garment") in ("skirt", "long skirt") else "")


def write_caption(
    person: Person,
    view: View,
    noise_rate: float,
    *names: object,
    correlation: float = 0.0,
    shared: tuple = (),
    naming: str | None = None,
) -> Caption:
    """A caption of a person in a view, 12 to 45 words long, with at least five attributes.

    Args:
        noise_rate: Probability in [0, 1] that an attribute word is false. Two kinds of mistake are made: a value is
            swapped for one that is plainly another, or an object is replaced by one that is not there.
        names: The coordinates of the caption; the same names give the same caption.
        correlation: Share of the attributes, in [0, 1], about which all captions with the same `shared` coordinates
            are wrong together and in the same way; about the others each is wrong by itself.
        naming: An attribute that the caption has to name; it must be visible.
    """
    truth = true_attributes(person, view)
    for attempt in range(1000):
        rng = stream(*names, attempt)
        mistakes = _Mistakes(stream(*names, attempt, "noise"), correlation, shared)
        slots = _plan(person, view, noise_rate, rng, mistakes)
        fitting = [template for template, required in _REQUIRED.items() if required <= slots.keys()]
        writer = _Writer(truth, rng, mistakes)
        writer.fill(pick(rng, fitting), slots)
        long_enough = MIN_WORDS <= len(writer.text.split()) <= MAX_WORDS
        named = {word.attribute for word in writer.words}
        if long_enough and len(named) >= MIN_VALUES and (naming is None or naming in named):
            return Caption(writer.text, tuple(writer.words))
    raise RuntimeError(f"no caption of {MIN_WORDS} to {MAX_WORDS} words found for {person} in {view}")
