"""What galleries have in common whose rows lie elsewhere: they are searched, and changed only where they were made."""

from typing import Any

from dataset_webperson import DataError

from .gallery import Gallery


class ReadOnlyGallery(Gallery):
    """A gallery whose rows were exported.

    Attributes:
        place (`str`): where they lie, as errors name it.
    """

    place: str

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise DataError(
            f"{self.place}: is only searched; change the gallery it was exported from, and export it again"
        )

    add = sync = remove = update = rebuild = opt_out = calibrate = check = export = _refuse
