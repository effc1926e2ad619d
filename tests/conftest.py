"""What holds for every file of tests."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def only_what_a_file_makes_is_looked_through_for_garbage():
    """A training begins with `gc.collect()`, which takes a second where all test files and libraries are in memory.

    What is there before a file begins stays until the end: modules, tests and caches.
    """
    gc.collect()
    gc.freeze()
