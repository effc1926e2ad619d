"""The words for what a person wears, carries, does and looks like, by kind: for templates, statistics and checks.

Ordinary English, in the singular; `find_attributes` also knows plurals. Words that stand for a place on the body
("top", "hair", "head") or for clothes in general ("outfit") are no attributes: they say nothing about one person.
"""

import re

_GENDER = (
    "man woman boy girl male female lady gentleman guy men women gentlemen he she his her him hers himself herself "
    "masculine feminine"
)
_AGE = "young old elderly middle-aged teenage teenager child kid toddler baby senior"
_COLOR = (
    "black white grey gray red orange yellow green blue navy purple violet pink brown beige khaki tan cream gold "
    "golden silver maroon burgundy turquoise teal olive lavender magenta indigo scarlet crimson ivory "
    "charcoal peach mustard lilac rust aqua cyan jet-black multicolored multicoloured colorful "
    "colourful dark-colored light-colored"
)
_TOP = (
    "t-shirt tee shirt blouse sweater jumper pullover hoodie sweatshirt vest tank-top singlet polo cardigan camisole "
    "tunic turtleneck jersey undershirt button-up button-down"
)
_OUTERWEAR = "jacket coat overcoat trench raincoat parka blazer windbreaker gilet suit anorak poncho cape puffer"
_BOTTOMS = (
    "trousers pants jeans slacks leggings tights shorts skirt miniskirt sweatpants joggers chinos capris cargos denim"
)
_DRESS = "dress gown frock jumpsuit romper overalls dungarees robe kimono sari sundress uniform"
_SHOES = (
    "shoe sneaker trainer boot sandal flip-flop loafer heel high-heel slipper flat pump moccasin stiletto clog oxford"
)
_HEADWEAR = "hat cap beanie hood helmet headscarf turban bonnet beret hijab headband bandana visor"
_HAIR = (
    "bald blonde blond brunette ponytail pigtail braid bun curly wavy straight-haired long-haired short-haired beard "
    "bearded mustache moustache bangs fringe dreadlock shoulder-length"
)
_GLASSES = "glasses sunglasses spectacles eyeglasses goggles"
_BAG = (
    "bag backpack rucksack knapsack handbag purse satchel tote suitcase briefcase trolley luggage pouch clutch "
    "messenger fanny crossbody duffel"
)
_ACCESSORY = (
    "scarf tie necktie bow-tie belt watch wristwatch bracelet necklace ring earring glove headphones earphones "
    "earbuds lanyard sock stocking badge apron mask bandage shawl"
)
_OBJECT = (
    "umbrella phone cellphone smartphone book bottle cup newspaper magazine camera bicycle bike skateboard stroller "
    "pram ball folder document box ticket cane map laptop tablet flower wallet key cigarette racket"
)
_PATTERN = (
    "striped checked checkered plaid dotted polka-dot floral printed patterned graphic logo camouflage solid stripe "
    "checks zigzag leopard tie-dye"
)
_SLEEVE = "long-sleeved short-sleeved sleeveless long-sleeve short-sleeve half-sleeved full-sleeved"
_ACTION = (
    "walking standing running sitting riding jogging strolling striding waiting leaning bending crouching kneeling "
    "talking texting reading pushing pulling walk sit run ride jog stroll"
)

ATTRIBUTE_WORDS: dict[str, frozenset[str]] = {
    kind: frozenset(words.split())
    for kind, words in {
        "gender": _GENDER,
        "age": _AGE,
        "color": _COLOR,
        "top": _TOP,
        "outerwear": _OUTERWEAR,
        "bottoms": _BOTTOMS,
        "dress": _DRESS,
        "shoes": _SHOES,
        "headwear": _HEADWEAR,
        "hair": _HAIR,
        "glasses": _GLASSES,
        "bag": _BAG,
        "accessory": _ACCESSORY,
        "object": _OBJECT,
        "pattern": _PATTERN,
        "sleeve": _SLEEVE,
        "action": _ACTION,
    }.items()
}
_KIND_OF = {word: kind for kind, words in ATTRIBUTE_WORDS.items() for word in words}
WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
TWO_WORDS = {
    ("tank", "top"): "top",
    ("body", "warmer"): "outerwear",
    ("flip", "flops"): "shoes",
    ("polka", "dots"): "pattern",
    ("polka", "dot"): "pattern",
}


def find_attributes(text: str) -> list[tuple[str, str, int, int]]:
    """The attribute words of `text` from left to right: kind, word in lower case as it stands there, start, end.

    >>> find_attributes("A man in a Navy-blue coat")
    [('gender', 'man', 2, 5), ('color', 'navy-blue', 11, 20), ('outerwear', 'coat', 21, 25)]
    """
    words = [(match.group().lower().replace("’", "'"), *match.span()) for match in WORD.finditer(text)]
    found, place = [], 0
    while place < len(words):
        word, start, end = words[place]
        following = words[place + 1] if place + 1 < len(words) else ("", end, end)
        if kind := TWO_WORDS.get((word, following[0])):
            found.append((kind, f"{word} {following[0]}", start, following[2]))
            place += 2
            continue
        if kind := kind_of(word):
            found.append((kind, word, start, end))
        place += 1
    return found


def kind_of(word: str) -> str:
    """The kind of a word, of its singular, or of a part of a word with a hyphen; "" for no attribute."""
    word = word.removesuffix("'s")
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in _KIND_OF:
            return _KIND_OF[form]
    if "-" in word:
        kinds = [kind for part in word.split("-") if (kind := kind_of(part))]
        return kinds[-1] if kinds else ""
    return ""
