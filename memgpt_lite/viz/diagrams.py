"""A drawing, not a measurement: how text, segments and memory flow, and where the six steps of the tutorial are."""

from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from .figures import BLUE, ORANGE, VERMILION, Picture

INK = "#222222"


def _box(axes, x: float, y: float, width: float, height: float, text: str, fill: str, colour: str = INK, **options) -> None:
    """A rounded box around (x, y), with its text."""
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.1", facecolor=fill, edgecolor="none")
    )
    axes.text(x, y, text, ha="center", va="center", color=colour, **options)


def _slots(axes, x: float, y: float, filled: dict[int, str]) -> None:
    """Six slots around (x, y), one above the other; those in `filled` hold words."""
    for slot in range(6):
        bottom = y + 0.6 - 0.2 * (slot + 1)
        fill = ORANGE if slot in filled else "white"
        axes.add_patch(Rectangle((x - 0.4, bottom), 0.8, 0.2, facecolor=fill, edgecolor=INK, linewidth=0.8))
        axes.text(x, bottom + 0.09, filled.get(slot, ""), ha="center", va="center", fontsize=7.5)


def _arrow(axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK, **options) -> None:
    properties = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0, **options}
    axes.annotate("", end, start, arrowprops=properties)


def _step(axes, x: float, y: float, number: int, text: str, below: bool = False, colour: str = INK) -> None:
    """A numbered disc, with the name of the step beside or below it."""
    axes.add_patch(Circle((x, y), 0.15, facecolor=INK, edgecolor="white", linewidth=1))
    axes.text(x, y - 0.005, str(number), color="white", ha="center", va="center", fontsize=9, weight="bold")
    where = (x, y - 0.3) if below else (x + 0.24, y)
    axes.text(*where, text, ha="center" if below else "left", va="center", fontsize=9.5, color=colour)


def six_steps() -> Picture:
    """How do text, segments and memory flow, and which step happens where?"""
    picture = Picture(figsize=(9.6, 4.1))
    axes = picture.subplots()
    axes.set(xlim=(0, 10.15), ylim=(0.02, 4.35), aspect="equal")
    axes.axis("off")
    axes.text(
        0.1, 4.2, "Text comes in from below, a segment at a time; the memory carries on to the right", fontsize=11, va="center"
    )
    told = {1: "Ada Paris", 4: "Gus Oslo"}
    memories = ((0.7, {}), (4.1, told), (7.5, told))
    readers = ((2.4, "Ada Paris\nGus Oslo"), (5.8, "so well then\nhm oh …"), (9.2, "Gus → ?"))

    for x, filled in memories:
        _slots(axes, x, 2.1, filled)
        axes.text(x, 1.33, "memory", ha="center", va="center", fontsize=9)
        _arrow(axes, (x + 0.45, 2.1), (x + 1.08, 2.1))
        axes.text(x + 0.76, 2.2, "read", ha="center", fontsize=8.5)
    for s, (x, words) in enumerate(readers):
        _box(axes, x, 2.1, 1.2, 1.0, "GPT-2", BLUE, "white", weight="bold")
        _box(axes, x, 0.72, 1.4, 0.62, words, "#E4E4E4", fontsize=9)
        axes.text(x, 0.22, f"segment {s}", ha="center", va="center", fontsize=9)
        _arrow(axes, (x, 1.05), (x, 1.58))
        if s < 2:
            _arrow(axes, (x + 0.62, 2.1), (x + 1.26, 2.1))
            axes.text(x + 0.93, 2.2, "write", ha="center", fontsize=8.5)
    _arrow(axes, (9.2, 2.62), (9.2, 3.07))
    _box(axes, 9.2, 3.32, 1.4, 0.46, "Gus → Oslo", "#E4E4E4", fontsize=9)

    dashes = {"linestyle": (0, (4, 3)), "linewidth": 1.4}
    axes.plot([8.45, 2.4], [3.32, 3.32], color=VERMILION, **dashes)
    for x, end in ((7.5, 2.76), (5.8, 2.66), (4.1, 2.76), (2.4, 2.66)):
        _arrow(axes, (x, 3.32), (x, end), VERMILION, **dashes)

    _step(axes, 0.22, 0.72, 1, "preprocess")
    _step(axes, 0.22, 2.98, 2, "initialise memory")
    _step(axes, 2.06, 1.8, 3, "forward", colour="white")
    _step(axes, 3.33, 1.78, 4, "update", below=True)
    _step(axes, 4.75, 3.55, 5, "backward: what should have been written?")
    _step(axes, 8.5, 3.78, 6, "train, on the answer")
    picture.alt = (
        "Three segments of a text, each read by the same GPT-2, from left to right: facts (“Ada Paris”, “Gus Oslo”), noise, and a "
        "question (“Gus → ?”), answered with “Oslo”. GPT-2 reads an empty memory, writes the two facts into two of its six slots, "
        "leaves them there while it reads the noise, and reads them for the question. The numbers of the steps: 1 preprocess, at the "
        "text; 2 initialise memory, at the empty memory; 3 forward, at GPT-2; 4 update, at the arrow from GPT-2 to the next memory; "
        "5 backward, on dashed arrows from the answer back to the two later memories and to GPT-2 in the first two segments; 6 train, at the answer."
    )
    return picture
