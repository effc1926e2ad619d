"""Starting points of training: models that load, and broken ones that end in one line."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_published
from tiny_towers import save_towers, tiny_tokenizer, tiny_towers
from transformers import BertConfig, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from dataset_webperson import DataError
from dataset_webperson.command_line import command
from modeling_gadms import GADMSForPreTraining, GADMSModel
from modeling_gadms.training.starting_points import check_starting_point, load_starting_point, own_image_size


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    save_published(folder)
    return folder


@command
def load(folder: str) -> None:
    load_starting_point(folder, (32, 16))


def copy_of(published, folder):
    folder.mkdir()
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_retriever_without_decoder_gets_a_new_one(published, tmp_path):
    folder = copy_of(published, tmp_path / "retriever")
    GADMSModel.from_pretrained(published).save_pretrained(folder)
    model, processor = load_starting_point(str(folder), (32, 16))
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert (model.decoder.vocabulary.weight != 0).any()


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b'{"model_type": '),
        ("config.json", json.dumps({"model_type": "of_nobody"}).encode()),
        ("model.safetensors", b"cut off"),
        ("model.safetensors", None),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"version": '),
        ("tokenizer_config.json", b"["),
        ("processor_config.json", b"["),
    ],
)
def test_a_broken_or_missing_file_ends_in_one_line(published, tmp_path, capsys, name, content):
    folder = copy_of(published, tmp_path / "broken")
    assert (folder / name).exists()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert load(str(folder)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and str(folder) in lines[-1]


def test_places_without_a_model_end_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "missing"):
        assert load(str(tmp_path / name)) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path / name}: ")


def test_half_a_clip_and_a_clip_without_a_tokenizer_end_in_one_line(tmp_path, capsys):
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    CLIPTextModel(CLIPTextConfig(**tower)).save_pretrained(tmp_path / "half")
    vision = {**tower, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=tower, vision_config=vision)).save_pretrained(tmp_path / "bare")
    for name, said in (("half", "whose towers GA-DMS cannot start from"), ("bare", "no CLIP vocabulary")):
        assert load(str(tmp_path / name)) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_towers_that_do_not_fit_end_in_one_line_with_the_cure(published, tmp_path, capsys):
    def refused(folder):
        assert load(str(folder)) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and str(folder) in line and not line.endswith(".")
        return line

    towers = tmp_path / "towers"
    source = save_towers("siglip", towers)
    assert load(str(towers)) in (0, None)
    tiny_tokenizer("tipsv2").save_pretrained(towers)
    assert "does not belong to the text tower; save the tower's own tokenizer there" in refused(towers)
    half = tmp_path / "half"
    source.vision_model.save_pretrained(half)
    source.config.save_pretrained(half)
    capsys.readouterr()
    assert load(str(half)) == 2
    printed = capsys.readouterr()
    assert "not a whole siglip model" in printed.err and "MISSING" not in printed.err + printed.out
    for name in ("siglip2", "metaclip_2", "tipsv2"):  # without a tokenizer some of them make one up
        bare = tmp_path / name
        tiny_towers(name, 60).save_pretrained(bare)
        line = refused(bare)
        assert line == f"error: {bare}: holds no tokenizer; save the tower's own there, with its tokenizer.json"
    # a GA-DMS beside the processor of another
    mixed = copy_of(published, tmp_path / "mixed")
    settings = json.loads((mixed / "processor_config.json").read_text())
    (mixed / "processor_config.json").write_text(json.dumps({**settings, "tower": "siglip"}))
    assert "its processor is for siglip towers" in refused(mixed)


def test_what_the_configuration_alone_rules_out_is_refused_plainly_before_anything_else(tmp_path, monkeypatch, capsys):
    of_squares = tmp_path / "of_squares"
    CLIPConfig(vision_config={"image_size": 32, "patch_size": 8}).save_pretrained(of_squares)
    with pytest.raises(DataError, match=rf"^{of_squares}: image_size \(50, 16\) is not a mul.* nearest is \(48, 16\)"):
        check_starting_point(str(of_squares), (50, 16))
    check_starting_point(str(of_squares), (48, 16))
    other = tmp_path / "other"
    BertConfig().save_pretrained(other)
    with_code = tmp_path / "with_code"
    with_code.mkdir()
    auto_map = {"AutoConfig": "configuration_fgclip.FgclipConfig"}
    (with_code / "config.json").write_text(json.dumps({"model_type": "fgclip", "auto_map": auto_map}))
    with pytest.raises(DataError, match=rf"^{with_code}: is of type fgclip, .* take one of clip, .*, tipsv2, fgclip2"):
        check_starting_point(str(with_code), (48, 16))
    spec = importlib.util.spec_from_file_location("pretrain", Path(__file__).parents[3] / "examples" / "pretrain.py")
    pretrain = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pretrain", pretrain)  # as its dataclasses need
    spec.loader.exec_module(pretrain)
    monkeypatch.setattr(pretrain, "load_pairs", lambda *_: pytest.fail("drawn first"))
    options = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "True"]
    assert pretrain.main(["--model_name_or_path", str(other), *options]) == 2
    assert f"error: {other}: is of type bert, whose towers GA-DMS cannot start from" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_starts_in_float32_whatever_is_stored(published, tmp_path, dtype):
    folder = copy_of(published, tmp_path / "half")
    GADMSForPreTraining.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    assert GADMSForPreTraining.from_pretrained(folder).dtype == dtype, "stored so"
    model, _ = load_starting_point(str(folder), (32, 16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_model_knows_the_shape_it_was_trained_on(published, tmp_path):
    assert own_image_size(str(published)) == GADMSModel.from_pretrained(published).config.vision_config.image_size
    CLIPConfig(vision_config={"image_size": 48}).save_pretrained(tmp_path)
    assert own_image_size(str(tmp_path)) == (48, 48)
