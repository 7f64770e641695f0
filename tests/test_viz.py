import html
import inspect
import io
import re
import warnings
from base64 import b64decode
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch

import memgpt_lite as ml
from memgpt_lite import interventions, tracing, viz
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
FOUND = interventions.Dependence(0, 0.9, 0.1, torch.tensor([0.05, 0.9, 0.88]), torch.tensor([0.8, 0.1, 0.1]), [0])
TRACE = ml.MemoryTrace(  # 2 segments: the second is WRITE, the last word is missing
    tokens=["Ada", "b", "c", "d", " Paris", "x" * 50, "\n"], segment_length=4, read_layers=[0], values_mix=True, memory=np.zeros((3, 3, 2), np.float16),
    write_attention=np.stack([np.zeros((3, 5)), WRITE]).astype(np.float16), read_attention=np.zeros((1, 1, 7, 3), np.float16),
    moved=np.array([[0, 1, 1], [0, 1, 1]], np.float32),
    source_tokens=np.array([[[-1, -1]] * 3, [[-1, -1]] * 3, [[-1, -1], [0, 5], [6, 4]]], np.int32),
    source_shares=np.array([[[0, 0]] * 3, [[0, 0]] * 3, [[0, 0], [0.6, 0.2], [0.9, 0.1]]], np.float32),
    initial_share=np.array([[1, 1, 1], [1, 1, 1], [1, 0.05, 0]], np.float32), rest_share=np.array([[0] * 3, [0] * 3, [0, 0.15, 0]], np.float32),
    next_tokens=np.zeros((7, 1), np.int32), next_probabilities=np.ones((7, 1), np.float16), entropy=np.zeros(7, np.float32), next_words={0: "a"},
)  # fmt: skip

