"""The three HTML pages in a real browser: nothing overflows, tables sort, pictures open, nothing is fetched."""

import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from browser import CHROMIUM, running_browser
from jinja2 import UndefinedError
from PIL import Image

from dataset_webperson.construction.caption_statistics import Diversity, Scores, Statistics
from dataset_webperson.construction.caption_words import CaptionWords
from dataset_webperson.construction.quality_report import Summary, write_build_page
from dataset_webperson.doctor_report import Report, write_doctor_page
from dataset_webperson.drawn.rows import generate_rows
from dataset_webperson.findings import Findings
from dataset_webperson.pages import embed, percent, render, write_page
from dataset_webperson.readers.benchmark_copy import Counts
from modeling_gadms.evaluation.encoding import RetrievalSet
from modeling_gadms.evaluation.metrics import evaluate_embeddings
from modeling_gadms.evaluation.report_page import write_retrieval_page

PAGES = ("doctor", "retrieval", "construction")
DESKTOP, PHONE = (1280, 900), (390, 844)
HOSTILE = "<img src=x onerror=alert(1)> 穿着 a coat שמלה & " + "unbroken" * 40


@pytest.fixture(scope="module")
def rows():
    options = {"image_size": (96, 32), "views_per_person": 2, "noise_rate": 0.0, "seed": 0}
    rows = list(generate_rows("test", 0, 8, **options))
    rows[0]["caption1"] = f"A man in a red coat. {HOSTILE}"
    return rows


def write_doctor(rows, path):
    files = []
    for number, row in enumerate(rows[:2]):
        files.append(str(path.parent / f"{number}.png"))
        Path(files[-1]).write_bytes(row["image"]["bytes"])
    reports = []
    for name in ("CUHK-PEDES", "ICFG-PEDES"):
        findings = Findings()
        for number in range(3):
            findings.add("near-duplicate", f"{name}/{number}: {HOSTILE}", tuple(files))
        findings.add("image-unreadable", "broken.jpg", (str(path.parent / "missing.jpg"),), count=7)
        findings.add("caption-long", "92 tokens", (files[0],), count=20)
        counts = {"train": Counts(11_003, 34_050, 68_120), "test": Counts(1000, 3074, 6156)}
        reports.append(Report(name, "/data/" + "long/" * 30, [], "", counts, {"test": counts["test"]}, findings))
    write_doctor_page(reports, str(path))


def write_retrieval(rows, path):
    names = ("image", "image_path", "person_id", "caption1", "caption2")
    data = datasets.Dataset.from_list([{name: row[name] for name in names} for row in rows])
    data = data.cast_column("image", datasets.Image())
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(len(rows), 16, generator=generator), dim=-1)
    index = torch.arange(len(rows)).repeat_interleave(2)
    texts = torch.nn.functional.normalize(images[index] + torch.randn(len(index), 16, generator=generator), dim=-1)
    persons = torch.tensor(data["person_id"][:])
    encoded = RetrievalSet(images, texts, persons, persons[index], index)
    write_retrieval_page(path, data, encoded, evaluate_embeddings(encoded, num_resamples=10), f"a model {HOSTILE}")


