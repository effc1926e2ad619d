"""Several data sets as one: persons of their own, shares by temperature, and the same order wherever a run is."""

import itertools
from collections import Counter

import datasets
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from finetune_tiny import finetune
from made_up_datasets import write_copy
from safetensors.torch import load_file
from tiny import tiny_rows

from dataset_webperson import DataError
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.data import FineTuningDataArguments, load_sets, training_rows
from modeling_gadms.finetuning.joint import TemperatureSampler, draws_of_an_epoch, joined, with_own_persons
from modeling_gadms.finetuning.rows import CaptionRows

SETS = ["large"] * 40 + ["small"] * 6  # of pairs


def two_sets():
    """8 persons of the drawings, and 4 others with the same ids and paths, whose captions are a list."""
    large, small = tiny_rows(16), tiny_rows(8, seed=7)
    captions = [[row["caption1"]] for row in small]
    small = small.remove_columns(["caption1", "caption2"]).add_column("captions", captions)
    first, second = with_own_persons([{"train": large}, {"train": small}])
    return large, small, joined({"large": first["train"], "small": second["train"]})


def test_no_two_sets_share_a_person_in_any_split():
    def rows(ids):
        return datasets.Dataset.from_dict({"person_id": ids, "captions": [["a"]] * len(ids)})

    sets = [{"train": rows([0, 0, 2]), "test": rows([5])}, {"train": rows([0, 2]), "test": rows([1])}]
    sets.append({"train": rows([100, 103]), "test": rows([-4])})
    shifted = with_own_persons(sets)
    persons = [{person for part in splits.values() for person in part["person_id"]} for splits in shifted]
    assert all(not a & b for a, b in itertools.combinations(persons, 2))
    assert [len(found) for found in persons] == [3, 3, 3]
    assert shifted[0]["train"]["person_id"][:] == [0, 0, 2] and shifted[0]["test"]["person_id"][:] == [5]
    gap = [splits["train"]["person_id"][-1] - splits["train"]["person_id"][0] for splits in shifted]
    assert gap == [2, 2, 3]


def test_joined_rows_keep_their_image_captions_and_person_and_know_their_set():
    large, small, rows = two_sets()
    assert len(rows) == 24 and Counter(rows["data_set"]) == {"large": 16, "small": 8}
    assert len(set(rows["image_path"])) == 24, "the two sets name their images alike"
    for number, row in enumerate(rows):
        source = large[number] if number < 16 else small[number - 16]
        captions = source["captions"] if "captions" in source else [source["caption1"], source["caption2"]]
        assert row["captions"] == captions and row["image"].tobytes() == source["image"].tobytes()
        assert row["image_path"] == f"{row['data_set']}/{source['image_path']}"
    pairs = CaptionRows(rows)
    assert pairs.set_of_pair == ["large"] * 32 + ["small"] * 8
    persons = [set(pairs.person_of_pair[part]) for part in (slice(32), slice(32, None))]
    assert not persons[0] & persons[1] and len(persons[0] | persons[1]) == len(pairs.persons) == 12


@pytest.mark.filterwarnings("ignore:.*counts differ")
def test_iiitd_is_trained_on_beside_others_and_ufine3c_only_measured_on(tmp_path):
    for style in ("rstp", "iiitd", "ufine3c"):
        write_copy(style, tmp_path)
    options = {"data_root": [str(tmp_path)], "on_count_mismatch": "warn"}
    args = FineTuningDataArguments("model", ["rstpreid", "iiitd-20k"], **options)
    rows = training_rows(load_sets(args, (64, 32), 0))
    assert Counter(rows["data_set"]) == {"RSTPReid": 10, "IIITD-20K": 5} and len(set(rows["person_id"])) == 10
    args = FineTuningDataArguments("model", ["rstpreid", "ufine3c"], **options)
    with pytest.raises(DataError, match="ufine3c: it has test alone, nothing to train on; measure on it with"):
        load_sets(args, (64, 32), 0)


