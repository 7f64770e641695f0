"""A live model and two memories to act on: read, clear, freeze, scale, swap, and see at once what the model says then."""

import html
from collections.abc import Callable, Iterable, Mapping

import anywidget
import ipywidgets as widgets
import torch
import traitlets

from .. import tasks
from ..interventions import Dependence, Reading, Source, swap_slots
from ..tracing import SHOWN_SHARE, percent
from .figures import BLUE, COLOURS, Picture, which_slots

FACTS = "so well Ada Kyoto now then Gus Oslo Mia Paris but and Leo Cairo hm oh"
NOISE = "so yet hm oh well then ah or um but er and now like still here"  # a segment of 16 words, as FACTS is
TEXTS = {
    "Four facts": FACTS,
    "Four facts about others": "um er Ben Lima yet so Eve Fez oh hm Kim Nice well now Joy Bern",
    "Four facts, three segments of noise": " ".join([FACTS, NOISE, NOISE, NOISE]),
    "The same names elsewhere": "Leo Jena hm oh Ada Fez but and Gus Lima so well now then Mia Nice",
}
ACTS = {
    "clear": "Put the chosen slots back to their initial value",
    "freeze": "Leave the chosen slots alone when reading on",
    "thaw": "Let the chosen slots be written again",
    "scale": "Multiply the chosen slots by the number beside this button",
}
HIGHEST = 5  # how many of the likeliest words are shown
CSS = """<style>
.mgl p { margin: 2px 0 6px; line-height: 1.4; }
.mgl-row { display: grid; grid-template-columns: minmax(6em, 1fr) 5.5em 5.5em; gap: 0 10px; align-items: center; line-height: 1.3; }
.mgl-row, .mgl-next { font-variant-numeric: tabular-nums; }
.mgl-head { font-weight: 600; }
.mgl-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.mgl-bar { display: flex; height: 20px; overflow: hidden; border-radius: 4px; background: #8884; }
.mgl-bar span { flex: none; box-sizing: border-box; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: 12px;
  line-height: 20px; padding-left: 4px; box-shadow: inset -1px 0 #fff; color: #000; }
.mgl-meter { position: relative; height: 5px; background: #8884; border-radius: 2px; }
.mgl-meter i { display: block; height: 100%; border-radius: 2px; background: #0072B2; }
.mgl-next { display: grid; grid-template-columns: minmax(4em, 8em) 1fr 14em; gap: 2px 10px; align-items: center; line-height: 1.4; }
.mgl-next .mgl-meter { height: 12px; }
.mgl-next b { position: absolute; top: -3px; width: 3px; height: 18px; background: currentColor; }
.mgl-read { max-height: 4.4em; overflow-y: auto; line-height: 1.4; }
.mgl-read mark { background: #F0E442; color: #000; }
.mgl-wrong { border-left: 4px solid #D55E00; padding-left: 8px; }
</style>"""


