"""Swapped captions: one word of each differs, and what training makes of them."""

import re
from dataclasses import replace

import pytest
import torch
from tiny import tiny_batch, tiny_captions, tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from modeling_gadms.losses_gadms import sdm_loss, swapped_logits
from modeling_gadms.noise.rewriting import repaired
from modeling_gadms.noise.swaps import Swap, beliefs, drawn_words, refuse_nothing_to_swap, swaps
from modeling_gadms.noise.word_families import Family, find_words
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.trainer import GADMSTrainer

FAMILIES = {
    "color": Family({"red": ("red", "scarlet"), "orange": ("orange",), "blue": ("blue", "dark blue")}),
    "garment": Family({"coat": ("coat",), "overall": ("overall", "boiler suit")}),
    "alone": Family({"person": ("person",)}),
}
CAPTION = "A red coat, an orange coat, and a person in dark blue."


def words_of(caption):
    return find_words(caption, FAMILIES)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_a_copy_says_another_value_in_one_place_with_its_article():
    seen, words = set(), words_of(CAPTION)
    for seed in range(200):
        for swap in swaps(CAPTION, words, FAMILIES, 3, generator(seed)):
            said = words_of(swap.caption)
            changed = [(a, b) for a, b in zip(words, said, strict=True) if a.value != b.value]
            ((before, after),) = changed
            assert before.family == after.family and before.family != "alone" and swap.weight == 1
            assert not re.search(r"\b(?:[Aa] [aeio]|[Aa]n [^aeio])", swap.caption), swap.caption
            seen.add((before.start, swap.caption[after.start : after.end].lower()))
    expected = set()
    for word in words:
        for value, synonyms in FAMILIES[word.family].values.items():
            expected |= {(word.start, synonym) for synonym in synonyms if value != word.value}
    assert seen == expected


def test_places_are_not_repeated_while_there_are_others():
    for seed in range(20):
        copies = [swap.caption for swap in swaps(CAPTION, words_of(CAPTION), FAMILIES, 5, generator(seed))]
        assert len(set(copies)) == 5  # the caption has five places
    again = swaps(CAPTION, words_of(CAPTION), FAMILIES, 5, generator(19))
    assert [swap.caption for swap in again] == copies
    assert swaps("A person.", words_of("A person."), FAMILIES, 2, generator(0)) == [Swap("A person.", 0.0)] * 2


def test_a_copy_weighs_less_the_likelier_it_is_true():
    caption, posterior = "a red coat", [
        {"start": 2, "end": 5, "family": "color", "words": ["red", "orange"], "probabilities": [0.25, 0.75]},
        {"start": 6, "end": 10, "family": "unknown", "words": ["coat"], "probabilities": [1.0]},
    ]  # fmt: skip
    believed = beliefs(posterior, [], FAMILIES)
    assert believed == {2: {"red": 0.25, "orange": 0.75}}
    # a place of a family by another name: the word that is said there tells which is meant
    assert beliefs(posterior, words_of(caption), FAMILIES) == {**believed, 6: {"coat": 1.0}}
    found = {}
    for seed in range(40):
        for swap in swaps(caption, words_of(caption), FAMILIES, 1, generator(seed), believed=believed):
            found[swap.caption] = swap.weight
    assert found == {
        "an orange coat": 0.25,
        "a blue coat": 1.0,
        "a dark blue coat": 1.0,
        "a red overall": 1.0,
        "a red boiler suit": 1.0,
    }


def test_copies_of_a_drawn_caption_keep_the_other_words_that_were_drawn():
    posterior = [
        {"start": 2, "end": 5, "family": "color", "words": ["red", "orange"], "probabilities": [0.2, 0.8]},
        {"start": 6, "end": 10, "family": "garment", "words": ["coat", "boiler suit"], "probabilities": [0.5, 0.5]},
    ]
    caption, draws = "a red coat", [0.9, 0.6]
    words, drawn = drawn_words(posterior, draws, words_of(caption), FAMILIES)
    assert [word.value for word in words] == ["orange", "overall"]
    assert repaired(caption, list(drawn.values())) == repaired(caption, posterior, draws) == "an orange boiler suit"
    options = {"drawn": drawn, "believed": beliefs(posterior, [], FAMILIES)}
    copies = {one for seed in range(40) for one in swaps(caption, words, FAMILIES, 2, generator(seed), **options)}
    expected = [("an orange coat", 0.5), ("a red boiler suit", 0.8), ("a scarlet boiler suit", 0.8)]
    expected += [("a blue boiler suit", 1.0), ("a dark blue boiler suit", 1.0)]
    assert {(one.caption, round(one.weight, 6)) for one in copies} == set(expected)
    renamed = [{**posterior[0], "family": "?"}, posterior[1]]
    assert drawn_words(renamed, draws, words_of(caption), FAMILIES) == (words, drawn)
    unknown, of_all = drawn_words(renamed, draws, [], FAMILIES)
    assert [word.family for word in unknown] == ["garment"] and set(of_all) == {2, 6}


def test_where_no_word_is_drawn_a_copy_may_swap_what_is_said():
    caption = "a blue coat and a red coat"
    posterior = [{"start": 2, "end": 6, "family": "color", "words": ["blue", "red"], "probabilities": [0.1, 0.9]}]
    words, drawn = drawn_words(posterior, [0.5], words_of(caption), FAMILIES)
    assert [(word.start, word.value) for word in words] == [(2, "red"), (7, "coat"), (18, "red"), (22, "coat")]
    assert list(drawn) == [2]
    assert drawn_words([], [], words_of(caption), FAMILIES) == (words_of(caption), {})


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def rows(epoch=0, count=6):
    return [{**row, "epoch": epoch} for row in tiny_rows(count)]


