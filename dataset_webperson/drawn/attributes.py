"""All that a synthetic pedestrian can wear, carry and do: the vocabulary, what may replace what, and the sampling.

A value is what is drawn ("navy", "backpack"); its words are the synonyms that captions use for it. Two values are
*near* when a reader could call one by the other's name, or could not tell them apart in a small picture: a false
word is never taken from near the truth.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

VERSION = "1.1.0"

# Every colour: its words, then its RGB. Light and tint (see `View`) move a channel by less than the gaps here.
COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("black", "jet-black"),
    "grey": ("grey", "gray"),
    "white": ("white", "snow-white"),
    "red": ("red", "scarlet", "bright red"),
    "orange": ("orange", "bright orange"),
    "yellow": ("yellow", "lemon yellow"),
    "green": ("green", "grass-green"),
    "blue": ("blue", "royal blue"),
    "navy": ("navy", "navy blue", "dark blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose pink"),
    "brown": ("brown", "chocolate brown"),
    "beige": ("beige", "cream", "khaki", "tan"),
}
COLOR_RGB = {
    "black": (26, 26, 30),
    "grey": (132, 134, 138),
    "white": (244, 244, 242),
    "red": (208, 24, 34),
    "orange": (248, 126, 16),
    "yellow": (250, 216, 30),
    "green": (30, 146, 58),
    "blue": (34, 98, 232),
    "navy": (20, 30, 92),
    "purple": (126, 40, 170),
    "pink": (252, 134, 190),
    "brown": (116, 66, 28),
    "beige": (224, 198, 152),
}
COLOR_GROUPS = (
    ("navy", "blue"),
    ("navy", "black", "purple"),
    ("black", "grey"),
    ("black", "brown"),
    ("white", "grey"),
    ("white", "beige"),
    ("beige", "brown"),
    ("beige", "grey"),
    ("beige", "yellow"),
    ("beige", "pink"),
    ("orange", "yellow"),
    ("orange", "red"),
    ("orange", "brown"),
    ("red", "brown"),
    ("red", "pink"),
    ("pink", "purple"),
    ("blue", "purple"),
)

HAIR_RGB = {
    "black": (30, 26, 26),
    "brown": (112, 68, 36),
    "blonde": (240, 206, 104),
    "grey": (186, 188, 194),
    "ginger": (214, 92, 30),
}

# Attribute -> value -> words. Each list of words is one thing: captions pick any of them, swaps leave all of them.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "person.gender": {
        "man": ("man", "male", "gentleman", "guy"),
        "woman": ("woman", "female", "lady"),
    },
    "hair.color": {
        "black": ("black", "jet-black"),
        "brown": ("brown", "brunette"),
        "blonde": ("blonde", "fair", "golden"),
        "grey": ("grey", "gray", "silver"),
        "ginger": ("ginger", "red", "copper-red"),
    },
    "hair.length": {
        "short": ("short", "cropped", "close-cut"),
        "long": ("long", "shoulder-length", "flowing"),
        "bun": ("tied-up", "bun-tied", "pinned-up"),
        "bald": ("bald", "shaved", "hairless"),
    },
    "top.garment": {
        "t-shirt": ("t-shirt", "tee", "tee shirt"),
        "shirt": ("shirt", "button-up shirt", "collared shirt"),
        "sweater": ("sweater", "jumper", "pullover"),
        "hoodie": ("hoodie", "hooded sweatshirt", "hooded top"),
        "tank top": ("tank top", "vest top", "singlet"),
    },
    "top.color": COLOR_WORDS,
    "top.pattern": {
        "plain": ("plain", "solid", "patternless"),
        "striped": ("striped", "stripy", "banded"),
        "checked": ("checked", "checkered", "plaid"),
        "dotted": ("dotted", "polka-dot", "spotted"),
        "logo": ("printed", "logo-printed", "graphic"),
    },
    "top.sleeve": {
        "long": ("long-sleeved", "full-sleeved"),
        "short": ("short-sleeved", "half-sleeved"),
        "sleeveless": ("sleeveless", "bare-armed"),
    },
    "lower.garment": {
        "trousers": ("trousers", "pants", "slacks"),
        "jeans": ("jeans", "denim jeans", "denim pants"),
        "leggings": ("leggings", "tights"),
        "shorts": ("shorts", "short pants"),
        "skirt": ("skirt", "knee-length skirt"),
        "long skirt": ("long skirt", "maxi skirt", "ankle-length skirt"),
    },
    "lower.color": COLOR_WORDS,
    "dress.garment": {
        "dress": ("dress", "frock", "gown"),
        "jumpsuit": ("jumpsuit", "boiler suit", "playsuit"),
    },
    "dress.color": COLOR_WORDS,
    "coat.garment": {
        "jacket": ("jacket", "short jacket", "windbreaker"),
        "long coat": ("long coat", "overcoat", "trench coat"),
        "gilet": ("gilet", "puffer vest", "body warmer"),
    },
    "coat.color": COLOR_WORDS,
    "shoes.kind": {
        "sneakers": ("sneakers", "trainers", "running shoes"),
        "boots": ("boots", "high boots", "tall boots"),
        "sandals": ("sandals", "flip-flops", "open sandals"),
        "dress shoes": ("dress shoes", "leather shoes", "loafers"),
    },
    "shoes.color": COLOR_WORDS,
    "bag.kind": {
        "backpack": ("backpack", "rucksack", "knapsack"),
        "handbag": ("handbag", "purse", "hand purse"),
        "shoulder bag": ("shoulder bag", "crossbody bag", "messenger bag"),
        "suitcase": ("suitcase", "trolley case", "rolling suitcase"),
    },
    "bag.color": COLOR_WORDS,
    "hat.kind": {
        "cap": ("cap", "baseball cap", "peaked cap"),
        "beanie": ("beanie", "knit hat", "woolly hat"),
        "sun hat": ("sun hat", "wide-brimmed hat", "brimmed hat"),
    },
    "hat.color": COLOR_WORDS,
    "glasses.kind": {
        "glasses": ("glasses", "spectacles", "eyeglasses"),
        "sunglasses": ("sunglasses", "dark glasses", "shades"),
    },
    "carry.kind": {
        "umbrella": ("umbrella", "parasol", "brolly"),
        "phone": ("phone", "mobile phone", "smartphone", "cell phone"),
        "book": ("book", "hardback", "paperback"),
        "bottle": ("bottle", "water bottle", "flask"),
        "shopping bag": ("shopping bag", "carrier bag", "paper bag"),
    },
    "carry.color": COLOR_WORDS,
    "pose.action": {
        "standing": ("standing", "standing still", "waiting"),
        "walking": ("walking", "strolling", "striding"),
    },
    "view.direction": {
        "front": ("from the front", "face-on", "frontally"),
        "back": ("from behind", "from the back", "from the rear"),
        "side": ("from the side", "in profile", "side-on"),
    },
}

_NEAR_GROUPS = {
    "hair.color": (("black", "brown"), ("ginger", "brown"), ("blonde", "grey"), ("blonde", "ginger")),
    "hair.length": (("short", "bald"), ("short", "bun")),
    "top.garment": (("t-shirt", "shirt"), ("t-shirt", "tank top"), ("sweater", "hoodie"), ("sweater", "shirt")),
    "top.pattern": (("striped", "checked"), ("dotted", "checked"), ("dotted", "logo")),
    "top.sleeve": (("short", "sleeveless"),),
    "lower.garment": (("trousers", "jeans", "leggings"), ("skirt", "long skirt")),
    "coat.garment": (("jacket", "gilet"),),
    "shoes.kind": (("sneakers", "dress shoes"), ("sandals", "dress shoes")),
    "bag.kind": (("handbag", "shoulder bag"),),
    "hat.kind": (("cap", "beanie"),),
    "glasses.kind": (("glasses", "sunglasses"),),
    "carry.kind": (("phone", "book", "bottle"),),
}


# How often true captions name a value of an attribute, where not all its values are equally common.
SHARES: dict[str, dict[str, float]] = {
    # Under a hat only long hair is seen.
    "hair.length": {"short": 6, "long": 10, "bun": 3, "bald": 3},
    # Plain and printed cloth can be told apart only from the front.
    "top.pattern": {"plain": 2, "striped": 4, "checked": 4, "dotted": 4, "logo": 1},
    "top.sleeve": {"long": 5, "short": 3, "sleeveless": 2},
    "lower.garment": {"trousers": 3, "jeans": 3, "leggings": 3, "shorts": 4, "skirt": 4, "long skirt": 4},
    "coat.garment": {"jacket": 1, "long coat": 2, "gilet": 1},
    "shoes.kind": {"sneakers": 5, "boots": 6, "sandals": 5, "dress shoes": 4},
    "bag.kind": {"backpack": 3, "handbag": 2, "shoulder bag": 2, "suitcase": 3},
    "hat.kind": {"cap": 1, "beanie": 1, "sun hat": 2},
    "carry.kind": {"umbrella": 3, "phone": 2, "book": 2, "bottle": 2, "shopping bag": 3},
    "view.direction": {"front": 1, "back": 1, "side": 2},
}
# Sleeves that a top may have, where they are not long.
SLEEVES = {"t-shirt": ("short",), "shirt": ("long", "short"), "tank top": ("sleeveless",)}
_HAIR_AS_COLOR = {"black": "black", "brown": "brown", "blonde": "yellow", "grey": "grey", "ginger": "orange"}


def near(attribute: str, value: str, other: str) -> bool:
    """Whether `other` is `value` or could pass for it, so that naming it would not be a clear mistake."""
    if value == other:
        return True
    is_color = attribute.endswith(".color") and attribute != "hair.color"
    groups = COLOR_GROUPS if is_color else _NEAR_GROUPS.get(attribute, ())
    return any(value in group and other in group for group in groups)


def far_values(attribute: str, value: str) -> list[str]:
    """The values of `attribute` that are plainly not `value`, in a fixed order; empty for glasses."""
    return [other for other in WORDS[attribute] if not near(attribute, value, other)]


def _swap_weights(attribute: str) -> dict[str, dict[str, float]]:
    """Value -> what may replace it -> how often.

    Were all replacements equally likely, a value with many far ones would be said by mistake more often than others,
    and the word alone would tell. So the weights are scaled, rows and columns at once, until each value is
    said by mistake as often as it is replaced, in proportion to its share.
    """
    shares = SHARES.get(attribute, dict.fromkeys(WORDS[attribute], 1.0))
    far = {value: far_values(attribute, value) for value in shares}
    scale = dict.fromkeys(shares, 1.0)
    for _ in range(200):
        sums = {value: sum(scale[other] for other in far[value]) for value in shares}
        scale = {
            value: math.sqrt(scale[value] * share / sums[value]) if sums[value] else 0.0
            for value, share in shares.items()
        }
    return {value: {other: scale[other] for other in far[value]} for value in shares}


_SWAPS = {attribute: _swap_weights(attribute) for attribute in WORDS}


def false_values(attribute: str, truth: dict[str, str]) -> dict[str, float]:
    """What a false caption may say of a person with these `true_attributes`: value -> weight; may be empty."""
    weights = _SWAPS[attribute][truth[attribute]]
    # A paper bag in the hand could pass for a handbag, and the other way round.
    if attribute == "bag.kind" and truth["carry.kind"] == "shopping bag":
        weights = {value: weight for value, weight in weights.items() if value not in ("handbag", "shoulder bag")}
    if attribute == "carry.kind" and truth["bag.kind"] in ("handbag", "shoulder bag"):
        weights = {value: weight for value, weight in weights.items() if value != "shopping bag"}
    # No true coat, shoe, bag or hat is near the colours that it touches. Nor is a false one, or it would stand out.
    beside = touching_colors(attribute, truth)
    apart = {
        value: weight
        for value, weight in weights.items()
        if not any(near("top.color", value, other) for other in beside)
    }
    return apart or weights


def touching_colors(attribute: str, truth: dict[str, str]) -> list[str]:
    """The colours that the thing with the colour `attribute` keeps away from, see `sample_person`."""
    outer = ["coat.color"] if truth["coat.color"] != "none" else ["top.color", "dress.color"]
    legs = ["lower.color", "dress.color"]
    names = {
        "coat.color": ["top.color", *legs],
        "shoes.color": legs,
        "bag.color": [*outer, *legs],
        "carry.color": [*outer, *legs],
    }.get(attribute, [])
    colors = [truth[name] for name in names]
    if attribute == "hat.color":
        colors.append(_HAIR_AS_COLOR.get(truth["hair.color"], "beige"))
    return colors


def value_of_words(attribute: str, words: str) -> str:
    """The value that `words` name for `attribute`; `KeyError` when they name none."""
    for value, synonyms in WORDS[attribute].items():
        if words in synonyms:
            return value
    raise KeyError(f"{words!r} names no value of {attribute!r}")


# Sampling uses nothing but `random()`: it is the one method whose stream Python promises to keep for a seed.


def stream(*names: object) -> random.Random:
    """A private source of randomness for a thing, named by its coordinates; any change of `VERSION` changes it."""
    return random.Random("-".join([VERSION, *map(str, names)]))


def chance(rng: random.Random, probability: float) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def between(rng: random.Random, low: int, high: int) -> int:
    """A whole number, `low` and `high` included."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: random.Random, items: Sequence[Item]) -> Item:
    """One item of a non-empty sequence, all equally likely."""
    return items[int(rng.random() * len(items))]


