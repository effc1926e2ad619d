"""Arguments from a file and the command line, their help, mistakes that end in one line, and output folders."""

import dataclasses
import json
import re
import sys
from dataclasses import dataclass, field

import pytest

from dataset_webperson.command_line import command
from modeling_gadms.finetuning.arguments import GADMSFineTuningArguments
from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.command_line import free_folder, parse_arguments, refuse_used_folder


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_the_command_line_wins_over_the_file_and_both_over_defaults(tmp_path, suffix):
    file = tmp_path / f"recipe.{suffix}"
    values = {"output_dir": "there", "learning_rate": 3e-4, "seed": 5, "use_cpu": True}
    file.write_text(json.dumps(values))
    (args,) = parse_arguments((GADMSTrainingArguments,), [str(file), "--seed", "6"])
    assert (args.output_dir, args.learning_rate, args.seed, args.weight_decay) == ("there", 3e-4, 6, 4e-5)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("learning_rate: 1e-5\nuse_cpu: true\n")
    assert parse_arguments((GADMSTrainingArguments,), [str(file)])[0].learning_rate == 1e-5


def test_unknown_names_and_files_that_are_not_mappings_are_refused(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match="recipe.yaml: no such argument: learning_rat"):
        parse_arguments((GADMSTrainingArguments,), [str(file)])
    file.write_text("- 1\n")
    with pytest.raises(ValueError, match="recipe.yaml: expected `name: value` lines, found list"):
        parse_arguments((GADMSTrainingArguments,), [str(file)])


def test_a_used_output_folder_is_refused_unless_the_run_resumes(tmp_path):
    refuse_used_folder(str(tmp_path / "new"), None)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FileExistsError, match="already holds files.*--resume_from_checkpoint"):
        refuse_used_folder(str(tmp_path), None)
    refuse_used_folder(str(tmp_path), "True")


def test_a_free_folder_never_exists(tmp_path):
    wanted = str(tmp_path / "demo")
    assert free_folder(wanted) == wanted
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert free_folder(wanted) == wanted + "-3"


@dataclass
class Reading:
    data_root: str = field(metadata={"help": "Folder to read."})
    image_size: list[int] = field(default_factory=lambda: [384, 128], metadata={"help": "Height, width."})
    fast: bool = field(default=True, metadata={"help": "Read fast."})


TYPES = (Reading, GADMSTrainingArguments)


@command
def main(arguments: list[str] | None = None) -> None:
    parse_arguments(TYPES, arguments, renamed={"--folder": "--data_root"})


@pytest.mark.parametrize(
    "text, said",
    [
        ("learning_rate: [1\n", "not YAML: .*line 1"),
        ("learning_rate: fast\n", "learning_rate: invalid float value: 'fast'"),
        ("learning_rate: [1]\n", r"learning_rate: expected a single value, found \[1\]"),
        ("image_size: 384\n", "image_size: expected a list, found 384"),
        ("image_size: [384, wide]\n", "image_size: invalid int value: 'wide'"),
        ("masking: all\n", "masking: invalid choice: 'all'"),
        ("seed:\n", "seed: expected a single value, found None"),
        ("fast: maybe\n", "fast: Truthy value expected: got maybe"),
        ("seeds: 1\n", "no such argument: seeds; --help_all lists them"),
        ("- 1\n", "expected `name: value` lines, found list"),
    ],
)
def test_a_mistake_in_a_file_ends_in_one_line_that_names_the_file(tmp_path, capsys, text, said):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert main([str(file), "--data_root", "there", "--use_cpu", "True"]) == 2
    assert re.fullmatch(rf"error: {file}: {said}.*\n", capsys.readouterr().err)


