"""Checks every command in README, cards and docstrings: `python tests/docs_check.py`, or `make docs-check`.

- A command line must be of a program in PROVEN, which names the test that runs it, or in MINIATURES, by which it runs
  here on little; its options must be among those that the program's own `--help` lists, and a make target must be in
  the Makefile.
- A block of Python is run here, with what SMALL puts in the place of what a reader has and this machine has not.

Anything else fails: a new command needs a test and a line in PROVEN.
"""

import ast
import contextlib
import doctest
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "model_card.md",
    "modeling_gadms/person_retrieval/README.md",
]
PAGES += [str(path.relative_to(REPO)) for path in sorted(REPO.glob("dataset_webperson/release_files/*.md"))]
PAGES += [str(path.relative_to(REPO)) for path in sorted(REPO.glob("docs/**/*.md"))]
SOURCES = sorted(
    path for folder in ("examples", "modeling_gadms", "dataset_webperson") for path in (REPO / folder).rglob("*.py")
)
STARTS = ("python", "accelerate", "torchrun", "make", "pip", "hf")

PROVEN = {
    "examples/pretrain.py": "test_examples.py::test_pretraining_on_a_folder_from_a_saved_model_with_two_processes",
    "examples/reload.py": "test_examples.py::test_the_reload_check_fails_on_other_embeddings",
    "examples/finetune.py": "test_finetune_example.py::test_adapters_and_dual_masking_on_the_synthetic_set",
    "examples/evaluate_retrieval.py": "test_evaluate_retrieval.py::test_two_processes_give_the_numbers_of_one",
    "examples/train_small_clip.py": "test_examples.py::"
    "test_the_small_clip_that_is_shipped_is_one_that_its_script_makes",
    "examples/publish.py": "test_hub_publish.py::test_a_data_set_goes_on_after_a_break_and_sends_nothing_twice",
    "examples/export_onnx.py": "test_stranger.py::test_both_towers_give_the_same_embeddings_by_onnx_runtime",
    "examples/search.py": "test_hub_search.py::test_ten_drawings_are_searched_and_shown",
    "examples/benchmark_loading.py": "test_streaming.py::test_the_benchmarks_print_their_tables",
    "examples/benchmark_layouts.py": "test_streaming.py::test_the_benchmarks_print_their_tables",
    "modeling_gadms.convert_gadms_to_hf": "test_conversion.py::"
    "test_the_folder_loads_in_a_fresh_process_without_the_package",
    "dataset_webperson.contact_sheet": "test_synthetic_webperson.py::"
    "test_the_contact_sheet_is_written_and_bad_options_stop_it",
    "dataset_webperson.doctor": "test_doctor.py::test_the_command_line_gives_the_exit_code_and_a_progress_bar",
    "dataset_webperson.release": "test_release.py::test_every_layout_becomes_shards_that_load_plain_and_streaming",
    "dataset_webperson.build": "test_construction_build.py::test_one_file_goes_from_images_to_a_release_that_loads",
    "dataset_webperson.construction.template_writing": "test_construction_templates.py::"
    "test_the_command_reads_a_benchmark_and_writes_a_review",
    "dataset_webperson.construction.quality_report": "test_construction_quality.py::"
    "test_the_report_shows_survivors_scores_shares_and_pictures",
    "dataset_webperson.construction.boxes_sheet": "test_construction_photos.py::"
    "test_with_a_lower_least_side_walking_persons_are_found_and_their_feet_lie_below_their_heads",
    "examples/demo_webperson.py": "test_construction_demo.py::test_the_demonstration_pretrains_on_what_it_released",
    "examples/serve_captions.py": "test_construction_demo.py::"
    "test_the_demonstration_releases_every_drawing_with_the_captions_of_its_captioners",
    "examples/benchmark_rescoring.py": "test_rescoring.py::"
    "test_likelihood_of_a_caption_is_that_of_its_words_one_at_a_time",
    "examples/studies/noise_detection.py": "test_studies.py::"
    "test_masking_one_word_at_a_time_finds_false_words_and_attention_does_not",
    "examples/hide_words.py": "test_patch_evidence.py::test_the_command_writes_a_data_set_and_continues_after_a_break",
    "examples/studies/masking_table.py": "test_studies.py::"
    "test_finished_cells_of_the_masking_table_are_not_trained_again",
    "examples/studies/noise_by_epoch.py": "test_studies.py::"
    "test_scores_are_measured_before_training_and_after_each_epoch",
    "examples/studies/settings.py": "test_studies.py::test_one_setting_is_changed_at_a_time",
    "examples/studies/cost.py": "test_studies.py::"
    "test_the_cost_study_counts_every_row_and_holds_the_step_against_its_aim",
}

