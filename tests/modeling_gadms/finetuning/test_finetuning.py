"""Fine-tuning: the identity loss, every caption once per epoch, balanced batches, IRRA's groups, exact checkpoints."""

import json
import os
from collections import Counter

import datasets
import forked
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from finetune_tiny import embeddings, finetune, tiny_tuned_model
from places import HELPERS
from safetensors.torch import load_file
from tiny import tiny_captions, tiny_images, tiny_model, tiny_processor, tiny_rows
from transformers import AutoModel, AutoModelForPreTraining

from modeling_gadms import GADMSForPreTraining
from modeling_gadms.evaluation.encoding import encode_retrieval_set
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.finetuning.rows import CaptionRows, PersonSampler
from modeling_gadms.finetuning.trainer import GADMSFineTuningTrainer
from modeling_gadms.losses_gadms import id_loss
from modeling_gadms.masking_gadms import RandomMasking, draw_uniforms, mask_captions
from modeling_gadms.towers_gadms import valid_tokens
from modeling_gadms.training.collator import PairCollator


def arguments(output_dir, **kwargs):
    defaults = {"use_cpu": True, "disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no"}
    defaults |= {"load_best_model_at_end": False, "per_device_train_batch_size": 8, "max_steps": 1}
    return GADMSFineTuningArguments(output_dir=str(output_dir), **{**defaults, **kwargs})


def finetuner(output_dir, rows=None, model=None, validation=None, **kwargs):
    rows = tiny_rows() if rows is None else rows
    model = tiny_tuned_model(len(set(rows["person_id"]))) if model is None else model
    args = arguments(output_dir, **kwargs)
    return GADMSFineTuningTrainer(model, args, tiny_processor(), train_dataset=rows, eval_dataset=validation)


# ---- loss and masks


def test_the_identity_loss_equals_its_definition_with_gradients():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(5, 7, generator=generator, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 6, 3, 3, 1])
    expected = 0
    for logits in (images, texts):
        for row, label in zip(logits, labels.tolist(), strict=True):
            expected = expected + (row.exp().sum().log() - row[label]) / 5 / 2
    loss = id_loss(images, texts, labels)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(
        torch.autograd.grad(loss, (images, texts)), torch.autograd.grad(expected, (images, texts)), strict=True
    ):
        torch.testing.assert_close(got, want)
    parts = [id_loss(images[:2], texts[:2], labels[:2], 2.5), id_loss(images[2:], texts[2:], labels[2:], 2.5)]
    torch.testing.assert_close(sum(parts) / 2, loss)


def test_random_masks_hide_all_tokens_equally_often_and_always_at_least_one():
    captions = tiny_captions([12] * 4000)
    uniforms = draw_uniforms(4000, 12, torch.Generator().manual_seed(0))
    views = mask_captions(captions, None, uniforms, RandomMasking(), mask_token_id=97)
    chosen, valid = views.prediction_mask, valid_tokens(captions)
    assert torch.equal(views.noise_input_ids, captions) and not views.noise_mask.any()
    assert not (chosen & ~valid).any() and chosen.any(dim=1).all()
    assert chosen[:, 2:11].float().mean(dim=0).sub(0.15).abs().max() < 0.025
    lonely = 0.85**10  # captions in which chance hides none: the first token is hidden
    assert chosen[:, 1].float().mean().item() == pytest.approx(0.15 + lonely, abs=0.025)
    by_chance = chosen.clone()
    by_chance[:, 1] = False
    became_mask = (views.prediction_input_ids == 97)[by_chance].float().mean().item()
    stayed = (views.prediction_input_ids == captions)[by_chance].float().mean().item()
    assert became_mask == pytest.approx(0.8, abs=0.02) and stayed == pytest.approx(0.1, abs=0.02)
    never = mask_captions(captions, None, uniforms, RandomMasking(0.0), mask_token_id=97)
    assert never.prediction_mask.nonzero()[:, 1].tolist() == [1] * 4000, "the first token, in place of none"
    assert (never.prediction_input_ids[:, 1] == 97).all()


