"""Stops a captioner whose latest answers are of no use, before a whole data set of them is paid for."""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class BrakeOptions:
    """When captioning stops.

    Args:
        window: number of the latest captions of one captioner, in one process, that are looked at.
        min_usable: the run stops when the share of captions without a problem among these is lower; 0 never stops it.

    Raises:
        ValueError: no caption to look at, or a share out of range.
    """

    window: int = 32
    min_usable: float = 0.1

    def __post_init__(self) -> None:
        if self.window < 1 or not 0 <= self.min_usable <= 1:
            raise ValueError(f"window={self.window} is at least 1, min_usable={self.min_usable} in 0..1")


class Brake:
    """The latest captions of one captioner. Answers from the cache are not among them: they cost nothing.

    >>> brake = Brake(BrakeOptions(window=2, min_usable=0.5))
    >>> [brake.is_pulled(2) for usable in (True, False, False) if brake.add(usable) is None]
    [False, False, True]
    """

    def __init__(self, options: BrakeOptions):
        self.options = options
        self.latest: deque[bool] = deque(maxlen=options.window)

    def add(self, usable: bool) -> None:
        """Count a caption."""
        self.latest.append(usable)

    def is_pulled(self, least: int) -> bool:
        """Whether, of at least `least` captions, too few are usable."""
        return len(self.latest) >= least and sum(self.latest) < self.options.min_usable * len(self.latest)


@lru_cache(maxsize=64)  # a process keeps counting over its shards, which may be smaller than the window
def brake_of(folder: str, captioner: int, options: BrakeOptions) -> Brake:
    """The brake of captioner 1 or 2 for the work whose answers are kept in `folder`."""
    return Brake(options)