def test_a_batch_has_copies_that_follow_from_seed_epoch_and_row(processor):
    plain, collator = PairCollator(processor), PairCollator(processor, swap_negatives=2)
    batch, alone = collator(rows()), collator(rows()[4:5])
    assert batch["swap_input_ids"].shape[:2] == batch["swap_weights"].shape == (6, 2)
    for name, values in plain(rows()).items():
        assert values == batch[name] if name == "image_paths" else torch.equal(values, batch[name]), name
    width = alone["swap_input_ids"].shape[2]
    assert torch.equal(alone["swap_input_ids"][0], batch["swap_input_ids"][4, :, :width])
    for other in (collator(rows(epoch=2)), replace(collator, seed=1)(rows())):
        assert not torch.equal(other["swap_input_ids"], batch["swap_input_ids"])
    for ids, copies, weights in zip(batch["input_ids"], batch["swap_input_ids"], batch["swap_weights"], strict=True):
        caption, *texts = [processor.tokenizer.decode(one, skip_special_tokens=True) for one in (ids, *copies)]
        assert weights.tolist() == [1.0, 1.0] and caption not in texts
    assert replace(collator, pad_to_multiple_of=16)(rows())["swap_input_ids"].shape[2] % 16 == 0


def test_copies_that_cannot_differ_have_no_weight(processor):
    words = "and " * 40
    cut = [{**row, "caption1": f"{words} a red shirt", "caption2": f"{words} a red shirt"} for row in rows()]
    silent = [{**row, "caption1": "someone", "caption2": "someone walks"} for row in rows()]
    batch = PairCollator(processor, swap_negatives=1)(cut + silent)
    assert batch["swap_weights"].tolist() == [[0.0]] * 12


def test_the_copies_of_drawn_words_are_those_of_the_drawn_caption(processor):
    one = {"start": 0, "end": 3, "family": "color", "words": ["red", "blue"], "probabilities": [0.5, 0.5]}
    drawn = [{**row, "caption1": "red", "caption2": "red"} for row in rows(count=12)]
    drawn = [{**row, "caption1_posterior": [one], "caption2_posterior": [one]} for row in drawn]
    batch = PairCollator(processor, swap_negatives=1, draw_words=True)(drawn)
    said, copies = (
        [processor.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in batch[name].flatten(0, -2)]
        for name in ("input_ids", "swap_input_ids")
    )
    assert {text for text in said} == {"red", "blue"}
    values = {word: value for value, words in (("red", ("red", "scarlet")), ("blue", ("blue",))) for word in words}
    for text, copy, weight in zip(said, copies, batch["swap_weights"].flatten().tolist(), strict=True):
        assert text != copy and (weight == 0.5) == (copy in ("red", "scarlet", "bright red", "blue", "royal blue"))
        assert values.get(copy) != text


def test_the_loss_is_that_of_copies_embedded_one_by_one():
    model, lengths = tiny_model(), [12, 7, 3, 9]
    batch, copies = tiny_batch(lengths), tiny_captions([6, 9, 4, 11, 8, 5, 3, 10], seed=1).view(4, 2, -1)
    weights, ids = torch.rand(4, 2, generator=generator(0)), torch.tensor([1, 2, 1, 3])
    outputs = model(**batch, person_ids=ids, masking=None, swap_input_ids=copies, swap_weights=weights)
    embeds = torch.stack([model.gadms.get_text_features(of_row).pooler_output for of_row in copies])
    images, temperature = outputs.image_embeds, model.config.temperature
    logits = swapped_logits(images, embeds, weights, temperature)
    expected = sdm_loss(images, outputs.text_embeds, ids, temperature, swap_logits=logits)
    torch.testing.assert_close(outputs.loss, expected)
    heavier = model(**batch, person_ids=ids, masking=None, swap_input_ids=copies)
    assert heavier.loss > outputs.loss
    with pytest.raises(ValueError, match="swapped captions are negatives of SDM of a whole batch"):
        model(**batch, masking=None, swap_input_ids=copies, sigmoid_bias=-3.0)


def test_a_training_step_takes_them(tmp_path, processor):
    losses = []
    for count in (0, 2):
        options = {"max_steps": 1, "logging_steps": 1, "alpha_noise": 0.0, "swap_negatives": count, "use_cpu": True}
        options |= {"per_device_train_batch_size": 4, "save_strategy": "no", "disable_tqdm": True}
        args = GADMSTrainingArguments(output_dir=str(tmp_path), **options)
        model = tiny_model(vocab_size=len(processor.tokenizer))
        trainer = GADMSTrainer(model, args, processor, train_dataset=tiny_rows(8))
        trainer.train()
        losses.append(trainer.state.log_history[0]["sdm_loss"])
    assert losses[1] > losses[0] + 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"swap_negatives": -1}, "must not be negative"),
        ({}, "take alpha_noise=0 or masking=none"),
        ({"alpha_noise": 0.0, "hidden_spans": "hidden_spans"}, "take alpha_noise=0 or masking=none"),
        ({"masking": "none", "sigmoid_bias": -10.0}, "sigmoid_bias=-10.0 replaces it"),
        ({"masking": "none", "gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 holds a part"),
    ],
)
def test_what_swaps_do_not_fit_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        GADMSTrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, "swap_negatives": 1} | options)


def test_captions_without_a_word_to_swap_are_refused():
    refuse_nothing_to_swap(tiny_rows(4))
    silent = tiny_rows(4).map(lambda row: {"caption1": "someone", "caption2": "someone walks by"})
    with pytest.raises(DataError, match="none of the first 8 captions names a value of person.gender, hair.color"):
        refuse_nothing_to_swap(silent)