def test_masks_in_place_are_seen_by_sdm_and_id_and_others_are_not():
    model = tiny_tuned_model()
    captions = tiny_captions([9, 12, 7], vocab_size=model.config.text_config.vocab_size)
    inputs = {"pixel_values": tiny_images(3), "input_ids": captions, "person_ids": torch.arange(3)}
    inputs["mask_uniforms"] = draw_uniforms(3, 32, torch.Generator().manual_seed(0))
    plain = model.gadms.get_text_features(captions).pooler_output
    mask_id = model.config.mask_token_id
    masked = mask_captions(captions, None, inputs["mask_uniforms"], RandomMasking(), mask_id).prediction_input_ids
    outputs = model(**inputs, masking=RandomMasking())
    torch.testing.assert_close(outputs.text_embeds, plain)
    in_place = model(**inputs, masking=RandomMasking(in_place=True))
    torch.testing.assert_close(in_place.text_embeds, model.gadms.get_text_features(masked).pooler_output)
    torch.testing.assert_close(in_place.mtp_loss, outputs.mtp_loss)
    assert in_place.sdm_loss != outputs.sdm_loss and in_place.hidden_rate == in_place.prediction_rate > 0
    logits = (model.classifier(embeds) for embeds in (in_place.image_embeds, in_place.text_embeds))
    torch.testing.assert_close(in_place.id_loss, id_loss(*logits, torch.arange(3)))


def test_the_loss_is_sdm_and_id_and_mtp():
    model = tiny_tuned_model()
    captions = tiny_captions([9, 5, 12, 7], vocab_size=model.config.text_config.vocab_size)
    inputs = {"pixel_values": tiny_images(4), "input_ids": captions}
    inputs |= {"person_ids": torch.tensor([0, 3, 3, 1]), "mask_uniforms": torch.rand(4, 4, 32)}
    outputs = model(**inputs, masking=RandomMasking(), id_weight=0.5, mtp_weight=0.25)
    expected = outputs.sdm_loss + 0.5 * outputs.id_loss + 0.25 * outputs.mtp_loss
    torch.testing.assert_close(outputs.loss.detach(), expected)
    pre_training = model.plain()(**inputs, masking=RandomMasking(), mtp_weight=0.25)
    torch.testing.assert_close(pre_training.loss.detach(), outputs.sdm_loss + 0.25 * outputs.mtp_loss)


# ---- rows and batches


def listed(rows):
    """The same rows with their captions in lists, the first image with a third, the second with one."""
    captions = [[row["caption1"], row["caption2"]] for row in rows.remove_columns("image")]
    captions[0].append("a third caption")
    captions[1].pop()
    return rows.remove_columns(["caption1", "caption2"]).add_column(
        "captions", captions, feature=datasets.List(datasets.Value("string"))
    )


@pytest.mark.parametrize("form", ["columns", "lists"])
def test_an_epoch_shows_every_caption_once_with_its_own_image(form):
    rows = tiny_rows(6)
    pairs = CaptionRows(rows if form == "columns" else listed(rows))
    assert len(pairs) == 12
    for epoch in (0, 3):
        seen = [pairs[epoch, index] for index in range(len(pairs))]
        shown = Counter((row["image_path"], row["caption1"]) for row in seen)
        expected = {(row["image_path"], row[f"caption{n}"]) for row in rows for n in (1, 2)}
        if form == "lists":
            expected |= {("000.png", "a third caption")}
            expected -= {("001.png", rows[1]["caption2"])}
        assert set(shown) == expected and set(shown.values()) == {1}
        assert {(row["image_path"], row["epoch"]) for row in seen} == {
            (row["image_path"], epoch * count + turn)
            for row, count in zip(rows, (3, 1, 2, 2, 2, 2) if form == "lists" else [2] * 6, strict=True)
            for turn in range(count)
        }
        assert all(row["image"].tobytes() == rows[int(row["image_path"][:3])]["image"].tobytes() for row in seen)


def test_two_captions_of_an_image_get_augmentation_and_masks_of_their_own():
    pairs = CaptionRows(tiny_rows(2))
    batch = PairCollator(tiny_processor(), persons=pairs.persons)([pairs[0, 0], pairs[0, 1]])
    assert batch["image_paths"] == ["000.png", "000.png"]
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])
    assert not torch.equal(batch["mask_uniforms"][0], batch["mask_uniforms"][1])


def test_persons_become_classes_from_zero_whatever_their_ids(tmp_path):
    rows = tiny_rows(8)
    ids = [900, 900, 7, 7, 200_000_001, 200_000_001, 7, 12]
    rows = rows.remove_columns("person_id").add_column("person_id", ids)
    trainer = finetuner(tmp_path, rows=rows)
    (batch,) = [trainer.data_collator([trainer.train_dataset[0, index] for index in range(16)])]
    expected = [{7: 0, 12: 1, 900: 2, 200_000_001: 3}[person] for person in ids for _ in range(2)]
    assert batch["person_ids"].tolist() == expected


