"""The studies' figures against slow twins, and a reduced version of each that fails when its mechanism breaks."""

import functools
import json
import math
import re
import sys
from argparse import Namespace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import EXAMPLES
from tiny import tiny_captions, tiny_config, tiny_images, tiny_model

from dataset_webperson import DataError, WebPerson
from modeling_gadms import GADMSConfig, GADMSForPreTraining, GADMSProcessor
from modeling_gadms.configuration_gadms import TOWERS
from modeling_gadms.false_words.word_detection import group_resamples, ranking_quality
from modeling_gadms.losses_gadms import sdm_loss
from modeling_gadms.masking_gadms import DualMasking, draw_uniforms, mask_captions
from modeling_gadms.noise.token_trust import decoder_surprise
from modeling_gadms.released_scores_gadms import released_scores
from modeling_gadms.rows import pick_column
from modeling_gadms.token_scores_gadms import gradient_attention_scores, minmax
from modeling_gadms.towers_gadms import valid_tokens
from modeling_gadms.training.collator import PairCollator

sys.path[:0] = [str(EXAMPLES / "studies"), str(EXAMPLES)]

import benchmark_step  # noqa: E402
import cell_masks  # noqa: E402
import cost  # noqa: E402
import demo_gain  # noqa: E402
import masked_scores  # noqa: E402
import masking_cells  # noqa: E402
import masking_table  # noqa: E402
import noise_by_epoch  # noqa: E402
import noise_detection  # noqa: E402
import scored_words  # noqa: E402
import scores  # noqa: E402
import settings  # noqa: E402
import starting_point  # noqa: E402
import step_costs  # noqa: E402
import training_steps  # noqa: E402
import warm_decoder  # noqa: E402


@pytest.fixture(scope="module")
def pairs():
    model, input_ids = tiny_model(), tiny_captions([9, 14, 4, 11])
    with torch.no_grad():
        image_tokens = model.gadms.project_image_tokens(model.gadms.vision_model(tiny_images(4)).last_hidden_state)
    return model, input_ids, image_tokens


def parts_of(pairs, num_layers=2):
    model, input_ids, image_tokens = pairs
    direction = F.normalize(image_tokens[:, 0], dim=-1)
    return scores.gradient_parts(model.gadms.text_model, model.gadms.text_projection, direction, input_ids, num_layers)


def test_gass_is_the_scaled_relu_of_the_product_of_its_parts(pairs):
    model, input_ids, image_tokens = pairs
    product = parts_of(pairs)["product"]
    assert (product < 0).any()  # there is something for the ReLU to take away
    gass = gradient_attention_scores(
        model.gadms.text_model, model.gadms.text_projection, image_tokens[:, 0], input_ids, 2
    )
    torch.testing.assert_close(minmax(F.relu(product), valid_tokens(input_ids)), gass)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_evidence_is_the_slope_along_a_gate_on_what_eos_reads(pairs, num_layers):
    """The twin runs whole captions, with a gate on each of EOS's attention weights."""
    model, input_ids, image_tokens = pairs
    tower, found = model.gadms.text_model, parts_of(pairs, num_layers)["evidence"]
    for row, ids in enumerate(input_ids):
        ids = ids[: ids.argmax() + 1]
        gate, hidden = torch.ones(len(ids), requires_grad=True), tower.embeddings(ids[None])[0]
        for number, layer in enumerate(tower.encoder.layers):
            normed, attention, outputs = layer.layer_norm1(hidden), layer.self_attn, []
            q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
            for head in range(attention.num_heads):
                own = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
                logits = q[:, own] @ k[:, own].T * attention.scale
                weights = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf).softmax(-1)
                if number >= len(tower.encoder.layers) - num_layers:
                    weights = torch.cat([weights[:-1], weights[-1:] * gate])
                outputs.append(weights @ v[:, own])
            hidden = hidden + attention.out_proj(torch.cat(outputs, dim=-1))
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        text = model.gadms.text_projection(tower.final_layer_norm(hidden[-1]))
        (slope,) = torch.autograd.grad(F.cosine_similarity(text, image_tokens[row, 0], dim=0), gate)
        torch.testing.assert_close(found[row, : len(ids)], slope / num_layers, rtol=1e-4, atol=1e-6)


def test_evidence_against_other_images_is_the_difference_of_evidence(pairs):
    model, input_ids, image_tokens = pairs
    images = F.normalize(image_tokens[:, 0], dim=-1)

    def evidence(direction):
        return scores.gradient_parts(model.gadms.text_model, model.gadms.text_projection, direction, input_ids)[
            "evidence"
        ]

    texts = F.normalize(model.gadms.get_text_features(input_ids).pooler_output, dim=-1).detach()
    logits = texts @ images.T / model.config.temperature
    others = torch.stack(
        [
            sum(
                w * images[j]
                for j, w in zip(
                    [j for j in range(4) if j != i], logits[i, [j for j in range(4) if j != i]].softmax(0), strict=True
                )
            )
            for i in range(4)
        ]
    )
    contrast = scores.contrast_direction(image_tokens[:, 0], texts, model.config.temperature)
    torch.testing.assert_close(contrast, images - others)
    torch.testing.assert_close(evidence(contrast), evidence(images) - evidence(others), rtol=1e-3, atol=1e-5)


