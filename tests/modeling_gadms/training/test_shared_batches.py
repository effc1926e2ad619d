"""Memory of batches: filled again when it was given back, and never before."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from modeling_gadms.training.shared_batches import SharedBatches


class Numbers(Dataset):
    """Batch `n` holds `n` in memory of a worker, with the place of that memory."""

    def __init__(self, shared):
        self.shared = shared

    def __len__(self):
        return 12

    def __getitem__(self, number):
        large, place = self.shared.take((300, 1000), torch.float32)
        large.fill_(number)
        batch = {"large": large, "shared_place": place, "small": torch.tensor([number]), "name": str(number)}
        return self.shared.through_pipe(batch)


def as_it_is(batch):
    return batch


def loaded(shared):
    return DataLoader(Numbers(shared), batch_size=None, num_workers=1, prefetch_factor=1, collate_fn=as_it_is)


@pytest.mark.parametrize("give_back", [True, False])
def test_what_is_held_stays_as_it_is_and_what_was_given_back_is_filled_again(give_back):
    shared = SharedBatches(workers=1, slots=4)
    held, places = [], []
    for number, batch in enumerate(loaded(shared)):
        assert torch.equal(batch["small"], torch.tensor([number])) and batch["name"] == str(number)
        held.append(batch["large"])
        places.append(batch["shared_place"])
        if give_back and number:
            shared.give_back(places[number - 1])
            held[number - 1] = None
        assert all((values == place).all() for place, values in enumerate(held) if values is not None)
    slots = [place and place[1] for place in places]
    assert set(slots) <= {0, 1, 2, 3} if give_back else slots == [0, 1, 2, 3, *[None] * 8]


def test_batches_in_turn_are_given_back_when_the_next_is_asked_for():
    shared, free = SharedBatches(workers=1, slots=3), []
    for number, batch in enumerate(shared.in_turn(loaded(shared))):
        assert (batch["large"] == number).all() and "shared_place" not in batch
        free.append(int((shared._lent == 0).sum()))
    assert len(free) == 12 and min(free) >= 1, "one batch is used, one prepared"
    assert free[-1] == 2 and not shared._lent.any(), "the last is lent while it is used"
    assert list(shared.in_turn([{"name": "a"}])) == [{"name": "a"}]


def test_a_place_that_a_later_worker_lent_is_not_given_back_by_an_earlier_batch():
    shared = SharedBatches(workers=1, slots=1)
    first, second = (next(iter(loaded(shared)))["shared_place"] for _ in range(2))
    assert first[:2] == second[:2] == (0, 0)
    shared.give_back(first)
    assert shared._lent[0, 0] == second[2]
    shared.give_back(second)
    assert shared._lent[0, 0] == 0


def test_without_a_worker_memory_is_ordinary_and_tensors_are_tensors():
    batch = Numbers(SharedBatches(workers=0, slots=2))[3]
    assert (
        batch["shared_place"] is None and not batch["large"].is_shared() and isinstance(batch["small"], torch.Tensor)
    )
