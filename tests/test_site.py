"""The web site: built by `make site`, then every page in a browser that can ask nobody but the site's own server for anything."""

import http.server
import posixpath
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from filelock import FileLock

import memgpt_lite as ml

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
SOURCES = [
    *NOTEBOOKS,
    *(path for folder in ("notebooks/*", "memgpt_lite/**/README", "benchmarks/*") for path in sorted(ROOT.glob(f"{folder}.md"))),
]
PAGES = ["index.html", *(path.relative_to(ROOT).with_suffix(".html").as_posix() for path in SOURCES), "search.html"]


def run(*command):
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def once(tmp_path_factory, worker_id, name, build):
    """The folder `name` that `build(folder)` fills, once for all the processes that run these tests."""
    base = tmp_path_factory.getbasetemp()
    around = (base if worker_id == "master" else base.parent) / name
    folder, done = around / "memgpt_lite", around / "done"  # on GitHub Pages, too, a site is not at the top of its host
    around.mkdir(exist_ok=True)
    with FileLock(around / "lock"):
        if not done.exists():
            build(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """The folder of the site."""
    if not shutil.which("make"):
        pytest.skip("no `make`, which builds the site")
    here = Path(sys.executable).parent
    return once(
        tmp_path_factory,
        worker_id,
        "site",
        lambda folder: run("make", "-o", ".venv/ready", "site", f"BIN={here}", f"SITE={folder}"),
    )


@pytest.fixture(scope="session")
def small_site(tmp_path_factory, worker_id):
    """A site with one notebook, which has two explorers: one of the recall model, and one of a text that attacks the page."""

    def build(folder):
        ids, _ = ml.tasks.AssociativeRecall(num_segments=4).batch(1, torch.Generator().manual_seed(3))
        trace = ml.trace(ml.load_pretrained("recall"), ids[0], decode=ml.tasks.decode)
        hostile = replace(trace, tokens=["</script><script>alert(1)</script><img src=x onerror=alert(2)>"] * len(trace.tokens))
        cells = [nbformat.v4.new_markdown_cell("# 00 · Explorers\n\nTwo.\n\n## A part")]
        for explorer in (ml.MemoryExplorer(trace, title="A text"), ml.MemoryExplorer(hostile, title="Another text", step=2)):
            data, metadata = explorer._repr_mimebundle_()
            del data["application/vnd.jupyter.widget-view+json"]  # as notebooks/execute.py does
            output = nbformat.v4.new_output("display_data", data, metadata=metadata)
            cells.append(nbformat.v4.new_code_cell("explorer", outputs=[output], execution_count=1))
        source = folder.parent / "source"
        for name in ("README.md", "benchmarks/README.md", "memgpt_lite/data/README.md"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(f"# {name}\n")
        (source / "notebooks").mkdir()
        python = {"language_info": {"name": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=python), source / "notebooks" / "00_explorers.ipynb")
        run(sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--conf-dir", "docs", source, folder)

    return once(tmp_path_factory, worker_id, "small_site", build)


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *about):
        pass


@pytest.fixture
def visit(browser):
    """`visit(folder, page)`: a page in a browser. Fails if it said anything, asked for what is not there, or asked anybody else."""
    opened = []

    def build(folder, name, width=1300, **options):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder.parent))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{folder.name}/"
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page, noise = context.new_page(), []
        context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(address) else route.abort())
        context.on("requestfailed", lambda request: noise.append(f"{request.url}: {request.failure}"))
        context.on(
            "response", lambda response: noise.append(f"{response.url}: {response.status}") if response.status >= 400 else None
        )
        page.on("console", lambda message: noise.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
        opened.append((server, context, page, noise))
        page.goto(address + name)
        page.wait_for_load_state("networkidle")
        if options.get("java_script_enabled", True):
            page.evaluate("window.MathJax?.startup.promise.then(() => 0)")
            for explorer in range(page.locator("script[type='application/json']").count()):
                page.locator(".mgx-help").nth(explorer).wait_for(state="attached")
        return page

    yield build
    for server, context, page, noise in opened:
        page.wait_for_load_state("networkidle")
        context.close()
        server.shutdown()
        server.server_close()
        assert noise == []


def step_of(explorer):
    return int(explorer.get_by_role("slider").input_value())


# ---- without a browser ----


@pytest.fixture(scope="module")
def soups(site):
    """Every page of the site, parsed: {its path: soup}."""
    return {path.relative_to(site).as_posix(): BeautifulSoup(path.read_bytes(), "html.parser") for path in site.rglob("*.html")}


def test_no_page_is_untested(site, soups):
    assert soups.keys() == {*PAGES, "README.html"}
    assert (site / "README.html").read_bytes() == (site / "index.html").read_bytes()


def test_no_link_is_dead(site, soups):
    ids = {page: {element["id"] for element in soup.find_all(id=True)} for page, soup in soups.items()}
    count = 0
    for page, soup in soups.items():
        for element in soup.find_all(href=True) + soup.find_all(src=True):
            link = urlsplit(element.get("href") or element["src"])
            if link.scheme:
                assert element.name == "a" and link.scheme == "https", f"{page} loads {element}"
                continue
            path = (site / page).parent / unquote(link.path) if link.path else site / page
            assert path.is_file() and site in path.resolve().parents, f"{page}: {element}"
            if link.fragment and path.suffix == ".html":
                assert unquote(link.fragment) in ids[path.resolve().relative_to(site).as_posix()], f"{page}: {element}"
            count += 1
    assert count > 500


def test_every_picture_has_alternative_text(soups):
    pictures = [(page, picture) for page, soup in soups.items() for picture in soup.find_all("img")]
    for page, picture in pictures:
        assert len(picture.get("alt", "")) > 20 and not picture["alt"].endswith(".png"), f"{page}: {picture}"
    shown = sum("image/png" in output.get("data", {}) for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells
                for output in cell.get("outputs", []))  # fmt: skip
    assert sum(page.startswith("notebooks/") for page, _ in pictures) >= shown > 30


def test_every_notebook_can_be_downloaded(site, soups):
    for path in NOTEBOOKS:
        page = f"notebooks/{path.stem}.html"
        (link,) = soups[page].find_all("a", string="Download this notebook")
        assert ((site / page).parent / link["href"]).read_bytes() == path.read_bytes()


def test_next_and_previous_lead_through_all_pages(soups):
    def follow(page, which):
        return posixpath.normpath(posixpath.join(posixpath.dirname(page), soups[page].find("a", class_=which)["href"]))

    first, *others = ["README.html", *PAGES[1:-1]]
    reached = [first]
    for _ in others:
        reached.append(follow(reached[-1], "next-page"))
        assert follow(reached[-1], "prev-page") == reached[-2]
    assert len(reached) == len(set(reached)) and sorted(reached) == sorted([first, *others])
    assert reached[1 : 1 + len(NOTEBOOKS)] == [f"notebooks/{path.stem}.html" for path in NOTEBOOKS]


# ---- in a browser ----

# A page has thousands of coloured words of code, and axe takes a millisecond for each. Those alike in colour are alike to it: one stays.
FEWER_WORDS = """() => {
  const seen = new Set();
  for (const word of document.querySelectorAll("pre span")) {
    const kind = [word, word.closest("details, .cell_input, .cell_output"), word.closest("pre").parentElement].map((one) => one?.className);
    if (seen.has(kind.join())) word.replaceWith(word.textContent);
    seen.add(kind.join());
  }
}"""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme, width", [("light", 1300), ("dark", 390)])
def test_page(visit, site, name, scheme, width):
    axe = Axe()
    page = visit(site, name, width, color_scheme=scheme)
    assert page.locator("h1").count() == 1 and page.locator("h1").is_visible()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part < 60)")
    assert dark == (scheme == "dark")
    pictures = page.locator("article img:not([hidden])").all()
    assert all(picture.evaluate("(picture) => picture.complete && picture.naturalWidth > 0") for picture in pictures)

    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    formulas = page.locator(".math").count()
    assert page.locator(".math > mjx-container").count() == formulas and page.locator("mjx-merror").count() == 0
    loaded = page.evaluate(
        "document.fonts.ready.then((all) => [...all].filter((font) => font.family.startsWith('MJX') && font.status === 'loaded').length)"
    )
    assert (loaded > 0) == (formulas > 0)

    explorers = page.locator(".mgx")
    assert explorers.count() == page.locator("script.explorer").count()
    for explorer in explorers.all():
        before = step_of(explorer)
        explorer.get_by_role("button", name="First segment").press("l")
        assert step_of(explorer) > before or explorer.get_by_role("slider").get_attribute("max") == str(before)

    widths = "[document.documentElement, document.querySelector('.content')].map((one) => one.scrollWidth - one.clientWidth)"
    assert page.evaluate(widths) == [0, 0]
    page.evaluate(FEWER_WORDS)
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_search(visit, site):
    page = visit(site, "index.html")
    page.get_by_role("textbox", name="Search").fill("sparsemax")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.wait_for_load_state("networkidle")
    page.locator("#search-results a", has_text="Memory update").first.click()
    page.wait_for_url("**/notebooks/04_memory_update.html*")
    assert "Memory update" in page.locator("h1").inner_text()


