"""A gallery of images that is built once, kept on disk, and asked by sentences: the other half of the retriever."""

from .explaining import Explanation
from .gallery import Gallery
from .qdrant import QdrantGallery
from .reports import Report
from .searching import Hit
from .stored import StoredGallery

__all__ = ["Explanation", "Gallery", "Hit", "QdrantGallery", "Report", "StoredGallery"]
