"""Items come in their order while a thread makes the next one, and errors come in their turn."""

import threading

import pytest

from dataset_webperson.reading_ahead import ahead


def test_the_next_item_is_made_while_the_caller_works():
    made = [threading.Event() for _ in range(4)]

    def make():
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in ahead(make()):
        assert number == 3 or made[number + 1].wait(timeout=10)  # though nobody has asked for it yet


def test_items_keep_their_order_and_an_error_its_turn():
    def make(count):
        yield from range(count)
        raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"):
        for number in ahead(make(3)):
            seen.append(number)
    assert seen == [0, 1, 2] and list(ahead([])) == [] and list(ahead([None, 0])) == [None, 0]


def test_a_caller_that_stops_leaves_no_thread_behind():
    before = threading.active_count()
    numbers = ahead(iter(range(10)))
    assert next(numbers) == 0
    numbers.close()
    assert threading.active_count() == before
