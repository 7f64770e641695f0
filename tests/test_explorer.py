import json
import re
import zlib
from base64 import b64decode
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import traitlets
from axe_playwright_python.sync_playwright import Axe

import memgpt_lite as ml
from memgpt_lite.viz import explorer, figures

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "\"'`&lt;", "שלום עולם", "👩‍👩‍👧‍👦", "a\0b", "x" * 5000, "", "\n", "‮abc",
    "<!--", "]]>", "\u2028", "\ud800", " leading", "${alert(3)}",
    "\u3000", "\u3164", "\U000e0001", "♥\ufe0f",
]  # fmt: skip
SHOWN = {  # as the page shows it
    "a\0b": "a␀b", "": "∅", "\n": "↵", "‮abc": "⟨U+202E⟩abc", "\u2028": "⟨U+2028⟩", "\ud800": "?", "\u3000": "⟨U+3000⟩", "\u3164": "⟨U+3164⟩", "\U000e0001": "⟨U+E0001⟩", " leading": "·leading", "שלום עולם": "שלום·עולם",
    "<img src=x onerror=alert(2)>": "<img·src=x·onerror=alert(2)>",
}  # fmt: skip


@pytest.fixture(scope="module")
def recall():
    """32 segments of easy recall, read by the model that comes with the package."""
    torch.set_num_threads(1)
    ids, labels = ml.tasks.AssociativeRecall(num_segments=32).batch(1, torch.Generator().manual_seed(3))
    return ml.trace(ml.load_pretrained("recall"), ids[0], decode=ml.tasks.decode, labels=labels[0])


@pytest.fixture(scope="module")
def mixing():
    """A model with random weights, in which every segment changes every slot; the last segment is short."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 66, "segment_length": 8, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_memory_slots": 4}
    model = ml.MemGPT(ml.MemGPTConfig(**sizes, initializer_range=0.5))
    return ml.trace(model, torch.randint(66, (38,)), decode=ml.tasks.decode, keep=3)


@pytest.fixture
def show(browser, tmp_path):
    """`show(explorer)`: the exported file in a browser without a network. Fails if the page said or asked for anything."""
    opened = []

    def build(widget, **options):
        path = widget.to_html(tmp_path / "explorer.html")
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        page = context.new_page()
        page.noise = []
        context.route("**/*", lambda route: route.continue_() if route.request.url == path.as_uri() else route.abort())
        page.on("request", lambda request: page.noise.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
        page.on("console", lambda message: page.noise.append(message.text) if "willReadFrequently" not in message.text else None)
        page.on("pageerror", lambda error: page.noise.append(str(error)))
        page.on("dialog", lambda dialog: (page.noise.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        page.wait_for_selector(".mgx-slot")
        opened.append((context, page))
        return page

    yield build
    for context, page in opened:
        noise = page.noise
        context.close()
        assert noise == []


def lines(page, selector):
    return page.locator(selector).evaluate_all("all => all.map((one) => one.textContent)")


def until(page, is_so):
    """Waits; Playwright's own way would evaluate a string inside the page, which the page's policy forbids."""
    for _ in range(400):
        if is_so():
            return
        page.wait_for_timeout(50)
    pytest.fail("waited for 20 seconds in vain")


def step_of(page):
    return int(page.get_by_role("slider").input_value())


def sentences(page, pane=0):
    return page.locator(".mgx-pane").nth(pane).locator(".mgx-slot").evaluate_all(
        "all => all.map((row) => `${row.children[0].textContent}: ${row.children[2].textContent}`)"
    )  # fmt: skip


def panel(page):
    """The panel's lists: title → [(name, what stands at its right)]."""
    return page.locator(".mgx-panel").first.evaluate(
        """(panel) => Object.fromEntries([...panel.querySelectorAll("ul")].map((list) => [list.previousSibling.textContent,
        [...list.children].map((item) => [item.children[0].textContent, item.children[2].textContent])]))"""
    )


def percent(share):
    share = float(share)
    return "over 99%" if 0.995 <= share < 1 else "under 1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"


def near(said, share):
    """Whether a percentage that the page says is a share, which the payload rounds to 1/255."""
    bounds = {"over 99%": (0.99, 1), "under 1%": (0, 0.01)}
    low, high = bounds.get(said) or (float(said[:-1]) / 100 - 0.0075, float(said[:-1]) / 100 + 0.0075)
    return low <= share <= high


# ---- Python's side ----


def test_payload_holds_the_trace(mixing):
    packed = ml.MemoryExplorer(mixing).payload["traces"][0]
    block = zlib.decompress(b64decode(packed["data"]))

    def array(name):
        where = packed["arrays"][name]
        assert where["offset"] % 4 == 0
        count = int(np.prod(where["shape"]))
        return np.frombuffer(block, where["type"], count, where["offset"]).reshape(where["shape"])

    words = np.array(packed["words"])
    assert words[array("tokens")].tolist() == mixing.tokens
    assert words[array("next")].tolist() == [[mixing.next_words[i] for i in row] for row in mixing.next_tokens.tolist()]
    np.testing.assert_array_equal(array("moved"), mixing.moved)
    np.testing.assert_array_equal(array("sources"), mixing.source_tokens)
    np.testing.assert_array_equal(array("entropy"), mixing.entropy)
    for name, levels, truth in (
        ("write", 65535, figures.written(mixing)), ("read", 255, mixing.read_attention), ("shares", 65535, mixing.source_shares),
        ("initial", 65535, mixing.initial_share), ("rest", 65535, mixing.rest_share), ("nextShares", 65535, mixing.next_probabilities),
    ):  # fmt: skip
        got = array(name)
        np.testing.assert_allclose(got / levels, truth.astype(np.float64), atol=1 / levels)
        np.testing.assert_array_equal(got == 0, truth == 0, err_msg=f"{name}: 0 stands for exactly 0")
        np.testing.assert_array_equal(got == levels, truth >= 1, err_msg=f"{name}: the greatest level stands for exactly 1")


