"""Which files of a source are pictures by their names, and why the others are none."""

import os
import re

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Pictures that are not read: whoever has them should know, whatever lies beside them.
OTHER_PICTURES = ("gif", "avif", "heic", "heif", "jfif", "jxl", "svg", "raw", "dng")
_QUERY = re.compile(rf"({'|'.join(map(re.escape, ENDINGS))})[?&#]", re.IGNORECASE)


def file_problem(name: str) -> str:
    """Why a file is not taken for a picture; "" for one that is.

    >>> [file_problem(name) for name in ("a.JPG", "a.gif", "a", "a.jpg?w=200", ".a.jpg", "a.sh#1")]
    ['', 'ending_gif', 'no_ending', 'query_in_name', 'hidden_file', 'ending_other']
    """
    if name.startswith("."):
        return "hidden_file"
    if name.lower().endswith(ENDINGS):
        return ""
    if _QUERY.search(name):
        return "query_in_name"
    ending = os.path.splitext(name)[1][1:].lower()
    if not ending:
        return "no_ending"
    return f"ending_{ending}" if re.fullmatch(r"[a-z0-9]{1,8}", ending) else "ending_other"


def is_other_picture(problem: str) -> bool:
    """Whether a file is rejected by its name although it must be meant as a picture."""
    return not problem.startswith("ending_") or problem.removeprefix("ending_") in OTHER_PICTURES


def readable(name: str) -> str:
    """A file's name as text that can be written as UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
