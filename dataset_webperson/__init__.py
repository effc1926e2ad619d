"""WebPerson as a data set: captioned pedestrians for text-to-person retrieval."""

from .builder import WebPerson, WebPersonConfig

__all__ = ["WebPerson", "WebPersonConfig"]
