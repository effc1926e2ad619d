"""Stops at a transformers that is too old, with the cure, before a name that it lacks is missed."""

import transformers

MINIMUM_TRANSFORMERS = "5.23"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


if _numbers(transformers.__version__) < _numbers(MINIMUM_TRANSFORMERS):
    raise ImportError(
        f"GA-DMS needs transformers {MINIMUM_TRANSFORMERS} or newer, but {transformers.__version__} is installed: "
        f"pip install --upgrade 'transformers>={MINIMUM_TRANSFORMERS}'"
    )