def uneven_persons():
    """17 persons with 1 to 9 pairs, interleaved."""
    return sorted([person for person in range(17) for _ in range(1 + person % 9)], key=lambda p: (p * 7) % 5)


@pytest.mark.parametrize("instances", [2, 4])
def test_a_balanced_batch_holds_the_wanted_number_of_pairs_per_person(instances):
    persons = uneven_persons()
    sampler = PersonSampler(persons, instances, batch_size=16, seed=3)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert {of for of, _ in order} == {epoch} and len(order) == len(sampler)
        indices = [index for _, index in order]
        orders.append(indices)
        for start in range(0, len(indices), 16):
            batch = [persons[index] for index in indices[start : start + 16]]
            crowd = set(Counter(batch).values())
            assert crowd == {instances} or start + 16 >= len(indices) - 16, "except in the last batches of an epoch"
            assert all(count % instances == 0 for count in crowd)
    assert len(set(map(tuple, orders))) == 4
    again = PersonSampler(persons, instances, batch_size=16, seed=3)
    again.set_epoch(2)
    assert [index for _, index in again] == orders[2]


def test_balancing_leaves_no_pair_out_when_batches_come_out_even():
    persons = [person for person in range(8) for _ in range(3)]
    sampler = PersonSampler(persons, 2, batch_size=8, seed=0)  # 2 groups of 2 each: 16 groups, 4 batches
    counts = Counter(index for _, index in sampler)
    assert set(counts) == set(range(24)) and sum(counts.values()) == len(sampler) == 32
    alone = PersonSampler([0, 1, 1, 1], 3, batch_size=6, seed=0)  # a person of one pair shows it three times
    assert Counter(index for _, index in alone) == {0: 3, 1: 1, 2: 1, 3: 1}


def test_one_person_of_many_pairs_does_not_shorten_the_epoch():
    persons = [0] * 100 + [1, 2, 3]
    sampler = PersonSampler(persons, 2, batch_size=4, seed=0)
    assert len(list(sampler)) == len(sampler) == 2 * (50 + 3) // 4 * 4


def test_two_processes_share_the_batches_of_one():
    persons = uneven_persons()

    def batches(size, count):
        inner = torch.utils.data.BatchSampler(PersonSampler(persons, 2, 16, seed=1), size, drop_last=True)
        return [list(BatchSamplerShard(inner, count, rank)) for rank in range(count)]

    (one,), two = batches(16, 1), batches(8, 2)
    assert [left + right for left, right in zip(*two, strict=True)] == one


# ---- the recipe


def test_the_defaults_are_irras_recipe(tmp_path):
    args = GADMSFineTuningArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.new_module_factor, args.bias_factor) == (1e-5, 5, 2)
    assert (args.adam_epsilon, args.weight_decay, args.per_device_train_batch_size) == (1e-3, 4e-5, 64)
    assert (args.num_train_epochs, args.warmup_epochs, args.warmup_factor) == (60, 5, 0.1)
    assert (args.mtp_weight, args.id_weight, args.masks()) == (1, 1, RandomMasking(0.15, in_place=False))
    assert (args.metric_for_best_model, args.greater_is_better, args.load_best_model_at_end) == (
        "t2i_R@1",
        True,
        True,
    )
    dual = GADMSFineTuningArguments(output_dir=str(tmp_path), use_cpu=True, masking="gradient_attention")
    assert dual.masks().alpha_info == 0.3 and dual.masks().uses_scores


def test_new_modules_learn_five_times_faster_and_biases_twice_without_decay(tmp_path):
    trainer = finetuner(tmp_path, learning_rate=1e-5)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam and optimizer.defaults["eps"] == 1e-3
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    expected = {
        "gadms.text_model.encoder.layers.0.self_attn.q_proj.weight": (1e-5, 4e-5),
        "gadms.text_model.encoder.layers.0.self_attn.q_proj.bias": (2e-5, 0),
        "gadms.visual_projection.weight": (1e-5, 4e-5),
        "gadms.vision_model.embeddings.class_embedding": (1e-5, 4e-5),
        "decoder.cross_attention.q_proj.weight": (5e-5, 4e-5),
        "decoder.cross_attention.q_proj.bias": (2e-5, 0),
        "decoder.encoder.layers.0.mlp.fc1.weight": (5e-5, 4e-5),
        "decoder.vocabulary.weight": (5e-5, 4e-5),
        "decoder.vocabulary.bias": (5e-5, 0),
        "classifier.weight": (5e-5, 4e-5),
        "classifier.bias": (5e-5, 0),
    }
    for name, (rate, decay) in expected.items():
        assert found[name] == (pytest.approx(rate), decay), name
    assert optimizer.param_groups[0]["lr"] == 1e-5, "the rate that is logged"