# each figure, and what its alternative text has to say about the numbers above
FIGURES = {
    "slots": (lambda: viz.slots(MEMORIES[1]), ["3 slots by 2 dimensions", "from 0 to 4."]),
    "equal slots": (lambda: viz.slots(MEMORIES[0]), ["from 0 to 0.", "All slots are equal."]),
    "slots through time": (
        lambda: viz.slots_through_time(MEMORIES),
        ["3 slots by 2 segments", "67% of the cells are exactly zero", "largest change is 3.5, in segment 0"],
    ),
    "write": (
        lambda: viz.write_picture(WRITE, WORDS),
        ["1 of 3 slots have a keep of 1.", "Slot 2 keeps 0% and takes 90% from “$5”.", "Slot 1 keeps 25% and takes 75% from “Paris”."],
    ),
    "read": (
        lambda: viz.read_picture(READ, WORDS),
        ["4 tokens by 3 slots, one for each of 2 heads", "“Ada” reads 100% from slot 0 (head 0)", "“$5” reads 60% from slot 2 (head 1)"],
    ),
    "alignment": (
        lambda: viz.alignment_picture(SHARES[:2], WORDS, ["年", "$1$"]),
        ["2 target by 4 source tokens", "for “年” 20% from “Ada”", "for “$1$” 25% from “Ada”", "for the other 0 "],
    ),
    "provenance": (
        lambda: viz.provenance_bars(SHARES, WORDS),
        ["slot 0: 80% its initial value", "slot 1: 30% its initial value", "slot 2: 90% “$5”"],
    ),
    "memory at": (
        lambda: viz.memory_at(WRITE, WORDS, SHARES, WORDS, "Segment 3"),
        ["Segment 3", "takes 75% from “Paris”", "slot 2: 90% “$5”", "1 of 3 slots"],
    ),
    "memory after": (
        lambda: figures.memory_after([("one", TRACE), ("two", replace(TRACE, moved=TRACE.moved * 0 + 1))], 1, "Two of $1$"),
        ["Two of $1$, after segment 1. one: This segment's update. 1 of 3 slots have a keep of 1.", "slot 1: 60% “Ada”; slot 2: 90% “↵”",
         "two: This segment's update. 0 of 3 slots have a keep of 1."],
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
        ["over 3 steps", "loss goes from 2.00 to 2.50", "accuracy goes from 0.10 to 0.20, each the mean of the last 3 steps", "stage 0 from step 1, stage 1 from step 3"],
    ),
    "which slots": (
        lambda: viz.which_slots(FOUND, torch.tensor([0.9, 0.1, 0.0]), "Paris", "Where is it?"),
        ["Where is it?", "“Paris” has probability 90%", "Mostly “Paris”: slot 0; provenance agrees."],
    ),
    "six steps": (lambda: viz.six_steps(), ["1 preprocess", "2 initialise memory", "3 forward", "4 update", "5 backward", "6 train"]),
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
    functions = {name: made for name in viz.__all__ if inspect.isfunction(made := getattr(viz, name))}
    drawn = {name for name, made in functions.items() if made.__annotations__["return"] is viz.Picture}
    assert len(drawn) > 9 and drawn <= {name for draw, _ in FIGURES.values() for name in draw.__code__.co_names}


def test_the_axes_say_what_is_on_them():
    for name, (draw, _) in FIGURES.items():
        for axes in draw().axes:
            if name != "six steps" and axes.get_label() != "<colorbar>" and axes.get_visible():
                assert axes.get_xlabel() or axes.get_shared_x_axes().get_siblings(axes) != [axes], name


def test_words_stand_on_the_axis_as_they_are():
    axes = viz.write_picture(WRITE, ["$5", "$6$", "a_b", "\\x"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["keep", "$5", "$6$", "a_b", "\\x"]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())


@pytest.mark.parametrize("draw", [
    lambda words: viz.write_picture(WRITE, words, "costs $5 or $6"), lambda words: viz.read_picture(READ, words, "costs $5 or $6"),
    lambda words: viz.alignment_picture(SHARES, words, words[:3], "costs $5 or $6"),
    lambda words: viz.provenance_bars(SHARES, words, "costs $5 or $6"),
    lambda words: viz.memory_at(WRITE, words, SHARES, words, "costs $5 or $6"),
    lambda words: viz.before_and_after(WRITE, words, {"costs $5 or $6": SHARES}, words, "costs $5 or $6"),
])  # fmt: skip
def test_long_and_invisible_words_are_drawn_short_and_visible_and_said_whole(draw):
    words = ["x" * 200, "\n", " ", " Paris"]
    picture = draw(words)
    drawn = {text.get_text() for text in picture.findobj(matplotlib.text.Text)}
    assert max(map(len, drawn)) < 80 and not drawn & {"\n", " ", " Paris"} and drawn & {"x" * 11 + "…", "↵", "·", "Paris"}
    assert any(f"“{word}”" in picture.alt or f"mostly {word}" in picture.alt for word in words)
    assert not [text for text in picture.findobj(matplotlib.text.Text) if "$" in text.get_text() and text.get_parse_math()]
    shapes = matplotlib.image.imread(io.BytesIO(picture.png())).shape
    assert shapes == matplotlib.image.imread(io.BytesIO(draw(WORDS).png())).shape
    assert all(axes.get_window_extent().height > 20 for axes in picture.axes)  # the labels leave room


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


def test_what_a_trace_holds_is_drawn(tiny):
    """Each slot's bar: as wide as the trace says for the three strongest tokens, the others and the initial slot."""
    trace = ml.trace(tiny(), torch.randint(0, 11, (10,)), tokens=[f"w{i}" for i in range(10)], keep=4)
    for step in range(3):
        update, holds = figures.memory_after([("", trace)], step, "title").axes[:2]
        start, length = 4 * step, (4, 4, 2)[step]
        np.testing.assert_allclose(update.images[0].get_array(), trace.write_attention[step, :, : 1 + length], atol=1e-6)
        assert [label.get_text() for label in update.get_xticklabels()] == ["keep", *trace.tokens[start : start + length]]
        drawn = {(bar.get_y() + bar.get_height() / 2, bar.get_x()): bar.get_width() for bar in holds.patches}
        for slot in range(3):
            widths = [width for (y, _), width in sorted(drawn.items()) if abs(y - slot) < 0.01 and width > 0]
            labelled = [(w, s) for w, s in trace.held(slot, step + 1)[:3] if s > 0.15]
            assert sum(widths) == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(widths[: len(labelled)], [share for _, share in labelled], atol=1e-6)
            if (initial := trace.initial_share[step + 1, slot]) > 0:
                assert widths[-1] == pytest.approx(initial, abs=1e-6)
        words = {text.get_text() for text in holds.texts}
        assert words <= set(trace.tokens[: start + length]) and words


@pytest.mark.filterwarnings("error")
def test_words_that_the_font_lacks_and_long_segments_can_be_drawn():
    T = 60
    words = ["中文", "👩", "\0", "\ud800", "$x$", "שלום"] * 10
    changes = {"segment_length": T, "tokens": words, "write_attention": np.full((1, 3, 1 + T), 1 / (1 + T), np.float16)}
    trace = replace(TRACE, moved=TRACE.moved[:1], source_tokens=TRACE.source_tokens[1:], source_shares=TRACE.source_shares[1:],
                    initial_share=TRACE.initial_share[1:], **changes)  # fmt: skip
    picture = figures.memory_after([("", trace)], 0, "title")
    update, holds = picture.axes[:2]
    assert len(picture.png()) > len(picture.webp()) > 1000 and picture.webp()[8:12] == b"WEBP"
    assert holds.get_position().y1 < update.get_position().y0  # one below the other, each over the whole width
    assert "slot 1: 60% “中文”" in picture.alt
    picture.alt.encode()


@pytest.mark.parametrize(
    "share, says",
    [(0, "0%"), (0.004, "under 1%"), (0.006, "1%"), (0.4951, "50%"), (0.994, "99%"), (0.996, "over 99%"), (1, "100%")],
)
def test_0_and_100_percent_are_said_of_nothing_and_all_alone(share, says):
    assert tracing.percent(share) == says
    assert f"slot 0: {says} “Ada”" in viz.provenance_bars(torch.tensor([[0.0, share], [0, 1]]), ["Ada"]).alt or share == 0


def test_nothing_but_zeros_is_drawn_as_zeros():
    picture = viz.gradients_by_segment({"cut": torch.zeros(4, 1, 1, 1)})
    assert (
        "0.0e+00 at the last segment, 0.0e+00 at the first, exactly zero 3 times" in picture.alt
        and "logarithmic" not in picture.alt
    )
    assert picture.axes[0].get_yscale() == "linear" and picture.axes[0].lines[0].get_ydata().tolist() == [0, 0, 0]
    assert picture.png()


def test_a_gradient_too_small_for_its_square_is_not_called_zero():
    picture = viz.gradients_by_segment({"faint": torch.tensor([0.0, 1e-30, 3e-25, 0.0]).view(4, 1, 1, 1)})
    assert "3.0e-25 at the last segment, 0.0e+00 at the first, exactly zero 1 times" in picture.alt
    np.testing.assert_allclose(picture.axes[0].lines[0].get_ydata(), [1e-31, 1e-30, 3e-25], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_drawn_as_it_is(dtype):
    memories = [memory.to(dtype) for memory in MEMORIES]
    assert viz.slots(memories[1]).alt == viz.slots(MEMORIES[1]).alt
    assert viz.slots_through_time(memories).png() and viz.write_picture(WRITE.to(dtype), WORDS).png()


def test_small_differences_between_slots_are_differences():
    alt = viz.slots(torch.tensor([[1e-9, -2e-7], [1e-9, -3e-7]])).alt
    assert "values from -3e-07 to 1e-09." in alt and "equal" not in alt


@pytest.mark.parametrize("change", [1e-4, 300.0])
def test_changes_in_half_precision_are_neither_lost_nor_infinite(change):
    memories = [np.zeros((2, 4), np.float16), np.full((2, 4), [[0], [change]], np.float16)]
    picture = viz.slots_through_time(memories)
    np.testing.assert_allclose(picture.axes[0].images[0].get_array(), [[0], [change]], rtol=1e-3)
    assert f"50% of the cells are exactly zero; the largest change is {change:.2g}, in segment 0." in picture.alt


def test_dots_are_explained_where_there_are_any():
    still, moving = torch.zeros(2, 3, 2), torch.arange(2.0)[:, None, None].expand(2, 3, 2)
    many = torch.zeros(401, 3, 2)
    for memories, dots in ((still, 3), (moving, 0), (many, 0)):
        axes = viz.slots_through_time(memories).axes[0]
        assert len(axes.texts) == dots and ("not at all" in axes.get_title(loc="left") + axes.get_title()) == bool(dots)
    assert viz.slots_through_time(still).alt.endswith("3 slots by 1 segments. Nothing changed.")


def test_a_gradient_that_is_no_number_is_not_drawn_as_zero():
    picture = viz.gradients_by_segment({"lost": torch.tensor([float("nan"), 0, float("inf"), 2, 0]).view(5, 1, 1, 1)})
    assert "2.0e+00 at the last segment, nan at the first, exactly zero 1 times, not finite 2 times." in picture.alt
    drawn = picture.axes[0].lines[0].get_ydata()
    assert np.isfinite(drawn).tolist() == [False, True, False, True] and drawn[1] == 0.2
    assert picture.png()


def test_a_learning_curve_is_said_by_its_last_steps_together():
    history = ml.History(loss=[4.0] * 20 + [1.0, 3.0] * 10, accuracy=[0.0] * 20 + [1.0, 0.0] * 10, stage=[0] * 40)
    says = "from 4.00 to 2.00 nats, the accuracy goes from 0.00 to 0.50, each the mean of the last 20 steps"
    assert says in viz.loss_curve(history).alt


@pytest.mark.parametrize("length", [30, 200])
def test_the_words_of_a_long_segment_do_not_overlap(length):
    changes = {
        "segment_length": length,
        "tokens": ["word"] * length,
        "write_attention": np.full((1, 3, 1 + length), 1 / (1 + length), np.float16),
    }
    trace = replace(TRACE, moved=TRACE.moved[:1], source_tokens=TRACE.source_tokens[1:], source_shares=TRACE.source_shares[1:],
                    initial_share=TRACE.initial_share[1:], **changes)  # fmt: skip
    picture = figures.memory_after([("", trace)], 0, "title")
    picture.png()
    boxes = [label.get_window_extent() for label in picture.axes[0].get_xticklabels() if label.get_visible()]
    assert len(boxes) > 25 and all(one.x1 <= other.x0 for one, other in pairwise(boxes))


def test_only_what_did_not_move_has_a_keep_of_1(tiny):
    """fifo moves what slots hold on: 1 among what was written, though every slot is another."""
    trace = ml.trace(tiny(update_rule="fifo", num_memory_slots=6), torch.randint(0, 11, (8,)))
    assert (trace.moved[1] > 0).any() and (figures.written(trace)[..., 0] == 1).sum() == (trace.moved == 0).sum()
    assert f"{(trace.moved[1] == 0).sum()} of 6 slots have a keep of 1." in figures.memory_after([("", trace)], 1, "title").alt


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no steps to draw: train for at least one"):
        viz.loss_curve(ml.History())
    with pytest.raises(ValueError, match=r"2 steps, but 0 accuracies: draw what `ml\.train` returned"):
        viz.loss_curve(ml.History(loss=[2.0, 1.0]))
    with pytest.raises(ValueError, match="there is nothing to draw: pass at least one"):
        viz.gradients_by_segment({})


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
    stops = box.children[0]
    assert (stops.name, stops.labels, stops.index) == ("segment", ["first", "second", "third"], 0)
    assert alternative(box) == 'picture 0 of "a < b" & more' and drawn == [0]
    stops.index = 2
    assert alternative(box) == 'picture 2 of "a < b" & more'
    data = re.search(r"base64,([^\"]+)", box.children[1].value).group(1)
    assert b64decode(data) == labelled(2).png()
    stops.index = 1
    stops.index = 0
    assert alternative(box) == 'picture 0 of "a < b" & more'
    assert drawn == [0, 2, 1]  # each once, when first shown


def test_a_slider_leaves_its_first_picture_where_no_widget_runs():
    data, metadata = viz.slider(labelled, ["first", "second"])._repr_mimebundle_()
    assert b64decode(data["image/png"]).startswith(b"\x89PNG") and metadata["image/png"]["alt"] == labelled(0).alt
    assert "2 stops (first, second)" in data["text/plain"] and "application/vnd.jupyter.widget-view+json" in data


def test_a_slider_without_stops_is_refused():
    with pytest.raises(ValueError, match="a slider needs at least one stop: pass a label for each"):
        viz.slider(labelled, [])


def test_sliders_choose_together():
    drawn = []

    def draw(slots, facts):
        drawn.append((slots, facts))
        return labelled(10 * slots + facts)

    box = viz.sliders(draw, slots=(1, 2, 4), facts=range(6))
    slots, facts = box.children[0].children
    assert (slots.name, slots.labels, slots.index) == ("slots", ["1", "2", "4"], 1) and (facts.name, facts.index) == ("facts", 3)
    assert alternative(box) == 'picture 23 of "a < b" & more'
    slots.index = 2
    facts.index = 0
    assert alternative(box) == 'picture 40 of "a < b" & more' and drawn == [(2, 3), (4, 3), (4, 0)]
    data, metadata = box._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == labelled(23).alt and "slots 2, facts 3" in data["text/plain"]


@pytest.mark.parametrize("stops", [{}, {"slots": ()}, {"slots": (1, 2), "facts": []}])
def test_sliders_without_stops_are_refused(stops):
    with pytest.raises(ValueError, match="each slider needs at least one stop"):
        viz.sliders(labelled, **stops)


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


def test_chinese_is_drawn_in_bold_too_and_without_a_word(caplog):
    with matplotlib.rc_context(figures.STYLE), warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = viz.Picture(figsize=(3, 2), alt="two titles")
        picture.subplots().set_title("Friday 星期五", fontweight="bold")
        picture.suptitle("诸葛亮")
        picture.savefig(io.BytesIO())  # not png(), which keeps warnings of missing glyphs to itself
    assert not caplog.records