def write_construction(rows, path):
    crop = {"rows_in": 100, "not_downloaded": 8, "boxes": 622, "box_score": 500, "head_hidden": 62, "rows_out": 60}
    summary = Summary({"crop": crop, "quality": {"rows_in": 60, "captions_scored": 120, "rows_out": 57}})
    summary.before = Statistics(60, Counter(man=30, bag=7))
    after = summary.after = Statistics(57, Counter(man=28))
    after.vocabulary = {"color": Counter(red=5, blue=3), "bag": Counter(bag=40)}
    after.scores = {"small <b>": Scores.of(np.array([0.1, 0.3])), "large": Scores.of(np.array([0.2, 0.25, 0.4]))}
    after.word_sums = {"color": [2, 0.95, 0], "bag": [1, 0.4, 0]}
    words = CaptionWords.of(pa.chunked_array([[row["caption1"] for row in rows[:4]]]))
    after.diversity = {"small <b>": Diversity(), "large": Diversity.of(words, np.ones(4, bool))}
    for number, row in enumerate(rows[:4]):
        case = {f"caption1{part}": value for part, value in (("", row["caption1"]), ("_problems", ["mood"]))}
        case["caption1_words"] = [
            {"start": 0, "end": 1, "kind": "top", "score": 1.0},
            {"start": 2, "end": 5, "kind": "gender", "score": None if number else 0.5},
        ]
        case |= {"captioner1": "small <b>", "image": row["image"] if number else {"bytes": b"no image"}}
        summary.cases["a.parquet", number] = case | {"caption1_score": 0.1 if number else None}
        after.lowest.append((0.1, row["image_path"], 1, "a.parquet", number))
    after.samples = {"small <b>": after.lowest[:2]}
    write_build_page(summary, str(path))