def test_what_is_shown_can_be_set_and_observed(mixing):
    widget = ml.MemoryExplorer(mixing, step=2, title="A title")
    seen = []
    widget.observe(lambda change: seen.append((change["name"], change["new"])), names=["step", "layer", "head", "token", "slot"])
    for name, value in (("step", 4), ("layer", 1), ("head", 0), ("token", 37), ("slot", 3), ("token", None)):
        setattr(widget, name, value)
    assert seen == [("step", 4), ("layer", 1), ("head", 0), ("token", 37), ("slot", 3), ("token", None)]
    assert {"payload", "step", "layer", "head", "token", "slot"} <= set(widget.keys)  # those that go to the browser


@pytest.mark.parametrize("name, value, has", [("step", 5, "0 to 4"), ("step", -1, "0 to 4"), ("layer", 2, "0 to 1"), ("head", 2, "0 to 1"),
                                              ("token", 38, "0 to 37"), ("slot", 4, "0 to 3")])  # fmt: skip
def test_what_the_trace_lacks_cannot_be_shown(mixing, name, value, has):
    with pytest.raises(traitlets.TraitError, match=f"no {name} {value} here: choose one of {has}"):
        ml.MemoryExplorer(mixing, **{name: value})


@pytest.mark.parametrize("change, message", [
    ({"tokens": ["other"] * 38}, "agree in text"), ({"segment_length": 9}, "agree in segment length: 8 and 9"),
    ({"read_layers": [0, 2]}, r"agree in reading blocks: \[0, 1\] and \[0, 2\]"),
    ({"read_attention": np.zeros((2, 3, 38, 4), np.float16)}, "agree in number of heads: 2 and 3"),
])  # fmt: skip
def test_traces_that_do_not_fit_each_other(mixing, change, message):
    with pytest.raises(ValueError, match=message):
        ml.MemoryExplorer(mixing, replace(mixing, **change))


def test_every_trace_needs_a_name(mixing):
    with pytest.raises(ValueError, match="1 names were given for 2 traces: pass one for each"):
        ml.MemoryExplorer(mixing, mixing, names=("trained",))
    with pytest.raises(ValueError, match="0 names were given for 1 traces"):
        ml.MemoryExplorer(mixing, names=())
    with pytest.raises(ValueError, match="names is the one string 'ab': pass a name for each trace"):
        ml.MemoryExplorer(mixing, mixing, names="ab")
    assert ml.MemoryExplorer(mixing, names=("only",)).payload["names"] == ["only"]


def test_a_picture_and_a_text_stand_where_no_widget_runs(mixing):
    widget = ml.MemoryExplorer(mixing, title="A title", step=3)
    data, metadata = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data  # JupyterLab takes this first, as long as a kernel runs
    assert data["text/plain"].startswith(widget.in_words())
    for slot in range(4):
        assert mixing.in_words(slot, 4) in widget.in_words()
    assert "A title" in data["text/plain"] and "after segment 3" in data["text/plain"]
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    alt = metadata["image/png"]["alt"]
    assert alt == widget.picture().alt and "A title, after segment 3" in alt
    for slot in range(4):
        token, share = mixing.held(slot, 4)[0]
        assert f"slot {slot}: {percent(share)} “{mixing.tokens[token]}”" in alt
    state = json.loads(json.dumps(data[explorer.MIME]))
    assert state == {"payload": widget.payload, "step": 3, "layer": None, "head": None, "token": None, "slot": None}


def test_two_traces_stand_in_one_picture(mixing):
    other = replace(mixing, initial_share=mixing.initial_share * 0 + 1, source_shares=mixing.source_shares * 0)
    alt = ml.MemoryExplorer(mixing, other, names=("trained", "untrained"), step=2).picture().alt
    first, second = alt.split("untrained: ")
    token, share = mixing.held(1, 3)[0]
    assert "trained: " in first and f"slot 1: {percent(share)} “{mixing.tokens[token]}”" in first
    assert "slot 1: 100% its initial value" in second


def test_what_stays_in_an_executed_notebook(tmp_path):
    spec = spec_from_file_location("execute", Path(__file__).parent.parent / "notebooks" / "execute.py")
    execute = module_from_spec(spec)
    spec.loader.exec_module(execute)
    code = """import torch, memgpt_lite as ml
ml.setup(seed=0)
ids, _ = ml.tasks.AssociativeRecall(num_segments=4).batch(1, torch.Generator().manual_seed(3))
ml.MemoryExplorer(ml.trace(ml.load_pretrained("recall"), ids[0], decode=ml.tasks.decode))"""
    path = tmp_path / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), path)
    execute.execute(path)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    (output,) = [output for output in notebook.cells[0].outputs if "data" in output]
    assert set(output.data) == {"text/plain", "image/png", explorer.MIME}
    ids, _ = ml.tasks.AssociativeRecall(num_segments=4).batch(1, torch.Generator().manual_seed(3))
    trace = ml.trace(ml.load_pretrained("recall"), ids[0], decode=ml.tasks.decode)
    token, share = trace.held(0, 1)[0]
    assert f"What the slots hold: slot 0: {percent(share)} “{trace.tokens[token]}”" in output.metadata["image/png"]["alt"]
    state = json.dumps(output.data[explorer.MIME])
    assert len(state) < 10_000 and str(explorer.SCRIPT.parent) not in state and ".js" not in state


