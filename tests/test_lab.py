"""The lab, driven from code and by its widgets; in JupyterLab, with a mouse and a keyboard: test_jupyterlab.py."""

import io
from base64 import b64decode
from html.parser import HTMLParser

import ipywidgets as widgets
import matplotlib.image
import numpy as np
import pytest
import torch

import memgpt_lite as ml
from memgpt_lite import viz

FACTS, OTHERS = list(viz.lab.TEXTS.values())[:2]
HOSTILE = [
    "<img src=x onerror=alert(1)>", "</style><script>alert(2)</script>", "\"' onmouseover='alert(3)'", "&lt;b&gt;", "<!--", "-->", "</div>",
    "$\\frac$ $", "שלום", "\u202eabc", "x" * 400, "", "\n", "a\0b", "{{7*7}}", "\\u003c", "<svg/onload=alert(4)>", "100%;background:url(//x)",
]  # fmt: skip


@pytest.fixture
def lab(recall):
    """Both texts read."""
    made = ml.MemoryLab(recall)
    made.read_on("A", None), made.read_on("B", None)
    return made


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def find(lab, kind, **traits):
    """The widgets of a kind, those of A first."""
    return [w for w in everything(lab) if type(w) is kind and all(getattr(w, name) == value for name, value in traits.items())]


def click(lab, label, which=0):
    """A button by what it says; of two that say the same, A's is 0 and B's is 1."""
    find(lab, widgets.Button, description=label)[which].click()


def choose(lab, slots):
    """Check exactly those slots' boxes."""
    boxes = find(lab, widgets.Checkbox)
    half = len(boxes) // 2
    for name, own in (("A", boxes[:half]), ("B", boxes[half:])):
        for j, box in enumerate(own):
            box.value = j in slots.get(name, [])


def chosen(lab):
    boxes = find(lab, widgets.Checkbox)
    half = len(boxes) // 2
    return [{j for j, box in enumerate(own) if box.value} for own in (boxes[:half], boxes[half:])]


