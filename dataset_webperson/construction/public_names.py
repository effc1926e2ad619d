"""What a release may say of a run's models and sources: no path, host or user name of the machine that made it."""

import hashlib
import ipaddress
import os
import re
from urllib.parse import urlsplit

from ..safe_paths import end_of_path, last_part

_HUB_CACHE = re.compile(r"[/\\]models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")


def public_name(model: str) -> str:
    """The name of a model: a Hub id or a served name as it is, and the last part of a path.

    >>> public_name("/home/me/models/person_detector.onnx"), public_name("ustc-community/dfine-medium-coco")
    ('person_detector.onnx', 'ustc-community/dfine-medium-coco')
    """
    if found := _HUB_CACHE.search(model + "/"):
        return f"{found[1]}/{found[2]}"
    # A served name with slashes is taken for a path only where it says so, or lies on this machine.
    if model.startswith(".") or os.path.exists(model):
        return last_part(model)
    return end_of_path(model)


def file_digest(model: str) -> str:
    """The SHA-256 of a model or another option that is one file of this machine, else ""."""
    if not os.path.isfile(model):
        return ""
    with open(model, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def public_url(url: str | None) -> str | None:
    """The address if it is one of the web; `None` for files, and for hosts that only a local network knows."""
    if not url:
        return None
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").rstrip(".")
    except ValueError:  # brackets that enclose no valid address
        return None
    if parts.scheme not in ("http", "https", "ftp"):
        return None
    try:
        return url if ipaddress.ip_address(host).is_global else None
    except ValueError:  # a name
        local = "." not in host or host.endswith((".local", ".localdomain", ".internal", ".lan"))
        return None if local else url