def test_the_file_is_small(tmp_path):
    """At the worst: random reading and writing, which deflate can do little about, and words of eight letters."""
    random, segments, length, slots, keep = np.random.default_rng(0), 32, 64, 16, 8
    T = segments * length
    shares = random.dirichlet(np.ones(keep + 2), (segments + 1, slots)).astype(np.float32)
    trace = ml.MemoryTrace(
        tokens=[f"token{i:03d}" for i in random.integers(0, 1000, T)], segment_length=length, read_layers=[0, 1], values_mix=True,
        memory=np.zeros((segments + 1, slots, 64), np.float16),
        write_attention=random.dirichlet(np.ones(1 + length), (segments, slots)).astype(np.float16),
        read_attention=random.dirichlet(np.ones(slots), (2, 2, T)).astype(np.float16),
        moved=random.random((segments, slots), np.float32),
        source_tokens=random.integers(0, T, (segments + 1, slots, keep)).astype(np.int32),
        source_shares=shares[..., :keep], initial_share=shares[..., keep], rest_share=shares[..., keep + 1],
        next_tokens=random.integers(0, 1000, (T, 5)).astype(np.int32), next_words={i: f"token{i:03d}" for i in range(1000)},
        next_probabilities=random.random((T, 5)).astype(np.float16), entropy=random.random(T, np.float32),
    )  # fmt: skip
    assert ml.MemoryExplorer(trace).to_html(tmp_path / "x.html").stat().st_size < 460_000
    sizes = {"vocab_size": 66, "segment_length": length, "n_embd": 64, "n_layer": 2, "n_head": 2, "num_memory_slots": slots}
    real = ml.trace(ml.MemGPT(ml.MemGPTConfig(**sizes)), torch.randint(66, (T,)), decode=ml.tasks.decode)
    assert ml.MemoryExplorer(real).to_html(tmp_path / "x.html").stat().st_size < 300_000


