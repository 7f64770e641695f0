"""Sliders that choose a picture, by mouse or by keyboard.

They are the browser's own: those of ipywidgets have no name that a screen reader could say, and tell it the number of a stop, not
its label.
"""

import html
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache

import anywidget
import ipywidgets as widgets
import traitlets

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


class _Range(anywidget.AnyWidget):
    """A slider with its name in front and the label of its stop behind. `index`: the stop, set when the slider is let go."""

    # Keys are stopped, since JupyterLab would take the arrows for itself.
    _esm = """export default { render({ model, el }) {
        const make = (tag, values) => Object.assign(document.createElement(tag), values), labels = model.get("labels");
        const name = make("label", { textContent: `${model.get("name")} ` }), shown = make("output");
        const range = make("input", { type: "range", min: 0, max: labels.length - 1, step: 1 });
        range.style.verticalAlign = "middle";
        range.addEventListener("keydown", (event) => event.stopPropagation());
        name.append(range);
        el.append(name, " ", shown);
        const show = () => { shown.textContent = labels[range.value]; range.setAttribute("aria-valuetext", labels[range.value]); };
        const follow = () => { range.value = model.get("index"); show(); };
        range.addEventListener("input", show);
        range.addEventListener("change", () => { model.set("index", Number(range.value)); model.save_changes(); });
        model.on("change:index", follow);
        follow();
    } };"""
    name = traitlets.Unicode().tag(sync=True)
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.Int().tag(sync=True)


def slider(draw: Callable[[int], Picture], labels: Sequence[str]) -> widgets.VBox:
    """A slider with one stop for each label, above the picture that `draw(i)` makes of stop i.

    Pictures are drawn when they are first shown, and carry their alternative text. Where no widget can run, the first one stands.
    """
    if not labels:
        raise ValueError("a slider needs at least one stop: pass a label for each")

    picture_of = cache(draw)

    @cache
    def image(i: int) -> str:
        return _image(picture_of(i))

    stops, shown = _Range(name="segment", labels=list(labels)), widgets.HTML(image(0))
    stops.observe(lambda change: setattr(shown, "value", image(change["new"])), names="index")
    text = f"A slider with {len(labels)} stops ({', '.join(labels)}): run this cell to move it."
    return _Slider([stops, shown], picture_of(0), text)


def sliders(draw: Callable[..., Picture], **stops: Sequence) -> widgets.VBox:
    """A slider for each keyword, with a stop for each of its values, above the picture that `draw(keyword=value, …)` makes of those chosen.

    Each begins at its middle stop. The picture carries its alternative text; where no widget can run, that of the middle
    stops is shown.
    Raises `ValueError` for a slider without stops, or none at all.
    """
    if not stops or not all(map(len, stops.values())):
        raise ValueError("each slider needs at least one stop: pass the values of each by its name, such as slots=(1, 2, 4)")
    ranges = {name: _Range(name=name, labels=[str(v) for v in values], index=len(values) // 2) for name, values in stops.items()}

    def chosen() -> dict:
        return {name: values[ranges[name].index] for name, values in stops.items()}

    first, said = draw(**chosen()), ", ".join(f"{name} {value}" for name, value in chosen().items())
    shown = widgets.HTML(_image(first))
    for each in ranges.values():
        each.observe(lambda change: setattr(shown, "value", _image(draw(**chosen()))), names="index")
    return _Slider([widgets.VBox(list(ranges.values())), shown], first, f"Sliders, at {said}: run this cell to move them.")
