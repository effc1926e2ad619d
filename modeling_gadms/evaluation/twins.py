"""Retrieval among twins: is a person found before the one who differs in a single attribute?"""

from collections.abc import Sequence

import datasets
import numpy as np
import torch

from dataset_webperson import DataError

from ..rows import person_ids
from .encoding import RetrievalSet
from .significance import Interval, bootstrap_interval
from .text_table import Table

TWINS = "twin_person_id"  # the column of a data set that tells the twin of each image's person
_ROWS = 1024  # captions compared with the gallery at a time


def twins_of(dataset: datasets.Dataset) -> list[int] | None:
    """The twin of the person in each image; `None` where the data set does not tell.

    Raises:
        DataError: an image lacks a twin, or the twin is in no image.
    """
    twins = dataset[TWINS][:] if TWINS in dataset.column_names else []
    if all(twin is None for twin in twins):  # as in other splits than test
        return None
    persons = set(person_ids(dataset))
    for row, twin in enumerate(twins):
        if twin not in persons:
            raise DataError(f"row {row}: {TWINS} is {twin}, who is in no image; measure the whole set of twins")
    return twins


def above_twin(encoded: RetrievalSet, twins: Sequence[int]) -> np.ndarray:
    """Whether the best image of a caption's person is nearer to it than the best of the twin: float64 `(M,)`, 0-100.

    50 where both are as near, so that chance is 50.

    Args:
        encoded ([`RetrievalSet`]): embeddings of `N` images and `M` captions.
        twins (`Sequence[int]`): the twin of the person in each image, `N` numbers.
    """
    of_text = torch.tensor(twins)[encoded.text_image_index]
    values = []
    for first in range(0, len(of_text), _ROWS):
        part = slice(first, first + _ROWS)
        cosines = encoded.text_embeds[part] @ encoded.image_embeds.T
        own, other = (
            cosines.masked_fill(ids[part, None] != encoded.image_person_ids, -torch.inf).amax(dim=1)
            for ids in (encoded.text_person_ids, of_text)
        )
        values.append(50.0 + 50.0 * torch.sign(own - other).double())
    return torch.cat(values).numpy()


def twin_accuracy(encoded: RetrievalSet, twins: Sequence[int], *, seed: int = 0) -> Interval:
    """The mean of [`above_twin`]; its interval resamples pairs of twins, whose captions hang together."""
    pairs = np.minimum(encoded.text_person_ids.numpy(), np.array(twins)[encoded.text_image_index.numpy()])
    return bootstrap_interval(above_twin(encoded, twins), groups=pairs, seed=seed)


def twins_table(results: list[dict]) -> Table:
    """The twin accuracy of each result that has it, as an `Interval` in `twin_accuracy`."""
    rows = []
    for result in results:
        if "twin_accuracy" in result:
            m = result["twin_accuracy"]
            rows.append([result["model"], result["benchmark"], f"{m.mean:.2f} [{m.low:.1f}, {m.high:.1f}]"])
    notes = ["Captions, in per cent, to which an image of their person is nearer than any of the twin; by chance 50."]
    return Table("Twins", ["model", "benchmark", "own person above the twin"], rows, words=2, notes=notes)
