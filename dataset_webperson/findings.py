"""The defects of a copy of a dataset: one table of kinds, and a bounded collection of what was found.

The readers and the data doctor share it, so the loader that refuses a copy and the doctor that examines it use the
same words for the same defect.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_EXAMPLES = 12


class DataError(ValueError):
    """A copy of a dataset that cannot be used as it is. The message names the file and the cure."""


def reason_of(error: BaseException, named: str = "") -> str:
    """What an error says, as part of a line: in 160 characters at most, cut between words.

    Args:
        named (`str`): what the line begins with and need not say again. Cut in the middle, a path could not be found
            any more where it must not be shown.
    """
    said = str(error).replace(named, "...") if named else str(error)
    return textwrap.shorten(said, 160, placeholder=" ...")


@dataclass(frozen=True)
class Kind:
    """A kind of defect: how bad it is, what it is called, and what to do about it."""

    severity: str  # "error": training breaks or is wrong; "warning": training runs, figures may suffer; "note"
    title: str
    cure: str


KINDS = {
    # the json
    "json-missing": Kind("error", "json missing", "put the json into the folder, or pass its path as `annotations`"),
    "json-broken": Kind("error", "json broken", "download or unpack the file again: it is cut off or not json"),
    "json-nan": Kind("error", "json with NaN or Infinity", "write null in its place, or leave such rows out"),
    "json-wrong-shape": Kind("error", "json of the wrong shape", "use the json of this dataset, not of another one"),
    "row-not-object": Kind("error", "row that is not an object", "every entry must be `{...}`: repair the json"),
    "field-missing": Kind("error", "field missing in a row", "use the original json; a field was renamed or dropped"),
    "split-unknown": Kind("error", "unknown split", "a split is one of train, val, test: repair the json"),
    "split-missing": Kind("error", "official split missing", "add the json or the rows of that split"),
    # ids
    "id-not-integer": Kind(
        "error", "person id that is not a whole number", "person ids are integers: repair the json"
    ),
    "id-as-string": Kind("warning", "person ids written as strings", "read as integers; write them without quotes"),
    "id-below-first": Kind("warning", "person id below the first official one", "the ids were renumbered: check them"),
    "id-differs-from-name": Kind(
        "warning", "person id differs from the file name's", "the ids or the file names were changed: compare"
    ),
    "person-two-splits": Kind(
        "error", "person in two splits", "results on such a copy do not count: use the official json"
    ),
    # images of the json
    "path-unsafe": Kind(
        "error", "path that leaves the folder", "use relative paths without `..`, and no links out of the folder"
    ),
    "image-missing": Kind(
        "error", "image missing", "unpack the missing folders, or load with on_missing_images='skip'"
    ),
    "image-empty": Kind("error", "image of 0 bytes", "copy the file again; the disk may have been full"),
    "image-unreadable": Kind("error", "image unreadable", "copy the file again: it is cut off or not an image"),
    "image-bomb": Kind(
        "error",
        "image over Pillow's pixel limit",
        "replace the file; raise PIL.Image.MAX_IMAGE_PIXELS if you trust it",
    ),
    "image-several": Kind("error", "several images in one row", "keep the one that shows the person"),
    "image-two-rows": Kind(
        "warning", "several rows for one image", "read as one image with all its captions, repeats dropped"
    ),
    "image-two-persons": Kind("error", "one image given to two persons", "keep the row with the right person"),
    "image-two-splits": Kind("error", "one image in two splits", "keep the row of the official split"),
    "image-mode": Kind(
        "warning", "image that is not plain RGB or grey", "read it with dataset_webperson.images.open_image"
    ),
    "image-rotated": Kind("note", "image with an EXIF rotation", "none needed: the rotation is applied on reading"),
    "near-duplicate": Kind(
        "warning", "near-duplicate images across splits", "look at the pairs; drop the training image of a true pair"
    ),
    "image-elsewhere-held-out": Kind(
        "warning",
        "training image in the validation or test of another dataset",
        "figures across the two do not count with it: joint fine-tuning drops the person from training",
    ),
    "person-elsewhere-held-out": Kind(
        "warning",
        "training person in the validation or test of another dataset",
        "drop all images of the person from training where both datasets are used, as joint fine-tuning does",
    ),
    # re-identification
    "folder-missing": Kind("error", "query or gallery missing", "unpack the data set again, with all its folders"),
    "list-line": Kind("error", "line of a list that is no path and person", "use the lists of the data set"),
    "image-name": Kind(
        "error", "file name without person and camera", "give the file its own name back, or remove it"
    ),
    "query-unmatched": Kind(
        "warning", "query without a match by another camera", "it is left out of the means: is the gallery whole?"
    ),
    # boxes in pictures
    "box-missing": Kind(
        "error", "description of a person without a box there", "take descriptions and boxes of one data set"
    ),
    "box-outside": Kind("warning", "box outside of its picture", "it is left out: is the picture the original one?"),
    # counts
    "counts-differ": Kind("error", "counts differ from the official ones", "get the complete official copy"),
    "old-copy": Kind("error", "known old copy", "get the present json from the dataset's own page"),
    # captions
    "caption-not-text": Kind("error", "caption that is not text", "captions are strings: repair or drop the row"),
    "captions-missing": Kind("error", "row without any caption", "add its captions or drop the row"),
    "caption-empty": Kind("warning", "empty caption", "nothing can be learned from it: drop or rewrite it"),
    "caption-foreign-script": Kind("warning", "caption with a foreign script", "drop the stray characters"),
    "caption-code": Kind("warning", "caption with a code fragment", "drop the fragment"),
    "caption-template-leak": Kind(
        "warning", "caption with a template leak", "a caption generator left its template in: drop the caption"
    ),
    "caption-shared": Kind(
        "warning", "caption shared by several persons", "such a caption has more than one right answer"
    ),
    "caption-long": Kind(
        "note", "captions longer than the tower takes", "it cuts them there: another tower may take more"
    ),
    "name-twice": Kind("warning", "file name twice in one json", "the first caption is read; file names are the key"),
}


@dataclass
class Example:
    """One place where a defect shows: the text a reader needs, and the images that show it."""

    text: str
    images: tuple[str, ...] = ()  # absolute paths


@dataclass
class Finding:
    code: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)
    detail: str = ""  # e.g. shares by folder
    severity: str = ""  # replaces the kind's own severity where a flag asks for it

    def __post_init__(self) -> None:
        self.severity = self.severity or KINDS[self.code].severity

    @property
    def title(self) -> str:
        return KINDS[self.code].title

    @property
    def cure(self) -> str:
        return KINDS[self.code].cure

    def describe(self) -> str:
        """`code (count): detail; e.g. examples. Cure: cure.` on one line."""
        shown = "; ".join(example.text for example in self.examples[:3])
        parts = [part for part in (self.detail, f"e.g. {shown}" if shown and self.count > 1 else shown) if part]
        return f"{self.title} ({self.count:,}): {'; '.join(parts)}. Cure: {self.cure}."


class Findings:
    """Findings by kind. Counts are exact, examples are bounded, so millions of bad rows cost no memory."""

    def __init__(self) -> None:
        self._by_code: dict[str, Finding] = {}

    def add(self, code: str, text: str, images: tuple[str, ...] = (), count: int = 1) -> None:
        finding = self._by_code.setdefault(code, Finding(code))
        finding.count += count
        if len(finding.examples) < MAX_EXAMPLES:
            finding.examples.append(Example(text, images))

    def set_detail(self, code: str, detail: str) -> None:
        self._by_code[code].detail = detail

    def set_severity(self, code: str, severity: str) -> None:
        if code in self._by_code:
            self._by_code[code].severity = severity

    def get(self, code: str) -> Finding | None:
        return self._by_code.get(code)

    def __iter__(self) -> Iterator[Finding]:
        """Errors first, then warnings, then notes; in the order of the table of kinds within each."""
        severities = ("error", "warning", "note")
        order = {code: position for position, code in enumerate(KINDS)}
        return iter(sorted(self._by_code.values(), key=lambda f: (severities.index(f.severity), order[f.code])))

    def errors(self) -> list[Finding]:
        return [finding for finding in self if finding.severity == "error"]

    def raise_errors(self, what: str) -> None:
        """Raise one `DataError` that names every error found in `what`; nothing when there is none."""
        errors = self.errors()
        if errors:
            lines = "\n".join(f"- {finding.describe()}" for finding in errors)
            plural = "problems keep" if len(errors) > 1 else "problem keeps"
            raise DataError(f"{what}: {len(errors)} {plural} it from loading\n{lines}")


def share(part: int, whole: int) -> str:
    """A share in words: `16 %`, `<1 %`, `100 %`."""
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "<1 %"
    return f"{99 if part < whole and percent > 99 else round(percent)} %"