def test_masked_differences_are_those_of_one_forward_for_each_token(pairs):
    model, input_ids, _ = pairs
    found = masked_scores.masked_differences(model.gadms, input_ids)
    for row, ids in enumerate(input_ids):
        end = int(ids.argmax())
        whole = F.normalize(model.gadms.get_text_features(ids[None, : end + 1]).pooler_output[0], dim=0)
        for position in range(len(ids)):
            expected = torch.zeros_like(whole)
            if 0 < position < end:
                masked = ids[: end + 1].clone()
                masked[position] = model.config.mask_token_id
                expected = whole - F.normalize(model.gadms.get_text_features(masked[None]).pooler_output[0], dim=0)
            torch.testing.assert_close(found[row, position], expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_barred_differences_are_those_of_one_walk_of_eos_for_each_token(pairs, num_layers):
    model, input_ids, _ = pairs
    tower, projection = model.gadms.text_model, model.gadms.text_projection
    found = masked_scores.barred_differences(tower, projection, input_ids, num_layers)

    def embed(ids, barred):
        """A whole causal pass in which EOS alone does not read `barred` in the last layers."""
        hidden = tower.embeddings(ids[None])[0]
        for number, layer in enumerate(tower.encoder.layers):
            normed, attention, outputs = layer.layer_norm1(hidden), layer.self_attn, []
            q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
            hides = torch.ones(len(ids), len(ids)).triu(1).bool()
            if barred is not None and number >= len(tower.encoder.layers) - num_layers:
                hides[-1, barred] = True
            for own in torch.arange(q.shape[-1]).split(attention.head_dim):
                logits = q[:, own] @ k[:, own].T * attention.scale
                outputs.append(logits.masked_fill(hides, -torch.inf).softmax(-1) @ v[:, own])
            hidden = hidden + attention.out_proj(torch.cat(outputs, dim=-1))
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        return F.normalize(projection(tower.final_layer_norm(hidden[-1])), dim=0)

    with torch.no_grad():
        for row, ids in enumerate(input_ids):
            end = int(ids.argmax())
            for position in range(len(ids)):
                inside = 0 < position < end
                expected = embed(ids[: end + 1], None) - embed(ids[: end + 1], position if inside else None)
                torch.testing.assert_close(found[row, position], expected, rtol=1e-4, atol=1e-6)


def test_the_decoders_surprise_is_that_of_each_caption_alone(pairs):
    model, input_ids, image_tokens = pairs
    passes = torch.arange(input_ids.shape[1]).expand(input_ids.shape) % 3
    found = decoder_surprise(model, image_tokens, input_ids, passes, num_passes=3)
    assert (found <= 0).all() and (found[valid_tokens(input_ids)] < 0).any()
    for row, ids in enumerate(input_ids):
        ids = ids[: ids.argmax() + 1][None]
        for position in range(1, ids.shape[1] - 1):
            hidden = (torch.arange(ids.shape[1]) % 3 == position % 3)[None] & valid_tokens(ids)
            text = model.gadms.text_model(ids.masked_fill(hidden, model.config.mask_token_id)).last_hidden_state
            here = torch.zeros_like(hidden)
            here[0, position] = True
            own = torch.ones_like(hidden)
            logits = model.decoder(model.gadms.text_projection(text), image_tokens[row : row + 1], own, here)[0]
            chances = logits.log_softmax(-1)
            expected = (chances[ids[0, position]] - chances.max()).detach()
            torch.testing.assert_close(found[row, position], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def few(monkeypatch):
    """Studies draw 400 persons to test on, which takes longer than all that the tests of them look at."""
    sizes = {"num_validation_persons": 2, "num_test_persons": 20}
    monkeypatch.setattr(scored_words, "WebPerson", functools.partial(WebPerson, **sizes))


@pytest.fixture(scope="module")
def small_clip():
    torch.manual_seed(0)
    kinds = (GADMSForPreTraining, GADMSProcessor)
    return tuple(kind.from_clip_pretrained(EXAMPLES / "small_clip", image_size=(64, 32)) for kind in kinds)


def test_tokens_carry_the_attribute_word_that_they_spell(small_clip):
    _, processor = small_clip
    for row in scored_words.load_rows((64, 32), 20, noise_rate=0.5, seed=3):
        encoded = processor.tokenizer(row["caption1"], return_offsets_mapping=True)
        valid = valid_tokens(torch.tensor([encoded["input_ids"]]))[0].numpy()
        word, place = scored_words.label_tokens(row["caption1_words"], encoded["offset_mapping"], valid)
        for number, attribute_word in enumerate(row["caption1_words"]):
            text = row["caption1"][attribute_word["start"] : attribute_word["end"]]
            spelt = processor.tokenizer.decode(np.array(encoded["input_ids"])[word == number])
            assert spelt.replace(" ", "") == text.lower().replace(" ", "")
        assert place[-2] + 1 == len(row["caption1"].split())


def test_masking_one_word_at_a_time_finds_false_words_and_attention_does_not(small_clip):
    """Study 1, reduced. The shipped CLIP has learnt true captions alone, and its decoder nothing."""
    model, processor = small_clip
    rows = scored_words.load_rows((64, 32), 120, noise_rate=0.3, seed=1000)
    columns = scored_words.score_tokens(model, processor, rows, batch_size=60, progress=False)
    weights = group_resamples(columns["caption"], num_resamples=200).astype(np.float32)
    low, high = {}, {}
    for name in (
        "masked drop",
        "per-head evidence, all layers",
        "GASS's attention alone",
        "random",
        "decoder's surprise",
    ):
        resampled = ranking_quality(-columns[name].astype(float), columns["is_false"], weights)[0]
        low[name], high[name] = np.quantile(resampled, (0.005, 0.995))
    assert low["masked drop"] > 0.55
    assert low["masked drop"] > high["GASS's attention alone"]
    assert low["per-head evidence, all layers"] > 0.5
    assert low["random"] < 0.5 < high["random"]
    assert high["decoder's surprise"] < low["masked drop"]


def test_noise_detection_reports_every_score_by_what_the_word_speaks_of(small_clip, monkeypatch, tmp_path, few):
    score = noise_detection.score_tokens
    for part in small_clip:
        part.save_pretrained(tmp_path / "model")
    argv = ["noise_detection.py", "--model", str(tmp_path / "model"), "--num_captions", "30", "--noise_rate", "0.5"]
    argv += ["--evidence_steps", "2", "--tower_steps", "2", "--evidence_persons", "40", "--results_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    scored = []

    def kept(*arguments, **options):
        scored.append(score(*arguments, **options))
        return scored[-1]

    monkeypatch.setattr(noise_detection, "score_tokens", kept)
    noise_detection.main()
    found = json.loads((tmp_path / "noise_detection.json").read_text(encoding="utf-8"))
    rows = scored_words.load_rows((64, 32), 30, noise_rate=0.5, seed=1000)
    said = [(word["attribute"], word["is_false"]) for row in rows for word in row["caption1_words"]]
    for group, counts in found["words_and_false"].items():
        belongs = {
            noise_detection.COLORS: lambda attribute: attribute.endswith(".color"),
            noise_detection.OTHERS: lambda attribute: not attribute.endswith(".color"),
        }.get(group, lambda attribute, group=group: attribute == group)
        expected = [is_false for attribute, is_false in said if belongs(attribute)]
        assert counts == [len(expected), sum(expected)], group
    (columns,) = scored
    suspicion, is_false = -columns["GASS, paper"].astype(float), columns["is_false"]
    auroc = ranking_quality(suspicion, is_false)[0]
    result = found["results"]["GASS, paper"]["tokens"]
    assert result["auroc"] == pytest.approx(auroc) and result["auroc_low"] < auroc < result["auroc_high"]
    text = (tmp_path / "noise_detection.md").read_text(encoding="utf-8")
    for name in (noise_detection.EVIDENCE, noise_detection.OWN_TOWER):
        assert f"| {name} |" in text and name in found["results"]


def test_the_oracle_hides_every_false_word_and_nothing_else(small_clip):
    model, processor = small_clip
    masks = cell_masks.StudyArguments(
        output_dir="unused", cell="oracle SDM", hidden_spans="false_spans", use_cpu=True
    ).masks()
    rows = [
        {**row, "image": scored_words.Image.new("RGB", (32, 64)), "epoch": epoch}
        for epoch, row in enumerate(scored_words.load_rows((64, 32), 8, noise_rate=0.4, seed=5))
    ]
    batch = PairCollator(processor, hidden_spans="false_spans")(rows)
    gass = torch.zeros(batch["input_ids"].shape)
    views = mask_captions(batch["input_ids"], gass, batch["mask_uniforms"], masks, model.config.mask_token_id)
    for row, ids, hidden in zip(rows, batch["input_ids"], views.noise_mask, strict=True):
        name = pick_column(row)
        text = "".join(row[name][low:high] for low, high in row[f"{name}_false_spans"])
        assert text and processor.tokenizer.decode(ids[hidden]).replace(" ", "") == text.lower().replace(" ", "")


def test_every_cell_masks_in_the_losses_that_it_names():
    input_ids = tiny_captions([32] * 64)
    uniforms, gass = draw_uniforms(64, 32, torch.Generator().manual_seed(0)), torch.rand(64, 32)
    for cell in cell_masks.CELLS:
        hidden_spans = "false_spans" if cell.startswith(("oracle", "evidence")) else None
        options = {"output_dir": "unused", "cell": cell, "hidden_spans": hidden_spans, "use_cpu": True}
        masks = cell_masks.StudyArguments(**options).masks()
        if cell == "none":
            assert masks is None
            continue
        views = mask_captions(input_ids, gass if masks.uses_scores else None, uniforms, masks, mask_token_id=97)
        share = views.noise_mask.sum() / valid_tokens(input_ids).sum()
        assert (share == 0) == (cell.endswith("MTP") or cell.startswith(("oracle", "evidence"))), cell
        if cell.startswith("random") and share:
            assert abs(share - cell_masks.RATES[0]) < 0.03


def finished_cell(gain):
    draw = np.random.default_rng(0)
    hits = (draw.random(40) < 0.6 + gain).astype(float) * 100
    return {"epochs": 1.0, "num_persons": 4000, "image_size": [64, 32], "steps": 125, "persons": list(range(40))} | {
        "values": {"R@1": hits.tolist(), "mAP": hits.tolist()}
    }


def test_finished_cells_of_the_masking_table_are_not_trained_again(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        for cell, gain in (("none", 0.0), ("gass_both", 0.3)):
            (tmp_path / f"{cell}_0.3_{seed}.json").write_text(json.dumps(finished_cell(gain)))
    trained = []
    monkeypatch.setattr(
        masking_table,
        "train_cell",
        lambda *key, decoder, start: trained.append(key[:3]) or {**finished_cell(0.1), "steps": 1},
    )
    argv = [
        "masking_table.py",
        "--cells",
        "none",
        "gass both",
        "random SDM",
        "--noise_rates",
        "0.3",
        "--seeds",
        "0",
        "1",
    ]
    argv += ["--output_dir", str(tmp_path), "--results_dir", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", argv)
    masking_table.main()
    assert trained == [("random SDM", 0.3, 0), ("random SDM", 0.3, 1)]
    found = json.loads((tmp_path / "results" / "masking_table.json").read_text())["results"]["0.3"]
    none, gass = (np.mean(finished_cell(gain)["values"]["R@1"]) for gain in (0.0, 0.3))
    assert found["gass both"]["R@1"]["gain"]["mean"] == pytest.approx(gass - none)
    assert found["gass both"]["seeds"] == [0, 1]

    for option in (("--epochs", "2"), ("--model_name_or_path", "larger")):
        monkeypatch.setattr(sys, "argv", [*argv, *option])
        assert masking_table.main() == 2
        assert "was made with another setting" in capsys.readouterr().err

    monkeypatch.setattr(
        sys, "argv", [*argv, "--model_name_or_path", "runs/larger", "--output_dir", str(tmp_path / "larger")]
    )
    assert not masking_table.main()  # another starting point has a page of its own, and leaves the first as it is
    page = (tmp_path / "results" / "masking_table_larger.md").read_text()
    assert page.startswith("# Which masking helps retrieval? From larger\n") and "masking_table_larger.png" in page
    assert json.loads((tmp_path / "results" / "masking_table.json").read_text())["results"]["0.3"] == found

    monkeypatch.setattr(sys, "argv", [*argv, "--decoder_epochs", "1", "--only_finished"])
    assert masking_table.main() == 2  # and no decoder learns for it
    assert "decoder_0.3.json: missing, so nothing is finished here" in capsys.readouterr().err


def test_scores_are_measured_before_training_and_after_each_epoch(tmp_path, monkeypatch, few):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    argv = ["noise_by_epoch.py", "--noise_rates", "0.5", "--epochs", "2", "--num_captions", "12"]
    argv += ["--num_persons", "32", "--results_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    surprises, score = [], noise_by_epoch.score_tokens

    def kept(model, processor, rows, **options):
        columns = score(model, processor, rows, **options)
        surprises.append((columns[noise_by_epoch.SURPRISE], columns["is_false"]))
        return columns

    monkeypatch.setattr(noise_by_epoch, "score_tokens", kept)
    noise_by_epoch.main()
    found = json.loads((tmp_path / "noise_by_epoch.json").read_text())["results"]["0.5"]
    assert len(found["epochs"]) == 3 and len(surprises) == 6  # held out, and of the training set
    held_out, of_training = surprises[::2], surprises[1::2]
    assert not np.array_equal(of_training[0][0], of_training[2][0])  # the model has learnt in between
    for epoch, (values, is_false) in zip(found["epochs"], held_out, strict=True):
        expected = ranking_quality(-values, is_false)[0]
        assert epoch[noise_by_epoch.SURPRISE]["auroc"] == pytest.approx(expected)
    smoothed = np.mean([values for values, _ in of_training], axis=0)
    expected = ranking_quality(-smoothed, of_training[0][1])[0]
    assert found["epochs"][2][noise_by_epoch.SMOOTHED]["auroc"] == pytest.approx(expected)


def test_one_setting_is_changed_at_a_time(tmp_path, monkeypatch):
    trained = []

    def train_cell(cell, noise_rate, seed, args, **options):
        trained.append(
            (args.num_persons * 2, options["num_layers"], options["alpha_noise"], options["alpha_info"], seed)
        )
        return {**finished_cell(0.1 * seed), "hidden_rate": 0.16}

    monkeypatch.setattr(settings, "train_cell", train_cell)
    argv = ["settings.py", "--most_images", "4000", "--output_dir", str(tmp_path), "--results_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    settings.main()
    normal = tuple(settings.DEFAULTS.values())
    changes = [[a != b for a, b in zip(one, normal, strict=False)] for one in trained]
    assert len(trained) == len(set(trained)) == 2 * (2 + 2 + 3 + 2 + 1)  # the normal settings are trained once
    assert [sum(one) for one in changes].count(0) == 2 and max(map(sum, changes)) == 1
    found = json.loads((tmp_path / "settings.json").read_text())["results"]
    assert list(found["images"]) == ["1000", "4000"] and list(found["layers"]) == ["1", "2", "3"]
    first, second = (float(np.mean(finished_cell(0.1 * seed)["values"]["R@1"])) for seed in (0, 1))
    assert found["layers"]["2"]["R@1"]["mean"] == pytest.approx((first + second) / 2)
    settings.main()
    assert len(trained) == 20


def test_the_demo_s_gain_is_paired_by_seed_and_finished_runs_are_kept(tmp_path, monkeypatch, capsys):
    done, base = [], {42: 30.0, 0: 36.0, 1: 33.0}

    def pretrain(argv):
        options = dict(zip(argv[1::2], argv[2::2], strict=True))
        seed, masked = int(options["--seed"]), options["--masking"] == "gradient_attention"
        done.append((seed, masked))
        after = base[seed] + 10 + seed % 2 - 3 * masked
        values = {"base, 48x48": base[seed], "before": 20.0, "after": after}
        training = {"num_train_epochs": 2, "learning_rate": rate, "per_device_train_batch_size": 64}
        kept = {
            "metrics": {name: dict.fromkeys(demo_gain.METRICS, value) for name, value in values.items()},
            "arguments": {"num_persons": 8, "noise_rate": 0.1, "image_size": [64, 32]},
            "training": training,
            "test_images": 800,
        }
        folder = tmp_path / options["--output_dir"].rpartition("/")[2]
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(kept))

    rate = 1e-4
    monkeypatch.setattr(demo_gain.pretrain, "main", pretrain)
    places = ["--output_dir", str(tmp_path), "--results_dir", str(tmp_path / "results")]
    for _ in range(2):
        assert demo_gain.main(["--seeds", "42", "0", "1", *places]) == 0
    assert sorted(done) == sorted((seed, masked) for seed in base for masked in (False, True))
    found = json.loads((tmp_path / "results" / "demo_gain.json").read_text())
    gain = found["gains"]["GA-DMS - base, 48x48"]["i2t_mAP"]
    assert gain["by_seed"] == [7, 7, 8] and gain["mean"] == pytest.approx(22 / 3)
    half = 4.303 * (1 / 3) ** 0.5 / 3**0.5  # Student's t with 2 degrees of freedom, and the variance of 7, 7, 8
    assert gain["high"] - gain["mean"] == pytest.approx(half) == gain["mean"] - gain["low"]
    text = (tmp_path / "results" / "demo_gain.md").read_text()
    assert "| GA-DMS - SDM without masks | -3.0 [-3.0, -3.0] |" in text and "- noise_rate: 0.1" in text
    capsys.readouterr()
    with pytest.raises(SystemExit):
        demo_gain.main(["--seeds", "42", *places])
    assert "an interval takes 2 to 20 different seeds" in capsys.readouterr().err

    rate, base[2] = 2e-4, 30.0
    assert demo_gain.main(["--seeds", "42", "2", *places]) == 2
    assert "holds runs of other recipes" in capsys.readouterr().err


def test_quantiles_of_student_s_t_leave_five_percent_outside():
    for freedom, bound in demo_gain.STUDENT.items():
        points = np.linspace(-bound, bound, 20_001)
        density = (1 + points**2 / freedom) ** (-(freedom + 1) / 2)
        scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
        assert scale * np.trapezoid(density, points) == pytest.approx(0.95, abs=1e-4)


def test_what_speaks_against_its_image_is_found_once_for_all_seeds(monkeypatch, tmp_path, few):
    monkeypatch.setattr(masking_cells, "EVIDENCE_STEPS", 2)
    monkeypatch.setattr(masking_cells, "LEAST_THRESHOLD", 0.001)
    options = {"output_dir": str(tmp_path / "trainer"), "num_train_epochs": 1, "log_level": "error"}
    trainers = [masking_cells.demo_trainer("evidence SDM", 0.5, 0, (64, 32), 40, **options)]
    monkeypatch.setattr(masking_cells, "train_patch_evidence", None)  # not called again
    trainers.append(masking_cells.demo_trainer("evidence SDM", 0.5, 1, (64, 32), 40, **options))
    kept = json.loads((tmp_path / "hidden_words_0.5.json").read_text(encoding="utf-8"))
    assert any(kept["caption2_hidden_spans"])
    for trainer in trainers:
        assert trainer.data_collator.hidden_spans == "hidden_spans"
        assert trainer.train_dataset.dataset["caption2_hidden_spans"][:] == kept["caption2_hidden_spans"]
    with pytest.raises(DataError, match="was made with another setting"):
        masking_cells.demo_trainer("evidence SDM", 0.5, 0, (64, 32), 50, **options)


def test_a_decoder_learns_before_the_cells_from_towers_that_stay_as_they_are(monkeypatch, tmp_path, few):
    trainers, make = [], masking_cells.demo_trainer

    def spied(*given, **options):
        trainers.append(make(*given, **options))
        return trainers[-1]

    monkeypatch.setattr(warm_decoder, "demo_trainer", spied)
    args = Namespace(image_size=[64, 32], num_persons=40, decoder_epochs=1.0, epochs=1.0, output_dir=str(tmp_path))
    args.model_name_or_path = None
    weights, losses = warm_decoder.warm_decoder(0.5, args)
    start, _ = starting_point.starting_point(False, 0, (64, 32))
    learnt = trainers[0].model
    for name, weight in learnt.gadms.state_dict().items():
        assert torch.equal(weight, start.gadms.state_dict()[name]), name
    assert not torch.equal(weights["text_norm.weight"], start.decoder.text_norm.weight)
    assert len(losses) == 1 and losses[0] > 0
    monkeypatch.setattr(warm_decoder, "demo_trainer", None)  # not called again
    again = warm_decoder.warm_decoder(0.5, args)
    assert again[1] == losses and all(torch.equal(weight, again[0][name]) for name, weight in weights.items())

    monkeypatch.setattr(masking_cells, "demo_trainer", spied)
    monkeypatch.setattr(masking_cells.GADMSTrainer, "train", lambda trainer: None)
    masking_cells.train_cell("random MTP", 0.5, 1, args, decoder=weights)
    for name, weight in trainers[-1].model.decoder.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_the_model_masks_by_the_scores_of_the_cell(pairs):
    model, input_ids, image_tokens = pairs
    gadms, image_embeds = model.gadms, image_tokens[:, 0]
    found = cell_masks.cosine_scores(gadms.text_model, gadms.text_projection, image_embeds, input_ids)
    for row, ids in enumerate(input_ids):
        end = int(ids.argmax())
        tokens = gadms.text_projection(gadms.text_model(ids[None, : end + 1]).last_hidden_state)[0, 1:end]
        cosines = torch.stack([F.cosine_similarity(token, image_embeds[row], dim=0) for token in tokens])
        expected = (cosines - cosines.min()) / (cosines.max() - cosines.min())
        torch.testing.assert_close(found[row, 1:end], expected.detach(), rtol=1e-4, atol=1e-5)
        assert (found[row, end:] == 0).all() and found[row, 0] == 0
    pixel_values = torch.randn(len(input_ids), 3, *model.config.vision_config.image_size)
    with torch.no_grad():
        image = gadms.get_image_features(pixel_values).pooler_output
    towers = gadms.text_model, gadms.text_projection
    for cell, num_layers, expected in (
        ("gass both", None, gradient_attention_scores(*towers, image, input_ids)),
        ("gass both", 1, gradient_attention_scores(*towers, image, input_ids, num_layers=1)),
        ("cosine both", None, cell_masks.cosine_scores(*towers, image, input_ids)),
    ):
        cell_masks.use_score(model, cell, num_layers)
        scored = model.encode_pairs(pixel_values, input_ids).token_scores
        torch.testing.assert_close(scored, expected)


def test_operations_of_fused_attention_are_those_of_its_products_and_one_again():
    query, key = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 7, 8, requires_grad=True)
    total, fused = step_costs.count_flops(lambda: F.scaled_dot_product_attention(query, key, key).sum().backward())
    assert total == fused == 7 * 2 * (2 * 3 * 5 * 7 * 8)  # 2 forward, 4 backward, and the logits once more

    def by_hand():
        ((query @ key.transpose(-1, -2)).softmax(-1) @ key).sum().backward()

    assert step_costs.count_flops(by_hand) == (6 * 2 * (2 * 3 * 5 * 7 * 8), 0)


def test_peak_memory_counts_what_lives_at_once():
    start = torch.zeros(250_000)  # a megabyte, there beforehand

    def one_after_the_other():
        value = start
        for _ in range(5):
            value = value + 1

    assert step_costs.peak_memory(one_after_the_other) == pytest.approx(2e6, abs=100)  # and the 1 as a tensor
    assert step_costs.peak_memory(lambda: [start + step for step in range(5)]) == pytest.approx(5e6, abs=100)


@pytest.fixture(scope="module")
def training():
    model = tiny_model().train()
    return model, training_steps.make_batch(model.config, [9, 20, 13, 20])


def test_parts_of_the_step_have_all_its_operations_and_the_released_schedule_has_more(training):
    model, batch = training
    parts = training_steps.parts_of_step(model, batch)
    ours = step_costs.count_flops(lambda: training_steps.gadms_step(model, batch))
    assert ours == tuple(map(sum, zip(*(step_costs.count_flops(parts[name]) for name in cost.PARTS), strict=True)))
    released = step_costs.count_flops(lambda: training_steps.released_loss(model, **batch).backward())
    plain = step_costs.count_flops(
        lambda: training_steps.plain_step(model, training_steps.pad_captions(batch, width=32))
    )
    assert plain[0] < ours[0] < released[0]
    checkpointed = step_costs.count_flops(lambda: training_steps.checkpointed_step(model, batch))
    assert ours[0] < checkpointed[0] < 4 / 3 * ours[0]  # one more forward pass, of the layers alone
    assert not model.is_activation_checkpointing


@pytest.mark.parametrize("tower", [tower for tower in TOWERS if tower != "clip"])
def test_a_step_of_every_kind_of_towers_is_timed_by_its_parts_beside_a_plain_one(tower, monkeypatch, capsys):
    config = benchmark_step.base_config(tower).to_dict()
    for part in ("text_config", "vision_config"):
        config[part] |= {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
        for name in ("out_features", "out_indices", "stage_names"):  # of 12 layers
            config[part].pop(name, None)
    config["text_config"] |= {"vocab_size": 60, "projection_size": 64}
    side = config["vision_config"]["patch_size"]
    config["vision_config"] |= {"image_size": (3 * side, side)}
    config = GADMSConfig(**config | {"projection_dim": 64, "mask_token_id": 59})
    monkeypatch.setattr(benchmark_step, "base_config", lambda kind: config)
    assert benchmark_step.main(["--tower", tower, "--batch_size", "2", "--caption_length", "9", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tower}, ViT-B/{side}, {3 * side}x{side}, batch 2, 9 tokens")
    assert re.search(r"^plain contrastive step .* 1\.00 x", printed, re.MULTILINE) and "\nGA-DMS step " in printed

    model = GADMSForPreTraining(config).train()
    batch = training_steps.make_batch(config, [9, 5, 7])
    parts = training_steps.parts_of_step(model, batch)
    ours = step_costs.count_flops(lambda: training_steps.gadms_step(model, batch))
    assert ours == tuple(map(sum, zip(*(step_costs.count_flops(parts[name]) for name in cost.PARTS), strict=True)))
    assert step_costs.count_flops(lambda: training_steps.plain_step(model, batch))[0] < ours[0]


def test_the_decoders_operations_are_those_of_its_tokens_and_masked_positions(training):
    model, batch = training
    width, layers = model.config.projection_dim, model.config.decoder_num_layers
    num_pairs, text = batch["input_ids"].shape
    image = 1 + model.config.vision_config.grid[0] * model.config.vision_config.grid[1]
    with torch.no_grad():
        masked = int(model.encode_pairs(**batch).views.prediction_mask.sum())
    products = num_pairs * (2 * text + 2 * image) * width**2  # cross-attention: query, out; key, value
    products += layers * num_pairs * text * (4 + 2 * 4) * width**2
    products += masked * width * (width + model.config.text_config.vocab_size)
    attention = num_pairs * text * width * (image + layers * text)
    found = step_costs.count_flops(training_steps.parts_of_step(model, batch)["decoder and MTP"])
    assert found == (2 * (3 * products + 7 * attention), 2 * 7 * attention)


def test_the_released_schedule_goes_back_from_the_similarity_for_each_layer(training):
    model, batch = training
    text, num_pairs, length = model.config.text_config, 4, 32

    def score():
        image_embeds = torch.ones(num_pairs, model.config.projection_dim)
        towers = model.gadms.text_model, model.gadms.text_projection
        return released_scores(*towers, image_embeds, batch["input_ids"], num_layers=2)

    at_once, (expected_flops, _) = score(), step_costs.count_flops(score)
    with training_steps.a_backward_pass_for_each():
        torch.testing.assert_close(score(), at_once)
        found_flops, _ = step_costs.count_flops(score)
    # of the two layers, the last is gone through twice, from the embedding to its attention's output
    again = length * (text.hidden_size**2 + 2 * text.hidden_size * text.intermediate_size)
    again += text.hidden_size * model.config.projection_dim
    assert found_flops - expected_flops == 2 * num_pairs * again


def test_the_released_schedule_has_the_loss_of_pairs_taken_one_by_one(training):
    model, batch = training
    gadms, pixels = model.gadms, batch["pixel_values"]
    input_ids = F.pad(batch["input_ids"], (0, 12))  # to the context length
    with torch.no_grad():
        images = gadms.project_image_tokens(gadms.vision_model(pixels).last_hidden_state)
        found = released_scores(gadms.text_model, gadms.text_projection, images[:, 0], input_ids)
        views = mask_captions(input_ids, found, batch["mask_uniforms"], DualMasking(), model.config.mask_token_id)
        texts, losses = [], []
        for row, ids in enumerate(input_ids):
            texts.append(gadms.get_text_features(views.noise_input_ids[row : row + 1]).pooler_output[0])
            tokens = gadms.text_model(views.prediction_input_ids[row : row + 1]).last_hidden_state
            for position in views.prediction_mask[row].nonzero()[:, 0]:
                here = (torch.arange(32) == position)[None]
                tokens_here = gadms.text_projection(tokens), images[row : row + 1]
                logits = model.decoder(*tokens_here, torch.ones_like(here), here)[0]
                losses.append(logits.logsumexp(0) - logits[ids[position]])
        sdm = sdm_loss(images[:, 0], torch.stack(texts), torch.arange(4), model.config.temperature)
        loss = training_steps.released_loss(model, **batch)
    assert len(losses) == views.prediction_mask.sum() > 4
    torch.testing.assert_close(loss, sdm + 0.4 * torch.stack(losses).mean())


def test_the_cost_study_counts_every_row_and_holds_the_step_against_its_aim(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "GADMSConfig", lambda: tiny_config(context_length=77))
    argv = ["cost.py", "--batch_size", "3", "--repeats", "2", "--results_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    cost.main()
    content = json.loads((tmp_path / "cost.json").read_text())
    rows, text = content["results"], (tmp_path / "cost.md").read_text()
    assert content["lengths"][0] < cost.SHORT < content["lengths"][-1] < cost.FULL
    watched = {cost.PLAIN, cost.OURS, f"GA-DMS, {cost.span(content['lengths'])}"}
    for name, row in rows.items():
        assert len(row["seconds"]) == len(row["ratio"]) == (6 if name in watched else 2)
        assert row["megabytes"] > 0 and f"| {name} | {row['gflop']:.1f} |" in text
    assert rows[cost.PLAIN]["ratio"] == [1] * 6
    assert rows[cost.OURS]["gflop"] < rows[f"GA-DMS, {cost.FULL} tokens"]["gflop"] < rows[cost.RELEASED]["gflop"]
    checkpointed = rows[f"{cost.OURS}, activation checkpointing"]
    assert checkpointed["megabytes"] < rows[cost.OURS]["megabytes"] < rows[cost.RELEASED]["megabytes"]
    both, apart = (f"text tower, {how}, {cost.SHORT} tokens" for how in ("both views", "view after view"))
    assert rows[both]["gflop"] == rows[apart]["gflop"]
    assert f"{cost.OURS}: {cost.verdict(rows[cost.OURS]['ratio'])};" in text


def test_the_aim_is_met_where_the_whole_interval_is_below_it():
    ratios = ([1.0, 1.1, 1.2], [1.0, 1.01, 1.08], [1.12, 1.2, 1.3])
    assert [cost.verdict(one).split("], ")[1] for one in ratios] == ["not decided by these rounds", "met", "not met"]


def test_a_ratio_is_to_the_latest_time_of_the_reference(monkeypatch):
    clock = iter([0, 2, 10, 13, 20, 24, 30, 32])  # starts and ends
    monkeypatch.setattr(step_costs.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(step_costs, "peak_memory", lambda step: 4_000_000)  # the profiler asks for the time
    steps = dict.fromkeys(("reference", "other"), lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    order = ["reference", "other", "reference", "other"]
    found = step_costs.measure(torch.nn.Linear(1, 1), steps, order, batch_size=2, reference="reference")
    assert found["reference"]["seconds"] == [1, 2] and found["other"]["ratio"] == [1.5, 0.5]
    assert found["other"]["megabytes"] == 2 and found["other"]["gflop"] == 30e-9