def test_shares_follow_the_temperature_and_fill_an_epoch():
    assert draws_of_an_epoch([40, 6], 1.0) == [40, 6]
    assert draws_of_an_epoch([40, 10], 2.0) == [33, 17]  # in the ratio of 2 to 1
    assert draws_of_an_epoch([40, 6, 5], float("inf")) == [17, 17, 17]
    for sizes, temperature in itertools.product(([40, 6], [3, 5, 900], [1, 1, 1]), (1.0, 1.7, 4.0)):
        counts = draws_of_an_epoch(sizes, temperature)
        weights = [size ** (1 / temperature) for size in sizes]
        assert sum(counts) == sum(sizes)
        assert all(
            abs(count - sum(sizes) * weight / sum(weights)) < 1 for count, weight in zip(counts, weights, strict=True)
        )


def test_passes_over_a_set_are_whole_and_go_on_from_epoch_to_epoch():
    sampler = TemperatureSampler(SETS, 3.0, 1, seed=4)
    draws = dict(zip(("large", "small"), sampler.draws, strict=True))
    assert draws["small"] > 12, "the small set is drawn more than twice per epoch"
    seen: list[tuple[int, int]] = []
    for epoch in range(9):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert keys == list(sampler) and len(keys) == len(sampler) == len(SETS)
        assert Counter(SETS[index] for _, index in keys) == draws
        seen += keys
    assert len(set(seen)) == len(seen), "no pair comes twice with the same augmentation and masks"
    passes = Counter((SETS[index], turn) for turn, index in seen)
    for name, size in (("large", 40), ("small", 6)):
        whole = 9 * draws[name] // size
        assert all(passes[name, turn] == size for turn in range(whole))
    # sets are mixed, and another seed or epoch is another order
    assert len({SETS[index] for _, index in keys[:16]}) == 2
    other = TemperatureSampler(SETS, 3.0, 1, seed=5)
    other.set_epoch(8)
    assert list(other) != keys and seen[:46] != seen[46:92]


def test_two_processes_share_the_batches_of_one():
    sampler = TemperatureSampler(SETS, 2.0, 8, seed=0)
    batches = [keys[start : start + 8] for keys in [list(sampler)] for start in range(0, len(sampler), 8)]
    assert len(sampler) == 40 and all(len(batch) == 8 for batch in batches)
    halves = [
        list(BatchSamplerShard(torch.utils.data.BatchSampler(sampler, 8, True), 2, number, split_batches=True))
        for number in range(2)
    ]
    for batch, first, second in zip(batches, *halves, strict=True):
        assert batch == first + second


def joint_run(output_dir, *options):
    """Two sets of 8 and of 4 persons, validated on two sets: 5 batches of 8 per epoch."""
    return finetune(
        ["--output_dir", str(output_dir), "--sampling_temperature", "3", *options],
        rows=two_sets()[2],
        validation={"a": tiny_rows(10, seed=2), "b": tiny_rows(8, seed=3)},
    )


def test_a_joint_run_that_is_resumed_within_an_epoch_equals_one_never_interrupted(tmp_path):
    options = ["--max_steps", "8", "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "4"]
    options += ["--eval_steps", "4", "--save_total_limit", "3"]
    whole = joint_run(tmp_path / "whole", *options)
    resumed = joint_run(
        tmp_path / "resumed", *options, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-4")
    )
    expected, got = (load_file(tmp_path / name / "checkpoint-8/model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())
    assert resumed.state.best_metric == whole.state.best_metric
    # the best is chosen on the mean over the sets
    logged = {key: entry[key] for entry in whole.state.log_history for key in entry if entry["step"] == 4}
    mean = (logged["eval_a_t2i_R@1"] + logged["eval_b_t2i_R@1"]) / 2
    assert logged["eval_t2i_R@1"] == pytest.approx(mean)
    means = [entry["eval_t2i_R@1"] for entry in whole.state.log_history if "eval_t2i_R@1" in entry]
    assert whole.state.best_metric == max(means) and len(means) == 2


def test_a_temperature_without_use_is_refused(tmp_path):
    for options, message in (
        ({"sampling_temperature": 0.5}, "must be 1 or more; got 0.5"),
        ({"sampling_temperature": 2.0, "instances_per_person": 2}, "choose one"),
    ):
        with pytest.raises(ValueError, match=message):
            GADMSFineTuningArguments(output_dir=str(tmp_path), **options)
    with pytest.raises(ValueError, match="weighs several data sets against each other, and there is one"):
        finetune(["--output_dir", str(tmp_path), "--sampling_temperature", "2"])
