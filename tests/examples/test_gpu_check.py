"""Everything that is checked and measured on a GPU runs on the CPU, in miniature."""

import contextlib
import json
import sys

import pytest
import torch
from places import EXAMPLES
from tiny import tiny_captions, tiny_config, tiny_model

sys.path[:0] = [str(EXAMPLES / "studies"), str(EXAMPLES)]

import benchmark_score  # noqa: E402
import gpu_check  # noqa: E402
from device_checks import decoding, loading, numbers, steps, walks  # noqa: E402

from modeling_gadms import token_scores_gadms  # noqa: E402
from modeling_gadms.token_scores_gadms import gradient_attention_scores  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def named():
    config = tiny_config(context_length=77)
    return gpu_check.parts(
        CPU, config, batch_size=4, steps=4, length=10, workers=0, gallery=90, persons=4, pictures=3, compiled=False
    )


def test_without_a_device_the_check_says_so_and_writes_nothing(tmp_path, capsys):
    assert gpu_check.main(["--output_dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "skipped: no CUDA device\n" and not list(tmp_path.iterdir())


def test_every_part_runs_and_what_is_known_is_written_after_each(named, tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(steps, "compile_layers", compiled.append)
    assert gpu_check.run(named, {"card": "cpu", "torch": "x"}, str(tmp_path)) == 0
    assert len(compiled) == 3
    found = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert list(found) == list(named) and not any("failed" in row for rows in found.values() for row in rows)
    text = (tmp_path / "gpu_check.md").read_text()
    assert text.startswith("# cpu\n\ntorch x\n") and all(f"\n## {title}\n\n| " in text for title in named)

    rows = found["Training steps"]
    assert [row["step"] for row in rows] == [steps.PLAIN, steps.WITHOUT_SCORE, steps.WHOLE] * 2
    flops = [row["GFLOP per sample"] for row in rows]
    assert flops[0] < flops[1] < flops[2] and flops[3:] == flops[:3], "the views, then the score"
    assert [row["time of plain CLIP"] for row in rows[::3]] == [1, 1]
    assert [row["share of one batch"] for row in found["Loader"]][0] == 1
    assert all(row["steps"] == 4 for row in rows) and all(row["steps"] == 3 for row in found["Loader"])
    by_way = {row["score"]: row for row in found["Score"]}
    assert list(by_way) == [walks.TEXT_PASS, walks.WALK, walks.LAST, walks.FOLDED]
    assert by_way[walks.FOLDED]["difference"] < 1e-5 and by_way[walks.WALK]["of the walk's time"] == 1
    count = {name: row["operations"] for name, row in by_way.items()}
    assert count[walks.TEXT_PASS] < count[walks.LAST] < count[walks.FOLDED] < count[walks.WALK]
    assert {row["encoded"] for row in found["Encoding"]} == {"images, pixels ready", "images, drawings", "captions"}
    assert all(row["as on the CPU"] and row["R@1"] > 50 for row in found["Ranking"])


def test_decoding_by_torch_is_held_to_the_pixels_of_pillow(monkeypatch):
    found = [decoding.decoding_rates(CPU, size, 2) for size in ((32, 16), (384, 128))]
    assert [row["decoded and resized by"] for row in found[0]] == ["pillow", "torch"]
    for measure, by_torch in found:
        assert measure["largest"] == measure["mean difference of 255"] == 0
        assert 0 < by_torch["mean difference of 255"] <= 0.3 and by_torch["largest"] <= 6 and by_torch["within"]
        assert measure["images/s"] > 0 < by_torch["images/s"]
    right = decoding.resized
    for wrong in (lambda pixels, size: right(pixels, size) + 1, lambda pixels, size: right(pixels.flip(-1), size)):
        monkeypatch.setattr(decoding, "resized", wrong)
        assert [row["within"] for row in decoding.decoding_rates(CPU, (32, 16), 2)] == [True, False]


def test_a_part_that_fails_or_is_out_of_bounds_is_told_and_the_others_run(tmp_path, capsys):
    def broken():
        raise RuntimeError("no such kernel")

    named = {"one": broken, "two": lambda: [{"part": "masks", "within": False}], "three": lambda: [{"part": "x"}]}
    assert gpu_check.run(named, {"card": "cpu"}, str(tmp_path)) == 2
    found = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert found["one"] == [{"failed": "RuntimeError: no such kernel"}] and found["three"] == [{"part": "x"}]
    assert "no such kernel" in capsys.readouterr().err


def test_a_step_that_waits_for_the_device_and_time_that_is_over_are_told(tmp_path, monkeypatch, capsys):
    named = {
        "one": lambda: [{"step": "x", "waits for the device": "called a synchronizing operation"}],
        "two": lambda: [{"step": "x", "waits for the device": one} for one in steps.NO_WAIT],
    }
    assert gpu_check.run(named, {"card": "cpu"}, str(tmp_path)) == 1
    now = [0.0]
    monkeypatch.setattr(gpu_check.time, "perf_counter", lambda: now[0])

    def slow():
        now[0] += 100
        return [{"part": "x"}]

    three = {"one": slow, "two": slow, "three": slow}
    assert gpu_check.run(three, {"card": "cpu"}, str(tmp_path), minutes=3) == 2, "late, and left out"
    found = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert found["one"] == found["two"] == [{"part": "x"}], "what was begun is kept"
    printed = capsys.readouterr().out
    assert "\ntwo ended after 3 minutes, which counts as a failure" in printed and printed.count("counts as") == 1
    assert found["three"] == [{"left out": "3 minutes were over: try fewer --steps"}]


@pytest.mark.parametrize("waits", [False, True])
def test_a_step_runs_where_waiting_is_an_error_and_only_there(monkeypatch, waits):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        assert modes[-1] == "error"
        if waits:
            raise RuntimeError("called a synchronizing\nCUDA operation")

    found = steps.waits_for_device(torch.device("cuda"), step)
    assert found == ("called a synchronizing CUDA operation" if waits else "no") and modes[-1] == "default"


def test_a_recorded_walk_is_warmed_up_off_the_stream_of_all_and_then_replayed(monkeypatch):
    """By stand-ins for the streams and the graph of a CUDA device."""
    happened = []

    class Stream:
        def wait_stream(self, other):
            happened.append("waited")

    class Graph:
        def replay(self):
            happened.append("replayed")

    @contextlib.contextmanager
    def within(name):
        happened.append(name)
        yield
        happened.append(f"{name} ends")

    everybody = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: everybody)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("stream"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: within("graph"))
    replayed = walks.recorded(lambda: happened.append("work") or torch.ones(2))
    warm = ["waited", "stream", "work", "work", "work", "stream ends", "waited"]
    assert happened == [*warm, "graph", "work", "graph ends"]
    assert torch.equal(replayed(), torch.ones(2)) and replayed() is replayed()
    assert happened[10:] == ["replayed"] * 3


def test_on_a_slow_device_fewer_steps_are_timed(monkeypatch, tmp_path):
    for module in (steps, loading):
        monkeypatch.setattr(module, "LONGEST", 0.0)
    config = tiny_config(context_length=77)
    assert steps.one_rate(CPU, config, 4, 30, 10, steps.PLAIN, "eager")["steps"] == 1
    rows = loading.loader_rates(CPU, config, loading.drawn_rows(4), 4, 8, 0, str(tmp_path), compiled=False)
    assert [row["steps"] for row in rows] == [1, 1, 1]


def test_one_pass_of_whole_captions_gives_the_scores_of_the_walk():
    model, captions = tiny_model().train(), tiny_captions([12, 7, 3, 9, 8, 5])
    images = torch.randn(6, model.config.projection_dim, generator=torch.Generator().manual_seed(3))
    text = model.gadms.text_model, model.gadms.text_projection
    for sign in (1, -1):
        walk = gradient_attention_scores(*text, sign * images, captions)
        torch.testing.assert_close(walks.folded_scores(*text, sign * images, captions), walk, atol=1e-5, rtol=1e-4)
        assert (walk.amax(dim=1) == 1).sum() >= 2


def test_the_benchmark_of_scores_prints_every_way_and_fails_where_scores_differ(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_score, "GADMSConfig", lambda: tiny_config(context_length=77))
    monkeypatch.setattr(token_scores_gadms, "compiled", lambda function, backend: function)
    options = ["--batch_size", "3", "--caption_length", "9", "--repeats", "1"]
    assert benchmark_score.main(options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("cpu, ") and ", 3 captions of 9 tokens\n\n| score | ms |" in printed
    assert all(f"\n| {way} | " in printed for way in (walks.TEXT_PASS, walks.WALK, walks.LAST, *walks.SAME[::2]))
    right = walks.folded_scores
    monkeypatch.setattr(walks, "folded_scores", lambda *given: right(*given) + 0.1)
    assert benchmark_score.main(options) == 1
    with pytest.raises(SystemExit):
        benchmark_score.main(["--caption_length", "78"])


def test_numbers_of_a_device_that_errs_are_out_of_bounds(monkeypatch):
    """The second call for the losses is the device's."""
    right, calls = numbers.sdm_loss, []

    def wrong(*inputs):
        calls.append(1)
        return right(*inputs) * (1 if len(calls) == 1 else 1.01)

    monkeypatch.setattr(numbers, "sdm_loss", wrong)
    rows = numbers.check_numbers(CPU, tiny_config(context_length=77), [10, 3, 5, 7])
    bad = [(row["part"], row["precision"]) for row in rows if not row["within"]]
    assert bad == [("SDM", "float32"), ("SDM, gradient", "float32")], rows
    assert {row["part"] for row in rows} >= {"score", "masks", "decoder and MTP", "step in two chunks, gradient"}
    (low,) = [row["difference"] for row in rows if row["part"] == "score" and row["precision"] == "bfloat16"]
    assert low > 0, "the scores are not all 0"
    chunked = {row["part"]: row["difference"] for row in rows if row["precision"] == "float32"}
    assert chunked["step in two chunks, gradient"] == chunked["masks"] == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_card_is_known_by_its_name_or_unknown(name, peak):
    assert steps.peak_tflops(name) == peak
