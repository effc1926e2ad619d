"""A copy of a gallery on object storage, such as `s3://`, that is searched where it lies: [`StoredGallery`]."""

import tempfile
from pathlib import Path
from typing import Any

from dataset_webperson import DataError

from .exporting import FILES, KEPT, LANCE_FAILURES, ROWS
from .read_only import ReadOnlyGallery
from .rows import Rows, connect


class StoredGallery(ReadOnlyGallery):
    """A copy that `export("lance", ...)` made, as [`Gallery.open`] opens it by its address; it is only searched.

    Args:
        uri (`str`): `s3://...`, `hf://...` and what else lancedb reads.
        model: as in [`Gallery.open`].

    Raises:
        DataError: no copy of a gallery there, or queries of it must be recorded, for which there is no place.
    """

    def __init__(self, uri: str, model: Any = None) -> None:
        try:
            files = connect(uri).open_table(FILES).to_arrow().to_pylist()
            rows = Rows(uri, ROWS)
        except LANCE_FAILURES as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{uri}: no copy of a gallery can be read there ({reason:.200}); check the address") from (
                error
            )
        self._folder = tempfile.TemporaryDirectory(prefix="gallery-")  # removed with this object
        path = Path(self._folder.name) / uri.rstrip("/").rpartition("/")[2]
        path.mkdir()
        for file in files:
            if file["name"] in KEPT:
                (path / file["name"]).write_bytes(file["data"])
        super().__init__(path, model)
        self.place, self._table = uri, rows
        if self.audit.enabled:
            raise DataError(f"{uri}: its queries are to be recorded, which a copy cannot do; ask the gallery itself")

    def _rows(self) -> Rows:
        return self._table
