"""In JupyterLab as a reader opens it, with a mouse and with a keyboard: the slider, the explorer and the lab."""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from jupyter_client.connect import LocalPortCache
from playwright import sync_api

import memgpt_lite as ml
from memgpt_lite.viz.lab import TEXTS

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
WAIT = 180  # seconds: kernels start slowly on two busy cores
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # else only cells in sight are in the page
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
STEPS = [
    """import torch

import memgpt_lite as ml

ml.setup(seed=0)
model = ml.load_pretrained("recall")
ids = ml.tasks.AssociativeRecall(num_segments=4).batch(1, torch.Generator().manual_seed(0)).input_ids[0]
explorer = ml.MemoryExplorer(ml.trace(model, ids, decode=ml.tasks.decode))
explorer""",
    'print("step", explorer.step)',
    """lab = ml.MemoryLab(model)
lab.read_on("A", None), lab.read_on("B", None)
lab""",
    'print("cleared", [slot for slot in range(16) if lab.readings["A"].shares[slot, 0] == 1])',
]
ERROR = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"
expect = sync_api.expect


def plain(path, sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """A JupyterLab of its own on a copy of the notebooks: where it is and its token. It ends with its kernels."""
    home = tmp_path_factory.mktemp("jupyter")
    root = home / "notebooks"
    shutil.copytree(NOTEBOOKS, root)
    start = nbformat.read(root / "00_start_here.ipynb", as_version=4)
    for cell in start.cells:  # what stands there afterwards then comes from this run
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(start, root / "00_start_here.ipynb")
    plain(root / "widgets.ipynb", STEPS)
    for plugin, settings in SETTINGS.items():
        package, _, name = plugin.partition(":")
        path = home / "config" / "lab" / "user-settings" / package / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))

    here = Path(sys.executable).parent
    port = LocalPortCache.instance().find_available_port("127.0.0.1")  # as kernels get theirs: conftest.py
    token = secrets.token_hex(16)
    nowhere = "http://127.0.0.1:9"  # for a server that would ask the network
    environment = os.environ | {
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "IPYTHONDIR": str(home / "ipython"), "OMP_NUM_THREADS": "1",
        "http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": "127.0.0.1,localhost", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    options = [
        "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")  # in a container; a token is asked for all the same
    url = f"http://127.0.0.1:{port}"
    with open(home / "log", "w") as log:
        process = subprocess.Popen([here / "jupyter", "lab", *options], env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(f"{url}/api/status?token={token}", process, home / "log")
            yield SimpleNamespace(url=url, token=token, root=root)
        finally:
            process.terminate()  # its kernels end with it
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()  # a kernel ends when it finds its parent gone
                process.wait()


def wait_for(url, process, log):
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    for _ in range(4 * WAIT):
        try:
            return ask(url, timeout=10)
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.25)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture
def open_notebook(browser, server, request):
    """`open_notebook(name)`: it in JupyterLab, all cells run. Fails if the browser's console had an error, or a page asked the network."""
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    context.set_default_timeout(1000 * WAIT)
    noise = []

    def here(url):
        return url.startswith((server.url, server.url.replace("http", "ws", 1), "data:", "blob:", "about:"))

    def build(name):
        page = context.new_page()
        context.route(lambda url: not here(url), lambda route: (noise.append(route.request.url), route.abort()))
        page.on("websocket", lambda socket: None if here(socket.url) else noise.append(socket.url))
        page.on("console", lambda message: noise.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.goto(f"{server.url}/lab/workspaces/{request.node.name}/tree/{name}?token={server.token}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.get_by_text(re.compile(r"^Python 3 .*\| Idle$")).wait_for()  # the kernel is there
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        cells = nbformat.read(server.root / name, as_version=4).cells
        have_code = [bool(cell.source.strip()) for cell in cells if cell.cell_type == "code"]
        page.wait_for_function(
            """([haveCode, error]) => document.querySelector(error) || haveCode.every((has, i) => !has ||
            /\\[\\d+\\]/.test(document.querySelectorAll(".jp-CodeCell .jp-InputArea-prompt")[i]?.textContent))""",
            arg=[have_code, ERROR],
        )
        assert page.locator(ERROR).all_inner_texts() == []
        return page

    yield build
    context.close()
    assert noise == []


def python_says(page, cell, text):
    """Runs a cell until its output is that: what the browser does reaches the kernel a little later."""
    code = page.locator(".jp-Notebook .jp-CodeCell").nth(cell)
    prompt, output = code.locator(".jp-InputArea-prompt"), code.locator(".jp-OutputArea-output")
    for _ in range(20):
        before = prompt.inner_text()
        code.locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        expect(prompt).not_to_have_text(before, timeout=1000 * WAIT)
        expect(prompt).to_have_text(re.compile(r"\[\d+\]:"), timeout=1000 * WAIT)
        if output.inner_text().strip() == text:
            return
    pytest.fail(f"cell {cell} says {output.inner_text()!r}, not {text!r}")


def violations(page, selector):
    """What axe finds inside: names of rules and what breaks them."""
    found = Axe().run(
        page, context=selector, options={"rules": {"color-contrast": {"enabled": False}}}
    )  # JupyterLab's own colours
    return [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found.response["violations"]]


def go_to(page, label, key="Tab"):
    """Moves the keyboard's focus until it is at the button or box that says so."""
    for _ in range(80):
        page.keyboard.press(key)
        if page.evaluate("(document.activeElement.labels?.[0] ?? document.activeElement).textContent") == label:
            return
    pytest.fail(f"no {key} leads to {label}")


def step_through(page, explorer, last):
    """By mouse and by keyboard, and back to segment 1."""
    step = explorer.get_by_role("slider", name="segment")
    said = explorer.get_by_role("status")

    def stands_at(number):
        expect(step).to_have_value(str(number), timeout=1000 * WAIT)
        expect(said).to_contain_text(f"Segment {number} ", timeout=1000 * WAIT)

    following = explorer.get_by_role("button", name="Next segment")
    following.scroll_into_view_if_needed()
    expect(step).to_have_value("0")
    following.click()
    stands_at(1)
    page.keyboard.press(".")
    stands_at(2)
    page.keyboard.press("l")
    stands_at(last)
    for number in range(last - 1, 0, -1):
        page.keyboard.press(",")
        stands_at(number)


def test_the_first_notebook(open_notebook):
    page = open_notebook("00_start_here.ipynb")
    cell = page.locator(".jp-CodeCell").filter(has=page.locator("output"))
    picture, range_ = cell.locator(".widget-html img"), cell.get_by_role("slider", name="segment")
    range_.scroll_into_view_if_needed()
    told = picture.get_attribute("alt")
    assert "After the segment “facts”" in told and "“Paris”" in told

    def shows(stop):
        expect(picture).to_have_attribute("alt", re.compile(f"After the segment “{stop}”"), timeout=1000 * WAIT)
        expect(cell.locator("output")).to_have_text(stop)
        expect(range_).to_have_attribute("aria-valuetext", stop)

    range_.click()  # in its middle
    shows("noise 10")
    for key, stop in (("ArrowRight", "noise 100"), ("ArrowUp", "noise 1,000"), ("ArrowLeft", "noise 100")):
        page.keyboard.press(key)
        shows(stop)
    assert violations(page, ".jp-OutputArea-output:has(output)") == []
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 300

    source = (NOTEBOOKS / "00_start_here.ipynb").read_text("utf-8")
    explorers = page.locator(".jp-OutputArea-output .mgx")
    expect(explorers).to_have_count(len(re.findall(r"ml\.MemoryExplorer\(", source)), timeout=1000 * WAIT)
    for explorer in explorers.all():
        step_through(page, explorer, int(explorer.get_by_role("slider", name="segment").get_attribute("max")))


def test_the_explorer(open_notebook):
    page = open_notebook("widgets.ipynb")
    explorer = page.locator(".mgx")
    expect(explorer.locator(".mgx-slot")).to_have_count(16, timeout=1000 * WAIT)
    python_says(page, 1, "step 0")
    step_through(page, explorer, 3)
    python_says(page, 1, "step 1")
    explorer.get_by_role("button", name="Next segment").click()
    python_says(page, 1, "step 2")


def test_the_lab(open_notebook):
    model = ml.load_pretrained("recall")
    told = [
        ml.Reading.start(model, torch.tensor(ml.tasks.encode(text)), ml.tasks.decode).read_on() for text in (*TEXTS.values(),)[:2]
    ]

    def answers_to(name):
        return [ml.tasks.decode([reading.predict(torch.tensor(ml.tasks.encode(name))).argmax().item()]) for reading in told]

    known = answers_to("Ada")
    holders = torch.nonzero(told[0].share_of(known[0]) > 0.5).flatten().tolist()
    assert len(holders) > 2  # too many for a swap, below
    first, *others = holders
    page = open_notebook("widgets.ipynb")
    answers = page.locator("[role=status] .mgl-next > div:first-child")
    boxes = page.get_by_role("checkbox", name=re.compile("^[AB] slot"))

    def says(*words):
        expect(answers).to_have_text([re.compile(word) for word in words], timeout=1000 * WAIT)

    def are_chosen(*slots):
        checked = page.get_by_role("checkbox", name=re.compile("^[AB] slot"), checked=True)
        expect(checked).to_have_count(len(slots), timeout=1000 * WAIT)
        for slot in slots:
            expect(page.get_by_role("checkbox", name=f"A slot {slot}", exact=True)).to_be_checked()

    known, forgotten = [f"^{word}$" for word in known], [f"^(?!{known[0]})[A-Z]", f"^{known[1]}$"]
    says(*known)
    python_says(page, 3, "cleared []")
    page.get_by_role("button", name="holders").first.click()
    are_chosen(*holders)
    page.get_by_role("button", name="Clear", exact=True).click()
    says(*forgotten)
    python_says(page, 3, f"cleared {holders}")
    page.get_by_role("button", name="Undo", exact=True).click()
    says(*known)

    # the same without a mouse; first, they are too many for a swap
    for j in others:
        page.get_by_role("checkbox", name=f"A slot {j}", exact=True).click()
    are_chosen(first)
    page.get_by_role("textbox", name="question").focus()
    go_to(page, "holders")
    page.keyboard.press("Enter")
    are_chosen(*holders)
    go_to(page, "Swap", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(
        f"a swap takes two slots, and {len(holders)} are chosen", timeout=1000 * WAIT
    )
    go_to(page, "Clear", "Shift+Tab")
    page.keyboard.press("Space")
    says(*forgotten)
    expect(page.get_by_role("alert")).to_have_count(0, timeout=1000 * WAIT)
    go_to(page, "Undo")
    page.keyboard.press("Enter")
    says(*known)
    go_to(page, f"A slot {first}")
    page.keyboard.press("Space")
    are_chosen(*others)

    # what a screen reader is told, and that there is room for the longest label
    assert boxes.count() == 32 and page.get_by_role("textbox", name="words of B").count() == 1
    regions = page.get_by_role("status").filter(has_text=re.compile("Memory [AB] says")).element_handles()
    page.get_by_role("checkbox", name="B slot 15", exact=True).check()
    page.get_by_role("button", name="Freeze", exact=True).click()
    frozen = page.get_by_role("checkbox", name="B slot 15 frozen", exact=True)
    expect(frozen).to_be_checked(timeout=1000 * WAIT)
    assert frozen.locator("xpath=ancestor::div[1]").evaluate("box => box.scrollWidth <= box.clientWidth")
    assert violations(page, ".jp-OutputArea-output:has(.mgl)") == []

    question = page.get_by_role("textbox", name="question")
    question.fill("Gus")
    question.press("Enter")
    says(*(f"^{word}$" for word in answers_to("Gus")))
    assert all(region.is_visible() and "after “Gus”" in region.inner_text() for region in regions)  # the same elements as before
