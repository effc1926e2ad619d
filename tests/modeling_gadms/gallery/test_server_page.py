"""The page in a real browser: search, filters, explanations, feedback, mistakes, and two people at once."""

import csv
import io
import json
import re
from contextlib import ExitStack

import pytest
from browser import CHROMIUM
from galleries import HOSTILE, running_server, tiny_gallery
from tiny import tiny_model, tiny_processor

from modeling_gadms.gallery import Gallery

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if not CHROMIUM:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

DESKTOP, PHONE = (1280, 900), (390, 844)
RED = "a person in a red coat and blue trousers"
TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def gallery(folder):
    return tiny_gallery(folder)


@pytest.fixture(scope="module")
def address(gallery):
    with running_server(gallery) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """Opens pages in windows of their own; what their consoles and networks complained of fails the test."""
    with ExitStack() as stack:
        problems = []

        def opened(address, size=DESKTOP, may_fail=False, **options):
            context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(15_000)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("dialog", lambda dialog: problems.append("a dialog"))
            page.on(
                "request", lambda sent: sent.url.startswith((address, "data:", "blob:")) or problems.append(sent.url)
            )
            if not may_fail:  # the browser itself logs answers of 4xx
                page.on("console", lambda message: problems.append(message.text))
            page.goto(address)
            return page

        yield opened
        assert problems == []


def is_foreign(url, address):
    return not url.startswith((address, "data:", "blob:"))


def search(page, text, **fields):
    page.fill("[name=texts] >> nth=0", text)
    for name, value in fields.items():
        page.fill(f"[name='{name}']", value)
    page.press("[name=texts] >> nth=0", "Enter")
    settle(page)


def settle(page):
    page.wait_for_selector("#results[aria-busy='false']")


def status(page):
    return page.inner_text("#status")


def shown(page):
    """Ids of the results, in their order."""
    return page.eval_on_selector_all("[data-hit]", "boxes => boxes.map(box => JSON.parse(box.dataset.hit).id)")


def ids(hits):
    return [hit.id for hit in hits]


def test_a_search_shows_what_the_gallery_finds_with_scores_and_escaped_metadata(open_page, address, gallery):
    page = open_page(address)
    assert "Describe somebody" in status(page)
    search(page, RED)
    found = gallery.search(RED, k=24)
    assert shown(page) == ids(found)
    assert page.inner_text(".hit >> nth=0").startswith(f"{found[0].score:.3f}")
    assert page.inner_text(".hit dd >> nth=1") == HOSTILE
    assert page.title() != "taken"
    assert page.get_attribute("#status", "aria-live") == "polite" and "24 images" in status(page)
    assert page.eval_on_selector("[name=texts]", "field => field === document.activeElement")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("[...document.querySelectorAll('.hit img')].slice(0, 4).every(image => image.naturalWidth)")


def test_phrasings_are_averaged_and_there_is_always_a_field_for_one_more(open_page, address, gallery):
    page = open_page(address)
    page.fill("[name=texts] >> nth=1", "someone wears blue trousers")
    assert page.locator("[name=texts]").count() == 3
    search(page, RED)
    assert shown(page) == ids(gallery.search([RED, "someone wears blue trousers"], k=24))


def test_filters_are_made_of_the_columns(open_page, address, gallery):
    page = open_page(address)
    page.click(".filters summary")
    search(page, RED, **{"filter.camera.from": "1", "filter.camera.to": "2", "filter.time.to": "2024-01-12T10:00"})
    expected = gallery.search(RED, k=24, where="camera between 1 and 2 and time <= '2024-01-12T10:00'")
    assert shown(page) == ids(expected) and len(expected) == 6
    page.select_option("[name='filter.night.is']", "yes")
    search(page, RED, where="camera = 2 or camera = 3")
    assert {hit["metadata"]["camera"] for hit in selected_rows(page)} == {2}
    search(page, RED, **{"filter.site.is": "nowhere"})
    assert "No image passes" in status(page) and shown(page) == []


def selected_rows(page):
    return page.eval_on_selector_all("[data-hit]", "boxes => boxes.map(box => JSON.parse(box.dataset.hit))")


