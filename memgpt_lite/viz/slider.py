"""Sliders that choose a picture, by mouse, keyboard or a play button."""

import html
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache

import ipywidgets as widgets

from .figures import Picture


class _Slider(widgets.VBox):
    """A box that leaves its first picture behind where widgets cannot run: in an export, on GitHub."""

    def __init__(self, children, first: Picture, text: str):
        super().__init__(children)
        self._first, self._text = first, text

    def _repr_mimebundle_(self, **options) -> tuple[dict, dict]:
        drawn, about = self._first.bundle()
        return {**super()._repr_mimebundle_(**options), **drawn, "text/plain": self._text}, about


def _image(picture: Picture) -> str:
    data = b64encode(picture.png()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(picture.alt, quote=True)}" style="max-width: 100%">'


def slider(draw: Callable[[int], Picture], labels: Sequence[str]) -> widgets.VBox:
    """A play button and a slider with one stop for each label, above the picture that `draw(i)` makes of stop i.

    Pictures are drawn when they are first shown, and carry their alternative text. Where no widget can run, the first one stands.
    """
    if not labels:
        raise ValueError("a slider needs at least one stop: pass a label for each")

    picture_of = cache(draw)

    @cache
    def image(i: int) -> str:
        return _image(picture_of(i))

    stops = widgets.SelectionSlider(
        options=[(label, i) for i, label in enumerate(labels)],
        description="segment",
        layout=widgets.Layout(width="32em"),
        continuous_update=False,
    )
    play = widgets.Play(min=0, max=len(labels) - 1, interval=1200)
    shown = widgets.HTML(image(0))
    widgets.link((play, "value"), (stops, "index"))
    stops.observe(lambda change: setattr(shown, "value", image(change["new"])), names="value")
    text = f"A slider with {len(labels)} stops ({', '.join(labels)}): run this cell to move it."
    return _Slider([widgets.HBox([play, stops]), shown], picture_of(0), text)


def sliders(draw: Callable[..., Picture], **stops: Sequence) -> widgets.VBox:
    """A slider for each keyword, with a stop for each of its values, above the picture that `draw(keyword=value, …)` makes of those chosen.

    Each begins at its middle stop. The picture carries its alternative text; where no widget can run, that of the middle stops stands.
    Raises `ValueError` for a slider without stops, or none at all.
    """
    if not stops or not all(map(len, stops.values())):
        raise ValueError("each slider needs at least one stop: pass the values of each by its name, such as slots=(1, 2, 4)")
    chosen = {
        name: widgets.SelectionSlider(
            options=list(values), value=values[len(values) // 2], description=name, continuous_update=False
        )
        for name, values in stops.items()
    }
    begin = {name: choice.value for name, choice in chosen.items()}
    first = draw(**begin)
    shown = widgets.HTML(_image(first))

    def redraw(change) -> None:
        shown.value = _image(draw(**{name: choice.value for name, choice in chosen.items()}))

    for choice in chosen.values():
        choice.observe(redraw, names="value")
    said = ", ".join(f"{name} {value}" for name, value in begin.items())
    return _Slider([widgets.HBox(list(chosen.values())), shown], first, f"Sliders, at {said}: run this cell to move them.")