def pick_weighted(rng: random.Random, weights: Mapping[str, float]) -> str:
    """One key, as likely as its weight says."""
    rest = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        rest -= weight
        if rest < 0:
            return key
    return key


def shuffled(rng: random.Random, items: Iterable[Item]) -> list[Item]:
    """The items in random order, as a new list."""
    return [item for _, _, item in sorted((rng.random(), position, item) for position, item in enumerate(items))]


@dataclass(frozen=True)
class Person:
    """What stays with a person in every view. Absent things are "none"; a dress leaves top and lower "none"."""

    gender: str
    skin: int
    hair_length: str
    hair_color: str
    top: str
    top_color: str
    top_pattern: str
    top_sleeve: str
    lower: str
    lower_color: str
    dress: str
    dress_color: str
    coat: str
    coat_color: str
    shoes: str
    shoes_color: str
    bag: str
    bag_color: str
    hat: str
    hat_color: str
    glasses: str
    carry: str
    carry_color: str


@dataclass(frozen=True)
class View:
    """What changes from picture to picture of a person; lengths in 1/100 of the width or 1/200 of the height."""

    direction: str  # "front", "back", "left", "right"
    action: str  # "standing", "walking"
    step: int  # the foot that is ahead, 0 or 1
    arm: int  # how far the arms are from the body
    brightness: int  # per cent, 84..110
    tint: tuple[int, int, int]  # per cent of each channel, 97..103
    background: str
    clutter: int  # seed of the background
    scale: int  # per cent, 92..100
    shift_x: int
    shift_y: int