def test_the_script_can_stand_in_a_page():
    script = explorer.SCRIPT.read_text("utf-8")
    assert "</script" not in script.lower() and "<!--" not in script
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bfetch\b|import\s*[({]|https?://(?!www\.w3\.org/2000/svg)",
        script,
    )


# ---- in a browser ----


def test_every_step_says_what_the_trace_says(show, recall):
    page = show(ml.MemoryExplorer(recall, title="Recall"))
    assert page.title() == page.locator("h1").inner_text() == "Recall"
    following = page.get_by_role("button", name="Next segment")
    for step in range(32):
        assert step_of(page) == step
        assert sentences(page) == [recall.in_words(slot, step + 1) for slot in range(16)]
        assert lines(page, ".mgx-token bdi") == recall.tokens[16 * step : 16 * step + 16]
        moved = [text.startswith("moved") for text in lines(page, ".mgx-slot > :nth-child(4)")]
        assert moved == (recall.moved[step] > 0).tolist()
        following.dispatch_event("click")
    assert step_of(page) == 31 and following.get_attribute("aria-disabled") == "true"  # there is nothing further
    number = page.get_by_role("spinbutton")
    number.fill("7")
    number.press("Enter")
    assert step_of(page) == 7 and "Segment 7 changed nothing" in page.get_by_role("status").inner_text()
    page.get_by_text("Text before this segment").click()
    page.locator(".mgx-before mark").first.wait_for()
    held = sorted({token for slot in range(16) for token, _ in recall.held(slot, 8)})
    assert lines(page, ".mgx-before mark") == [recall.tokens[token] for token in held if token < 16 * 7] != []
    page.get_by_role("button", name="go to segment 5").click()
    assert step_of(page) == 5
    page.get_by_role("button", name="First segment").click()
    assert step_of(page) == 0 and "Segment 0 changed 16 slots of 16" in page.get_by_role("status").inner_text()


def test_a_slot_that_moved_is_not_said_to_keep_all_nor_to_take_from_a_token(show, tiny):
    """fifo: two tokens come into six slots, whose older ones move up; their keep is 1 all the same."""
    trace = ml.trace(tiny(update_rule="fifo", num_memory_slots=6), torch.arange(6), tokens=list("abcdef"))
    assert (trace.moved[1] > 0).all()
    page = show(ml.MemoryExplorer(trace, step=1))
    event = page.locator(".mgx-says").inner_text()
    assert event.startswith("Segment 1 changed 6 slots of 6: slot") and event.count("took 100% from") == 2
    assert "slot 0 took nothing from its tokens; and 3 more." in event
    page.get_by_text("The same facts as tables").click()
    page.locator("table").first.wait_for()
    kept = page.locator("table").first.locator("tbody tr td:nth-child(5)").all_inner_texts()
    assert "100%" not in kept and kept.count("over 99%") == 4


def test_the_strongest_token_is_named_however_near_the_next(show, mixing):
    write = np.zeros_like(mixing.write_attention)
    write[..., 0], write[..., 3], write[..., 5] = 0.9843, 0.0060, 0.0097
    page = show(ml.MemoryExplorer(replace(mixing, write_attention=write)))
    assert f"slot 0 took 1% from “{mixing.tokens[4]}”" in page.locator(".mgx-says").inner_text()


def test_pointing_at_a_token(show, recall, mixing):
    last = max(t for slot in range(4) for t, _ in mixing.held(slot, 5))
    told = {t for slot in range(16) for t, _ in recall.held(slot, 1)}
    asked = {t for slot in range(16) for t, _ in recall.held(slot, 32)} & set(range(16 * 31, 16 * 32))
    for trace, step, token, held in (
        (recall, 31, min(set(range(16 * 31, 16 * 32)) - asked), False),
        (recall, 31, min(asked), True),
        (recall, 0, min(told), True),
        (mixing, 4, last, True),
    ):
        page = show(ml.MemoryExplorer(trace, step=step))
        page.locator(".mgx-token").nth(token % trace.segment_length).hover()
        facts, M = panel(page), trace.moved.shape[1]
        holds = {m: s for m in range(M) for t, s in trace.held(m, step + 1) if t == token}
        assert bool(holds) == held
        if not held:
            assert "not among the" in page.locator(".mgx-panel").inner_text()
        else:
            assert facts["Slots that hold it now"] == [
                [f"slot {m}", percent(s)] for m, s in sorted(holds.items(), key=lambda i: -i[1])
            ]
        rows = page.locator(".mgx-slot.mgx-holds").evaluate_all("all => all.map((row) => Number(row.dataset.slot))")
        assert rows == sorted(holds)
        mean = trace.read_attention[:, :, token].astype(np.float64).mean((0, 1))
        read = facts["Read from (mean of layers, mean of heads)"]
        assert len(read) == min(3, M)
        assert all(near(said, mean[int(name.removeprefix("slot "))]) for name, said in read)
        np.testing.assert_allclose(
            sorted(mean[[int(name.removeprefix("slot ")) for name, _ in read]]), np.sort(mean)[-len(read) :], atol=4e-3
        )
        expected = facts["Expected next"]
        assert [name.removesuffix(" (came next)") for name, _ in expected] == [
            trace.next_words[i] for i in trace.next_tokens[token].tolist()
        ]
        assert [said for _, said in expected] == [percent(p) for p in trace.next_probabilities[token]]
        assert f"Entropy {trace.entropy[token]:.2f} nats" in page.locator(".mgx-panel").inner_text()
        page.mouse.move(5, 5)
        assert "Point at a token" in page.locator(".mgx-panel").inner_text()


def test_a_pinned_token_stays_while_stepping(show, mixing):
    page = show(ml.MemoryExplorer(mixing))
    page.locator(".mgx-token").nth(3).click()
    page.mouse.move(5, 5)
    held = set()
    for step in range(5):
        holds = {m: s for m in range(4) for t, s in mixing.held(m, step + 1) if t == 3}
        rows = page.locator(".mgx-slot.mgx-holds").evaluate_all("all => all.map((row) => Number(row.dataset.slot))")
        assert rows == sorted(holds)
        held |= set(holds)
        page.keyboard.press(".")
    assert held  # else nothing was tested
    page.get_by_role("button", name="go to segment 0").first.click()
    assert step_of(page) == 0
    page.keyboard.press("Escape")
    assert page.locator(".mgx-token[aria-selected=true]").count() == 0


def test_bars_show_the_shares(show, recall):
    page = show(ml.MemoryExplorer(recall, step=31))
    pixel = """(bar, share) => [...bar.getContext("2d").getImageData(Math.floor(share * bar.width), 2, 1, 1).data].join()"""
    colours = {}
    for slot in range(16):
        bar, left = page.locator(".mgx-bar").nth(slot), 0.0
        for token, share in recall.held(slot, 32):
            if share > 0.1:
                colours.setdefault(token, set()).update(bar.evaluate(pixel, left + share * at) for at in (0.15, 0.5, 0.85))
            left += share
    assert len(colours) > 3 and all(len(found) == 1 for found in colours.values())  # a token's colour is the same everywhere,
    assert len(set.union(*colours.values())) == len(colours)  # and no other's


def test_pointing_at_a_part_of_a_bar(show, recall):
    page = show(ml.MemoryExplorer(recall))
    mixed = next(slot for slot in range(16) if [share > 0.12 for _, share in recall.held(slot, 1)] == [True, True])
    bar = page.locator(".mgx-bar").nth(mixed)
    width, height = bar.bounding_box()["width"], bar.bounding_box()["height"]
    (first, share), (second, _) = recall.held(mixed, 1)
    before = bar.evaluate("bar => bar.toDataURL()")
    for token, at in ((first, share / 2), (second, (1 + share) / 2)):
        bar.hover(position={"x": at * width, "y": height / 2})
        facts = page.locator(".mgx-panel").inner_text()
        assert f"segment 0, position {token}." in facts and f"Slot {mixed}" in facts
        assert bar.evaluate("bar => bar.toDataURL()") != before  # a frame around the part
    bar.click(position={"x": 0.9 * width, "y": height / 2})
    assert page.locator(".mgx-slot[aria-selected=true]").get_attribute("data-slot") == str(mixed)
    assert page.locator(".mgx-token[aria-selected=true]").get_attribute("data-i") == str(second)


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_no_row_moves_from_under_the_pointer(show, recall, width):
    page = show(ml.MemoryExplorer(recall, step=31), viewport={"width": width, "height": 900})
    heights = "rows => rows.map(row => row.offsetHeight)"
    rows, before = page.locator(".mgx-slot"), page.locator(".mgx-slot").evaluate_all(heights)
    for slot in range(16):
        page.locator(".mgx-bar").nth(slot).hover(position={"x": 3, "y": 10})
        assert page.locator(".mgx-holds b").nth(0).is_visible()
        assert rows.evaluate_all(heights) == before


def test_a_token_says_aloud_what_holds_it(show, recall):
    slot = next(slot for slot in range(16) if len(recall.held(slot, 1)) > 1)
    page = show(ml.MemoryExplorer(recall, slot=slot))
    token, _ = recall.held(slot, 1)[1]
    holds = {m: dict(recall.held(m, 1)).get(token, 0) for m in range(16)}
    says = ", ".join(f"slot {m}: {percent(share)}" for m, share in holds.items() if share >= 0.1)
    name = f"{recall.tokens[token]}, {percent(holds[slot])} of slot {slot}, held by {says}"
    assert page.get_by_role("option", name=name, exact=True).get_attribute("data-i") == str(token)


def test_pointing_at_a_slot(show, mixing):
    page = show(ml.MemoryExplorer(mixing, step=4))
    for slot in range(4):
        page.locator(".mgx-slot > :first-child").nth(slot).hover()
        made = [[f"{mixing.tokens[t]} · segment {t // 8}", percent(share)] for t, share in mixing.held(slot, 5)]
        others = (("other tokens", mixing.rest_share[5, slot]), ("its initial value", mixing.initial_share[5, slot]))
        assert panel(page)["Made of"] == made + [[name, percent(share)] for name, share in others if share > 0]
        here = sorted(t % 8 for t, _ in mixing.held(slot, 5) if t >= 32)
        assert page.locator(".mgx-token.mgx-of").evaluate_all("all => all.map((one) => Number(one.dataset.i))") == here
        assert page.locator(".mgx-slot.mgx-at").count() == 1


def test_the_overview_marks_where_a_slots_tokens_come_from(show, recall):
    page = show(ml.MemoryExplorer(recall, step=20))
    inked = """(canvas) => { const { width, height } = canvas, data = canvas.getContext("2d").getImageData(0, height - 4, width, 3).data;
      return [...Array(32).keys()].filter((s) => data[4 * Math.floor((s + 0.5) * width / 32) + 3] > 0); }"""
    canvas = page.locator(".mgx-overview canvas")
    assert canvas.evaluate(inked) == []
    page.locator(".mgx-slot").nth(1).click()
    assert canvas.evaluate(inked) == sorted({t // 16 for t, _ in recall.held(1, 21)})
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 12.5 / 32, "y": 20})
    assert step_of(page) == 12


def test_layer_and_head(show, mixing):
    page = show(ml.MemoryExplorer(mixing, step=1, token=9))
    seen = set()
    for layer in (None, 0, 1):
        for head in (None, 0, 1):
            page.get_by_label("read: layer", exact=True).select_option("" if layer is None else str(layer))
            page.get_by_label("head", exact=True).select_option("" if head is None else str(head))
            name = f"Read from ({'mean of layers' if layer is None else f'layer {layer}'}, {'mean of heads' if head is None else f'head {head}'})"
            attention = mixing.read_attention[slice(None) if layer is None else [layer], :, 9]  # (R, H, M)
            shares = attention[:, slice(None) if head is None else [head]].astype(np.float64).mean((0, 1))
            read = panel(page)[name]
            assert all(near(said, shares[int(slot.removeprefix("slot "))]) for slot, said in read)
            seen.add(str(read))
    assert len(seen) > 3  # and they are not all alike


def test_a_cell_of_a_matrix_is_read_out(show, mixing):
    page = show(ml.MemoryExplorer(mixing, step=1))
    write, read = page.get_by_role("application").all()
    write.focus()
    page.keyboard.press("ArrowDown")
    spoken = page.get_by_role("status")
    assert re.match(r"slot 1 keeps (.*) of itself", spoken.inner_text()) and near(
        spoken.inner_text().split()[3], mixing.write_attention[1, 1, 0]
    )
    for column in range(1, 9):
        page.keyboard.press("ArrowRight")
        said = spoken.inner_text().replace("\u2068", "").replace("\u2069", "")
        found = re.fullmatch(r"slot 1 takes (.*) from “(.*)”", said)
        assert found[2] == mixing.tokens[8 + column - 1] and near(found[1], mixing.write_attention[1, 1, column])
    page.keyboard.press("Enter")
    assert page.locator(".mgx-slot[aria-selected=true]").get_attribute("data-slot") == "1"
    assert page.locator(".mgx-token[aria-selected=true]").get_attribute("data-i") == "7"
    read.focus()
    said = spoken.inner_text().replace("\u2068", "").replace("\u2069", "")
    found = re.fullmatch(r"“(.*)” reads (.*) from slot 0", said)
    assert found[1] == mixing.tokens[8] and near(found[2], mixing.read_attention[:, :, 8, 0].astype(np.float64).mean())


def test_cells_are_drawn_where_something_was_written(show, recall):
    page = show(ml.MemoryExplorer(recall))
    colours = page.locator(".mgx-scroll canvas").first.evaluate(
        """(canvas) => [...Array(16).keys()].map((row) => [...Array(16).keys()].map((column) => {
        const [r, g, b] = canvas.getContext("2d").getImageData(52 + 6 + 28 * (column + 1) + 2, 74 + 28 * row + 2, 1, 1).data;
        return r + g + b; }))"""
    )
    share = recall.write_attention[0, :, 1:].astype(np.float64)
    drawn = np.array(colours)
    assert len(np.unique(drawn[share == 0])) == 1  # all empty cells are alike
    assert (drawn[share > 0] < drawn[share == 0].min()).all()  # the others are darker,
    some = share > 0
    assert len(np.unique(drawn[some])) > 3 and (np.diff(drawn[some][share[some].argsort()]) <= 0).all()  # and the darker the more


def luminance(rgb):
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (int(part) / 255 for part in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """Of two CSS colours, as WCAG 2 counts it."""
    dark, light = sorted(luminance(re.findall(r"\d+", colour)[:3]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_little_and_what_is_a_control_can_be_seen(show, mixing, scheme):
    write = np.zeros_like(mixing.write_attention)
    write[:, 0, 0], write[:, 0, 1], write[:, 1, 0] = 0.02, 0.98, 1
    write[:, 1, 2] = 0.01
    page = show(ml.MemoryExplorer(replace(mixing, write_attention=write)), color_scheme=scheme)
    little, empty, kept = page.locator(".mgx-scroll canvas").first.evaluate(
        """(canvas) => [[1, 2], [1, 3], [0, 0]].map(([row, column]) => {
        const x = 52 + 28 * column + (column ? 6 : 0) + 2, y = 74 + 28 * row + 2;
        return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3).join(); })"""
    )
    assert contrast(little, empty) > 1.9 and contrast(kept, empty) > 1.4
    scale = page.locator(".mgx-scale").nth(1)
    assert " ".join(scale.inner_text().split()) == "0 · a little all · kept, a little all" and "gradient" in scale.locator(
        "i"
    ).nth(1).get_attribute("style")
    style = "(control) => { const { borderTopColor, backgroundColor } = getComputedStyle(control); return [borderTopColor, backgroundColor]; }"
    for control in page.locator(".mgx :is(button, select, input[type=number])").all():
        border, inside = control.evaluate(style)
        around = control.evaluate("control => getComputedStyle(control.closest('.mgx-card, .mgx-bar-top')).backgroundColor")
        assert max(contrast(border, around), contrast(inside, around)) >= 3


def test_the_keyboard_alone_reaches_everything_and_leaves_again(show, recall):
    page = show(ml.MemoryExplorer(recall))
    for key, step in ((".", 1), (".", 2), (",", 1), ("l", 31), ("f", 0)):
        page.keyboard.press(key)
        assert step_of(page) == step
    reached, seen = [], set()
    for _ in range(40):
        page.keyboard.press("Tab")
        what, which = page.evaluate("""(({ activeElement: e }) => [e.getAttribute('aria-label') || e.textContent,
            [...document.querySelectorAll('body *')].indexOf(e)])(document)""")
        if which < 0 or which in seen:
            break
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        reached.append(what)
        seen.add(which)
    else:
        pytest.fail(f"the keyboard does not come out again: {reached}")
    first = f"{recall.tokens[recall.held(0, 1)[0][0]]} · segment 0"
    for part in ("First segment (f)", "Play (p)", "Segment shown", first, "What was written: arrow keys go from cell to cell",
                 "The same facts as tables"):  # fmt: skip
        assert part in reached, reached
    page.locator(".mgx-token").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator(".mgx-token[aria-selected=true]").get_attribute("data-i") == "2"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.i") == "15"
    page.keyboard.press(".")
    assert (
        step_of(page) == 1 and f"“{recall.tokens[31]}”" in page.locator(".mgx-panel").inner_text()
    )  # focus stays: another token now
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.offsetTop") > page.locator(".mgx-token").first.evaluate("e => e.offsetTop")
    assert below or page.evaluate("document.activeElement.dataset.i") == "0"
    page.keyboard.press("Escape")
    page.locator(".mgx-slot").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert page.locator(".mgx-slot[aria-selected=true]").get_attribute("data-slot") == "1"


def focused(page):
    return page.evaluate("document.activeElement.textContent")


def test_the_focus_is_not_lost_when_what_had_it_is_filled_anew(show, mixing):
    page = show(ml.MemoryExplorer(mixing, step=2))
    page.get_by_text("Text before this segment").click()
    page.get_by_role("button", name="go to segment 1").focus()
    page.keyboard.press(".")
    assert step_of(page) == 3 and focused(page) == "segment 1"
    page.keyboard.press("Enter")
    assert step_of(page) == 1 and focused(page) == "segment 0"
    page.keyboard.press("Enter")
    assert step_of(page) == 0 and focused(page) == "Text before this segment"
    page.keyboard.press("l")
    assert step_of(page) == 4


def test_the_focus_goes_to_the_last_token_of_a_short_segment(show, mixing):
    page = show(ml.MemoryExplorer(mixing, step=3))
    page.locator(".mgx-token").first.focus()
    page.keyboard.press("End")
    page.keyboard.press(".")
    assert step_of(page) == 4 and page.evaluate("document.activeElement.dataset.i") == "5"
    assert f"“{mixing.tokens[37]}”" in page.locator(".mgx-panel").inner_text()
    page.keyboard.press(",")
    assert step_of(page) == 3 and page.evaluate("document.activeElement.dataset.i") == "5"
    assert page.locator(".mgx-token[tabindex='0']").count() == 1


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_the_focus_is_never_under_a_bar_that_sticks(show, mixing, width):
    page = show(ml.MemoryExplorer(mixing, token=3, slot=1, step=3), viewport={"width": width, "height": 560})
    for summary in page.locator("summary").all():
        summary.click()
    page.locator(".mgx").focus()
    seen = {"Tab": 0, "Shift+Tab": 0}
    for key in seen:
        for _ in range(80):
            page.keyboard.press(key)
            under = page.evaluate(
                """() => {
                const at = document.activeElement, box = at.getBoundingClientRect();
                if (at === document.body || !at.closest(".mgx") || at.matches(".mgx")) return null;
                const bars = [...document.querySelectorAll(".mgx-bar-top, .mgx-panel")].filter((bar) => getComputedStyle(bar).position === "sticky");
                if (bars.some((bar) => bar.contains(at))) return "";
                const clear = (bar) => (bar = bar.getBoundingClientRect(), box.bottom <= bar.top || box.top >= bar.bottom || box.right <= bar.left || box.left >= bar.right);
                return box.height > 200 || bars.every(clear) ? "" : at.outerHTML.slice(0, 200);
            }"""
            )
            if under is None:
                break
            assert under == ""
            seen[key] += 1
    assert min(seen.values()) > 15


def test_keys_are_heard_only_inside(show, mixing):
    page = show(ml.MemoryExplorer(mixing))
    page.keyboard.press(".")
    assert step_of(page) == 1  # it has the focus from the beginning
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(".")
    assert step_of(page) == 1


def test_playing_is_said_when_it_ends(show, mixing):
    page = show(ml.MemoryExplorer(mixing))
    page.get_by_label("play, segments a second").select_option("8")
    page.evaluate("""() => { const status = document.querySelector("[role=status]"); window.said = [];
        new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true, characterData: true, subtree: true }); }""")
    page.get_by_role("button", name="Play").click()
    until(page, lambda: step_of(page) == 4)
    until(page, lambda: page.get_by_role("button", name="Play").count() == 1)
    (said,) = page.evaluate("said")
    assert said.startswith("Segment 4 changed")


def test_play_and_pause_without_motion(show, recall):
    page = show(ml.MemoryExplorer(recall), reduced_motion="reduce")
    page.get_by_label("play, segments a second").select_option("8")
    page.get_by_role("button", name="Play").click()
    until(page, lambda: step_of(page) >= 2)
    assert page.evaluate("document.getAnimations().length") == 0
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Play").wait_for()
    page.get_by_role("button", name="Last segment").click()
    page.get_by_role("button", name="Play").click()  # nothing further: does not start
    assert page.get_by_role("button", name="Pause").count() == 0


def test_hostile_tokens_are_only_text(show, mixing):
    tokens = [HOSTILE[i % len(HOSTILE)] for i in range(38)]
    words = {number: HOSTILE[i % len(HOSTILE)] for i, number in enumerate(mixing.next_words)}
    hostile, plain = (
        replace(mixing, tokens=tokens, next_words=words),
        replace(mixing, tokens=["a"] * 38, next_words=dict.fromkeys(words, "a")),
    )
    counts = []
    for trace, title in ((hostile, "</title><script>alert(0)</script>"), (plain, "title")):
        page = show(
            ml.MemoryExplorer(
                trace, replace(trace, moved=trace.moved), title=title, names=("<b>1</b>", "</main>"), token=33, slot=0
            )
        )
        for details in page.locator("details").all():
            details.locator("summary").click()
        page.locator(".mgx-token").nth(1).hover()
        for step in range(5):
            shown = [
                token.text_content() for token in page.locator(".mgx-pane").first.locator(".mgx-token:not([hidden]) bdi").all()
            ]
            assert shown == [SHOWN.get(token, token) for token in trace.tokens[8 * step : 8 * step + 8]]
            page.keyboard.press(".")
        assert page.locator("h1").text_content() == title
        tags = page.evaluate("[...document.querySelectorAll('*')].map((e) => e.tagName).sort()")
        counts.append({tag: tags.count(tag) for tag in ("SCRIPT", "IMG", "B", "IFRAME", "TITLE", "MAIN", "NOSCRIPT")})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert counts[0] == counts[1]


def test_the_page_may_run_no_other_script(show, mixing):
    page = show(ml.MemoryExplorer(mixing))
    ran = page.evaluate("""() => { const script = document.createElement("script"); script.textContent = "window.ran = true";
        document.body.append(script); return window.ran ?? false; }""")
    assert ran is False
    assert len(page.noise) == 1 and "Content Security Policy" in page.noise.pop()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(show, recall, mixing, width):
    for widget in (ml.MemoryExplorer(recall, token=5, slot=2), ml.MemoryExplorer(mixing, mixing, token=5, slot=2)):
        page = show(widget, viewport={"width": width, "height": 740})
        for summary in page.locator("summary").all():
            summary.click()
        page.get_by_label("numbers in cells").check()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".mgx-token").nth(7).hover()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_two_traces_step_together(show, mixing):
    changed = replace(mixing, initial_share=mixing.initial_share[::-1].copy(), read_attention=mixing.read_attention[::-1].copy())
    page = show(ml.MemoryExplorer(mixing, changed, names=("trained", "untrained")))
    assert lines(page, ".mgx-pane > .mgx-title") == ["trained", "untrained"]
    for step in range(5):
        for pane, trace in enumerate((mixing, changed)):
            assert sentences(page, pane) == [trace.in_words(slot, step + 1) for slot in range(4)]
        page.keyboard.press(".")
    page.locator(".mgx-pane").nth(1).locator(".mgx-slot").nth(2).click()
    assert page.locator(".mgx-slot[aria-selected=true]").count() == 2
    assert "trained: Segment 4 changed" in page.get_by_role("status").inner_text()


def test_a_rule_that_does_not_mix_values_says_so(show, mixing):
    assert "does not mix token values" not in show(ml.MemoryExplorer(mixing)).locator("main").inner_text()
    assert "does not mix token values" in show(ml.MemoryExplorer(replace(mixing, values_mix=False))).locator("main").inner_text()


def test_tables_say_the_same(show, recall):
    page = show(ml.MemoryExplorer(recall, step=31))
    page.get_by_text("The same facts as tables").click()
    page.locator("table").first.wait_for()
    slots, tokens = page.locator("table").all()
    cells = slots.locator("tbody tr").evaluate_all("rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")
    for m, (name, made, initial, rest, kept, _, gradient) in enumerate(cells):
        assert f"{name}: {made}" == recall.in_words(m, 32)
        assert [initial, rest] == [percent(recall.initial_share[32, m]), percent(recall.rest_share[32, m])]
        assert near(kept, recall.write_attention[31, m, 0])
        assert float(gradient) == pytest.approx(recall.gradient[32, m], rel=0.06, abs=1e-30)
    cells = tokens.locator("tbody tr").evaluate_all("rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")
    for t, (word, _, _, _, expected, entropy) in enumerate(cells, start=16 * 31):
        assert word == recall.tokens[t] and expected.split(",")[0] == recall.next_words[int(recall.next_tokens[t, 0])]
        assert float(entropy) == pytest.approx(recall.entropy[t], abs=0.006)


def test_a_long_text_opens_as_a_window(show, mixing):
    """4,096 segments: as many elements as for a few."""

    def long(array, axis=0):
        return np.concatenate([array, np.repeat(array[-1:], 4096 + (len(array) == 6) - len(array), axis=0)])

    T = 4096 * 8
    trace = replace(
        mixing, tokens=[f"w{i}" for i in range(T)], next_tokens=np.resize(mixing.next_tokens, (T, 5)), entropy=np.resize(mixing.entropy, T),
        next_probabilities=np.resize(mixing.next_probabilities, (T, 5)), read_attention=np.resize(mixing.read_attention, (2, 2, T, 4)),
        **{name: long(getattr(mixing, name)) for name in ("memory", "write_attention", "moved", "source_tokens", "source_shares", "initial_share", "rest_share")},
    )  # fmt: skip
    few, many = show(ml.MemoryExplorer(mixing)), show(ml.MemoryExplorer(trace))
    count = "document.querySelectorAll('*').length"
    assert many.evaluate(count) == pytest.approx(few.evaluate(count), abs=40)
    many.keyboard.press("l")
    many.get_by_text("Text before this segment").click()
    many.locator(".mgx-before button").first.wait_for()
    assert lines(many, ".mgx-token bdi") == [f"w{i}" for i in range(T - 8, T)]
    assert lines(many, ".mgx-before button") == [f"segment {s}" for s in range(4087, 4095)]
    assert sentences(many)[0] == trace.in_words(0, 4096)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(show, recall, mixing, scheme):
    axe = Axe()
    for widget in (
        ml.MemoryExplorer(recall, step=31, token=500, slot=1),
        ml.MemoryExplorer(mixing, mixing, names=("one", "two")),
    ):
        page = show(widget, color_scheme=scheme)
        for summary in page.locator("summary").all():
            summary.click()
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()
        page.noise.clear()  # axe tries to load style sheets, which the page's policy forbids


def test_dark_and_light(show, mixing):
    background = "getComputedStyle(document.querySelector('.mgx')).backgroundColor"
    light, dark = (show(ml.MemoryExplorer(mixing), color_scheme=scheme) for scheme in ("light", "dark"))
    assert light.evaluate(background) == "rgb(251, 251, 249)" and dark.evaluate(background) == "rgb(20, 23, 28)"
    dark.evaluate("document.body.dataset.jpThemeLight = 'true'")  # JupyterLab's own choice comes first
    until(dark, lambda: dark.evaluate(background) == "rgb(251, 251, 249)")


def test_as_a_widget(browser, mixing):
    """What anywidget does: calls `render` with a model and an element, and in the end what it returned."""
    page = browser.new_page()
    page.set_content("<body data-jp-theme-light='false'><div id=here></div></body>")
    page.add_script_tag(content=explorer.SCRIPT.read_text("utf-8") + "\nwindow.render = render;", type="module")
    page.wait_for_function("!!window.render")
    widget = ml.MemoryExplorer(mixing, step=1)
    state = {name: getattr(widget, name) for name in ("payload", "step", "layer", "head", "token", "slot")}
    page.evaluate(
        """async (state) => {
        const on = new Map();
        window.saved = 0;
        window.model = { get: (name) => state[name], save_changes: () => { window.saved++; }, on: (event, f) => on.set(event, f), off: (event) => on.delete(event),
          set(name, value) { state[name] = value; on.get(`change:${name}`)?.(); } };
        window.listeners = on;
        window.stop = await window.render({ model, el: document.querySelector("#here") });
      }""",
        state,
    )
    root = page.locator(".mgx")
    assert root.get_attribute("data-theme") == "dark" and root.get_attribute("data-lm-suppress-shortcuts") == "true"
    assert sentences(page) == [mixing.in_words(slot, 2) for slot in range(4)]
    page.evaluate("model.set('step', 3)")  # as Python would
    assert sentences(page) == [mixing.in_words(slot, 4) for slot in range(4)]
    page.locator(".mgx-slot").nth(2).focus()
    page.keyboard.press(",")
    page.keyboard.press("Enter")
    assert page.evaluate("[model.get('step'), model.get('slot'), saved > 1]") == [2, 2, True]
    page.evaluate("stop()")
    assert page.evaluate("listeners.size") == 0 and root.count() == 0
    page.close()


def test_two_explorers_in_a_page_of_its_own(browser, recall, mixing):
    """What a web site does with the state that a notebook's output holds."""
    page = browser.new_page()
    page.set_content("<h1>A page</h1><div id=a></div><div id=b></div><div id=c></div>")
    for name in ("show", "again"):  # a page may load the module twice, as Jupyter does
        page.add_script_tag(content=explorer.SCRIPT.read_text("utf-8") + f"\nwindow.{name} = show;", type="module")
        page.wait_for_function(f"!!window.{name}")
    states = [ml.MemoryExplorer(trace, step=1, title="A title").state() for trace in (mixing, recall)]
    page.evaluate(
        """async ([one, two]) => {
        window.stop = await show(one, document.querySelector("#a"));
        await show(two, document.querySelector("#b"), 3);
        await again(one, document.querySelector("#c"));
    }""",
        states,
    )

    def steps():
        return [int(slider.input_value()) for slider in page.get_by_role("slider").all()]

    assert page.locator("h2.mgx-title").count() == 2 and page.locator("h3.mgx-title").count() == 1
    assert page.locator("#b .mgx").get_attribute("aria-label") == "A title"
    page.keyboard.press(".")
    assert steps() == [1, 1, 1]  # the page has the focus, and keeps its keys
    page.locator("#a .mgx-slot").first.focus()
    page.keyboard.press(".")
    assert steps() == [2, 1, 1]
    page.locator("#c").get_by_role("button", name="Next segment").click()
    assert steps() == [2, 1, 2]  # the third was given the same state as the first, but goes its own way
    page.locator("#b .mgx-slot").first.click()
    page.keyboard.press("l")
    assert steps() == [2, 31, 2] and page.locator(".mgx-slot[aria-selected=true]").count() == 1
    page.locator("#a").get_by_role("button", name="One segment back").click()
    assert steps() == [1, 31, 2]
    assert sentences(page, 0) == [mixing.in_words(slot, 2) for slot in range(4)]
    assert sentences(page, 1) == [recall.in_words(slot, 32) for slot in range(16)]
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    page.evaluate("stop()")
    assert page.locator("#a *").count() == 0 and steps() == [31, 2]
    page.close()


def test_a_picture_stands_in_the_file_where_no_script_runs(browser, tmp_path, mixing):
    widget = ml.MemoryExplorer(replace(mixing, tokens=[HOSTILE[i % len(HOSTILE)] for i in range(38)]), step=2)
    page = browser.new_page(java_script_enabled=False)
    page.goto(widget.to_html(tmp_path / "explorer.html").as_uri())
    picture = page.locator("noscript img")
    assert picture.get_attribute("alt") == widget.picture().alt
    box = picture.bounding_box()
    assert box["width"] > 500 and box["height"] > 200  # of the picture: a broken one is as large as a line of text
    assert page.locator("noscript pre").text_content().split() == widget.in_words().replace("\0", "�").split()
    page.close()


def test_a_picture_stands_in_the_file_where_the_script_fails(browser, tmp_path, mixing):
    widget = ml.MemoryExplorer(mixing, step=2)
    path = widget.to_html(tmp_path / "explorer.html")
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    for damaged in (False, True):
        if damaged:
            data = widget.payload["traces"][0]["data"]
            path.write_text(path.read_text("utf-8").replace(data, data[:80] + data[160:]), "utf-8")
            page = browser.new_page()
        page.goto(path.as_uri())
        picture = page.locator("main img")
        assert picture.get_attribute("alt") == widget.picture().alt and picture.bounding_box()["width"] > 500
        assert page.locator("main pre").text_content() == widget.in_words()
        assert "This browser cannot show the explorer live." in page.locator("main").inner_text()
        page.close()