class MemoryLab(widgets.VBox):
    """Two texts, A and B, each with its own memory. A reader reads on, acts on the memories, and asks both the same question.

    texts: names and texts to choose from; the first two are ready to be read. A reader can type others.
    question: what is asked of both memories: the model says what follows it.
    encode, decode: text → token numbers, and a list of one number → how it is shown. By default those of the made-up tasks,
        on whose 66 words `ml.load_pretrained("recall")` was trained.

    All that a reader can do by mouse and keyboard, code can do too: `read`, `read_on`, `act`, `swap`, `ask`, `undo`; `lab.readings` are the two
    `ml.Reading`s. Wrong input is answered below the buttons, and changes nothing; called from code it raises.
    """

    def __init__(
        self,
        model,
        texts: Mapping[str, str] = TEXTS,
        question: str = "Ada",
        *,
        encode: Callable[[str], list[int]] = tasks.encode,
        decode: Callable[[list[int]], str] = tasks.decode,
    ):
        if not texts:
            raise ValueError("a lab needs at least one text to begin with: pass texts={name: text}")
        self.model, self._encode, self._decode = model, encode, decode
        self._past: list[tuple[dict[str, Reading], dict[str, str]]] = []  # readings, and what text they are of
        self._message, self._verdict = widgets.HTML(), {name: _Status(layout=_HALF) for name in "AB"}
        names = list(texts)
        self._panels = {
            name: _Panel(self, name, texts, chosen) for name, chosen in (("A", names[0]), ("B", names[min(1, len(names) - 1)]))
        }
        self._texts = {name: panel.text.value for name, panel in self._panels.items()}
        self.readings = {name: self._begin(name, text) for name, text in self._texts.items()}
        self._question = widgets.Text(question, description="question", continuous_update=False)
        self._question.observe(self._guard(lambda change: change["new"] != self._asks and self.ask(change["new"])), names="value")
        super().__init__(
            [
                widgets.HTML(CSS),
                _beside(panel.text_box for panel in self._panels.values()),
                self._question,
                _beside(self._verdict.values()),
                self._acts(),
                self._message,
                _beside(panel.slot_box for panel in self._panels.values()),
            ]
        )
        self.ask(question)

    # ---- what a reader does ----

    def read(self, name: str, text: str) -> None:
        """Begin a text, before its first segment: name is A or B."""
        _check_names([name])
        reading = self._begin(name, text)
        self._go({**self.readings, name: reading}, {**self._texts, name: text})
        self._panels[name].put(text)

    def read_on(self, name: str, segments: int | None = 1) -> None:
        """Read that many more segments of A or B; None reads all that are left."""
        _check_names([name])
        self._go({**self.readings, name: self.readings[name].read_on(segments)})

    def act(self, what: str, slots: Mapping[str, list[int]], *values: float) -> None:
        """Clear, freeze, thaw or scale (by a factor) slots: act("clear", {"A": [3, 5]}), act("scale", {"B": [0]}, 0.5)."""
        if what not in ACTS:
            raise ValueError(f"slots cannot be asked to {what!r}: choose one of {', '.join(ACTS)}")
        _check_names(slots)
        if not any(slots.values()):
            raise ValueError("no slot is chosen: click the slots that you want to act on, then try again")
        self._go({n: getattr(r, what)(slots[n], *values) if slots.get(n) else r for n, r in self.readings.items()})

    def swap(self, slots: Mapping[str, list[int]]) -> None:
        """Exchange two slots, of one memory or one of each: swap({"A": [3], "B": [5]})."""
        _check_names(slots)
        chosen = [(name, slot) for name in "AB" for slot in slots.get(name, [])]
        if len(chosen) != 2:
            raise ValueError(f"a swap takes two slots, and {len(chosen)} are chosen: choose one in A and one in B, or two in one")
        (one, i), (two, j) = chosen
        first, second = swap_slots(self.readings[one], i, self.readings[two], j)
        self._go({**self.readings, one: first, two: second})

    def ask(self, question: str) -> None:
        """Ask both memories."""
        self._asked, self._asks = self._tokens(question, "question"), question
        self._question.value = question
        self._show()

    def undo(self) -> None:
        """Take back the last thing that was read or done."""
        if not self._past:
            raise ValueError("nothing has been done yet")
        begun, (self.readings, self._texts) = self._texts, self._past.pop()
        for name, text in self._texts.items():
            if text != begun[name]:  # else a reader may be typing there
                self._panels[name].put(text)
        self._show()

    # ---- how ----

    def _tokens(self, text: str, what: str) -> torch.Tensor:
        numbers = self._encode(text)
        if len(numbers) == 0:
            raise ValueError(f"the {what} is empty: type at least one word")
        tokens = torch.as_tensor(numbers)[None]  # (1, T)
        self.model._check_inputs(tokens, None, None, None, None, None)
        return tokens

    def _begin(self, name: str, text: str) -> Reading:
        return Reading.start(self.model, self._tokens(text, f"text {name}"), self._decode, name=name)

    def _go(self, readings: dict[str, Reading], texts: dict[str, str] | None = None) -> None:
        if readings == self.readings:
            return  # nothing is left to read
        self._past.append((self.readings, self._texts))
        self.readings, self._texts = readings, texts or self._texts
        self._show()

    def _chosen(self) -> dict[str, list[int]]:
        return {name: panel.chosen for name, panel in self._panels.items()}

    def _guard(self, do: Callable) -> Callable:
        """Wraps what a click calls: an error that the reader makes is shown in the lab."""

        def guarded(event):
            try:
                self._message.value = ""
                do(event)
            except (ValueError, LookupError, TypeError) as wrong:
                self._message.value = f'<p class="mgl-wrong" role="alert">{html.escape(str(wrong))}</p>'

        return guarded

    def _button(self, label: str, do: Callable[[], None], tip: str) -> widgets.Button:
        button = widgets.Button(description=label, tooltip=tip, layout=widgets.Layout(width="auto"))
        button.on_click(self._guard(lambda event: do()))
        return button

    def _acts(self) -> widgets.Widget:
        factor = widgets.FloatText(
            0.5, step=0.25, description="by", layout=widgets.Layout(width="9em"), style={"description_width": "2em"}
        )
        return _row(
            widgets.HTML("<b>The chosen slots:</b>"),
            *(
                self._button(
                    what.capitalize(), lambda what=what: self.act(what, self._chosen(), *[factor.value] * (what == "scale")), tip
                )
                for what, tip in ACTS.items()
            ),
            factor,
            self._button("Swap", lambda: self.swap(self._chosen()), "Exchange two slots, of one memory or one of each"),
            self._button("Undo", self.undo, "Take back the last thing that was read or done"),
        )

    def _choose_holders(self, name: str) -> None:
        held = self.readings[name].share_of(self._word(self._found[name]))
        self._panels[name].chosen = (held > 0.5).nonzero().flatten().tolist()

    def _word(self, found: Dependence) -> str:
        return self._decode([found.answer])

    def _show(self) -> None:
        self._found = {name: reading.dependence(self._asked) for name, reading in self.readings.items()}
        colours: dict[Source | None, str] = {}
        for name, panel in self._panels.items():
            panel.show(self.readings[name], self._found[name], colours)
            self._verdict[name].value = self._answer(name)

    def _answer(self, name: str) -> str:
        """What the model says next, with the memory as it is and as it would be without any act."""
        reading, found = self.readings[name], self._found[name]
        now, untouched = reading.predict(self._asked), reading.predict(self._asked, untouched=True)
        rows = []
        for number in now.topk(min(HIGHEST, len(now))).indices.tolist():
            share, was = now[number].item(), untouched[number].item()
            rows.append(
                f'<div>{html.escape(self._decode([number]))}</div><div class="mgl-meter" aria-hidden="true"><i style="width: {100 * share:.1f}%"></i>'
                f'<b style="left: calc({100 * was:.1f}% - 1px)"></b></div><div>{share:.1%} (untouched {was:.1%})</div>'
            )
        says = html.escape(found.in_words(self._word(found), reading.share_of(self._word(found))))
        return (
            f'<div class="mgl"><p><b>Memory {name} says, after “{html.escape(self._asks)}”</b></p>'
            f'<div class="mgl-next">{"".join(rows)}</div><p>{says}</p></div>'
        )

    def _repr_mimebundle_(self, **options) -> tuple[dict, dict]:
        drawn, about = self.picture().bundle()
        text = f"{drawn['text/plain']} Run this cell to act on the memory."
        return {**super()._repr_mimebundle_(**options), **drawn, "text/plain": text}, about

    def picture(self, name: str = "A") -> Picture:
        """Which slots the answer of A or B depends on, as a figure."""
        found, word = self._found[name], self._word(self._found[name])
        title = f"Which slots does the answer “{word}” after “{self._asks}” depend on?"
        return which_slots(found, self.readings[name].share_of(word), word, title)