def test_a_notebook_is_downloaded_under_its_name(visit, site):
    page = visit(site, f"notebooks/{NOTEBOOKS[0].stem}.html")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download this notebook").click()
    assert download.value.suggested_filename == NOTEBOOKS[0].name
    assert Path(download.value.path()).read_bytes() == NOTEBOOKS[0].read_bytes()


@pytest.mark.parametrize(
    "name, bar", [("Toggle site navigation sidebar", ".sidebar-drawer"), ("Toggle table of contents sidebar", ".toc-drawer")]
)
def test_the_side_bars_open_by_keyboard_on_a_narrow_screen(visit, site, name, bar):
    page = visit(site, "index.html", 390)
    bar, button = page.locator(bar), page.get_by_role("button", name=name).locator("visible=true")
    assert not bar.is_visible()
    button.press("Enter")
    assert bar.is_visible() and bar.evaluate("(bar) => bar.contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert not bar.is_visible() and button.evaluate("(button) => button === document.activeElement")


def test_explorers_step_by_keyboard_and_by_mouse(visit, small_site):
    page = visit(small_site, "notebooks/00_explorers.html")
    one, other = page.locator(".mgx").all()
    assert [step_of(one), step_of(other)] == [0, 2]
    assert page.locator(".mgx h3").all_inner_texts() == ["A text", "Another text"]  # below the part's own heading
    assert page.locator("article img").count() == 2 and not page.locator("article img").first.is_visible()
    one.get_by_role("button", name="Next segment").click()
    page.keyboard.press(".")
    assert [step_of(one), step_of(other)] == [2, 2]  # where the focus is
    other.locator(".mgx-token").first.press("f")
    assert [step_of(one), step_of(other)] == [2, 0]
    page.locator("h1").click()
    page.keyboard.press(".")
    assert [step_of(one), step_of(other)] == [2, 0]  # and nowhere else
    assert other.locator(".mgx-token bdi").first.text_content().startswith("</script><script>")


@pytest.mark.parametrize("system", ["light", "dark"])
def test_explorers_follow_the_pages_light_and_dark(visit, small_site, system):
    page = visit(small_site, "notebooks/00_explorers.html", color_scheme=system)
    toggle, seen = page.get_by_role("button", name="Toggle Light / Dark / Auto").locator("visible=true"), set()
    for _ in range(3):
        theme = page.evaluate("document.body.dataset.theme")
        colour = {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 28)"}[system if theme == "auto" else theme]
        page.wait_for_function(
            "(colour) => getComputedStyle(document.querySelector('.mgx')).backgroundColor === colour", arg=colour
        )
        seen.add(theme)
        toggle.click()
    assert seen == {"auto", "light", "dark"}


@pytest.mark.parametrize("scheme, width", [("light", 1300), ("dark", 390)])
def test_axe_finds_nothing_in_a_page_with_explorers(visit, small_site, scheme, width):
    axe = Axe()
    page = visit(small_site, "notebooks/00_explorers.html", width, color_scheme=scheme)
    assert page.evaluate("document.querySelector('.content').scrollWidth") <= width
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_without_javascript_pictures_stand(visit, small_site):
    page = visit(small_site, "notebooks/00_explorers.html", java_script_enabled=False)
    assert page.locator(".mgx").count() == 0
    for picture in page.locator("article img").all():
        assert picture.is_visible() and len(picture.get_attribute("alt")) > 20