def _far_color(rng: random.Random, *others: str) -> str:
    """A colour that is not near any of the others, so that one thing stands out from what it touches."""
    colors = [color for color in COLOR_WORDS if not any(near("top.color", color, other) for other in others)]
    return pick(rng, colors)


def sample_person(seed: int, split: str, index: int) -> Person:
    """Person number `index` of a split; the same for every image size, number of views and noise rate.

    Clothes and hair are drawn without regard to gender and to each other, so that no word gives another one away.
    """
    rng = stream(seed, split, index)
    gender = pick(rng, tuple(WORDS["person.gender"]))
    hair_length = pick(rng, ("short", "short", "long", "long", "bun", "bald"))
    hair_color = "none" if hair_length == "bald" else pick(rng, tuple(HAIR_RGB))

    top = top_color = top_pattern = top_sleeve = lower = lower_color = dress = dress_color = "none"
    one_piece = chance(rng, 0.15)
    if one_piece:
        dress = pick(rng, tuple(WORDS["dress.garment"]))
        dress_color = pick(rng, tuple(COLOR_WORDS))
    else:
        top = pick(rng, tuple(WORDS["top.garment"]))
        top_color = pick(rng, tuple(COLOR_WORDS))
        top_pattern = pick(rng, ("plain", "plain", "striped", "checked", "dotted", "logo"))
        sleeves = SLEEVES.get(top, ("long",))
        top_sleeve = pick(rng, sleeves) if len(sleeves) > 1 else sleeves[0]
        lower = pick_weighted(rng, SHARES["lower.garment"])
        lower_color = pick(rng, tuple(COLOR_WORDS))

    coat = coat_color = "none"
    if chance(rng, 0.4):
        coat = pick_weighted(rng, SHARES["coat.garment"])
        coat_color = _far_color(rng, dress_color if one_piece else top_color, "none" if one_piece else lower_color)
    outer = coat_color if coat != "none" else dress_color if one_piece else top_color
    legs = dress_color if one_piece else lower_color

    shoes = pick_weighted(rng, SHARES["shoes.kind"])
    shoes_color = _far_color(rng, legs)

    # At least one of the four things is left out, so that a caption can always name something that is not there.
    chances = {"bag": 0.6, "hat": 0.4, "glasses": 0.35, "carry": 0.5}
    left_out = pick(rng, tuple(chances))
    has = {thing: thing != left_out and chance(rng, probability * 4 / 3) for thing, probability in chances.items()}
    bag = pick_weighted(rng, SHARES["bag.kind"]) if has["bag"] else "none"
    hat = pick_weighted(rng, SHARES["hat.kind"]) if has["hat"] else "none"
    # Without a bag there is no paper bag either, or "a handbag" would not be a plain mistake.
    carries = {kind: n for kind, n in SHARES["carry.kind"].items() if kind != "shopping bag" or left_out != "bag"}
    carry = pick_weighted(rng, carries) if has["carry"] else "none"
    return Person(
        gender=gender,
        skin=between(rng, 0, 3),
        hair_length=hair_length,
        hair_color=hair_color,
        top=top,
        top_color=top_color,
        top_pattern=top_pattern,
        top_sleeve=top_sleeve,
        lower=lower,
        lower_color=lower_color,
        dress=dress,
        dress_color=dress_color,
        coat=coat,
        coat_color=coat_color,
        shoes=shoes,
        shoes_color=shoes_color,
        bag=bag,
        bag_color=_far_color(rng, outer, legs) if bag != "none" else "none",
        hat=hat,
        hat_color=_far_color(rng, _HAIR_AS_COLOR.get(hair_color, "beige")) if hat != "none" else "none",
        glasses=pick(rng, ("glasses", "sunglasses")) if has["glasses"] else "none",
        carry=carry,
        carry_color=_far_color(rng, outer, legs) if carry not in ("none", "phone") else "none",
    )


