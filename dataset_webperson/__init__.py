"""WebPerson, drawn or real, and the benchmarks and corpora of text-to-person retrieval, as `datasets` objects."""

from .benchmarks import Benchmark, load_benchmark
from .builder import WebPerson, WebPersonConfig
from .corpora import Corpus, load_corpus
from .findings import DataError
from .images import open_image

__all__ = [
    "Benchmark",
    "Corpus",
    "DataError",
    "WebPerson",
    "WebPersonConfig",
    "load_benchmark",
    "load_corpus",
    "open_image",
]
