"""Checks every command in the pages, cards and docstrings: `python tests/docs_check.py`, or `make docs-check`.

- The program of a command must be in PROVEN, which names the test that runs it, or in MINIATURES, which runs it here
  on a small input. Its options must be among those that the program's own help lists, and a make target must be in
  the Makefile.
- A block of Python is run here, with SMALL replacing what a reader has and this machine does not.
- A link to a file of the repository must lead to one.
- The figures of a claim in README.md, of a study in examples/studies/README.md, and of the sections of
  examples/training.md that name a study's result, must be those of a stored result.

Anything else fails: a new command needs a test and a line in PROVEN. With `--fast`, miniatures and blocks of Python
are not run, and everything else is checked.
"""

import argparse
import ast
import contextlib
import doctest
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "model_card.md",
    "modeling_gadms/person_retrieval/README.md",
    "modeling_gadms/false_words/README.md",
]
PAGES += [str(path.relative_to(REPO)) for path in sorted(REPO.glob("dataset_webperson/release_files/*.md"))]
PAGES += [str(path.relative_to(REPO)) for path in sorted(REPO.glob("examples/*.md"))]
PAGES += [str(path.relative_to(REPO)) for path in sorted(REPO.glob("examples/studies/*.md"))]
SOURCES = sorted(
    path for folder in ("examples", "modeling_gadms", "dataset_webperson") for path in (REPO / folder).rglob("*.py")
)
STARTS = ("python", "accelerate", "torchrun", "make", "pip", "hf")

