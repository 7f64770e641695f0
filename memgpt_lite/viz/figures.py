"""The pictures of the series: each answers one question, says in its title what it shows, and carries alternative text.

Tensors are those that `MemGPT.forward` returns, of one text: index the batch first (`out.write_attentions[s][0]`).
Colours: Okabe & Ito 2008 for lines and bars, cividis for shares, PuOr for signed numbers; all readable with colour-blindness,
and none stands alone: what matters is also written.
"""

import io
import warnings
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from IPython.display import display
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..tracing import SHOWN_SHARE, MemoryTrace, percent

BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW)
GREY = "#BBBBBB"
WIDE_ENOUGH = 0.15  # for a word: the share of a bar
CHINESE = Path(__file__).parent / "fonts" / "NotoSansCJKsc-subset.otf"  # the characters of the package's texts
font_manager.fontManager.addfont(CHINESE)
font_manager.fontManager.ttflist.append(replace(font_manager.fontManager.ttflist[-1], weight=700))  # it serves as its own bold
STYLE = {
    "font.family": ["DejaVu Sans", "Noto Sans CJK SC"],
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "lines.linewidth": 2,
}


class Picture(Figure):
    """A matplotlib figure with alternative text, which Jupyter shows, and stores, together with the picture.

    alt: what someone who does not see it needs to know; set it when the figure is drawn. Everything else is as in
    `matplotlib.figure.Figure`: `axes = Picture(figsize=(6, 3), alt="…").subplots()`.
    """

    def __init__(self, *args, alt: str = "", **options):
        super().__init__(*args, **{"layout": "constrained", **options})
        FigureCanvasAgg(self)
        self.alt = alt

    def png(self) -> bytes:
        """The picture as a PNG file."""
        return self._file(format="png", metadata={"Software": None})

    def webp(self) -> bytes:
        """The same as a WebP file, without loss and a third as large: every browser shows it, a notebook does not."""
        return self._file(format="webp", pil_kwargs={"lossless": True})

    def _file(self, **options) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():  # a box stands for a character that the font lacks; the alternative text has the word
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            self.savefig(buffer, **options)
        return buffer.getvalue()

    def bundle(self) -> tuple[dict, dict]:
        """What Jupyter is given: the picture and its text, and the alternative text as the picture's metadata."""
        if not self.alt:
            raise ValueError("this picture has no alternative text: set picture.alt to what it shows, in a sentence or two")
        return {"image/png": b64encode(self.png()).decode(), "text/plain": self.alt}, {"image/png": {"alt": self.alt}}

    def _ipython_display_(self) -> None:
        data, metadata = self.bundle()
        display(data, metadata=metadata, raw=True)


def _array(tensor) -> np.ndarray:
    if not isinstance(tensor, Tensor):
        return np.asarray(tensor)
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()  # NumPy has no bfloat16


def _check_tokens(tokens: Sequence[str], count: int) -> list[str]:
    if len(tokens) != count:
        raise ValueError(f"{len(tokens)} tokens were given for {count} positions: pass one word for each")
    return list(tokens)


def _word(token: str) -> str:
    """A token in a form that fits on an axis: short, with nothing invisible in it."""
    word = "".join(c if c.isprintable() else "↵" if c == "\n" else "�" for c in token.removeprefix(" ") or "·∅"[not token])
    return word if len(word) <= 12 else word[:11] + "…"