def test_files_that_are_broken_missing_or_folders_end_in_one_line(tmp_path, capsys):
    (tmp_path / "cut.json").write_text('{"seed": ')
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: caf\xe9\n")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("cut.json", "latin.yaml", "missing.yaml", "folder.yaml"):
        assert main([str(tmp_path / name)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and name in lines[0]


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--seed", "few"], "argument --seed: invalid int value: 'few'"),
        (["--eval_strategy", "sometimes"], "argument --eval_strategy: invalid choice: 'sometimes'"),
        (["--no_such_option", "1"], "unrecognized arguments: --no_such_option 1"),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_line(capsys, argv, said):
    with pytest.raises(SystemExit) as stop:
        main(["--data_root", "there", *argv])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--flip_probability", "2"], "flip_probability is a probability"),
        (["--lr_scheduler_kwargs", "{broken"], "lr_scheduler_kwargs|JSON|property name"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere is not a complete checkpoint"),
    ],
)
def test_values_that_the_dataclasses_refuse_end_in_one_line(capsys, argv, said):
    assert main(["--data_root", "there", "--use_cpu", "True", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(said, lines[0])


def test_old_spellings_are_taken_on_the_command_line_and_in_a_file(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text("folder: there\nlearning-rate: 0.5\nuse_cpu: true\n")
    reading, training = parse_arguments(TYPES, [str(file), "--data-seed", "3"], renamed={"--folder": "--data_root"})
    assert (reading.data_root, training.learning_rate, training.data_seed) == ("there", 0.5, 3)
    assert capsys.readouterr().err.count("is now --") == 3


def test_types_of_a_file_are_those_of_the_command_line(tmp_path, monkeypatch):
    installed = "transformers.integrations.integration_utils.get_available_reporting_integrations"
    monkeypatch.setattr(installed, lambda: ["tensorboard"])
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "data_root: 2024\nimage_size: [64, '32']\nfast: false\nuse_cpu: true\nsave_total_limit: null\n"
        "report_to: [tensorboard]\nlr_scheduler_kwargs: {a: 1}\nlogging_steps: 10\n"
    )
    reading, training = parse_arguments(TYPES, [str(file)])
    assert (reading.data_root, reading.image_size, reading.fast) == ("2024", [64, 32], False)
    assert (training.save_total_limit, training.report_to) == (None, ["tensorboard"])
    assert (training.lr_scheduler_kwargs, training.logging_steps) == ({"a": 1}, 10)
    assert parse_arguments(TYPES, [str(file), "--fast", "--use_cpu"])[0].fast is True
    assert parse_arguments(TYPES, ["--data_root", "x", "--use_cpu", "--no_fast"])[0].fast is False


def groups_of_help(capsys, *argv) -> dict[str, list[str]]:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 0
    paragraphs = capsys.readouterr().out.split("\n\n")
    return {lines[0].rstrip(":"): lines[1:] for lines in (paragraph.splitlines() for paragraph in paragraphs)}


@pytest.mark.parametrize("dataclass_type", [GADMSTrainingArguments, GADMSFineTuningArguments])
def test_each_group_of_the_help_fits_a_screen(monkeypatch, capsys, dataclass_type):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.modules[__name__], "TYPES", (Reading, dataclass_type))
    groups = groups_of_help(capsys, "--help")
    assert list(groups)[1:4] == ["options", "options of this script", "recipe"]
    assert max(map(len, groups.values())) <= 40
    named = " ".join(" ".join(lines) for lines in groups.values())
    for name in ("data_root", "learning_rate", "masking", "output_dir", "seed", "bf16", "hub_model_id"):
        assert f"--{name} " in named
    assert "--deepspeed" not in named and "--num-" not in named


def test_help_all_lists_every_option(capsys):
    named = " ".join(" ".join(lines) for lines in groups_of_help(capsys, "--help_all").values())
    for each in dataclasses.fields(GADMSTrainingArguments):
        assert f"--{each.name} " in named


def test_options_that_the_help_leaves_out_are_accepted():
    (training,) = parse_arguments((GADMSTrainingArguments,), ["--use_cpu", "True", "--ddp_timeout", "7"])
    assert training.ddp_timeout == 7


def test_a_file_in_place_of_the_output_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    for place in ("file", "file/run"):
        with pytest.raises(NotADirectoryError, match="file is not a folder; choose another"):
            refuse_used_folder(str(tmp_path / place), None)
