"""WebPerson, drawn or real, and the benchmarks and corpora of text-to-person retrieval, as `datasets` objects."""

from .builder import WebPerson, WebPersonConfig
from .findings import DataError
from .images import open_image
from .readers.benchmarks import Benchmark, load_benchmark
from .readers.corpora import Corpus, load_corpus

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
