"""Image-text matching: its negatives, its loss and a whole step against loops over single pairs."""

import math

import pytest
import torch
from finetune_tiny import finetune
from tiny import tiny_batch, tiny_captions, tiny_images, tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from modeling_gadms import GADMSForPreTraining, GADMSModel
from modeling_gadms.evaluation.matching import load_matcher
from modeling_gadms.masking_gadms import RandomMasking
from modeling_gadms.matching_gadms import hard_negatives, matching_loss
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.starting_points import load_starting_point
from modeling_gadms.training.trainer import GADMSTrainer

LENGTHS, PERSONS = [12, 7, 3, 9, 4, 6], [4, 7, 9, 7, 4, 4]


def negative_by_loop(logits, own, others, uniform):
    """Walk over those of another identity until their share of the softmax exceeds the number; None if none are."""
    candidates = [column for column, other in enumerate(others) if other != own]
    highest = max((logits[column] for column in candidates), default=0)
    weights = {column: math.exp(logits[column] - highest) for column in candidates}
    passed = 0.0
    for column, weight in weights.items():
        passed += weight / sum(weights.values())
        if uniform < passed:
            return column
    return candidates[-1] if candidates else None


@pytest.mark.parametrize("ids, others", [(PERSONS, PERSONS), ([7, 7, 2], [7, 2, 7, 3, 7]), ([1, 2], [1, 1])])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1000.0])
def test_negatives_are_drawn_by_their_likeness_and_never_of_the_same_person(ids, others, scale):
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        logits = scale * torch.randn(len(ids), len(others), generator=generator)
        uniforms = torch.rand(len(ids), generator=generator)
        uniforms[0], uniforms[-1] = 0.0, 1 - 2**-24
        chosen, found = hard_negatives(logits, torch.tensor(ids), torch.tensor(others), uniforms)
        for row, own in enumerate(ids):
            expected = negative_by_loop(logits[row].tolist(), own, others, uniforms[row].item())
            assert found[row].item() == (expected is not None)
            assert chosen[row].item() == (0 if expected is None else expected)
            seen.add((row, chosen[row].item()))
    assert len(seen) > len(ids) or scale == 1000 or len(others) == 2, "the draws decide nothing"


@pytest.mark.parametrize("counted", [[True] * 5, [True, False, True, True, False]])
def test_the_loss_equals_its_definition_with_gradients(counted):
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = [1, 0, 0, 1, 0]
    expected = 0
    for (no, yes), label, counts in zip(logits, labels, counted, strict=True):
        chance = 1 / (1 + (no - yes).exp())
        expected = expected - counts * (chance if label else 1 - chance).log() / 5
    loss = matching_loss(logits, torch.tensor(labels), torch.tensor(counted))
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(each, logits)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert matching_loss(logits.bfloat16(), torch.tensor(labels), torch.tensor(counted)).dtype == torch.float32


def matching_batch():
    uniforms = torch.rand(6, 2, generator=torch.Generator().manual_seed(3))
    return {**tiny_batch(LENGTHS), "person_ids": torch.tensor(PERSONS), "negative_uniforms": uniforms}


def by_single_pairs(model, batch, texts_of):
    """The loss of matching from one pair at a time, each caption without its padding."""
    gadms, ids, uniforms = model.gadms, batch["input_ids"], batch["negative_uniforms"]
    captions = [texts_of[row : row + 1, :length] for row, length in enumerate(LENGTHS)]
    images = [gadms.get_image_features(pixels[None]).pooler_output[0] for pixels in batch["pixel_values"]]
    texts = [gadms.get_text_features(caption).pooler_output[0] for caption in captions]
    pairs = [(row, row, 1) for row in range(6)]
    for row in range(6):
        likeness = [torch.cosine_similarity(images[row], text, dim=0).item() / 0.02 for text in texts]
        caption = negative_by_loop(likeness, PERSONS[row], PERSONS, uniforms[row, 0].item())
        likeness = [torch.cosine_similarity(texts[row], image, dim=0).item() / 0.02 for image in images]
        image = negative_by_loop(likeness, PERSONS[row], PERSONS, uniforms[row, 1].item())
        pairs += [(caption, row, 0), (row, image, 0)]
    total = 0
    for caption, image, label in pairs:
        states = gadms.vision_model(batch["pixel_values"][image : image + 1]).last_hidden_state
        logits = model.match(
            ids[caption : caption + 1, : LENGTHS[caption]],
            gadms.project_text_tokens(captions[caption]),
            gadms.project_image_tokens(states),
        )
        total = total - logits.log_softmax(dim=-1)[0, label] / len(pairs)
    return total


@pytest.mark.parametrize("attends_padding", [False, True])
@pytest.mark.parametrize("masking", [None, RandomMasking()])
def test_a_step_has_the_loss_and_gradient_of_its_single_pairs(masking, attends_padding):
    model, batch = tiny_model(matching_head=True, decoder_attends_padding=attends_padding), matching_batch()
    plain = model(**batch, masking=masking)
    outputs = model(**batch, masking=masking, matching_weight=0.5)
    assert plain.matching_loss is None
    torch.testing.assert_close(outputs.loss, plain.loss + 0.5 * outputs.matching_loss)
    expected = by_single_pairs(model, batch, batch["input_ids"])
    torch.testing.assert_close(outputs.matching_loss, expected.detach(), atol=1e-5, rtol=1e-5)
    (2 * (outputs.loss - plain.loss)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-4, rtol=1e-3, msg=name)
    assert gradients["decoder.matching.weight"].abs().max() > 0


