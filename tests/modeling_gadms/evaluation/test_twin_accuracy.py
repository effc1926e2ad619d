"""Twin accuracy against loops, and what of a data set it takes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_rows

from dataset_webperson import DataError
from modeling_gadms.evaluation import twins as twins_module
from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.twins import above_twin, twin_accuracy, twins_of


@pytest.fixture
def encoded():
    """Persons 0 to 5, three images each, two captions an image, whose images come in a random order."""
    generator = torch.Generator().manual_seed(0)
    persons = torch.arange(6).repeat(3)[torch.randperm(18, generator=generator)]
    of_text = torch.arange(18).repeat_interleave(2)
    embeds = [F.normalize(torch.randn(count, 5, generator=generator), dim=-1) for count in (18, 36)]
    return RetrievalSet(*embeds, persons, persons[of_text], of_text)


def test_a_caption_is_right_where_its_person_has_the_nearest_image_of_both(encoded, monkeypatch):
    monkeypatch.setattr(twins_module, "_ROWS", 7)
    twins = [person ^ 1 for person in encoded.image_person_ids.tolist()]
    encoded.text_embeds[5] = 0  # as near to all
    found = above_twin(encoded, twins)
    expected = []
    for text, person in zip(encoded.text_embeds.tolist(), encoded.text_person_ids.tolist(), strict=True):
        best = {}
        for image, who in zip(encoded.image_embeds.tolist(), encoded.image_person_ids.tolist(), strict=True):
            cosine = sum(a * b for a, b in zip(text, image, strict=True))
            best[who] = max(best.get(who, -2), cosine)
        expected.append(50.0 if best[person] == best[person ^ 1] else 100.0 * (best[person] > best[person ^ 1]))
    assert found.tolist() == expected and set(expected) == {0.0, 50.0, 100.0}
    interval = twin_accuracy(encoded, twins)
    assert interval.mean == pytest.approx(np.mean(expected)) and interval.low < interval.mean < interval.high


def test_the_twins_of_a_data_set_are_in_it_or_there_are_none():
    rows = tiny_rows(4)
    assert twins_of(rows) is None and twins_of(rows.add_column("twin_person_id", [None] * 4)) is None
    rows = rows.remove_columns([name for name in ("person_id",) if name in rows.column_names])
    rows = rows.add_column("person_id", [4, 4, 5, 5])
    assert twins_of(rows.add_column("twin_person_id", [5, 5, 4, 4])) == [5, 5, 4, 4]
    with pytest.raises(DataError, match="row 2: twin_person_id is 7, who is in no image"):
        twins_of(rows.add_column("twin_person_id", [5, 5, 7, 4]))
