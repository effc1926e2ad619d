"""Arguments from a file and the command line, and output folders."""

import json

import pytest

from modeling_gadms.training.arguments import GADMSTrainingArguments
from modeling_gadms.training.command_line import free_folder, parse_arguments, refuse_used_folder


def parse(*argv):
    return parse_arguments((GADMSTrainingArguments,), ["--use_cpu", "True", *argv])[0]


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


def test_unknown_names_and_files_that_are_no_mapping_are_refused(tmp_path):
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