PROVEN = {
    "examples/pretrain.py": "test_examples.py::test_pretraining_on_a_folder_from_a_saved_model_with_two_processes",
    "examples/trim_vocabulary.py": "test_vocabulary.py::"
    "test_the_example_prints_the_share_saved_and_leaves_a_model_that_loads",
    "examples/reload.py": "test_examples.py::test_the_reload_check_fails_on_other_embeddings",
    "examples/finetune.py": "test_finetune_example.py::test_adapters_and_dual_masking_on_the_synthetic_set",
    "examples/benchmark_score.py": "test_gpu_check.py::"
    "test_the_benchmark_of_scores_prints_every_way_and_fails_where_scores_differ",
    "examples/average_checkpoints.py": "test_average_checkpoints.py::"
    "test_the_mean_of_checkpoints_is_a_model_like_any_other",
    "examples/compare_runs.py": "test_compare_runs.py::test_sweeps_and_runs_are_compared_in_every_form",
    "dataset_webperson.person_search_crops": "test_person_search_crops.py::"
    "test_every_box_that_is_searched_is_cut_and_the_described_ones_of_train",
    "examples/leaderboard.py": "test_leaderboard.py::test_the_command_leaves_the_table_in_four_forms",
    "examples/evaluate_reidentification.py": "test_evaluate_reidentification.py::"
    "test_the_command_measures_both_layouts_as_loops_do",
    "examples/evaluate_retrieval.py": "test_evaluate_retrieval.py::test_two_processes_give_the_numbers_of_one",
    "examples/train_small_clip.py": "test_examples.py::"
    "test_the_small_clips_that_are_shipped_are_some_that_their_script_makes",
    "examples/publish.py": "test_hub_publish.py::test_a_data_set_continues_after_a_break_and_sends_nothing_twice",
    "examples/export_onnx.py": "test_stranger.py::test_both_towers_give_the_same_embeddings_by_onnx_runtime",
    "examples/search.py": "test_hub_search.py::test_ten_drawings_are_searched_and_shown",
    "modeling_gadms.gallery": "test_gallery_command.py::test_a_gallery_is_made_asked_and_changed_by_commands",
    "examples/benchmark_against.py": "test_benchmark_against.py::test_two_copies_take_turns_in_processes_of_their_own",
    "examples/benchmark_loading.py": "test_streaming.py::test_the_benchmarks_print_their_tables",
    "examples/benchmark_revision.py": "test_benchmark_revision.py::"
    "test_changed_captions_cost_less_than_three_percent_and_an_image_that_goes_the_text_of_its_group",
    "examples/benchmark_layouts.py": "test_streaming.py::test_the_benchmarks_print_their_tables",
    "modeling_gadms.convert_gadms_to_hf": "test_conversion.py::"
    "test_the_folder_loads_in_a_fresh_process_without_the_package",
    "dataset_webperson.contact_sheet": "test_synthetic_webperson.py::"
    "test_the_contact_sheet_is_written_and_bad_options_stop_it",
    "dataset_webperson.false_words": "test_false_words.py::"
    "test_the_benchmark_loads_as_two_noisy_splits_of_other_persons",
    "dataset_webperson.doctor": "test_doctor.py::test_the_command_line_gives_the_exit_code_and_a_progress_bar",
    "dataset_webperson.release": "test_release.py::test_every_layout_becomes_shards_that_load_plain_and_streaming",
    "dataset_webperson.build": "test_construction_build.py::test_one_file_goes_from_images_to_a_release_that_loads",
    "dataset_webperson.construction.template_writing": "test_construction_templates.py::"
    "test_the_command_reads_a_benchmark_and_writes_a_review",
    "dataset_webperson.construction.quality_report": "test_construction_quality.py::"
    "test_the_report_shows_survivors_scores_shares_and_pictures",
    "dataset_webperson.construction.opt_out": "test_construction_left_out.py::"
    "test_an_opt_out_list_knows_pictures_by_their_looks",
    "dataset_webperson.construction.boxes_sheet": "test_construction_crop.py::"
    "test_sheets_show_kept_and_rejected_persons_page_by_page_whatever_lies_beside_the_images",
    "examples/demo_webperson.py": "test_construction_demo.py::test_the_demonstration_pretrains_on_what_it_released",
    "examples/serve_captions.py": "test_construction_demo.py::"
    "test_the_demonstration_releases_every_drawing_with_the_captions_of_its_captioners",
    "examples/demo_search.py": "test_gallery_examples.py::"
    "test_the_demonstration_builds_a_gallery_and_opens_it_again_at_once",
    "examples/space/app.py": "test_gallery_examples.py::test_the_space_is_pushed_whole_and_runs_by_itself",
    "examples/benchmark_gallery_server.py": "test_gallery_examples.py::test_many_clients_are_served_without_an_error",
    "examples/gpu_check.py": "test_gpu_check.py::test_every_part_runs_and_what_is_known_is_written_after_each",
    "examples/benchmark_rescoring.py": "test_rescoring.py::"
    "test_likelihood_of_a_caption_is_that_of_its_words_one_at_a_time",
    "examples/studies/noise_detection.py": "test_studies.py::"
    "test_masking_one_word_at_a_time_finds_false_words_and_attention_does_not",
    "examples/studies/swap_gain.py": "test_swap_study.py::test_the_study_of_swaps_writes_its_tables",
    "examples/studies/repair_gain.py": "test_repair_study.py::test_the_study_of_repair_writes_its_tables",
    "examples/studies/bank_gain.py": "test_caption_banks.py::"
    "test_the_study_of_banks_pools_its_seeds_and_keeps_what_is_finished",
    "examples/score_false_words.py": "test_false_words.py::"
    "test_scores_of_a_file_are_those_of_the_metric_and_methods_are_run",
    "examples/find_families.py": "test_find_families.py::"
    "test_the_command_finds_the_families_of_drawings_from_noisy_captions",
    "examples/repair_captions.py": "test_patch_evidence.py::"
    "test_the_command_writes_a_data_set_and_continues_after_a_break",
    "examples/studies/masking_table.py": "test_studies.py::"
    "test_finished_cells_of_the_masking_table_are_not_trained_again",
    "examples/studies/noise_by_epoch.py": "test_studies.py::"
    "test_scores_are_measured_before_training_and_after_each_epoch",
    "examples/studies/demo_gain.py": "test_studies.py::"
    "test_the_demo_s_gain_is_paired_by_seed_and_finished_runs_are_kept",
    "examples/studies/patch_dropout.py": "test_patch_dropout_study.py::"
    "test_runs_are_paired_by_seed_and_query_and_kept",
    "examples/studies/levers.py": "test_levers_study.py::"
    "test_each_lever_is_compared_with_its_own_opponent_and_seeds_are_kept",
    "examples/studies/settings.py": "test_studies.py::test_one_setting_is_changed_at_a_time",
    "examples/studies/record.py": "test_stored_figures.py::test_what_a_command_prints_is_kept_if_it_succeeds",
    "examples/studies/cost.py": "test_studies.py::"
    "test_the_cost_study_counts_every_row_and_holds_the_step_against_its_aim",
}