@pytest.mark.parametrize("masking", ["random", "gradient_attention"])
def test_a_fine_tuning_run_moves_every_parameter_and_logs_its_losses(tmp_path, masking):
    trainer = finetuner(tmp_path, masking=masking, logging_steps=1, learning_rate=1e-3, max_steps=2)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert [name for name, parameter in trainer.model.named_parameters() if torch.equal(parameter, before[name])] == []
    entry = trainer.state.log_history[0]
    parts = entry["sdm_loss"] + entry["id_loss"] + entry["mtp_loss"]
    assert float(entry["loss"]) == pytest.approx(parts, abs=0.01)


def test_bfloat16_and_activation_checkpointing_change_the_first_loss_little(tmp_path):
    losses = {}
    for name, options in {
        "plain": {},
        "checkpointed": {"activation_checkpointing": True},
        "bf16": {"bf16": True, "activation_checkpointing": True},
        "bf16 in chunks": {"bf16": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    }.items():
        trainer = finetuner(tmp_path / name, logging_steps=1, learning_rate=1e-3, max_steps=2, **options)
        before = {key: weight.clone() for key, weight in trainer.model.named_parameters()}
        trainer.train()
        losses[name] = float(trainer.state.log_history[0]["loss"])
        moved = [key for key, weight in trainer.model.named_parameters() if not torch.equal(weight, before[key])]
        assert len(moved) == len(before), name
    assert losses["checkpointed"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=0.02) and losses["bf16"] != losses["plain"]
    assert losses["bf16 in chunks"] == pytest.approx(losses["plain"], rel=0.02)


# ---- processes, interruptions, checkpoints


def run(output_dir, *options, processes=1):
    result = forked.run([HELPERS / "finetune_tiny.py", "--output_dir", output_dir, *options], processes=processes)
    assert result.returncode == 0, result.stderr
    return json.loads((output_dir / "run.json").read_text())


def test_two_processes_in_chunks_fine_tune_as_one(tmp_path):
    common = ["--instances_per_person", "2", "--adam_epsilon", "1e-3", "--max_steps", "3"]
    one = run(tmp_path / "one", *common, "--per_device_train_batch_size", "8")
    chunks = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    two = run(tmp_path / "two", *common, *chunks, processes=2)
    assert [one["processes"], two["processes"]] == [1, 2]
    for key in ("loss", "sdm_loss", "id_loss", "mtp_loss", "eval_t2i_mAP"):
        values = [[float(entry[key]) for entry in log["log"] if key in entry] for log in (one, two)]
        assert values[0] and values[1] == pytest.approx(values[0], rel=2e-3), key


def test_a_resumed_fine_tuning_equals_one_never_interrupted(tmp_path):
    options = ["--num_train_epochs", "3", "--save_total_limit", "3", "--instances_per_person", "2"]
    options += ["--layer_decay", "0.7", "--matching_weight", "0.5", "--swap_negatives", "1"]
    whole = finetune(["--output_dir", str(tmp_path / "whole"), *options])
    steps = whole.state.max_steps // 3
    checkpoint = tmp_path / "whole" / f"checkpoint-{steps}"
    assert "classifier.weight" in load_file(checkpoint / "model.safetensors")
    resumed = finetune(
        ["--output_dir", str(tmp_path / "resumed"), *options, "--resume_from_checkpoint", str(checkpoint)]
    )
    last = f"checkpoint-{3 * steps}/model.safetensors"
    expected = load_file(tmp_path / "whole" / last)
    got = load_file(tmp_path / "resumed" / last)
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())
    assert resumed.state.best_metric == whole.state.best_metric


def test_the_best_epoch_on_validation_remains(tmp_path):
    validation = tiny_rows(10, seed=2)
    kept = {}
    trainer = finetuner(
        tmp_path,
        validation=validation,
        max_steps=-1,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        save_total_limit=1,
        learning_rate=1e-3,
    )
    scores = iter([10.0, 30.0, 20.0])

    def evaluate(*args, **kwargs):
        assert trainer.eval_dataset is validation
        score = next(scores)
        kept[score] = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        return {"eval_t2i_R@1": score}

    trainer.evaluate = evaluate
    trainer.train()
    best = trainer.model.state_dict()
    assert all(torch.equal(best[name], weight) for name, weight in kept[30.0].items())
    assert not all(torch.equal(best[name], weight) for name, weight in kept[20.0].items())