# no test runs these: they measure time
MINIATURES = {
    "examples/benchmark_ranking.py": ["--size", "small"],
    "examples/benchmark_step.py": ["--batch_size", "2", "--caption_length", "16", "--repeats", "1"],
}

# they ask for an account of the reader's own, for npm and apt-get, for what these have fetched, or for minutes
BY_HAND = {
    "python examples/studies/exactness.py",
    "hf auth login",
    "python examples/prepare_photo_models.py [FOLDER]",
    "python examples/benchmark_pipeline.py [--photos ~/.cache/gadms/photos] [--num_images 128]",
}

# (what stands in a block of Python, what runs in its place)
SMALL = [
    ("runs/demo", "tiny"),
    ("$repository", "tiny"),
    ("'openai/clip-vit-base-patch16'", "'clip'"),
    ('"openai/clip-vit-base-patch16"', '"clip"'),
    ('config_name="synthetic",', 'config_name="synthetic", num_train_persons=2, num_test_persons=2,'),
    ("/data/CUHK-PEDES", "CUHK-PEDES"),
    (
        'load_benchmark("cuhk-pedes", "CUHK-PEDES")',
        'load_benchmark("cuhk-pedes", "CUHK-PEDES", on_count_mismatch="warn")',
    ),
]
# blocks that read from the Hub: a test runs them against one of its own
BLOCKS = {
    'load_dataset("tiny"': "test_release.py::test_the_release_loads_and_streams_from_a_hub",
}


def commands_of(text: str) -> list[str]:
    """Command lines in a piece of text: continued lines joined, comments and output left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s+#\s.*", "", line.strip())
        line = re.sub(r"^\$ ", "", line)
        if line.split(" ")[0] in STARTS and " " in line:
            found.append(" ".join(line.split()))
    return found


def blocks_of(page: str) -> list[tuple[str, str]]:
    """`(language, text)` of the fenced blocks of a Markdown page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def docstring_commands(path: Path) -> list[str]:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    indented = "\n".join(line for line in text.splitlines() if line.startswith("    ") or line.endswith("\\"))
    plain = [line for line in text.splitlines() if re.match(r"(python|accelerate|torchrun) \S*(\.py|-m|launch)", line)]
    return commands_of(indented) or commands_of("\n".join(plain))


def program_of(words: list[str]) -> str:
    """Script, module, or first word of a command."""
    if words[0] == "python" and "-m" in words:
        return words[words.index("-m") + 1]
    return next((word for word in words if word.endswith(".py")), words[0])


