"""The example that averages checkpoints: what it writes is the mean of each weight, and loads."""

import importlib.util

import torch
from places import EXAMPLES
from tiny import tiny_model, tiny_processor

from modeling_gadms import GADMSForPreTraining, GADMSModel, GADMSProcessor


def test_the_mean_of_checkpoints_is_a_model_like_any_other(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("average_checkpoints", EXAMPLES / "average_checkpoints.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    processor = tiny_processor()
    models = [tiny_model(seed, vocab_size=len(processor.tokenizer)) for seed in range(2)]
    folders = [str(tmp_path / f"model-{number}") for number in range(2)]
    for folder, model in zip(folders, models, strict=True):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    out = str(tmp_path / "mean")
    assert not example.main(["--model", *folders, "--output_dir", out])
    first, second = (model.state_dict() for model in models)
    for name, weight in GADMSForPreTraining.from_pretrained(out).state_dict().items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2)
    assert GADMSProcessor.from_pretrained(out).tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    models[1].gadms.save_pretrained(folders[1])  # as fine-tuning leaves it: no decoder
    assert not example.main(["--model", *folders, "--output_dir", str(tmp_path / "plain")])
    for name, weight in GADMSModel.from_pretrained(tmp_path / "plain").state_dict().items():
        torch.testing.assert_close(weight, (first[f"gadms.{name}"] + second[f"gadms.{name}"]) / 2)
    assert example.main(["--model", *folders, "--output_dir", out]) == 2
    assert "already holds files" in capsys.readouterr().err