class _Status(anywidget.AnyWidget):
    """HTML that a screen reader says whenever it changes: one live region that stays, since a new one would not be heard."""

    _esm = """export default { render({ model, el }) {
        const fill = () => { el.innerHTML = model.get("value"); };
        el.setAttribute("role", "status");
        fill();
        model.on("change:value", fill);
    } };"""
    value = traitlets.Unicode().tag(sync=True)


class _Panel:
    """One text and its slots."""

    def __init__(self, lab: MemoryLab, name: str, texts: Mapping[str, str], chosen: str):
        self._texts = texts
        self._choice = widgets.Dropdown(options=list(texts), value=chosen, description=f"text {name}", layout=_FULL)
        self.text = widgets.Textarea(texts[chosen], description=f"words of {name}", rows=2, layout=_FULL)
        self.text.add_class("mgl-text")
        self._choice.observe(lab._guard(lambda change: self._chose(lab, name, change["new"])), names="value")
        self.read = widgets.HTML()
        self.slots = [
            (widgets.Checkbox(description=f"{name} slot {j}", indent=False, layout=_CHOICE), widgets.HTML(layout=_ROW))
            for j in range(lab.model.config.num_memory_slots)
        ]
        exact = "" if lab.model.update_rule.values_mix else ", by its write attention"  # with the other rules it is a summary
        head = widgets.HTML(
            f'<div class="mgl-row mgl-head"><span>what memory {name} is made of{exact}</span><span>answer without it</span>'
            "<span>answer by it alone</span></div>",
            layout=_ROW,
        )
        buttons = [
            lab._button("Begin this text", lambda: lab.read(name, self.text.value), f"Begin text {name} as it stands in the box"),
            lab._button("Read a segment", lambda: lab.read_on(name), f"Read the next segment of text {name}"),
            lab._button("Read all", lambda: lab.read_on(name, None), f"Read text {name} to its end"),
        ]
        self.text_box = widgets.VBox([self._choice, self.text, _row(*buttons), self.read], layout=_HALF)
        holders = lab._button(
            "holders", lambda: lab._choose_holders(name), f"Choose the slots of memory {name} that are mostly made of its answer"
        )
        holders.layout = _CHOICE
        rows = [(holders, head), *self.slots]
        self.slot_box = widgets.VBox([widgets.HBox(row, layout=_LINE) for row in rows], layout=_HALF)
        self._name = name

    def _chose(self, lab: MemoryLab, name: str, choice: str | None) -> None:
        if choice is not None and self._texts[choice] != lab._texts[name]:  # else `put` chose
            lab.read(name, self._texts[choice])

    def put(self, text: str) -> None:
        """Show which text is there. With a reader's own text nothing is chosen in the list, so that each of its texts can be."""
        self.text.value = text
        self._choice.value = next((choice for choice, listed in self._texts.items() if listed == text), None)

    @property
    def chosen(self) -> list[int]:
        return [j for j, (box, _) in enumerate(self.slots) if box.value]

    @chosen.setter
    def chosen(self, slots: list[int]) -> None:
        for j, (box, _) in enumerate(self.slots):
            box.value = j in slots

    def show(self, reading: Reading, found: Dependence, colours: dict) -> None:
        length = reading.model.config.segment_length
        end = reading.segments_read * length
        before, last, ahead = (
            reading.words[: max(0, end - length)],
            reading.words[max(0, end - length) : end],
            reading.words[end:],
        )
        gone = "… " if len(before) > length else ""
        shown = [html.escape(" ".join(words)) for words in (before[-length:], last, ahead[:length])]
        text = f"{gone}{shown[0]} <mark>{shown[1]}</mark> {shown[2]}"
        self.read.value = (
            f'<p class="mgl-read" tabindex="0"><b>{reading.segments_read} of {reading.segments} segments read.</b> {text}</p>'
        )
        for j, (box, row) in enumerate(self.slots):
            box.description = f"{self._name} slot {j}{' frozen' * (j in reading.frozen)}"
            held = reading.held(j)
            without, alone = found.without[j].item(), found.alone[j].item()
            words = html.escape(_in_words(held))
            made_of = f'<div title="{words}"><span class="mgl-hidden">{words}</span>{_bar(held, colours)}</div>'
            row.value = f'<div class="mgl-row">{made_of}{_meter(without)}{_meter(alone)}</div>'


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name not in ("A", "B"):
            raise ValueError(f"there is no memory {name!r} here: choose A or B")