def slots(memory: Tensor, title: str = "The memory: one row a slot") -> Picture:
    """What numbers are in the slots? memory: (M, D)."""
    values = _array(memory)
    limit = np.abs(values).max() or 1.0
    picture = Picture(figsize=(7, 0.6 + 0.16 * len(values)))
    axes = picture.subplots()
    image = axes.imshow(values, aspect="auto", cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(title, parse_math=False)
    axes.set(xlabel="dimension", ylabel="slot")
    picture.colorbar(image, label="value")
    equal = " All slots are equal." if (values == values[0]).all() else ""
    picture.alt = (
        f"{title}. A heat map of {values.shape[0]} slots by {values.shape[1]} dimensions, "
        f"values from {values.min():.3g} to {values.max():.3g}.{equal}"
    )
    return picture


def slots_through_time(memories: Sequence[Tensor], title: str = "How far each slot moved in each segment") -> Picture:
    """Which slots changed when? memories: S + 1 tensors (M, D), before the first segment and after each."""
    states = np.stack([_array(memory) for memory in memories]).astype(float)  # (S + 1, M, D); float16 has no room for squares
    moved = np.sqrt(((states[1:] - states[:-1]) ** 2).mean(-1)).T  # (M, S)
    still = (states[1:] == states[:-1]).all(-1).T  # (M, S)
    picture = Picture(figsize=(7, 0.9 + 0.16 * len(moved)))
    axes = picture.subplots()
    image = axes.imshow(moved, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    dots = np.argwhere(still) if still.size <= 1000 else []
    for slot, segment in dots:
        axes.text(segment, slot, "·", color="white", ha="center", va="center")
    axes.set_title(f"{title}{' (· = not at all)' if len(dots) else ''}", parse_math=False)
    axes.set(xlabel="segment", ylabel="slot")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    picture.colorbar(image, label="root mean square change")
    says = (
        "Nothing changed."
        if still.all()
        else f"{percent(still.mean())} of the cells are exactly zero; the largest change is {moved.max():.2g}, "
        f"in segment {moved.max(0).argmax()}."
    )
    picture.alt = f"{title}. A heat map of {moved.shape[0]} slots by {moved.shape[1]} segments. {says}"
    return picture


def _draw_write(axes, attention: np.ndarray, tokens: Sequence[str]):
    image = axes.imshow(attention, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axes.axvline(0.5, color="white", linewidth=3)
    words = ["keep", *(_word(token) for token in tokens)]
    axes.set_xticks(range(len(words)), words, rotation=90, parse_math=False)  # else $…$ is mathematics
    axes.set(xlabel="what the slot takes from", ylabel="slot")
    return image


def _say_write(attention: np.ndarray, tokens: Sequence[str]) -> str:
    keep, write = attention[:, 0], attention[:, 1:]
    says = [f"{(keep == 1).sum()} of {len(keep)} slots have a keep of 1."]
    for slot in np.argsort(keep)[:4]:
        if keep[slot] < 0.99:
            token = write[slot].argmax()
            says.append(
                f"Slot {slot} keeps {percent(keep[slot])} and takes {percent(write[slot, token])} from “{tokens[token]}”."
            )
    return " ".join(says)


def write_picture(
    write_attention: Tensor, tokens: Sequence[str], title: str = "One update: a row says what a slot becomes"
) -> Picture:
    """What is kept, and what is written where? write_attention: (M, 1 + L), of one segment; tokens: its L words."""
    attention = _array(write_attention)
    tokens = _check_tokens(tokens, attention.shape[1] - 1)
    picture = Picture(figsize=(1.5 + 0.32 * attention.shape[1], 1.6 + 0.17 * len(attention)))
    axes = picture.subplots()
    picture.colorbar(_draw_write(axes, attention, tokens), label="share (a row sums to 1)")
    axes.set_title(title, parse_math=False)
    picture.alt = f"{title}. A heat map of slots by keep and tokens. {_say_write(attention, tokens)}"
    return picture


def read_picture(read_attention: Tensor, tokens: Sequence[str], title: str = "Who reads which slot") -> Picture:
    """Which position reads from which slot? read_attention: (H, L, M), of one layer, one panel a head; tokens: L words."""
    attention = _array(read_attention)
    heads, length, count = attention.shape
    tokens = _check_tokens(tokens, length)
    picture = Picture(figsize=(1 + 3.2 * heads, 1.2 + 0.2 * length))
    panels = picture.subplots(1, heads, squeeze=False)[0]
    for head, (axes, weights) in enumerate(zip(panels, attention)):
        image = axes.imshow(weights, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set(title=f"head {head}", xlabel="slot", xticks=range(0, count, 2))
        axes.set_yticks(range(length), [_word(token) for token in tokens] if head == 0 else [], parse_math=False)
    picture.colorbar(image, ax=panels, label="share (a row sums to 1)")
    picture.suptitle(title, x=0.02, ha="left", fontsize=11, parse_math=False)
    says = []
    for position in np.argsort(-attention.max((0, 2)))[:4]:
        head, slot = np.unravel_index(attention[:, position].argmax(), (heads, count))
        says.append(f"“{tokens[position]}” reads {percent(attention[head, position, slot])} from slot {slot} (head {head}).")
    picture.alt = f"{title}. Heat maps of {length} tokens by {count} slots, one for each of {heads} heads. {' '.join(says)}"
    return picture


def alignment_picture(
    alignment: Tensor, source: Sequence[str], target: Sequence[str], title: str = "Which source token is read, through the slots"
) -> Picture:
    """Which source token is read for which target token? alignment: (T, 1 + N), rows sum to 1, column 0 is what the slots
    began with; source: N words; target: the T words that were written with it."""
    shares = _array(alignment)
    source, target = _check_tokens(source, shares.shape[1] - 1), _check_tokens(target, len(shares))
    picture = Picture(figsize=(1.8 + 0.27 * shares.shape[1], 1.2 + 0.22 * len(shares)))
    axes = picture.subplots()
    image = axes.imshow(shares, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, parse_math=False)
    axes.set(xlabel="read from (source token; “first”: what slots began with)", ylabel="to write")
    axes.set_xticks(range(shares.shape[1]), ["first", *(_word(token) for token in source)], parse_math=False)
    axes.set_yticks(range(len(target)), [_word(token) for token in target], parse_math=False)
    if max(map(len, source), default=0) > 2:  # words need more room than letters
        axes.tick_params(axis="x", labelrotation=90)
    axes.get_xticklabels()[0].set_rotation(90)
    picture.colorbar(image, label="share (a row sums to 1)")
    strongest = shares[:, 1:].argmax(1)
    named = [(word, row[1 + n], source[n]) for word, row, n in zip(target, shares, strongest) if row[1 + n] >= SHOWN_SHARE]
    says = [f"for “{word}” {percent(share)} from “{token}”" for word, share, token in named]
    says.append(f"for the other {len(target) - len(named)} no source token has {SHOWN_SHARE:.0%}")
    picture.alt = f"{title}. A heat map of {len(target)} target by {len(source)} source tokens. Read most: {', '.join(says)}."
    return picture


def _token_colours(shares: np.ndarray, show: int) -> dict[int, str]:
    """A colour for each token that gets a label: one of the `show` strongest of a slot, and wide enough. shares: (M, 1 + T)."""
    order = np.argsort(-shares[:, 1:], axis=1)[:, :show]  # (M, show)
    shown = sorted({int(t) for row, strongest in zip(shares, order) for t in strongest if row[1 + t] > WIDE_ENOUGH})
    return {token: COLOURS[i % len(COLOURS)] for i, token in enumerate(shown)}


def _draw_provenance(axes, shares: np.ndarray, tokens: Sequence[str], show: int = 3, colours=None) -> list[str]:
    """Bars for each slot: the strongest tokens, the rest, and what is left of the initial slot. Returns the same in words."""
    axes.set_ylim(len(shares) - 0.4, -0.6)
    colours = colours or _token_colours(shares, show)
    says = []
    for slot, row in enumerate(shares):
        left, strongest = 0.0, np.argsort(-row[1:])[:show]
        for token in strongest:
            share, colour = row[1 + token], colours.get(int(token))
            if share > 0 and colour:
                axes.barh(slot, share, left=left, color=colour, edgecolor="white", height=0.85)
                if share > WIDE_ENOUGH:
                    axes.text(
                        left + share / 2,
                        slot,
                        _word(tokens[token]),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if colour == BLUE else "black",
                        parse_math=False,
                    )
                left += share
        rest = max(0.0, 1 - row[0] - left)
        axes.barh(slot, rest, left=left, color=GREY, edgecolor="white", hatch="//", height=0.85)
        axes.barh(slot, row[0], left=left + rest, color="#EEEEEE", edgecolor=GREY, height=0.85)
        token = strongest[0]
        says.append(
            f"slot {slot}: {percent(row[1 + token])} “{tokens[token]}”"
            if row[1 + token] > row[0]
            else f"slot {slot}: {percent(row[0])} its initial value"
        )
    axes.set(xlim=(0, 1), xlabel="share of the slot (grey: other tokens · pale: initial slot)", ylabel="slot")
    return says


def provenance_bars(shares: Tensor, tokens: Sequence[str], title: str = "What each slot is made of") -> Picture:
    """Which tokens is a slot made of? shares: (M, 1 + T), from `provenance`; tokens: the T words read so far."""
    values = _array(shares)
    tokens = _check_tokens(tokens, values.shape[1] - 1)
    picture = Picture(figsize=(7, 0.9 + 0.22 * len(values)))
    axes = picture.subplots()
    says = _draw_provenance(axes, values, tokens)
    axes.set_title(title, parse_math=False)
    picture.alt = f"{title}. Stacked bars. {'; '.join(says)}."
    return picture


def _draw_memory(update, holds, attention, tokens: Sequence[str], shares, all_tokens: Sequence[str], of: str = "") -> str:
    """What a segment wrote, and what the slots hold after it, in two panels; returns the same in words. of: begins the titles."""
    update.figure.colorbar(_draw_write(update, attention, tokens), ax=update, label="share")
    update.set_title(f"{of}this segment's update", parse_math=False)
    says = _draw_provenance(holds, shares, all_tokens)
    holds.set_title(f"{of}what each slot is made of now", parse_math=False)
    return f"{of}This segment's update. {_say_write(attention, tokens)} What the slots hold: {'; '.join(says)}."


def memory_at(write_attention: Tensor, tokens: Sequence[str], shares: Tensor, all_tokens: Sequence[str], title: str) -> Picture:
    """What has this segment changed, and what do the slots hold after it?

    write_attention (M, 1 + L) and tokens (L words): of the segment; shares (M, 1 + T) and all_tokens (T words): of all so far.
    """
    attention, values = _array(write_attention), _array(shares)
    tokens = _check_tokens(tokens, attention.shape[1] - 1)
    all_tokens = _check_tokens(all_tokens, values.shape[1] - 1)
    picture = Picture(figsize=(10.5, 1.8 + 0.19 * len(attention)))
    left, right = picture.subplots(1, 2, width_ratios=(1.25, 1))
    says = _draw_memory(left, right, attention, tokens, values, all_tokens)
    picture.suptitle(title, x=0.02, ha="left", fontsize=12, parse_math=False)
    picture.alt = f"{title}. {says}"
    return picture


def written(trace: MemoryTrace) -> np.ndarray:
    """A trace's write attention, (S, M, 1 + L), in which only slots that did not move have a keep of 1: float16 rounds 0.9999 to 1."""
    attention = trace.write_attention.astype(float)
    attention[..., 0] = np.minimum(attention[..., 0], np.where(trace.moved > 0, np.nextafter(1, 0), 1))
    return attention


def memory_after(traces: Sequence[tuple[str, MemoryTrace]], step: int, title: str) -> Picture:
    """What has segment `step` changed, and what do the slots hold after it? traces: of one text, each with its name ("": none)."""
    tokens, length = traces[0][1].tokens, traces[0][1].segment_length
    here = [_word(token) for token in tokens[step * length : (step + 1) * length]]
    long = length > 24  # then the update gets the whole width
    rows, columns = (2 * len(traces), 1) if long else (len(traces), 2)
    heights = [1.6 + 0.19 * trace.moved.shape[1] for _, trace in traces for _ in range(2 if long else 1)]
    picture = Picture(figsize=(10.5, sum(heights) + 0.3))
    panels = picture.subplots(rows, columns, height_ratios=heights, width_ratios=None if long else (1.25, 1), squeeze=False)
    says = []
    for (name, trace), (update, holds) in zip(traces, panels.reshape(-1, 2)):
        attention = written(trace)[step, :, : 1 + len(here)]  # (M, 1 + L)
        sources, place = np.unique(trace.source_tokens[step + 1], return_inverse=True)  # (N): numbers of tokens, or −1; (M, K)
        shares = np.zeros((len(attention), 1 + len(sources)))
        shares[:, 0] = trace.initial_share[step + 1]
        np.put_along_axis(shares, 1 + place.reshape(len(shares), -1), trace.source_shares[step + 1], axis=1)
        of = f"{name}: " if name else ""
        says.append(_draw_memory(update, holds, attention, here, shares, [_word(tokens[t]) for t in sources], of))
        update.tick_params("x", labelsize=8 if long else 10)
        every = 1 + len(here) // 80  # more labels would overlap
        for i, label in enumerate(update.get_xticklabels()):
            label.set_visible(i % every == 0)
    title = f"{title}, after segment {step}"
    picture.suptitle(title, x=0.02, ha="left", fontsize=12, parse_math=False)
    picture.alt = f"{title}. {' '.join(says)}"
    return picture


def before_and_after(
    write_attention: Tensor, tokens: Sequence[str], shares: dict[str, Tensor], all_tokens: Sequence[str], title: str
) -> Picture:
    """What did one segment write, and is it still there later?

    write_attention (M, 1 + L) and tokens (L words): of the segment; shares: by moment, what the slots are made of then, each
    (M, 1 + T), of the same T words `all_tokens`. A token has the same colour in every panel.
    """
    attention = _array(write_attention)
    moments = {name: _array(share) for name, share in shares.items()}
    tokens = _check_tokens(tokens, attention.shape[1] - 1)
    all_tokens = _check_tokens(all_tokens, next(iter(moments.values())).shape[1] - 1)
    colours = _token_colours(np.concatenate(list(moments.values())), show=3)
    picture = Picture(figsize=(5 + 2.5 * len(moments), 1.7 + 0.19 * len(attention)))
    update, *panels = picture.subplots(1, 1 + len(moments), width_ratios=(2, *[1] * len(moments)), sharey=True)
    _draw_write(update, attention, tokens)
    update.set_title("what was written (yellow: all of it)")
    says = []
    for axes, (name, values) in zip(panels, moments.items()):
        _draw_provenance(axes, values, all_tokens, colours=colours)
        names = ["their initial value", *all_tokens]
        mostly = Counter(f"mostly {names[row.argmax()]}" if row.max() > 0.5 else "a mixture" for row in values)
        says.append(f"{name}, of {len(values)} slots: {', '.join(f'{n} {what}' for what, n in mostly.most_common())}.")
        axes.set_title(name, parse_math=False)
        axes.set(xlabel="share of the slot", ylabel="", xticks=(0, 0.5, 1))
    picture.suptitle(title, x=0.02, ha="left", fontsize=12, parse_math=False)
    picture.alt = (
        f"{title}. Left, what was written: {_say_write(attention, tokens)} Then what the slots are made of. {' '.join(says)}"
    )
    return picture


def gradients_by_segment(gradients: dict[str, Tensor], title: str = "How far back the gradient reaches") -> Picture:
    """How much does the memory after each segment still matter to the loss?

    gradients: for each name a tensor (S + 1, B, M, D), from `memory_gradients`. Zeros stand on the dotted line;
    what is not finite is not drawn.
    Raises `ValueError` if there are none.
    """
    if not gradients:
        raise ValueError("there is nothing to draw: pass at least one {name: memory_gradients(…)}")
    picture = Picture(figsize=(7, 3.4))
    axes = picture.subplots()
    says, norms = [], {}
    for name, gradient in gradients.items():
        values = _array(gradient).astype(np.float64)  # in float32 the square of a small number is 0
        norms[name] = np.sqrt((values.reshape(len(values), -1) ** 2).sum(-1))[:-1]  # the last one is read by no segment
    positive = np.concatenate([norm[(norm > 0) & np.isfinite(norm)] for norm in norms.values()])
    floor = positive.min() / 10 if len(positive) else 0.0
    for index, (name, norm) in enumerate(norms.items()):
        axes.plot(np.where(norm == 0, floor, norm), marker="os^vD"[index % 5], label=name, color=COLOURS[index % len(COLOURS)])
        zero, lost = int((norm == 0).sum()), int((~np.isfinite(norm)).sum())
        says.append(
            f"{name}: {norm[-1]:.1e} at the last segment, {norm[0]:.1e} at the first"
            + (f", exactly zero {zero} times" if zero else "")
            + (f", not finite {lost} times" if lost else "")
        )
    if floor:  # else all are zero
        axes.set_yscale("log")
    if any((norm == 0).any() for norm in norms.values()):
        axes.axhline(floor, color=GREY, linestyle=":")
        axes.annotate("exactly 0", (0, floor), textcoords="offset points", xytext=(2, 9), color="#555555")
    axes.set_title(title, parse_math=False)
    axes.set(xlabel="memory before segment", ylabel="norm of ∂loss/∂memory")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for text in axes.legend().get_texts():
        text.set_parse_math(False)
    picture.alt = f"{title}. Lines{' on a logarithmic axis' if floor else ''}. {'; '.join(says)}."
    return picture


def loss_curve(history, title: str = "Learning, stage by stage") -> Picture:
    """Does it learn? history: a `training.History`; raises `ValueError` for one without steps, accuracies or stages."""
    if not len(history):
        raise ValueError("this history has no steps to draw: train for at least one, then draw what `train` returned")
    for what, numbers in (("accuracies", history.accuracy), ("stages", history.stage)):
        if len(numbers) != len(history):
            raise ValueError(f"this history has {len(history)} steps, but {len(numbers)} {what}: draw what `ml.train` returned")
    steps = np.arange(1, len(history) + 1)
    picture = Picture(figsize=(7, 3.6))
    upper, lower = picture.subplots(2, 1, sharex=True)
    upper.plot(steps, history.loss, color=BLUE, linewidth=1)
    upper.set_title(title, parse_math=False)
    upper.set(ylabel="loss (nats)", ylim=(0, 1.15 * max(history.loss)))
    lower.plot(steps, history.accuracy, color=VERMILION, linewidth=1)
    lower.set(xlabel="step", ylabel="accuracy", ylim=(0, 1.02))
    begins = [0, *(np.flatnonzero(np.diff(history.stage)) + 1)]
    row = 0
    for previous, begin in zip([-len(history), *begins], begins):
        for axes in (upper, lower):
            axes.axvline(begin + 1, color=GREY, linestyle="--", linewidth=1)
        row = row + 1 if begin - previous < 0.1 * len(history) else 0  # labels that would overlap go below each other
        place = (begin + 1, 0.98 - 0.13 * row)
        upper.annotate(f" stage {history.stage[begin]}", place, xycoords=("data", "axes fraction"), va="top", fontsize=8)
    stages = ", ".join(f"stage {history.stage[b]} from step {b + 1}" for b in begins)
    last = min(20, len(history))
    loss, accuracy = np.mean(history.loss[-last:]), np.mean(history.accuracy[-last:])
    picture.alt = (
        f"{title}. Two curves over {len(history)} steps: the loss goes from {history.loss[0]:.2f} to {loss:.2f} nats, the accuracy "
        f"goes from {history.accuracy[0]:.2f} to {accuracy:.2f}, each the mean of the last {last} steps; {stages}."
    )
    return picture


def which_slots(found, held: Tensor, word: str, title: str) -> Picture:
    """Which slots does an answer depend on, and are they those that hold it?

    found: a `memgpt_lite.interventions.Dependence`; held: (M,), how much of each slot comes from the answer; word: the answer
    as it is shown.
    """
    without, alone, shares = _array(found.without), _array(found.alone), _array(held)
    slots = np.arange(len(shares))
    picture = Picture(figsize=(9, 1.5 + 0.2 * len(shares)))
    left, right = picture.subplots(1, 2, sharey=True, width_ratios=(1, 1.5))
    left.barh(slots, shares, color=ORANGE, height=0.7)
    left.set(title="provenance", xlim=(0, 1.02), ylabel="slot", yticks=slots)
    left.set_xlabel(f"share that comes from “{word}”", parse_math=False)  # a word may contain a $
    left.invert_yaxis()
    right.axvline(found.probability, color=GREY, linestyle="--", linewidth=1)
    right.axvline(found.guessed, color=GREY, linestyle=":", linewidth=1)
    right.scatter(
        without, slots, marker="o", s=45, facecolors="none", edgecolors=VERMILION, linewidths=1.6, label="without this slot"
    )
    right.scatter(alone, slots, marker="x", s=40, color=BLUE, label="with this slot alone")
    right.set(title="ablation", xlim=(-0.03, 1.03))
    right.set_xlabel(f"probability of “{word}” (dashed: all slots, dotted: none)", parse_math=False)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3 if len(shares) < 8 else -0.16), ncols=2, frameon=False)
    picture.suptitle(title, x=0.02, ha="left", fontsize=11, parse_math=False)
    picture.alt = f"{title} {found.in_words(word, held)}"
    return picture
