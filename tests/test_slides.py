"""The slides: built from the notebooks, then every slide of every deck in a browser that can open nothing but their own files."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import slides  # noqa: E402

LESSONS = sorted((ROOT / "notebooks").glob("0[0-6]_*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of the decks."""
    folder = tmp_path_factory.mktemp("slides")
    slides.write_slides(folder)
    return folder


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return request.param


def deck(folder, lesson):
    return folder / f"{lesson.stem}.slides.html"


def taught(lesson):
    """The cells of a notebook without its exercises and quiz. A cell with headings inside is split there."""
    shown = True
    for cell in nbformat.read(lesson, as_version=4).cells:
        parts = re.split(r"^(?=##? )", cell.source, flags=re.MULTILINE) if cell.cell_type == "markdown" else [cell.source]
        for part in filter(None, parts):
            if cell.cell_type == "markdown" and (heading := re.match("##? (.*)", part)):
                shown = heading[1] not in ("Exercises", "Quiz")
            if shown:
                yield nbformat.from_dict({**cell, "source": part})


# ---- without a browser ----


def test_the_list_leads_to_every_deck(folder):
    links = BeautifulSoup((folder / "index.html").read_bytes(), "html.parser").find_all("a")
    assert [link["href"] for link in links] == [f"{lesson.stem}.slides.html" for lesson in LESSONS]
    assert all((folder / link["href"]).is_file() for link in links) and len(LESSONS) == 7


def test_a_deck_has_what_the_notebook_teaches(folder, lesson):
    soup = BeautifulSoup(deck(folder, lesson).read_bytes(), "html.parser")
    source = "\n".join(cell.source for cell in taught(lesson) if cell.cell_type == "markdown")
    kinds = [section["data-kind"] for section in soup.select("section > section")]
    assert kinds.count("question") == len(re.findall(r"^\*\*Before you", source, re.MULTILINE)) > 0
    assert kinds.count("answer") >= source.count("<summary>Answer</summary>") > 0
    pictures = [output.metadata["image/png"]["alt"] for cell in taught(lesson) for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})]  # fmt: skip
    assert [picture["alt"] for picture in soup.find_all("img")] == pictures
    assert {heading.text for heading in soup.find_all("h2")} >= {"You will be able to", "What to remember", "Where to go next"}
    assert 10 <= len(kinds) <= 60


def test_exercises_are_left_out(folder, lesson):
    text = BeautifulSoup(deck(folder, lesson).read_bytes(), "html.parser").get_text()
    assert not re.search(r"●○|not attempted|How to use these notebooks", text)


def test_what_is_too_long_for_a_slide_is_left_to_the_speaker(folder, lesson):
    soup = BeautifulSoup(deck(folder, lesson).read_bytes(), "html.parser")
    assert len(soup.select("aside.notes")) > 3
    for section in soup.select("section > section"):
        for other in section.select("aside, pre, table, h1, h2"):
            other.extract()
        assert len(re.sub(r"\$+[^$]+\$+", "x", section.get_text()).split()) <= 95


def words(text):
    """The words of a text without its formulas, with a space around each."""
    return f" {' '.join(re.findall('[A-Za-z0-9]+', re.sub(r'[$]+[^$]+[$]+', ' ', text)))} "


def test_nothing_that_is_taught_is_lost(folder, lesson):
    soup = BeautifulSoup(deck(folder, lesson).read_bytes(), "html.parser")
    found = words(soup.find("main").get_text(" "))
    for cell in taught(lesson):
        for paragraph in cell.source.split("\n\n") * (cell.cell_type == "markdown"):
            plain = re.sub(r"\]\([^)]*\)|<[^>]*>|^#+ ", "", paragraph)
            if not re.match(r"\W*(Takes|Builds on|How to use|Before you)", plain):
                assert words(plain).strip()[-40:] in found, paragraph


def test_a_result_stands_between_a_question_and_its_answer(folder, lesson):
    soup = BeautifulSoup(deck(folder, lesson).read_bytes(), "html.parser")
    asked = result = False
    for section in soup.select("section > section"):
        if section["data-kind"] == "answer":
            assert result or not asked
            asked = False
        elif section["data-kind"] == "question":
            asked, result = section.h3.text != "Before you read on", False  # which the text itself answers
        else:
            result = result or bool(section.select("pre.printed, img"))


# ---- in a browser ----

# What is wrong with the slide that is shown, in a window of its size.
LOOK = r"""() => {
  const slide = Reveal.getCurrentSlide(), wrong = [];
  const wish = (good, what, element) => good || wrong.push(`${what}: ${element.outerHTML.slice(0, 200)}`);
  for (const element of slide.querySelectorAll("h1, h2, h3, p, li, table, pre, code, kbd, img, mjx-container svg")) {
    if (element.closest("aside")) continue;
    const box = element.getBoundingClientRect(), size = parseFloat(getComputedStyle(element).fontSize);
    wish(box.width > 0 && box.left >= 0 && box.top >= 0 && box.right <= 1280 && box.bottom <= 720, "outside of the window", element);
    if (element.matches("img")) {
      const width = Math.min(box.width, box.height * element.naturalWidth / element.naturalHeight);
      wish(width >= 1280 / 3, "small", element);
      wish(element.alt.length > 20, "no alternative text", element);
    } else if (element.matches("h1, h2, h3, p, li, table")) wish(size >= 28, "small letters", element);
    else wish(size >= 20, "small letters", element);
  }
  for (const bad of slide.querySelectorAll("[data-mml-node=merror]")) wish(false, "no formula", bad);
  const walker = document.createTreeWalker(slide, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const about = walker.currentNode.parentElement;
    if (!about.closest("pre, code")) wish(!/[$\\]/.test(walker.currentNode.data), "not made a formula", about);
  }
  wish(slide.textContent.trim() || slide.querySelector("img"), "empty", slide);
  return wrong;
}"""


@pytest.fixture
def opened(browser, folder):
    """`opened(lesson)`: a deck in a window as large as a slide. Fails if the page says anything, or asks for anything else."""
    pages = []

    def build(lesson):
        page, noise = browser.new_page(viewport={"width": 1280, "height": 720}), []
        address = folder.as_uri()
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(address) else route.abort())
        page.on("requestfailed", lambda request: noise.append(f"{request.url}: {request.failure}"))
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        pages.append((page, noise))
        page.goto(deck(folder, lesson).as_uri())
        page.wait_for_function("window.Reveal?.isReady()")
        return page

    yield build
    for page, noise in pages:
        page.close()
        assert noise == []


def test_every_slide_can_be_read_from_the_last_row(opened, lesson):
    page = opened(lesson)
    count = page.evaluate("Reveal.getTotalSlides()")
    for number in range(1, count + 1):
        assert page.locator(".slide-number").inner_text().split() == [str(number), "/", str(count)]
        assert page.evaluate(LOOK) == [], f"slide {number}"
        page.keyboard.press("ArrowRight")
    assert page.evaluate("Reveal.isLastSlide()")
    formulas = page.locator("section mjx-container").count()
    assert (formulas > 0) == any("$" in cell.source for cell in taught(lesson) if cell.cell_type == "markdown")


def test_the_speaker_sees_the_notes(opened):
    page = opened(LESSONS[3])
    while not (notes := page.evaluate("Reveal.getCurrentSlide().querySelector('aside.notes')?.textContent.trim()")):
        page.keyboard.press("ArrowRight")
    with page.expect_popup() as popup:
        page.keyboard.press("s")
    popup.value.wait_for_function(
        "(notes) => document.querySelector('.speaker-controls-notes .value')?.textContent.trim() === notes", arg=notes
    )