WITH_KINDS = ("examples/publish.py", "modeling_gadms.gallery")  # they have a parser for each kind

# no test runs these, because they measure time
MINIATURES = {
    "examples/benchmark_ranking.py": ["--size", "small"],
    "examples/benchmark_encoding.py": ["--images", "8", "--num_timed", "2", "--rounds", "1"],
    "examples/benchmark_gallery.py": ["--rows", "200", "--images", "20", "--num_built", "1", "--num_queries", "20"],
    "examples/benchmark_step.py": ["--batch_size", "2", "--caption_length", "16", "--repeats", "1"],
}

# they need an account of the reader's own, npm and apt-get, what these have fetched, or minutes
BY_HAND = {
    "python examples/studies/exactness.py",
    "hf auth login",
    "python examples/prepare_photo_models.py [FOLDER]",
    "python examples/benchmark_pipeline.py [--photos ~/.cache/gadms/photos] [--num_images 128] [--growth FILE.json]",
    "python examples/benchmark_pipeline.py --growth examples/studies/results/growth.json "
    "--parts hashes statistics report",
}

# (text in a block of Python, its replacement when the block runs here)
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
# blocks that read from the Hub: a test runs them against a Hub of its own
BLOCKS = {
    'load_dataset("tiny"': "test_release.py::test_the_release_loads_and_streams_from_a_hub",
}