def test_why_colours_words_and_patches(open_page, address, gallery):
    page = open_page(address)
    search(page, RED)
    page.click("a.why >> nth=0")
    page.wait_for_selector("#why[open]")
    words = gallery.explain(RED, shown(page)[0]).words
    assert page.locator("#why mark").all_inner_texts() == [word for word, _ in words]
    titles = page.eval_on_selector_all("#why mark", "marks => marks.map(mark => Number(mark.title))")
    assert titles == [pytest.approx(value, abs=6e-4) for _, value in words]
    assert page.get_attribute("#why svg", "viewBox") == "0 0 2 4"  # an image of 32 x 16 in patches of 8
    assert page.locator("#why svg rect").count() > 0
    page.keyboard.press("Escape")
    page.wait_for_selector("#why", state="hidden")


def test_more_like_this_and_not_this_steer_the_search(open_page, address, gallery):
    page = open_page(address)
    search(page, RED)
    first, _, third = shown(page)[:3]
    page.click(".hit >> nth=0 >> text=More like this")
    settle(page)
    assert shown(page) == ids(gallery.search(RED, [f"id:{first}"], k=24)) and first not in shown(page)
    assert page.eval_on_selector("#found-title", "title => title === document.activeElement")
    page.click(f".hit:has([data-hit*='{third}']) >> text=Not this")
    settle(page)
    assert shown(page) == ids(gallery.search(RED, [f"id:{first}"], unlike=[third], k=24))
    page.uncheck("#chips [name=images]")
    search(page, RED)
    assert shown(page) == ids(gallery.search(RED, unlike=[third], k=24))


def test_an_image_is_a_query_and_stays_one(open_page, address, gallery):
    page = open_page(address)
    row = gallery.search(RED, k=1)[0].id
    buffer = io.BytesIO()
    gallery.image(row).save(buffer, "PNG")
    file = {"name": "x.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    page.set_input_files("#search [type=file]", file)
    page.click(".go")
    settle(page)
    assert selected_rows(page)[0]["score"] > 0.99
    page.click(".go")
    settle(page)
    assert selected_rows(page)[0]["score"] > 0.98  # a JPEG of it by now
    page.evaluate("document.querySelector('#search').dataset.largest = 100")
    page.click(".go")
    assert "too large" in status(page)


def test_a_bad_query_is_said_on_the_page(open_page, address):
    page = open_page(address, may_fail=True)
    page.click(".go")
    settle(page)
    assert "nothing is asked" in status(page)
    page.click(".filters summary")
    search(page, RED, where="colour = 'red'")
    assert "colour" in status(page) and shown(page) == []
    page.evaluate("document.querySelector('[name=texts]').removeAttribute('maxlength')")
    search(page, "x" * 10_000, where="")
    assert "at most 1000 characters" in status(page)


def test_a_selection_lasts_and_is_exported(open_page, address):
    page = open_page(address)
    search(page, RED)
    chosen = shown(page)[:2]
    page.check("[data-hit] >> nth=0")
    page.check("[data-hit] >> nth=1")
    search(page, "a green dress")
    assert "2 selected" in page.inner_text("#selection")
    with page.expect_download() as download:
        page.click("#selection >> text=JSON")
    with open(download.value.path(), encoding="utf-8") as file:
        assert [row["id"] for row in json.load(file)] == chosen
    with page.expect_download() as download:
        page.click("#selection >> text=CSV")
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == chosen and rows[0]["site"] == HOSTILE
    page.click("#selection >> text=Clear")
    assert page.is_hidden("#selection") and page.locator("[data-hit]:checked").count() == 0


def test_the_keyboard_leads_from_picture_to_picture_and_back_to_the_box(open_page, address):
    page = open_page(address)
    search(page, RED)
    page.focus(".hit .picture >> nth=0")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.querySelectorAll('.hit .picture')].indexOf(document.activeElement)") == 1
    page.keyboard.press("Enter")
    page.wait_for_selector(".viewer[open] img[src*='/api/images/']")
    page.keyboard.press("Escape")
    # the browser closes the viewer a moment later, and only then gives the focus back
    page.wait_for_function("document.activeElement.matches('.hit .picture')")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "texts"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_wide_enough(open_page, address, scheme):
    page = open_page(address, PHONE, is_mobile=True, has_touch=True, color_scheme=scheme)
    search(page, RED)
    page.click(".filters summary")
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) == (scheme == "dark")
    unnamed = "boxes => boxes.filter(box => !box.labels?.length && !box.ariaLabel).map(box => box.outerHTML)"
    assert page.eval_on_selector_all("input, select", unnamed) == []