def test_the_final_checkpoint_is_a_plain_model(tmp_path, caplog):
    trainer = finetune(["--output_dir", str(tmp_path)])
    trainer.save_model()
    expected = embeddings(trainer.model.gadms)
    weights = load_file(tmp_path / "model.safetensors")
    assert not [name for name in weights if "classifier" in name]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GADMSForPreTraining"] and "FineTuning" not in json.dumps(config)
    files = set(os.listdir(tmp_path))
    assert {"modeling_gadms.py", "chunk_gadms.py", "processor_config.json", "training_args.json"} <= files
    assert "finetuning_model.py" not in files
    torch.testing.assert_close(embeddings(AutoModel.from_pretrained(tmp_path)), expected)
    whole = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(whole.decoder.vocabulary.weight, trainer.model.decoder.vocabulary.weight)

    (checkpoint,) = [name for name in files if name.startswith("checkpoint-")]
    caplog.clear()
    torch.testing.assert_close(embeddings(AutoModel.from_pretrained(tmp_path / checkpoint)), expected)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path / checkpoint), GADMSForPreTraining)
    assert "classifier" not in caplog.text
    again = GADMSForFineTuning.from_pretrained(tmp_path / checkpoint, num_persons=12)
    assert torch.equal(again.classifier.weight, trainer.model.classifier.weight)


def test_rows_of_a_benchmark_are_evaluated_as_they_are(tmp_path):
    trainer = finetuner(tmp_path, rows=listed(tiny_rows()), validation=listed(tiny_rows(10)), eval_strategy="epoch")
    metrics = trainer.evaluate()
    expected = encode_retrieval_set(trainer.model.gadms, tiny_processor(), listed(tiny_rows(10)), 8, False).metrics()
    assert metrics["eval_t2i_mAP"] == pytest.approx(expected["t2i_mAP"])


# ---- bad input


def one_image_each():
    rows = tiny_rows(10)
    return rows.remove_columns("person_id").add_column("person_id", list(range(10)))


def one_unknown_person():
    rows = tiny_rows(10)
    return rows.remove_columns("person_id").add_column("person_id", [0, None, *range(8)])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda: tiny_rows().remove_columns("person_id"), {}, "lacks the column person_id"),
        (lambda: tiny_rows().remove_columns(["caption1", "caption2"]), {}, "no column caption1"),
        (one_unknown_person, {}, "row 1: person_id is None"),
        (lambda: tiny_rows(2), {}, "4 rows do not fill one batch of 8"),
        (one_image_each, {"instances_per_person": 2}, "all 10 persons of the training set have one"),
        (tiny_rows, {"instances_per_person": 3}, "does not fit a batch of 8 pairs"),
        (tiny_rows, {"instances_per_person": 2, "per_device_train_batch_size": 32}, "12 persons .* must fill it"),
        (lambda: tiny_rows().to_iterable_dataset(), {}, "not a stream"),
        (tiny_rows, {"eval_strategy": "epoch"}, r"no validation set .*load_benchmark\(validation_persons"),
    ],
)
def test_unusable_training_sets_are_refused_when_the_trainer_is_made(tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        finetuner(tmp_path, rows=change(), model=tiny_tuned_model(), **options)


def test_a_classifier_of_another_number_of_persons_is_refused(tmp_path):
    with pytest.raises(ValueError, match="classifier has 5 classes, the training set 12 persons"):
        finetuner(tmp_path, model=tiny_tuned_model(num_persons=5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_probability": 1.5}, "between 0 and 1"),
        ({"id_weight": -1.0}, "id_weight must not be negative"),
        ({"instances_per_person": 1}, "at least 2"),
        ({"mask_captions_in_place": True, "masking": "gradient_attention"}, "belongs to masking=random"),
        ({"hidden_spans": "hidden_spans"}, "belongs to pre-training"),
        ({"push_to_hub": True, "hub_strategy": "every_save"}, "hub_strategy must be end"),
    ],
)
def test_impossible_arguments_are_refused_when_constructed(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **values)


def test_the_model_of_pre_training_is_shared_not_copied():
    model = tiny_model()
    tuned = GADMSForFineTuning.from_pre_training(model, num_persons=3)
    assert tuned.gadms is model.gadms and tuned.plain().decoder is model.decoder
    assert tuned.classifier.weight.std() < 0.002 and not tuned.classifier.bias.any()