DIRECTIONS = ("front", "back", "left", "right")
BACKGROUNDS = ("street", "park", "wall", "shop")


def sample_view(seed: int, split: str, index: int, view: int) -> View:
    """View number `view` of person `index`; views that follow each other differ in direction."""
    turns = shuffled(stream(seed, split, index, "directions"), DIRECTIONS)
    rng = stream(seed, split, index, view)
    return View(
        direction=turns[view % len(turns)],
        action=pick(rng, ("standing", "walking")),
        step=between(rng, 0, 1),
        arm=between(rng, 0, 4),
        brightness=between(rng, 84, 110),
        tint=(between(rng, 97, 103), between(rng, 97, 103), between(rng, 97, 103)),
        background=pick(rng, BACKGROUNDS),
        clutter=between(rng, 0, 9999),
        scale=between(rng, 92, 100),
        shift_x=between(rng, -4, 4),
        shift_y=between(rng, -2, 2),
    )


def true_attributes(person: Person, view: View) -> dict[str, str]:
    """Every attribute of a person in a view, seen or unseen, by the names of `WORDS`; what is absent is "none"."""
    return {
        "person.gender": person.gender,
        "hair.length": person.hair_length,
        "hair.color": person.hair_color,
        "top.garment": person.top,
        "top.color": person.top_color,
        "top.pattern": person.top_pattern,
        "top.sleeve": person.top_sleeve,
        "lower.garment": person.lower,
        "lower.color": person.lower_color,
        "dress.garment": person.dress,
        "dress.color": person.dress_color,
        "coat.garment": person.coat,
        "coat.color": person.coat_color,
        "shoes.kind": person.shoes,
        "shoes.color": person.shoes_color,
        "bag.kind": person.bag,
        "bag.color": person.bag_color,
        "hat.kind": person.hat,
        "hat.color": person.hat_color,
        "glasses.kind": person.glasses,
        "carry.kind": person.carry,
        "carry.color": person.carry_color,
        "pose.action": view.action,
        "view.direction": "side" if view.direction in ("left", "right") else view.direction,
    }