def test_without_a_person_that_differs_only_the_matches_count():
    model, batch = tiny_model(matching_head=True), matching_batch()
    batch["person_ids"] = torch.zeros(6, dtype=torch.int64)
    outputs = model(**batch, masking=None, matching_weight=1.0)
    outputs.loss.backward()
    assert 0 < outputs.matching_loss < 1 and all(
        torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None
    )
    del batch["negative_uniforms"]  # by default from torch's generator
    torch.testing.assert_close(model(**batch, masking=None, matching_weight=1.0).loss, outputs.loss)


@torch.no_grad()
def test_logits_depend_on_the_pair_alone():
    model, ids = tiny_model(matching_head=True, decoder_attends_padding=True), tiny_captions(LENGTHS)
    gadms = model.gadms
    images = gadms.project_image_tokens(gadms.vision_model(tiny_images(6)).last_hidden_state)
    whole = model.match(ids, gadms.project_text_tokens(ids), images)
    assert whole.std(dim=0).min() > 1e-3, "the pairs are too alike to test anything"
    for row, length in enumerate(LENGTHS):
        for width in (length, 20):
            alone = torch.zeros(1, width, dtype=torch.int64)
            alone[0, :length] = ids[row, :length]
            found = model.match(alone, gadms.project_text_tokens(alone), images[row : row + 1])
            torch.testing.assert_close(found[0], whole[row], atol=1e-5, rtol=1e-5)


def test_the_head_is_saved_taken_over_and_left_out(tmp_path):
    model, processor = tiny_model(vocab_size=len(tiny_processor().tokenizer)), tiny_processor()
    for folder in ("without", "with"):
        model.save_pretrained(tmp_path / folder)
        processor.save_pretrained(tmp_path / folder)
        model.set_matching_head(True)
    plain, info = GADMSForPreTraining.from_pretrained(tmp_path / "without", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not hasattr(plain.decoder, "matching")
    with pytest.raises(ValueError, match="no matching head: train one with matching_weight above 0"):
        plain(**tiny_batch(LENGTHS), matching_weight=1.0)
    again, info = GADMSForPreTraining.from_pretrained(tmp_path / "with", output_loading_info=True)
    assert not info["missing_keys"] and torch.equal(again.decoder.matching.weight, model.decoder.matching.weight)
    assert not GADMSModel.from_pretrained(tmp_path / "with", output_loading_info=True)[1]["unexpected_keys"]
    for folder in ("without", "with"):
        for wanted in (False, True):
            torch.manual_seed(1)
            started, _ = load_starting_point(str(tmp_path / folder), (32, 16), matching_head=wanted)
            assert started.config.matching_head == hasattr(started.decoder, "matching") == wanted
            assert not wanted or 0.01 < started.decoder.matching.weight.std() < 0.03
            if wanted and folder == "with":
                assert torch.equal(started.decoder.matching.weight, model.decoder.matching.weight)
    with pytest.raises(DataError, match="no-such"):
        load_starting_point(str(tmp_path / "no-such"), (32, 16), matching_head=True)


def test_a_fine_tuning_logs_the_loss_moves_the_head_and_saves_it_with_the_plain_model(tmp_path):
    options = ["--matching_weight", "0.5", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"]
    trainer = finetune(["--output_dir", str(tmp_path), *options, "--load_best_model_at_end", "False"])
    entry = trainer.state.log_history[0]
    parts = entry["sdm_loss"] + entry["id_loss"] + entry["mtp_loss"] + 0.5 * entry["matching_loss"]
    assert float(entry["loss"]) == pytest.approx(parts, abs=0.01)
    head = trainer.model.decoder.matching
    assert head.bias.abs().min() > 0, "it began at 0"
    trainer.save_model()
    saved = load_matcher(str(tmp_path))
    assert type(saved) is GADMSForPreTraining and torch.equal(saved.decoder.matching.weight, head.weight)


def test_draws_of_negatives_are_a_row_s_own_and_leave_the_others_as_they_are():
    rows = [{**row, "epoch": 2} for row in tiny_rows(4)]

    def batch(*rows, **options):
        return PairCollator(tiny_processor(), seed=5, **options)(list(rows))

    plain, drawn = batch(*rows), batch(*rows, draw_negatives=True)
    assert "negative_uniforms" not in plain and drawn["negative_uniforms"].shape == (4, 2)
    assert all(torch.equal(drawn[name], plain[name]) for name in ("pixel_values", "mask_uniforms", "input_ids"))
    alone = batch(rows[2], draw_negatives=True)["negative_uniforms"][0]
    assert torch.equal(alone, drawn["negative_uniforms"][2])
    later = batch({**rows[2], "epoch": 3}, draw_negatives=True)["negative_uniforms"][0]
    assert len({*drawn["negative_uniforms"].flatten().tolist(), *later.tolist()}) == 10


@pytest.mark.parametrize("weight, head", [(0.5, False), (0.0, True)])
def test_a_weight_and_a_head_go_together(tmp_path, weight, head):
    args = GADMSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, matching_weight=weight)
    with pytest.raises(ValueError, match=rf"matching_weight={weight} and .* set_matching_head\({weight > 0}\)"):
        GADMSTrainer(tiny_model(matching_head=head), args, tiny_processor())


def test_chunks_and_negative_weights_are_refused(tmp_path):
    options = {"output_dir": str(tmp_path), "use_cpu": True}
    with pytest.raises(ValueError, match="of which a chunk of gradient_accumulation_steps=2 holds a part"):
        GADMSTrainingArguments(**options, matching_weight=0.5, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="matching_weight must not be negative"):
        GADMSTrainingArguments(**options, matching_weight=-0.5)
