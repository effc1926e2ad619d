"""Twins: two persons who differ in a single attribute, and so in a single word of a caption."""

from dataclasses import replace
from typing import Any

from .attributes import (
    DIRECTIONS,
    SLEEVES,
    WORDS,
    Person,
    absent_things,
    false_values,
    near,
    pick,
    sample_view,
    stream,
    touching_colors,
    true_attributes,
    visible_attributes,
)

_VIEWS = [replace(sample_view(0, "test", 0, 0), direction=direction) for direction in DIRECTIONS]


def twin_of(person: Person, *names: object) -> tuple[Person, str]:
    """A person like another but for one attribute, and which it is; the same `names` give the same twin.

    The attribute is drawn among those that every view shows, of both persons, and that may change alone: a colour, a
    kind of garment or of thing, hair, gender. What each of them has is plainly not what the other has, and the twin is
    a person as they are drawn otherwise: no colour is near one that it touches.
    """
    rng = stream(*names, "twin")
    twins: dict[str, list[Person]] = {}
    for attribute in WORDS:
        for value in false_values(attribute, _truth(person)) if attribute in _always_visible(person) else ():
            twin = _with(person, attribute, value)
            mistaken = false_values(attribute, _truth(twin))
            if _may_be(twin) and attribute in _always_visible(twin) and _truth(person)[attribute] in mistaken:
                twins.setdefault(attribute, []).append(twin)
    attribute = pick(rng, tuple(twins))
    return pick(rng, twins[attribute]), attribute


def _truth(person: Person) -> dict[str, str]:
    return true_attributes(person, _VIEWS[0])


def _always_visible(person: Person) -> set[str]:
    """Attributes of the person that are seen from every side."""
    seen = set.intersection(*(set(visible_attributes(person, view)) for view in _VIEWS))
    return seen - {"pose.action", "view.direction"}


def _with(person: Person, attribute: str, value: str) -> Person:
    thing, part = attribute.split(".")
    field = thing if part in ("garment", "kind") else part if thing == "person" else f"{thing}_{part}"
    change: dict[str, Any] = {field: value}
    return replace(person, **change)


def _may_be(person: Person) -> bool:
    """Whether the parts of a person fit each other as `sample_person` has them."""
    truth = _truth(person)
    apart = not any(
        near("top.color", truth[attribute], other)
        for attribute in WORDS
        if attribute.endswith(".color") and truth[attribute] != "none"
        for other in touching_colors(attribute, truth)
    )
    return (
        apart
        and (person.top == "none" or person.top_sleeve in SLEEVES.get(person.top, ("long",)))
        and (person.hair_color == "none") == (person.hair_length == "bald")
        and (person.carry_color == "none") == (person.carry in ("none", "phone"))
        and bool(absent_things(person))
    )
