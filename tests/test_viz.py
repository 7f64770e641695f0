import html
import io
import re
from base64 import b64decode
from itertools import pairwise
from types import SimpleNamespace

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch

import memgpt_lite as ml
from memgpt_lite import viz
from memgpt_lite.viz import figures, live

WORDS = ["Ada", "Paris", "$5", "<b>"]
WRITE = torch.tensor([[1.0, 0, 0, 0, 0], [0.25, 0, 0.75, 0, 0], [0.0, 0.1, 0, 0.9, 0]])  # 3 slots, keep and 4 words
SHARES = torch.tensor([[0.8, 0.2, 0, 0, 0], [0.3, 0.25, 0.2, 0.15, 0.1], [0.0, 0.1, 0, 0.9, 0]])
READ = torch.zeros(2, 4, 3)
READ[..., 0] = 1
READ[1, 2] = torch.tensor([0.0, 0.4, 0.6])
READ[0, 2] = torch.tensor([0.5, 0.5, 0.0])
MEMORIES = [torch.zeros(3, 2), torch.tensor([[0.0, 0], [3.0, 4], [0, 0]]), torch.tensor([[0.0, 0], [3.0, 4], [1, 1]])]
HISTORY = ml.History(loss=[2.0, 3.0, 2.5], accuracy=[0.1, 0.0, 0.5], stage=[0, 0, 1])
GRADIENTS = {
    "all": torch.tensor([1e-3, 0.5, 2.0, 0.0]).view(4, 1, 1, 1),
    "cut": torch.tensor([0.0, 0.0, 2.0, 0.0]).view(4, 1, 1, 1),
}