def test_without_a_script_everything_but_the_selection_works(open_page, address, gallery):
    page = open_page(address, java_script_enabled=False)
    page.fill("[name=texts] >> nth=0", RED)
    page.press("[name=texts] >> nth=0", "Enter")
    page.wait_for_load_state()
    first = gallery.search(RED, k=1)[0].uri
    assert page.inner_text(".uri >> nth=0") == first
    page.click(".hit >> nth=0 >> text=More like this")
    page.wait_for_load_state()
    assert page.is_checked("#chips [name=images]") and page.inner_text(".uri >> nth=0") != first
    page.click("a.why >> nth=0")
    page.wait_for_load_state()
    assert "Why it matches" in page.inner_text("h1") and page.locator("mark").count()


def test_two_people_at_once_see_their_own_results(open_page, address, gallery):
    one, other = open_page(address), open_page(address)
    one.fill("[name=texts] >> nth=0", RED)
    other.fill("[name=texts] >> nth=0", "a black dress")
    one.press("[name=texts] >> nth=0", "Enter")
    other.press("[name=texts] >> nth=0", "Enter")
    settle(one)
    settle(other)
    assert shown(one) == ids(gallery.search(RED, k=24))
    assert shown(other) == ids(gallery.search("a black dress", k=24))


def test_what_does_not_fit_is_grey_and_nobody_is_said_to(open_page, address, gallery, monkeypatch):
    import modeling_gadms.gallery.gallery as module

    search_truly = gallery.search

    def with_shares(*arguments, **options):
        hits = search_truly(*arguments, **options)
        return [module.Hit(h.id, h.uri, h.score, share, h.metadata) for h, share in zip(hits, shares, strict=False)]

    monkeypatch.setattr(gallery, "search", with_shares)
    page, shares = open_page(address), [0.9, 0.5, 0.2]
    search(page, RED)
    assert page.locator(".hit").count() == 3 and page.locator(".hit.doubtful").count() == 1
    assert "1 of them" in status(page) and "90 % likely" in page.inner_text(".hit >> nth=0")
    shares = [0.3, 0.2]
    search(page, RED)
    assert page.locator(".hit.doubtful").count() == 2 and "Nobody here fits" in status(page)


def test_an_empty_gallery_and_one_of_another_model_say_so(open_page, folder, tmp_path):
    processor = tiny_processor()
    empty = Gallery.create(tmp_path / "empty", (tiny_model(vocab_size=len(processor.tokenizer)), processor))
    with running_server(empty) as (host, port):
        page = open_page(f"http://{host}:{port}")
        assert "This gallery is empty" in status(page)
        search(page, RED)
        assert "This gallery is empty" in status(page)
    other = Gallery.open(tmp_path / "empty")  # its model has no name, so that it cannot be loaded again
    with running_server(other) as (host, port):
        page = open_page(f"http://{host}:{port}", may_fail=True)
        search(page, RED)
        assert "made by a model of no name" in status(page)


def test_a_token_and_a_purpose_are_asked_for(open_page, tmp_path):
    gallery = tiny_gallery(tmp_path, count=4)
    gallery.audit.switch(True)
    with running_server(gallery, token=TOKEN) as (host, port):
        page = open_page(f"http://{host}:{port}", may_fail=True)
        assert page.url.endswith("/login")
        page.fill("[name=token]", TOKEN)
        page.press("[name=token]", "Enter")
        page.wait_for_selector("#search")
        page.fill("[name=texts] >> nth=0", RED)
        page.press("[name=texts] >> nth=0", "Enter")
        assert page.eval_on_selector("[name=purpose]", "field => field.validity.valueMissing")
        search(page, RED, purpose="a lost child")
        assert len(shown(page)) == 4
    assert "a lost child" in open(gallery.audit.path, encoding="utf-8").read()