@pytest.fixture(scope="module")
def pages(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    writers = {"doctor": write_doctor, "retrieval": write_retrieval, "construction": write_construction}
    for name, write in writers.items():
        write(rows, folder / f"{name}.html")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    with running_browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def tab(browser):
    browser.problems.clear()
    return browser


# What reaches out of the window to the right, boxes that scroll and their content aside.
OVERFLOW = """
[...document.querySelectorAll("body *")]
  .filter((one) => !one.closest(".scroll, .contents, .skip") && one.getBoundingClientRect().right > innerWidth + 0.5)
  .map((one) => one.outerHTML.slice(0, 80))
"""
# Text whose contrast with what lies behind it is below AA. The colours are read back from a canvas.
FAINT = """
(() => {
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const faint = [];
  for (const one of document.querySelectorAll("body *")) {
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (one.closest("script, dialog, title")) continue;
    const style = getComputedStyle(one), behind = [];
    for (let box = one; box; box = box.parentElement) behind.unshift(getComputedStyle(box).backgroundColor);
    const colour = one instanceof SVGElement ? style.fill : style.color;
    const [low, high] = [light(over(behind)), light(over([...behind, colour]))].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)}: ${one.outerHTML.slice(0, 80)}`);
  }
  return faint;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_and_is_legible(tab, pages, name, size, dark):
    tab.open(pages / f"{name}.html", *size, dark)
    assert tab.run("innerWidth") == size[0]  # a page that is too wide makes a phone zoom out
    assert tab.run("document.documentElement.scrollWidth") <= size[0]
    assert tab.run(OVERFLOW) == []
    assert tab.run(FAINT) == []
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) == dark
    assert tab.problems == []


def column(tab, table, place):
    script = f"[...{table}.tBodies[0].rows].map((row) => row.cells[{place}].textContent.trim())"
    return tab.run(script)


def test_a_table_sorts_by_the_heading_that_is_pressed_by_mouse_or_keyboard(tab, pages):
    tab.open(pages / "doctor.html", *DESKTOP, dark=False)
    table = "document.querySelector('table.sortable')"
    heads = f"{table}.tHead.rows[0].cells"
    assert column(tab, table, 2) == ["7", "3", "20"]  # by severity
    tab.run(f"{heads}[2].querySelector('button').click()")
    assert column(tab, table, 2) == ["20", "7", "3"]
    tab.run(f"{heads}[2].querySelector('button').focus()")
    tab.press("Enter", 13, "\r")
    assert column(tab, table, 2) == ["3", "7", "20"]
    assert tab.run(f"[...{heads}].map((head) => head.ariaSort)") == [None, None, "ascending", None]
    tab.run(f"{heads}[0].querySelector('button').click()")
    assert column(tab, table, 0) == ["error", "warning", "note"]
    assert tab.run(f"[...{heads}].map((head) => head.ariaSort)") == ["ascending", None, None, None]
    assert tab.problems == []


def test_cells_without_a_value_stay_last_in_either_order(tab, pages):
    tab.open(pages / "construction.html", *DESKTOP, dark=False)
    table = "document.querySelector('table.sortable')"
    for _ in range(2):
        tab.run(f"{table}.tHead.rows[0].cells[2].querySelector('button').click()")
        shares = column(tab, table, 2)
        assert shares[-2:] == ["", ""] and all(shares[:-2])
    assert shares[:-2] == ["8.0 %", "9.6 %", "10.0 %", "80.4 %"]


@pytest.mark.parametrize("name", PAGES)
def test_a_picture_opens_larger_and_the_keyboard_closes_it(tab, pages, name):
    tab.open(pages / f"{name}.html", *PHONE, dark=False)
    is_open, shown = "document.querySelector('dialog').open", "document.querySelector('dialog img')"
    small = tab.run("document.querySelector('button.picture img').height")
    names = tab.run("[...document.querySelectorAll('button.picture img')].map((image) => image.alt)")
    assert len(names) > 1 and all(names)
    tab.run("document.querySelector('button.picture').focus()")
    tab.press("Enter", 13, "\r")
    assert tab.run(is_open) and tab.run(f"{shown}.alt") == names[0]
    assert tab.run(f"{shown}.height") > small
    tab.press("ArrowRight", 39)
    assert tab.run(f"{shown}.alt") == names[1]
    tab.run("void (window.closing = new Promise((done) => document.querySelector('dialog').onclose = done))")
    tab.press("Escape", 27)
    tab.run("window.closing.then(() => true)")
    assert not tab.run(is_open)
    assert tab.run("[...document.querySelectorAll('button.picture')].indexOf(document.activeElement)") == 1
    assert tab.problems == []


def test_a_page_runs_no_other_script_and_fetches_nothing(tab, pages):
    text = (pages / "doctor.html").read_text(encoding="utf-8")
    planted = '<script>document.title = "taken"</script><img src="http://127.0.0.1:9/x.png" onerror="alert(1)">'
    (pages / "planted.html").write_text(text.replace("<main", planted + "<main"), encoding="utf-8")
    tab.open(pages / "planted.html", *DESKTOP, dark=False)
    assert tab.run("document.title") == "2 datasets"
    assert sum("Content Security Policy" in problem for problem in tab.problems) >= 2


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_no_other_file_and_escapes_what_it_is_given(pages, name):
    text = (pages / f"{name}.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="(data:image/jpeg|#|.{9})', text)) <= {"data:image/jpeg", "#"}
    assert "url(" not in text and "@import" not in text
    assert "&lt;img src=x" in text and "<img src=x" not in text and '<b>"' not in text


def test_a_share_states_small_parts_and_never_passes_the_whole():
    assert [percent(part, 10_000) for part in (0, 1, 10, 5000, 9999, 10_000)] == [
        "0.0 %",
        "<0.1 %",
        "0.1 %",
        "50.0 %",
        ">99.9 %",
        "100.0 %",
    ]
    assert percent(622, 100) == percent(0, 0) == percent(-1, 5) == "–"


def test_a_large_picture_is_scaled_down_and_a_small_one_stays_as_it_is():
    large, small = embed(Image.new("RGB", (1000, 4000)), "a.png"), embed(Image.new("RGB", (9, 20)), "b.png", "a coat")
    assert (large.width, large.height, large.text) == (112, 448, "a.png")
    assert (small.width, small.height, small.text, small.name) == (9, 20, "a coat", "b.png")
    assert small.address.startswith("data:image/jpeg;base64,")


def test_a_value_that_a_template_lacks_is_an_error_and_leaves_the_page_before(tmp_path):
    with pytest.raises(UndefinedError):
        render("doctor.html", title="no reports")
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(UndefinedError):
        write_page(path, "doctor.html", title="no reports")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