def check_command(command: str, helps: dict[tuple[str, str], str]) -> str | None:
    """What is wrong with a command line, or `None`."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        return str(error)
    if command in BY_HAND:
        return None
    if words[0] == "make":
        return check_target(words[1])
    if words[0] == "pip":
        return check_requirement([word for word in words[2:] if not word.startswith("-")])
    if words[:2] == ["python", "-c"]:
        return run_python(words[2], {})
    program = program_of(words)
    if program.startswith("tests/"):
        return None if (REPO / program).exists() else "no such file"
    if program not in PROVEN and program not in MINIATURES:
        return "no test is named for it in PROVEN of tests/docs_check.py"
    place = words.index(program)
    options = [word.split("=")[0] for word in words[place + 1 :] if re.match(r"--\w", word)]
    if options:
        kind = words[place + 1] if program == "examples/publish.py" else ""
        if (program, kind) not in helps:
            helps[program, kind] = help_of(program, kind)
        known = set(re.findall(r"--[\w-]+", helps[program, kind])) | {"--help"}
        if unknown := sorted(set(options) - known):
            return f"`{program} --help` does not list {', '.join(unknown)}"
    return None


def check_target(target: str) -> str | None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    return None if re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) else "no such target in the Makefile"


def check_requirement(packages: list[str]) -> str | None:
    pins = "\n".join(path.read_text() for path in (REPO / ".ci").glob("*.txt")).lower()
    for package in packages:
        name = re.split(r"[\[=<>]", package)[0].lower()
        if name not in ("", ".") and not re.search(rf"^{re.escape(name)}\b", pins, re.MULTILINE):
            return f"{name} is pinned nowhere in .ci/"
    return None


def help_of(program: str, kind: str) -> str:
    return run(program, *([kind] if kind else []), "--help")


def run(program: str, *options: str) -> str:
    """What a program prints."""
    start = [program] if program.endswith(".py") else ["-m", program]
    env = {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "500"}
    process = subprocess.run([sys.executable, *start, *options], cwd=REPO, env=env, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{program} {' '.join(options)} fails: {process.stderr[-1000:]}")
    return process.stdout


def miniature(code: str) -> str:
    for large, small in SMALL:
        code = code.replace(large, small)
    return code


def run_python(code: str, names: dict) -> str | None:
    code = miniature(code)
    if test := next((test for text, test in BLOCKS.items() if text in code), None):
        return check_test(test)
    try:
        if ">>>" in code:
            example = doctest.DocTestParser().get_doctest(code, names, "block", None, 0)
            result = doctest.DocTestRunner(verbose=False).run(example, clear_globs=False)
            names.update(example.globs)
            return f"{result.failed} examples fail" if result.failed else None
        with contextlib.redirect_stdout(None):
            exec(compile(code, "block", "exec"), names)  # our own documentation
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def check_test(test: str) -> str | None:
    file, name = test.split("::")
    found = [path for path in (REPO / "tests").rglob(file) if f"def {name}(" in path.read_text(encoding="utf-8")]
    return None if found else f"there is no test {test}"


def prepare(folder: str) -> dict:
    """What a reader has: a checkpoint, a CLIP, a benchmark, pictures. Returns the names that a block may use."""
    from made_up_datasets import write_cuhk
    from PIL import Image
    from tiny import tiny_model, tiny_processor
    from transformers import CLIPConfig, CLIPModel

    os.chdir(folder)
    os.symlink(REPO / "modeling_gadms", "modeling_gadms")
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).save_pretrained("tiny")
    processor.save_pretrained("tiny")
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = {**tower, "vocab_size": 200}, {**tower, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).save_pretrained("clip")
    write_cuhk(Path("CUHK-PEDES"))
    return {"images": [Image.new("RGB", (20, 40), colour) for colour in ("red", "blue", "white")]}


def main() -> int:
    problems, seen, helps = [], 0, {}
    for program, test in PROVEN.items():
        if problem := check_test(test):
            problems.append(f"PROVEN[{program!r}]: {problem}")
    for program, options in MINIATURES.items():
        run(program, *options)
    with tempfile.TemporaryDirectory() as folder:
        names = prepare(folder)
        for page in PAGES:
            own = dict(names)
            for language, text in blocks_of((REPO / page).read_text(encoding="utf-8")):
                if language in ("python", "py"):
                    checks = [(text.strip().splitlines()[0], run_python(text, own))]
                elif language in ("", "sh", "bash", "shell"):
                    checks = [(command, check_command(command, helps)) for command in commands_of(text)]
                else:
                    continue
                seen += len(checks)
                problems += [f"{page}: {what}\n    {problem}" for what, problem in checks if problem]
        for path in SOURCES:
            for command in docstring_commands(path):
                seen += 1
                if problem := check_command(command, helps):
                    problems.append(f"{path.relative_to(REPO)}: {command}\n    {problem}")
        os.chdir(REPO)
    sys.stdout.write("".join(f"{problem}\n" for problem in problems))
    sys.stdout.write(f"{seen} commands and blocks checked, {len(problems)} problems\n")
    return bool(problems)


if __name__ == "__main__":
    sys.path[:0] = [str(REPO), str(REPO / "tests" / "helpers")]
    sys.exit(main())