def visible_attributes(person: Person, view: View) -> dict[str, str]:
    """The part of `true_attributes` that the picture shows and a true caption may name."""
    seen = true_attributes(person, view)
    hidden = {name for name, value in seen.items() if value == "none"}
    if person.hat != "none" and person.hair_length != "long":
        hidden |= {"hair.length", "hair.color"}
    if view.direction == "back":
        hidden.add("glasses.kind")
    if view.direction == "back" and person.bag == "backpack":
        hidden |= {"top.garment", "top.pattern"}
    if person.top_pattern == "logo" and view.direction != "front":
        hidden.add("top.pattern")
    if view.direction != "front" and person.top_pattern == "plain":
        hidden.add("top.pattern")  # a logo might be on the unseen side
    if person.coat != "none":
        # An open coat shows a strip of what is under it in front; a gilet shows its sleeves from all sides.
        hidden |= {"top.garment", "top.pattern", "top.sleeve"}
        if view.direction != "front" and not (person.coat == "gilet" and person.top_sleeve == "long"):
            hidden.add("top.color")
    return {name: value for name, value in seen.items() if name not in hidden}


# How often each kind of object is the one that a caption makes up: chosen so that a word about any of them is false
# about equally often. Glasses are never swapped, so they are made up the more.
_ABSENT = {"bag": 5, "hat": 1, "glasses": 3, "carry": 2}


def absent_things(person: Person) -> dict[str, dict[str, float]]:
    """Slot -> kind -> weight of the objects that the person plainly does not have, for captions that make them up."""
    bags = person.bag != "none" or person.carry == "shopping bag"
    things: dict[str, dict[str, float]] = {}
    if not bags:
        things["bag"] = SHARES["bag.kind"]
    if person.hat == "none":
        things["hat"] = SHARES["hat.kind"]
    if person.glasses == "none":
        things["glasses"] = dict.fromkeys(WORDS["glasses.kind"], 1.0)
    if person.carry == "none":
        things["carry"] = {kind: n for kind, n in SHARES["carry.kind"].items() if kind != "shopping bag" or not bags}
    return things


def make_up(rng: random.Random, things: dict[str, dict[str, float]], truth: dict[str, str]) -> dict[str, str]:
    """Attributes of one of the `absent_things`, its colour such as it could be if the person had it."""
    thing = pick_weighted(rng, {slot: _ABSENT[slot] for slot in things})
    made_up = {f"{thing}.kind": pick_weighted(rng, things[thing])}
    if thing != "glasses":
        made_up[f"{thing}.color"] = _far_color(rng, *touching_colors(f"{thing}.color", truth))
    return made_up