def _in_words(held: list[tuple[Source | None, float]]) -> str:
    named = [part for i, part in enumerate(held) if i == 0 or part[1] >= SHOWN_SHARE]
    return ", ".join(
        f"{percent(share)} " + ("initial value" if source is None else f"“{source.word}” ({source.text}, segment {source.segment})")
        for source, share in named[:3]
    ) or "nothing"  # fmt: skip


def _bar(held: list[tuple[Source | None, float]], colours: dict) -> str:
    """What a slot is made of, as coloured pieces; a token has the same colour in every slot of both memories."""
    pieces = []
    for source, share in held:
        if share >= SHOWN_SHARE and source is not None:
            colour = colours.setdefault(source, COLOURS[len(colours) % len(COLOURS)])
            ink = "; color: #fff" * (colour == BLUE)
            says = f"{html.escape(source.word)} ({source.text} {source.segment})"
            pieces.append(f'<span style="width: {100 * share:.1f}%; background: {colour}{ink}">{says}</span>')
        elif share >= SHOWN_SHARE:
            pieces.append(f'<span style="width: {100 * share:.1f}%; background: none; color: inherit">initial value</span>')
    return f'<div class="mgl-bar" aria-hidden="true">{"".join(pieces)}</div>'


def _meter(share: float) -> str:
    return f'<div>{share:.1%}<div class="mgl-meter" aria-hidden="true"><i style="width: {100 * share:.1f}%"></i></div></div>'


def _row(*children: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center", width="100%"))


def _beside(boxes) -> widgets.HBox:
    return widgets.HBox(list(boxes), layout=widgets.Layout(flex_flow="row wrap", width="100%"))


_FULL, _ROW = widgets.Layout(width="98%"), widgets.Layout(flex="1 1 auto", min_width="0", margin="0 2px")
_HALF = widgets.Layout(flex="1 1 28em", min_width="0", padding="4px")
_LINE = widgets.Layout(align_items="center")
_CHOICE = widgets.Layout(width="10.5em", flex="none", height="28px", margin="0 2px")