def commands_of(text: str) -> list[str]:
    """Command lines in a text, with continued lines joined, and without comments and output."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s+#\s.*", "", line.strip())
        line = re.sub(r"^\$ ", "", line)
        if line.split(" ")[0] in STARTS and " " in line:
            found.append(" ".join(line.split()))
    return found


def blocks_of(page: str) -> list[tuple[str, str]]:
    """`(language, text)` of each fenced block of a Markdown page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def docstring_commands(path: Path) -> list[str]:
    """Command lines in a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    indented = "\n".join(line for line in text.splitlines() if line.startswith("    ") or line.endswith("\\"))
    plain = [line for line in text.splitlines() if re.match(r"(python|accelerate|torchrun) \S*(\.py|-m|launch)", line)]
    return commands_of(indented) or commands_of("\n".join(plain))


def program_of(words: list[str]) -> str:
    """The script, the module, or else the first word of a command."""
    if words[0] in ("python", "accelerate") and "-m" in words:
        return words[words.index("-m") + 1]
    return next((word for word in words if word.endswith(".py")), words[0])


def check_command(command: str, helps: dict[tuple[str, str], str], fast: bool) -> str | None:
    """The problem with a command line, or `None`."""
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
        return None if fast else run_python(words[2], {})
    program = program_of(words)
    if program.startswith("tests/"):
        return None if (REPO / program).exists() else "no such file"
    if program not in PROVEN and program not in MINIATURES:
        return "no test is named for it in PROVEN of tests/docs_check.py"
    place = words.index(program)
    options = [word.split("=")[0] for word in words[place + 1 :] if re.match(r"--\w", word)]
    if options:
        kind = words[place + 1] if program in WITH_KINDS else ""
        if (program, kind) not in helps:
            helps[program, kind] = help_of(program, kind)
        known = set(re.findall(r"--[\w-]+", helps[program, kind])) | {"--help"}
        if unknown := sorted(set(options) - known):
            return f"the help of {program} does not list {', '.join(unknown)}"
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
    """The whole help of a program, which runs in this process: it has imported torch, a new one would do so again."""
    start = [kind] if kind else []
    text = shown(program, [*start, "--help"])
    return shown(program, [*start, "--help_all"]) if "--help_all" in text else text


def shown(program: str, options: list[str]) -> str:
    """What a program prints before it exits without error."""
    modules, path, argv = set(sys.modules), sys.path[:], sys.argv
    script = REPO / program
    sys.argv = [str(script), *options]
    output = io.StringIO()
    status: str | int | None = 0
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if program.endswith(".py"):
                sys.path.insert(0, str(script.parent))
                runpy.run_path(str(script), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.path[:], sys.argv = path, argv
        for name in set(sys.modules) - modules:  # scripts in other folders import modules of the same names
            if str(REPO / "examples") in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    if status:
        raise SystemExit(f"{program} {' '.join(options)} fails: {output.getvalue()[-1000:]}")
    return output.getvalue()


def run_miniature(program: str, options: list[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.run([sys.executable, program, *options], cwd=REPO, env=env, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{program} {' '.join(options)} fails: {process.stderr[-1000:]}")


def check_links(page: str, text: str) -> list[str]:
    """Problems of links to files of this repository, and to headings in them."""
    problems = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or "$" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (REPO / page).parent / name if name else REPO / page
        if not path.exists():
            problems.append(f"{page}: {target}\n    no such file")
        elif anchor and anchor not in anchors_of(path.read_text(encoding="utf-8")):
            problems.append(f"{page}: {target}\n    no such heading")
    return problems


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def miniature(code: str) -> str:
    """The code as it runs here."""
    for large, small in SMALL:
        code = code.replace(large, small)
    return code


def run_python(code: str, names: dict[str, Any]) -> str | None:
    """Run a block of Python with `names`, to which it adds its own. Returns the problem, or `None`."""
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
    """The problem with a `file.py::test`, or `None`."""
    file, name = test.split("::")
    found = [path for path in (REPO / "tests").rglob(file) if f"def {name}(" in path.read_text(encoding="utf-8")]
    return None if found else f"there is no test {test}"


def prepare(folder: str) -> dict[str, Any]:
    """Make what a reader has: a checkpoint, a CLIP, a benchmark, images. Returns the names that a block may use."""
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
    images = [Image.new("RGB", (20, 40), colour) for colour in ("red", "blue", "white")]
    for number in (1, 2):
        images[number].save(f"person_{number}.jpg")
    return {"images": images}


def check_page(
    page: str, names: dict[str, Any], helps: dict[tuple[str, str], str], fast: bool
) -> tuple[int, list[str]]:
    """Check the blocks and links of a page. Returns the number of commands and blocks, and the problems."""
    text = (REPO / page).read_text(encoding="utf-8")
    problems, seen = check_links(page, text), 0
    for language, block in blocks_of(text):
        if language in ("python", "py"):
            checks = [(block.strip().splitlines()[0], None if fast else run_python(block, names))]
        elif language in ("", "sh", "bash", "shell"):
            checks = [(command, check_command(command, helps, fast)) for command in commands_of(block)]
        else:
            continue
        seen += len(checks)
        problems += [f"{page}: {what}\n    {problem}" for what, problem in checks if problem]
    return seen, problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="run no miniatures and no blocks of Python")
    fast = parser.parse_args(arguments).fast
    os.environ["COLUMNS"] = "500"  # so that no help text breaks a line within an option
    problems: list[str] = []
    helps: dict[tuple[str, str], str] = {}
    seen = 0
    for program, test in PROVEN.items():
        if problem := check_test(test):
            problems.append(f"PROVEN[{program!r}]: {problem}")
    if not fast:
        for program, options in MINIATURES.items():
            run_miniature(program, options)
    with tempfile.TemporaryDirectory() as folder:
        names = {} if fast else prepare(folder)
        for page in PAGES:
            checked, found = check_page(page, dict(names), helps, fast)
            seen += checked
            problems += found
        for path in SOURCES:
            for command in docstring_commands(path):
                seen += 1
                if problem := check_command(command, helps, fast):
                    problems.append(f"{path.relative_to(REPO)}: {command}\n    {problem}")
        os.chdir(REPO)
    from stored_figures import unfounded_claims

    studies = REPO / "examples" / "studies"
    readme, *sections = (
        path.read_text(encoding="utf-8")
        for path in (REPO / "README.md", studies / "README.md", REPO / "examples" / "training.md")
    )
    problems += unfounded_claims(readme, "\n".join(sections), REPO)
    sys.stdout.write("".join(f"{problem}\n" for problem in problems))
    sys.stdout.write(f"{seen} commands and blocks checked, {len(problems)} problems\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.path[:0] = [str(REPO), str(REPO / "tests" / "helpers")]
    sys.exit(main())