class Page(HTMLParser):
    """What a browser would make of HTML: its elements, their attributes, and the text between them."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text, self.others = [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        self.others.append(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def html_of(lab):
    """All HTML but the style sheet and what is said about a mistake."""
    values = [w.value for w in everything(lab) if isinstance(w, (widgets.HTML, viz.lab._Status))]
    return [value for value in values if value and "<style>" not in value and 'role="alert"' not in value]


def wrong(lab):
    """What the lab says about a mistake, None for nothing."""
    said = [w.value for w in find(lab, widgets.HTML) if 'role="alert"' in w.value]
    return "".join(Page(said[0]).text) if said else None


def verdict(lab, name):
    (source,) = [source for source in html_of(lab) if f"Memory {name} says" in source]
    return Page(source)


def state(lab):
    return dict(lab.readings), html_of(lab), [w.description for w in find(lab, widgets.Checkbox)]


def memories(lab):
    return {name: reading.memory for name, reading in lab.readings.items()}


def says(lab, name, word="Ada"):
    return ml.tasks.decode([lab.readings[name].predict(torch.tensor(ml.tasks.encode(word))).argmax()])


def holders(reading, word="Kyoto"):
    """The slots that are mostly made of a word, the one with most of it first; Kyoto is what FACTS says of Ada."""
    shares = [sum(share for source, share in reading.held(j) if source is not None and source.word == word) for j in range(16)]
    found = sorted((j for j in range(16) if shares[j] > 0.5), key=lambda j: -shares[j])
    assert found  # else the test that asks says nothing
    return found


def two_unlike(reading):
    """Two slots that are mostly made of different tokens, so that exchanging them changes the memory."""
    most = [reading.held(j)[0][0] for j in range(16)]
    return [0, next(j for j in range(16) if most[j] != most[0])]


# ---- what is shown ----


def test_it_begins_with_two_texts_of_which_nothing_is_read(recall):
    lab = ml.MemoryLab(recall)
    assert {name: r.segments_read for name, r in lab.readings.items()} == {"A": 0, "B": 0}
    assert [w.value for w in find(lab, widgets.Textarea)] == [FACTS, OTHERS]
    assert [w.value for w in find(lab, widgets.Dropdown)] == list(viz.lab.TEXTS)[:2]
    assert find(lab, widgets.Text)[0].value == "Ada" and wrong(lab) is None
    assert len(find(lab, widgets.Checkbox)) == 32 and chosen(lab) == [set(), set()]
    assert "this answer does not depend on the memory" in "".join(verdict(lab, "A").text)
    assert sum("0 of 1 segments read." in source for source in html_of(lab)) == 2


def test_one_text_is_enough_and_none_is_not(recall):
    lab = ml.MemoryLab(recall, {"only": "Ada Paris"}, "Ada")
    assert [r.words for r in lab.readings.values()] == [["Ada", "Paris"]] * 2
    with pytest.raises(ValueError, match="a lab needs at least one text to begin with"):
        ml.MemoryLab(recall, {})


@pytest.mark.parametrize("acts", [False, True])
def test_the_verdict_is_what_the_memory_says(lab, acts):
    if acts:
        lab.act("clear", {"A": [5, 8, 11, 14]})
        lab.act("scale", {"B": [6, 7, 15]}, 0.25)
    lab.ask("Gus Oslo Ada")
    question = torch.tensor(ml.tasks.encode("Gus Oslo Ada"))
    for name, reading in lab.readings.items():
        now, untouched = reading.predict(question), reading.predict(question, untouched=True)
        text = [part.strip() for part in verdict(lab, name).text if part.strip()]
        assert text[0] == f"Memory {name} says, after “Gus Oslo Ada”"
        likeliest = sorted(range(66), key=lambda v: -now[v])[:5]
        assert text[1:11] == [
            part for v in likeliest for part in (ml.tasks.decode([v]), f"{now[v]:.1%} (untouched {untouched[v]:.1%})")
        ]
        found = reading.dependence(question)
        word = ml.tasks.decode([found.answer])
        assert text[11] == found.in_words(word, reading.share_of(word)) and len(text) == 12
        assert (not torch.equal(now, untouched)) is acts


def test_every_row_is_what_the_slot_is_made_of_and_does(lab):
    lab.act("clear", {"A": [3]})
    rows = [Page(source) for source in html_of(lab) if "mgl-hidden" in source]
    assert len(rows) == 32
    for name, own in (("A", rows[:16]), ("B", rows[16:])):
        reading = lab.readings[name]
        found = reading.dependence(torch.tensor(ml.tasks.encode("Ada")))
        for slot, row in enumerate(own):
            source, share = reading.held(slot)[0]
            first = f"{ml.tracing.percent(share)} " + (
                "initial value" if source is None else f"“{source.word}” ({name}, segment 0)"
            )
            assert row.text[0].startswith(first) and dict(row.attributes)["title"] == row.text[0]
            assert row.text[-2:] == [f"{found.without[slot]:.1%}", f"{found.alone[slot]:.1%}"]
    assert rows[3].text[0] == "100% initial value"
    for slot in holders(lab.readings["A"]):
        share = lab.readings["A"].held(slot)[0][1]
        assert rows[slot].text[0].startswith(f"{ml.tracing.percent(share)} “Kyoto” (A, segment 0)")


def test_what_is_nearly_nothing_is_not_shown_and_what_is_not_seen_is_written(recall):
    lab = ml.MemoryLab(recall)
    lab.read_on("A", None)
    for source in html_of(lab):
        page = Page(source)
        if "mgl-bar" in source:
            assert [value for name, value in page.attributes if name == "aria-hidden"] == ["true"] * 3  # the bar and two meters
    for button in find(lab, widgets.Button):
        assert len(button.tooltip) > 10 and button.description
    assert [w.description for w in find(lab, widgets.Textarea)] == ["words of A", "words of B"]
    labels = [w.description for w in find(lab, widgets.Checkbox)]
    assert labels == [f"{name} slot {j}" for name in "AB" for j in range(16)]  # no two alike


def test_a_token_has_one_colour_in_both_memories(lab):
    lab.swap({"A": holders(lab.readings["A"])[:1], "B": [6]})
    rows = [source for source in html_of(lab) if "mgl-hidden" in source]
    colours = {}
    for row in rows:
        for piece in row.split("<span style=")[1:]:
            style, word = piece.split("</span>")[0].split(">")
            if word != "initial value":
                colours.setdefault(word, set()).add(style.split("background: ")[1].split(";")[0].strip('"'))
    assert "Kyoto (A 0)" in rows[16 + 6] and len(colours["Kyoto (A 0)"]) == 1
    assert {len(used) for used in colours.values()} == {1} and len(colours) > 4
    assert len({next(iter(used)) for used in colours.values()}) > 4


def test_the_text_shows_what_was_read_last(recall):
    words = (ml.tasks.NAMES + ml.tasks.PLACES + ml.tasks.NOISE)[:60]
    lab = ml.MemoryLab(recall, {"long": " ".join(words)})
    for read in range(5):
        source = next(source for source in html_of(lab) if "segments read." in source)
        assert f"{read} of 4 segments read." in source
        before, marked, after = source.partition("</b>")[2].replace("</mark>", "<mark>").split("<mark>")
        assert marked.split() == words[max(0, 16 * read - 16) : 16 * read]
        assert before.split() == ["…"] * (read > 2) + words[max(0, 16 * read - 32) : max(0, 16 * read - 16)]
        assert after.removesuffix("</p>").split() == words[16 * read : 16 * read + 16]
        click(lab, "Read a segment")


# ---- what can be done, by code and by widgets ----


def by_code(lab, act):
    act = {
        "read": lambda: lab.read("B", FACTS),
        "read on": lambda: lab.read_on("A"),
        "read all": lambda: lab.read_on("B", None),
        "clear": lambda: lab.act("clear", {"A": [5, 8], "B": [1]}),
        "freeze": lambda: lab.act("freeze", {"B": [0, 15]}),
        "thaw": lambda: lab.act("thaw", {"A": [2]}),
        "scale": lambda: lab.act("scale", {"A": [5, 8]}, 0.5),
        "scale by -2": lambda: lab.act("scale", {"B": [3]}, -2),
        "swap": lambda: lab.swap({"A": [8], "B": [6]}),
        "swap in one": lambda: lab.swap({"B": two_unlike(lab.readings["B"])}),
        "swap with nothing of the other": lambda: lab.swap({"A": [1, 2], "B": []}),
    }[act]
    act()


def by_widgets(lab, act):
    if act == "read":
        find(lab, widgets.Textarea)[1].value = FACTS
        click(lab, "Begin this text", 1)
    elif act in ("read on", "read all"):
        click(lab, {"read on": "Read a segment", "read all": "Read all"}[act], act == "read all")
    elif act.startswith("swap"):
        slots = {"swap": {"A": [8], "B": [6]}, "swap in one": {"B": two_unlike(lab.readings["B"])}}
        choose(lab, slots.get(act, {"A": [1, 2]}))
        click(lab, "Swap")
    else:
        slots = {"clear": {"A": [5, 8], "B": [1]}, "freeze": {"B": [0, 15]}, "thaw": {"A": [2]}, "scale": {"A": [5, 8]}}
        choose(lab, slots.get(act, {"B": [3]}))
        if act == "scale by -2":
            find(lab, widgets.FloatText)[0].value = -2
        click(lab, act.split()[0].capitalize())


ACTS = [
    "read", "read on", "read all", "clear", "freeze", "thaw", "scale", "scale by -2", "swap", "swap in one", "swap with nothing of the other",
]  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
def test_whatever_is_done_can_be_done_by_code_and_by_widgets_and_undone(recall, act):
    def make():
        lab = ml.MemoryLab(recall, {"A": f"{FACTS} {OTHERS} {FACTS}", "B": f"{OTHERS} {FACTS} {OTHERS}"})
        lab.read_on("A"), lab.read_on("B"), lab.act("freeze", {"A": [2, 3]})
        return lab

    labs = {how: make() for how in (by_code, by_widgets)}
    untouched = make()
    before = {how: dict(lab.readings) for how, lab in labs.items()}
    for how, lab in labs.items():
        how(lab, act)
        assert wrong(lab) is None
    one, other = labs.values()
    assert html_of(one) == html_of(other)
    changed = [not torch.equal(one.readings[n].memory, untouched.readings[n].memory) for n in "AB"]
    b = untouched.readings["B"]
    whole = recall(torch.tensor([ml.tasks.encode(f"{OTHERS} {FACTS} {OTHERS}")]), memory=b.initial).memory
    if act == "read all":
        assert torch.equal(one.readings["B"].memory, whole)
    expected = {"read all": [0, not torch.equal(b.memory, whole)],  # nothing where the slots of B are full by then
                "clear": [1, 1], "scale": [1, 0], "swap": [1, 1], "swap with nothing of the other": [1, 0], "scale by -2": [0, 1],
                "swap in one": [0, 1], "read": [0, 1], "read on": [1, 0]}  # fmt: skip
    assert changed == expected.get(act, [0, 0])
    expected = {"read on": [2, 1], "read all": [1, 3], "read": [1, 0]}
    assert [reading.segments_read for reading in one.readings.values()] == expected.get(act, [1, 1])
    for name in "AB":
        assert torch.equal(one.readings[name].memory, other.readings[name].memory)
        assert torch.equal(one.readings[name].shares, other.readings[name].shares)
        assert one.readings[name].frozen == other.readings[name].frozen
    one.undo()
    click(other, "Undo")
    for how, lab in labs.items():
        assert lab.readings == before[how] and html_of(lab) == html_of(untouched)


def test_acts_are_those_of_the_readings(lab):
    a, b = lab.readings.values()
    held = holders(a)
    lab.act("clear", {"A": held})
    assert torch.equal(lab.readings["A"].memory, a.clear(held).memory) and lab.readings["B"] is b
    lab.undo()
    lab.act("scale", {"B": [6]}, 3)
    assert torch.equal(lab.readings["B"].memory, b.scale([6], 3).memory) and lab.readings["A"] is a
    lab.undo()
    lab.swap({"A": held[:1], "B": [6]})
    for reading, expected in zip(lab.readings.values(), ml.swap_slots(a, held[0], b, 6)):
        assert torch.equal(reading.memory, expected.memory) and reading.held(6) == expected.held(6)
    assert says(lab, "B") == "Kyoto" != says_of(b)


def says_of(reading, word="Ada"):
    return ml.tasks.decode([reading.predict(torch.tensor(ml.tasks.encode(word))).argmax()])


def test_everything_can_be_undone_back_to_the_beginning(lab):
    seen = []
    steps = [
        lambda: lab.act("clear", {"A": [5]}), lambda: lab.swap({"A": [8], "B": [6]}), lambda: lab.act("freeze", {"B": [0]}),
        lambda: lab.read("A", FACTS + " " + OTHERS), lambda: lab.read_on("A"), lambda: lab.read_on("A", None), lambda: lab.swap({"A": [1, 2]}),
    ]  # fmt: skip
    for step in steps:
        seen.append((dict(lab.readings), html_of(lab)))
        step()
        assert lab.readings != seen[-1][0]
    for readings, source in reversed(seen):
        click(lab, "Undo")
        assert lab.readings == readings and html_of(lab) == source
    lab.undo(), lab.undo()  # the two that the fixture read
    assert [r.segments_read for r in lab.readings.values()] == [0, 0]
    with pytest.raises(ValueError, match="nothing has been done yet"):
        lab.undo()
    click(lab, "Undo")
    assert wrong(lab) == "nothing has been done yet"


def test_reading_where_nothing_is_left_is_nothing_to_undo(lab):
    before = dict(lab.readings)
    lab.act("clear", {"A": [5]})
    click(lab, "Read a segment"), click(lab, "Read all", 1), lab.read_on("A", None)
    click(lab, "Undo")
    assert lab.readings == before


def test_a_frozen_slot_is_named_so_and_stays(recall):
    lab = ml.MemoryLab(recall, {"two": f"{FACTS} {OTHERS}"})
    click(lab, "Read a segment")
    kept = lab.readings["A"].memory[:, [3, 7]]
    choose(lab, {"A": [3, 7]})
    click(lab, "Freeze")
    labels = [w.description for w in find(lab, widgets.Checkbox)]
    frozen = {"A slot 3", "A slot 7"}
    names = [f"{name} slot {j}" for name in "AB" for j in range(16)]
    assert labels == [f"{name} frozen" if name in frozen else name for name in names]
    click(lab, "Read all")
    assert torch.equal(lab.readings["A"].memory[:, [3, 7]], kept)
    choose(lab, {"A": [3]})
    click(lab, "Thaw")
    assert [w.description for w in find(lab, widgets.Checkbox)][:8] == [*names[:7], "A slot 7 frozen"]


def test_choosing_the_holders(lab):
    choose(lab, {"A": [0, 1]})
    assert says(lab, "A") == "Kyoto"
    click(lab, "holders")
    assert chosen(lab) == [set(holders(lab.readings["A"])), set()]
    click(lab, "Clear")
    assert says(lab, "A") != "Kyoto"
    find(lab, widgets.Text)[0].value = "Ben"
    click(lab, "holders", 1)
    assert chosen(lab)[1] == set(holders(lab.readings["B"], "Lima"))


def test_asking(lab):
    box = find(lab, widgets.Text)[0]
    box.value = "Gus"
    assert verdict(lab, "A").text[1] == "Oslo" and "Memory A says, after “Gus”" in verdict(lab, "A").text
    lab.ask("Leo")
    assert box.value == "Leo" and verdict(lab, "A").text[1] == "Cairo"
    click(lab, "Read a segment", 1)
    assert "Memory A says, after “Leo”" in verdict(lab, "A").text  # the question stays


def test_choosing_another_text(lab):
    choice, box = find(lab, widgets.Dropdown)[1], find(lab, widgets.Textarea)[1]
    a = lab.readings["A"]
    choice.value = "The same names elsewhere"
    assert box.value == viz.lab.TEXTS["The same names elsewhere"]
    assert lab.readings["B"].segments_read == 0 and lab.readings["A"] is a
    assert lab.readings["B"].words[:2] == ["Leo", "Jena"]
    click(lab, "Read all", 1)
    assert says(lab, "B") == "Fez"
    lab.undo(), lab.undo()
    assert lab.readings["B"].words[:2] == ["um", "er"] and lab.readings["B"].segments_read == 1


def test_undo_takes_the_box_and_the_choice_along(lab):
    choice, box = find(lab, widgets.Dropdown)[0], find(lab, widgets.Textarea)[0]
    before = dict(lab.readings)
    choice.value = "The same names elsewhere"
    box.value = "Ada Fez"
    click(lab, "Begin this text")
    assert choice.value is None  # a text of the reader's own
    click(lab, "Undo")
    assert (choice.value, box.value) == ("The same names elsewhere", viz.lab.TEXTS["The same names elsewhere"])
    click(lab, "Undo")
    assert (choice.value, box.value) == ("Four facts", FACTS) and lab.readings == before
    choice.value = "The same names elsewhere"  # choosing it again begins it again
    assert lab.readings["A"].words[:2] == ["Leo", "Jena"] and lab.readings["A"].segments_read == 0
    box.value = "half a thought"
    lab.act("freeze", {"B": [1]}), lab.undo()
    assert box.value == "half a thought"  # what was undone has nothing to do with it


# ---- mistakes ----

MISTAKES = {  # by code, by widgets, what is said
    "an empty text": (lambda lab: lab.read("A", "  "), "text A is empty: type at least one word"),
    "an unknown word": (lambda lab: lab.read("B", "Ada <b>Berlin"), "the tasks' vocabulary lacks <b>Berlin; it has SET, ASK, Ada"),
    "an empty question": (lambda lab: lab.ask(""), "the question is empty: type at least one word"),
    "an unknown word in the question": (lambda lab: lab.ask("Zoe"), "the tasks' vocabulary lacks Zoe"),
    **{
        f"nothing to {act}": (lambda lab, act=act: lab.act(act, {"A": []}, *[0.5] * (act == "scale")), "no slot is chosen: click the slots")
        for act in ("clear", "freeze", "thaw", "scale")
    },
    "a swap of nothing": (lambda lab: lab.swap({}), "a swap takes two slots, and 0 are chosen"),
    "a swap of one": (lambda lab: lab.swap({"B": [3]}), "a swap takes two slots, and 1 are chosen"),
    "a swap of three": (lambda lab: lab.swap({"A": [1, 2], "B": [3]}), "and 3 are chosen: choose one in A and one in B, or two in one"),
}  # fmt: skip


def do_wrong(lab, mistake):
    if mistake == "an empty text":
        find(lab, widgets.Textarea)[0].value = "  "
        click(lab, "Begin this text")
    elif mistake == "an unknown word":
        find(lab, widgets.Textarea)[1].value = "Ada <b>Berlin"
        click(lab, "Begin this text", 1)
    elif "question" in mistake:
        find(lab, widgets.Text)[0].value = "Zoe" if "unknown" in mistake else ""
    else:
        slots = {"a swap of one": {"B": [3]}, "a swap of three": {"A": [1, 2], "B": [3]}}
        choose(lab, slots.get(mistake, {}))
        click(lab, "Swap" if "swap" in mistake else mistake.split()[-1].capitalize())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_in_the_lab_raised_in_code_and_changes_nothing(lab, mistake):
    by_code, message = MISTAKES[mistake]
    lab.act("clear", {"A": [0]})
    before = state(lab)
    with pytest.raises(ValueError) as raised:
        by_code(lab)
    assert message in str(raised.value)
    assert state(lab) == before and wrong(lab) is None
    do_wrong(lab, mistake)
    assert wrong(lab) == str(raised.value)
    assert state(lab) == before
    choose(lab, {"A": [1]})
    click(lab, "Freeze")  # what is right then is done, and the mistake no longer spoken of
    assert wrong(lab) is None and lab.readings["A"].frozen == {1}
    lab.undo(), lab.undo()
    assert lab.readings["A"].held(0) != [(None, 1.0)]  # a mistake is nothing that can be undone


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (
            lambda lab: lab.act("erase", {"A": [1]}),
            ValueError,
            "slots cannot be asked to 'erase': choose one of clear, freeze, thaw, scale",
        ),
        (lambda lab: lab.act("clear", {"A": [16]}), IndexError, "there is no slot 16: this memory has the slots 0 to 15"),
        (lambda lab: lab.act("clear", {"B": [0], "A": [-1]}), IndexError, "there is no slot -1"),
        (lambda lab: lab.swap({"A": [3], "B": [99]}), IndexError, "there is no slot 99"),
        (lambda lab: lab.act("scale", {"A": [1]}), TypeError, "factor"),
        (lambda lab: lab.act("clear", {"C": [1]}), ValueError, "there is no memory 'C' here: choose A or B"),
        (lambda lab: lab.swap({"C": [1, 2]}), ValueError, "there is no memory 'C' here"),
        (lambda lab: lab.read("C", FACTS), ValueError, "there is no memory 'C' here"),
        (lambda lab: lab.read_on("C"), ValueError, "there is no memory 'C' here"),
    ],
)
def test_mistakes_in_code_are_explained(lab, do, error, message):
    before = state(lab)
    with pytest.raises(error, match=message):
        do(lab)
    assert state(lab) == before and list(lab.readings) == ["A", "B"]
    lab.undo()
    assert [r.segments_read for r in lab.readings.values()] == [1, 0]


def test_a_wrong_question_leaves_the_old_one_standing(lab):
    find(lab, widgets.Text)[0].value = "Zoe"
    assert "Memory A says, after “Ada”" in verdict(lab, "A").text
    lab.act("freeze", {"A": [1]})
    assert "Memory A says, after “Ada”" in verdict(lab, "A").text and lab.picture().alt.startswith(
        "Which slots does the answer “Kyoto” after “Ada”"
    )
    find(lab, widgets.Text)[0].value = "Ada"
    assert wrong(lab) is None


@pytest.mark.parametrize(
    "encode", [lambda text: [11], {"good": [1, 2]}.__getitem__, lambda text: [1.5] if text != "good" else [1, 2]]
)
def test_what_an_encoder_does_wrong_is_said_too(tiny, encode):
    def encodes(text):
        return [1, 2, 3] if text == "good" else encode(text)

    lab = ml.MemoryLab(tiny(), {"one": "good"}, "good", encode=encodes, decode=str)
    before = state(lab)
    for do in (lambda: lab.ask("bad"), lambda: lab.read("A", "bad")):
        with pytest.raises((ValueError, TypeError, KeyError)):
            do()
        assert state(lab) == before
    find(lab, widgets.Text)[0].value = "bad"
    assert wrong(lab) and state(lab) == before
    find(lab, widgets.Textarea)[0].value = "bad"
    click(lab, "Begin this text")
    assert wrong(lab) and state(lab) == before
    lab.read_on("A", None), lab.act("clear", {"A": [0]})
    assert lab.readings["A"].segments_read == 1


# ---- any text ----


@pytest.fixture
def hostile(tiny):
    """A lab whose words, names of texts and question are hostile, both texts read and acted on."""
    model = tiny(vocab_size=len(HOSTILE), update_rule="keep_softmax")
    tokens = {word: i for i, word in enumerate(HOSTILE)}
    texts = {f"{word} {i}": word for i, word in enumerate(HOSTILE)} | {"all": "all"}
    every = list(range(len(HOSTILE)))
    lab = ml.MemoryLab(
        model,
        texts,
        HOSTILE[0],
        encode=lambda text: every if text == "all" else [tokens[text]],
        decode=lambda number: HOSTILE[number[0]],
    )
    for name in "AB":
        lab.read(name, "all")
        lab.read_on(name, 3)
    lab.swap({"A": [0], "B": [1]}), lab.act("freeze", {"A": [2]}), lab.act("scale", {"B": [2]}, -2)
    return lab


def test_hostile_words_never_become_markup(hostile):
    shown = set()
    for _ in range(4):
        for question in HOSTILE:
            hostile.ask(question)
            for source in html_of(hostile):
                page = Page(source)
                assert set(page.tags) <= {"p", "b", "div", "span", "i", "mark"} and page.others == []
                assert {name for name, _ in page.attributes} <= {"class", "role", "title", "style", "aria-hidden", "tabindex"}
                styles = [value for name, value in page.attributes if name == "style"]
                assert not [style for style in styles if "url" in style or "<" in style]
                assert page.tags.count("mark") <= 1
                shown |= {word for word in HOSTILE if word and word in "".join(page.text)}
        hostile.read_on("A"), hostile.read_on("B")
    assert shown == set(HOSTILE) - {""}  # each was shown, as it is
    assert all("<" not in w.description for w in find(hostile, widgets.Checkbox))


def test_a_mistake_about_a_hostile_word_is_no_markup_either(hostile):
    find(hostile, widgets.Textarea)[0].value = "<img src=x onerror=alert(5)>?"
    click(hostile, "Begin this text")
    (source,) = [w.value for w in find(hostile, widgets.HTML) if 'role="alert"' in w.value]
    assert Page(source).tags == ["p"] and "<img src=x onerror=alert(5)>?" in wrong(hostile)


def test_hostile_words_can_be_drawn(hostile):
    for question in ("$\\frac$ $", "a\0b", "x" * 400, ""):
        hostile.ask(question)
        data, _ = hostile._repr_mimebundle_()
        assert b64decode(data["image/png"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("rule", ["keep", "keep_softmax", "gated", "erase_add", "delta", "fifo"])
def test_any_tokenizer_and_any_rule(tiny, rule):
    tokenizer = ml.train_tokenizer("Ada lives in Paris. Gus lives in Oslo, and so does <Mia>. " * 20, 300)
    model = tiny(vocab_size=len(tokenizer), update_rule=rule, segment_length=8)
    texts = {"one": "Ada lives in Paris. Gus lives in Oslo.", "other": "Gus does, Émile 👩‍👧 שלום <Mia>"}
    lab = ml.MemoryLab(model, texts, "Ada lives in", encode=tokenizer.encode, decode=tokenizer.decode)
    assert len(find(lab, widgets.Checkbox)) == 6
    for name in "AB":
        lab.read_on(name, None)
    out = model(torch.tensor([tokenizer.encode(texts["other"])]), memory=lab.readings["B"].initial)
    assert torch.equal(lab.readings["B"].memory, out.memory)
    assert "".join(lab.readings["A"].words) == texts["one"]
    choose(lab, {"A": [0], "B": [2]})
    for label in ("Swap", "Scale", "Freeze", "Clear", "Thaw", "Undo", "holders"):
        click(lab, label)
        assert wrong(lab) is None
    likeliest = lab.readings["A"].predict(torch.tensor(tokenizer.encode("Ada lives in"))).argmax()
    assert verdict(lab, "A").text[1] == tokenizer.decode([likeliest])
    find(lab, widgets.Text)[0].value = ""
    assert wrong(lab) == "the question is empty: type at least one word"


# ---- where no widget runs ----


def test_what_stays_in_a_notebook(lab):
    data, about = lab._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == lab.model_id
    picture = lab.picture()
    png = b64decode(data["image/png"])
    assert png == picture.png() and matplotlib.image.imread(io.BytesIO(png)).std() > 0.01
    assert about == {"image/png": {"alt": picture.alt}}
    assert data["text/plain"] == f"{picture.alt} Run this cell to act on the memory."
    lab.act("clear", {"A": holders(lab.readings["A"])})
    assert lab._repr_mimebundle_()[1]["image/png"]["alt"] != picture.alt  # as it stands now


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["A", "B"])
def test_the_picture_says_what_was_found(lab, name):
    lab.ask("Gus")
    reading = lab.readings[name]
    found = reading.dependence(torch.tensor(ml.tasks.encode("Gus")))
    word = ml.tasks.decode([found.answer])
    picture = lab.picture(name)
    held = reading.share_of(word)
    assert picture.alt == f"Which slots does the answer “{word}” after “Gus” depend on? {found.in_words(word, held)}"
    left, right = picture.axes
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], held)
    without, alone = (points.get_offsets() for points in right.collections)
    np.testing.assert_allclose(without, np.stack([found.without, np.arange(16)], axis=1))
    np.testing.assert_allclose(alone, np.stack([found.alone, np.arange(16)], axis=1))
    np.testing.assert_allclose([line.get_xdata()[0] for line in right.lines], [found.probability, found.guessed])
    assert f"comes from “{word}”" in left.get_xlabel() and f"probability of “{word}”" in right.get_xlabel()
    assert picture.png().startswith(b"\x89PNG")


@pytest.mark.parametrize("word", ["$x$", "$\\frac$", "a\0b", "שלום", ""])
def test_the_picture_shows_any_word_as_it_is(word):
    found = ml.Dependence(7, 0.9, 0.1, torch.tensor([0.9, 0.2]), torch.tensor([0.1, 0.8]), [1])
    title = f"Which slots does the answer “{word}” depend on?"
    picture = viz.which_slots(found, torch.tensor([0.1, 0.9]), word, title)
    assert picture.png().startswith(b"\x89PNG")
    assert picture.alt == f"{title} {found.in_words(word, torch.tensor([0.1, 0.9]))}"
    texts = [picture._suptitle, *(axes.xaxis.label for axes in picture.axes)]
    assert not any(text.get_parse_math() for text in texts)


@pytest.mark.parametrize(("rule", "says"), [("keep", "is made of<"), ("gated", "is made of, by its write attention<")])
def test_where_shares_are_a_summary_the_lab_says_so(rule, says):
    vocabulary = len(ml.tasks.VOCABULARY)
    config = ml.MemGPTConfig(
        vocab_size=vocabulary, segment_length=16, n_embd=16, n_layer=1, n_head=2, num_memory_slots=2, update_rule=rule
    )
    heads = [w.value for w in find(ml.MemoryLab(ml.MemGPT(config)), widgets.HTML)]
    assert any(f"memory A {says}" in head for head in heads)


def test_our_texts_are_of_whole_segments_as_their_names_say(recall):
    for name, text in viz.lab.TEXTS.items():
        segments, short = divmod(len(ml.tasks.encode(text)), recall.config.segment_length)
        assert (segments, short) == (4 if "three segments of noise" in name else 1, 0)
