"""HTML pages of one look, each whole in one file: nothing is fetched, so they open from a disk without a network.

A template extends `base.html`, which holds the one style and the one script, and builds on the macros of `parts.html`.
What a template prints is escaped. The page's content security policy lets no script run but that one. The pages of the
gallery's server look the same; they fetch pictures and results from that server, and from nowhere else.
"""

import base64
import hashlib
import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..files import write_text
from ..images import jpeg_uri

_LARGEST = (224, 448)  # pixels of an embedded picture, width and height at most: small on the page, whole when opened
_NO_SHARE = "–"


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        address: its pixels, as a `data:` address.
        width, height: in pixels.
        name: what stands below the opened picture, such as the path of its file.
        text: what it shows, for those who do not see it.
    """

    address: str
    width: int
    height: int
    name: str
    text: str


def embed(image: Image.Image, name: str, text: str = "") -> Picture:
    """The picture of an RGB image, scaled down where it is large; `text` is the name if there is nothing to add."""
    image = image.copy()
    image.thumbnail(_LARGEST)
    return Picture(jpeg_uri(image, 82), image.width, image.height, name, text or name)


def percent(part: int, whole: int) -> str:
    """A share with one decimal: `62.2 %`, `<0.1 %`, or a dash where there is no whole that `part` is a part of."""
    if whole <= 0 or not 0 <= part <= whole:
        return _NO_SHARE
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1 %"
    # A few that are missing must not round away.
    if part < whole and share > 99.9:
        return ">99.9 %"
    return f"{share:.1f} %"


def render(template: str, **values: Any) -> str:
    """The page of a template of this folder. A value that the template names and `values` lacks is an error."""
    return _environment().get_template(template).render(**values)


def write_page(path: str | os.PathLike, template: str, **values: Any) -> None:
    """Write the page of a template of this folder; `path` is replaced whole or not at all."""
    write_text(path, render(template, **values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dataset_webperson", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(percent=percent, text=_text, digest=_digest)
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment


@cache
def _text(name: str) -> Markup:
    """A file of this folder, as it is."""
    return Markup((package_files(__name__) / name).read_text(encoding="utf-8"))


def _digest(script: str) -> str:
    """How the content security policy names a script of this folder."""
    digest = hashlib.sha256(_text(script).encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