# each figure, and what its alternative text has to say about the numbers above
FIGURES = {
    "slots": (lambda: viz.slots(MEMORIES[1]), ["3 slots by 2 dimensions", "from 0.00 to 4.00"]),
    "equal slots": (lambda: viz.slots(MEMORIES[0]), ["from 0.00 to 0.00", "All slots are equal."]),
    "slots through time": (
        lambda: viz.slots_through_time(MEMORIES),
        ["3 slots by 2 segments", "67% of the cells are exactly zero", "largest change is 3.54, in segment 0"],
    ),
    "write": (
        lambda: viz.write_picture(WRITE, WORDS),
        ["1 of 3 slots keep everything exactly.", "Slot 2 keeps 0% and takes 90% from “$5”.", "Slot 1 keeps 25% and takes 75% from “Paris”."],
    ),
    "read": (
        lambda: viz.read_picture(READ, WORDS),
        ["4 tokens by 3 slots, one for each of 2 heads", "“Ada” reads 100% from slot 0 (head 0)", "“$5” reads 60% from slot 2 (head 1)"],
    ),
    "provenance": (
        lambda: viz.provenance_bars(SHARES, WORDS),
        ["slot 0: 80% its initial value", "slot 1: 30% its initial value", "slot 2: 90% “$5”"],
    ),
    "memory at": (
        lambda: viz.memory_at(WRITE, WORDS, SHARES, WORDS, "Segment 3"),
        ["Segment 3", "takes 75% from “Paris”", "slot 2: 90% “$5”", "1 of 3 slots"],
    ),
    "before and after": (
        lambda: viz.before_and_after(WRITE, WORDS, {"at once": WRITE, "later": SHARES}, WORDS, "Still there?"),
        ["Still there?", "takes 75% from “Paris”", "at once, of 3 slots: 1 mostly their initial value, 1 mostly Paris, 1 mostly $5.", "1 a mixture"],
    ),
    "gradients": (
        lambda: viz.gradients_by_segment(GRADIENTS),
        ["all: 2.0e+00 at the last segment, 1.0e-03 at the first;", "cut: 2.0e+00 at the last segment, 0.0e+00 at the first, exactly zero 2 times"],
    ),
    "loss": (
        lambda: viz.loss_curve(HISTORY),
        ["over 3 steps", "loss goes from 2.00 to 2.50", "accuracy goes from 0.10 to 0.50", "stage 0 from step 1, stage 1 from step 3"],
    ),
    "six steps": (viz.six_steps, ["1 preprocess", "2 initialise memory", "3 forward", "4 update", "5 backward", "6 train"]),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_picture_with_truthful_alternative_text(name):
    draw, says = FIGURES[name]
    picture = draw()
    assert isinstance(picture, viz.Picture)
    for sentence in says:
        assert sentence in picture.alt
    data = picture.png()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(io.BytesIO(data))
    assert min(pixels.shape[:2]) > 80 and pixels.std() > 0.01  # something was drawn
    assert draw().png() == data and draw().alt == picture.alt


def test_every_figure_is_tested():
    drawn = {name for name in viz.__all__ if name not in ("Picture", "LivePicture", "MemoryExplorer", "slider")}
    assert {draw().__class__ for draw, _ in FIGURES.values()} == {viz.Picture} and len(drawn) == len(FIGURES) - 1  # slots twice


def test_the_axes_say_what_is_on_them():
    for name, (draw, _) in FIGURES.items():
        for axes in draw().axes:
            if name != "six steps" and axes.get_label() != "<colorbar>" and axes.get_visible():
                assert axes.get_xlabel() or axes.get_shared_x_axes().get_siblings(axes) != [axes], name


def test_words_stand_on_the_axis_as_they_are():
    axes = viz.write_picture(WRITE, ["$5", "$6$", "a_b", "\\x"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["keep", "$5", "$6$", "a_b", "\\x"]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())


def test_heat_maps_show_the_numbers():
    def shown(picture):
        return np.asarray(picture.axes[0].images[0].get_array())

    np.testing.assert_allclose(shown(viz.write_picture(WRITE, WORDS)), WRITE)
    np.testing.assert_allclose(shown(viz.slots(MEMORIES[1])), MEMORIES[1])
    np.testing.assert_allclose(shown(viz.read_picture(READ, WORDS)), READ[0])
    moved = [[(((b - a) ** 2).mean() ** 0.5).item() for a, b in pairwise(row)] for row in zip(*MEMORIES)]
    np.testing.assert_allclose(shown(viz.slots_through_time(MEMORIES)), moved, rtol=1e-6)


def test_bars_of_a_slot_add_up_to_1():
    axes = viz.provenance_bars(SHARES, WORDS).axes[0]
    for slot in range(3):
        bars = [bar for bar in axes.patches if abs(bar.get_y() + bar.get_height() / 2 - slot) < 0.01]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(1, abs=1e-6)
        ends = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
        assert all(end == pytest.approx(begin, abs=1e-6) for (_, end), (begin, _) in pairwise(ends))  # side by side


def test_a_model_can_be_looked_into(tiny):
    model, input_ids = tiny(), torch.randint(0, 11, (1, 10))
    words = [f"w{i}" for i in input_ids[0]]
    out = model(input_ids, output_hidden_states=True)
    shares = ml.provenance(out.write_attentions)
    gradients = ml.memory_gradients(model, input_ids, input_ids)
    pictures = [
        viz.slots_through_time([memory[0] for memory in out.memories]),
        viz.write_picture(out.write_attentions[-1][0], words[8:]),
        viz.read_picture(out.read_attentions[0][0], words),
        viz.provenance_bars(shares[0], words),
        viz.gradients_by_segment({"full": gradients}),
    ]
    norm = gradients[0].norm().item()
    assert all(picture.alt and picture.png() for picture in pictures) and f"{norm:.1e} at the first" in pictures[-1].alt


@pytest.mark.parametrize(
    "draw",
    [
        lambda words: viz.write_picture(WRITE, words),
        lambda words: viz.read_picture(READ, words),
        lambda words: viz.provenance_bars(SHARES, words),
        lambda words: viz.memory_at(WRITE, words, SHARES, WORDS, "title"),
        lambda words: viz.memory_at(WRITE, WORDS, SHARES, words, "title"),
        lambda words: viz.before_and_after(WRITE, words, {"now": SHARES}, WORDS, "title"),
        lambda words: viz.before_and_after(WRITE, WORDS, {"now": SHARES}, words, "title"),
    ],
)
@pytest.mark.parametrize("count", [3, 5])
def test_a_wrong_number_of_words_is_refused(draw, count):
    with pytest.raises(ValueError, match=f"{count} tokens were given for 4 positions: pass one word for each"):
        draw(["word"] * count)


# ---- in Jupyter ----


def test_a_picture_is_shown_with_its_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda data, **options: shown.append((data, options)))
    picture = viz.slots(MEMORIES[1])
    picture._ipython_display_()
    ((data, options),) = shown
    assert b64decode(data["image/png"]).startswith(b"\x89PNG") and data["text/plain"] == picture.alt
    assert options == {"metadata": {"image/png": {"alt": picture.alt}}, "raw": True}


def test_a_picture_without_alternative_text_is_not_shown():
    picture = viz.Picture(figsize=(2, 1))
    picture.subplots().plot([1, 2])
    with pytest.raises(ValueError, match=r"no alternative text: set picture\.alt to what it shows"):
        picture._ipython_display_()
    picture.alt = "A line that rises."
    assert picture.png()


def test_pictures_do_not_stay_in_pyplot():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    viz.slots(MEMORIES[1]).png()
    assert pyplot.get_fignums() == before


def labelled(i):
    picture = viz.Picture(figsize=(2, 1), alt=f'picture {i} of "a < b" & more')
    picture.subplots().plot([0, i])
    return picture


def alternative(box):
    return html.unescape(re.search(r'alt="([^"]*)"', box.children[1].value).group(1))


def test_a_slider_shows_the_picture_of_each_stop():
    drawn = []
    box = viz.slider(lambda i: drawn.append(i) or labelled(i), ["first", "second", "third"])
    play, stops = box.children[0].children
    assert [label for label, _ in stops.options] == ["first", "second", "third"]
    assert alternative(box) == 'picture 0 of "a < b" & more' and drawn == [0]
    stops.value = 2
    assert alternative(box) == 'picture 2 of "a < b" & more'
    data = re.search(r"base64,([^\"]+)", box.children[1].value).group(1)
    assert b64decode(data) == labelled(2).png()
    play.value = 1
    assert stops.index == 1 and alternative(box) == 'picture 1 of "a < b" & more'
    stops.value = 0
    assert alternative(box) == 'picture 0 of "a < b" & more' and play.value == 0
    assert drawn == [0, 2, 1] and play.max == 2  # each once, when first shown


def test_a_slider_leaves_its_first_picture_where_no_widget_runs():
    data, metadata = viz.slider(labelled, ["first", "second"])._repr_mimebundle_()
    assert b64decode(data["image/png"]).startswith(b"\x89PNG") and metadata["image/png"]["alt"] == labelled(0).alt
    assert "2 stops (first, second)" in data["text/plain"] and "application/vnd.jupyter.widget-view+json" in data


def test_a_slider_without_stops_is_refused():
    with pytest.raises(ValueError, match="a slider needs at least one stop: pass a label for each"):
        viz.slider(labelled, [])


def test_a_live_picture_is_drawn_every_so_many_steps(monkeypatch):
    calls = []

    def update(data, metadata, raw):
        calls.append((data["text/plain"], metadata["image/png"]["alt"], raw))

    handle = SimpleNamespace(display=lambda data, **options: calls.append(("display", data)), update=update)
    monkeypatch.setattr(live, "DisplayHandle", lambda: handle)
    picture = viz.LivePicture(lambda history: labelled(len(history)), every=2)
    for length in range(1, 6):
        picture([0] * length)
    picture.show([0] * 5)
    assert [call[0] for call in calls] == ["display", labelled(2).alt, labelled(4).alt, labelled(5).alt]
    assert all(call[1:] == (call[0], True) for call in calls[1:])
