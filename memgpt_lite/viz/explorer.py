"""Stepping through a trace: the text, the slots, what was written and what was read, in a notebook or in a file of its own.

`MemoryExplorer` packs one or two traces into a payload; `explorer.js`, one module without dependencies, shows it. In a notebook it
is a widget (anywidget); `to_html` puts module and payload into one file that needs neither a kernel nor a network. What stays in a
notebook's output is a picture, a text, and the state as JSON, from which `show` of explorer.js makes a live view in any page.

The payload is `{title, names, traces}`. A trace's arrays stand one after the other in one block of bytes, each at a multiple of 4,
deflated and written in base64; `arrays` says where each one is, and its type and shape. Shares, which lie between 0 and 1, are
stored as whole numbers of 8 or 16 bits. A string that occurs often, such as a token, is stored once.
"""

import html
import json
import zlib
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from ..tracing import MemoryTrace
from .figures import Picture, memory_after, written

MIME = "application/vnd.memgpt-lite.explorer+json"  # of the state in a notebook's output
SCRIPT = Path(__file__).with_name("explorer.js")

# The policy lets the page run this one script and nothing else, and load nothing, whatever a token may say.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; \
img-src data:; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>{title}</title>
</head>
<body>
<main></main>
<noscript><img src="data:image/webp;base64,{picture}" alt="{alt}" style="max-width: 100%"><pre>{text}</pre></noscript>
<script type="application/json">{payload}</script>
<script type="module">{script}</script>
</body>
</html>
"""


class MemoryExplorer(anywidget.AnyWidget):
    """A live view of what the slots hold, which anybody can step through, by mouse or by keyboard.

    trace: what `ml.trace` recorded of a text; other: a trace of the same text, shown beside it (trained against untrained, say);
    names: what to call the two.

    These can be set and observed: `step`, the segment that is shown; `layer`, the number of a block that reads, and `head`, each
    None for the mean over all; `token` and `slot`, what is pinned, None for nothing. Where no widget runs, a picture of the
    segment shown stands in its place, with alternative text.

    Raises `ValueError` for traces that do not fit each other and for fewer names than traces, and `traitlets.TraitError` for a
    step, layer, head, token or slot that the trace does not have.
    """

    _esm = SCRIPT
    payload = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    layer = traitlets.Int(None, allow_none=True).tag(sync=True)
    head = traitlets.Int(None, allow_none=True).tag(sync=True)
    token = traitlets.Int(None, allow_none=True).tag(sync=True)
    slot = traitlets.Int(None, allow_none=True).tag(sync=True)

    def __init__(
        self,
        trace: MemoryTrace,
        other: MemoryTrace | None = None,
        *,
        title: str = "What the memory holds",
        names: tuple[str, str] = ("first", "second"),
        **start,
    ):
        self._traces = [trace] if other is None else [trace, other]
        if other is not None:
            _check_fit(trace, other)
        if isinstance(names, str):
            raise ValueError(f"names is the one string {names!r}: pass a name for each trace, as in names=({names!r}, …)")
        if len(names) < len(self._traces):
            raise ValueError(f"{len(names)} names were given for {len(self._traces)} traces: pass one for each")
        self.title, self.names = title, names[: len(self._traces)]
        packed = [_pack(each) for each in self._traces]
        super().__init__(
            payload={"title": _clean(title), "names": [_clean(name) for name in self.names], "traces": packed}, **start
        )

    def to_html(self, path: str | Path) -> Path:
        """Write the explorer, as it stands, into one file for any browser: without a kernel, without a network. Returns the path."""
        script = SCRIPT.read_text("utf-8") + "\nopenPage();\n"
        picture, path = self.picture(), Path(path)
        path.write_text(
            PAGE.format(
                digest=b64encode(sha256(script.encode()).digest()).decode(),
                title=html.escape(self.payload["title"]),
                picture=b64encode(picture.webp()).decode(),
                alt=html.escape(picture.alt),
                text=html.escape(self.in_words()),
                # json.dumps writes everything beyond ASCII as \uXXXX; "<" is the only character left that could end the element
                payload=json.dumps(self.state()).replace("<", "\\u003c"),
                script=script,
            ),
            "utf-8",
        )
        return path

    def in_words(self) -> str:
        """What every slot holds after the segment that is shown, one line for each."""
        lines = [f"{self.title}: {self._traces[0]!r}, after segment {self.step}."]
        for name, trace in zip(self.names, self._traces):
            lines += [f"{name}:"] if len(self._traces) > 1 else []
            lines += [trace.in_words(slot, self.step + 1) for slot in range(trace.moved.shape[1])]
        return _clean("\n".join(lines))

    def picture(self) -> Picture:
        """What the segment that is shown wrote, and what every slot holds after it."""
        names = self.payload["names"] if len(self._traces) > 1 else [""]
        return memory_after(list(zip(names, self._traces)), self.step, self.payload["title"])

    def state(self) -> dict:
        """All that explorer.js needs in order to show the explorer as it stands."""
        return {name: getattr(self, name) for name in ("payload", "step", "layer", "head", "token", "slot")}

    def _repr_mimebundle_(self, **options) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**options)
        drawn, about = self.picture().bundle()
        text = self.in_words() + "\nRun this cell to step through it."
        return {**data, **drawn, MIME: self.state(), "text/plain": text}, {**metadata, **about}

    @traitlets.validate("step", "layer", "head", "token", "slot")
    def _check(self, proposal) -> int | None:
        name, value, trace = proposal["trait"].name, proposal["value"], self._traces[0]
        _, H, T, _ = trace.read_attention.shape
        most_slots = max(each.moved.shape[1] for each in self._traces)
        has = {
            "step": range(len(trace.moved)), "layer": trace.read_layers, "head": range(H), "token": range(T), "slot": range(most_slots),
        }[name]  # fmt: skip
        if value is not None and value not in has:
            raise traitlets.TraitError(f"there is no {name} {value} here: choose one of {has[0]} to {has[-1]}")
        return value


def _check_fit(trace: MemoryTrace, other: MemoryTrace) -> None:
    for what, one, two in (
        ("text", trace.tokens, other.tokens),
        ("segment length", trace.segment_length, other.segment_length),
        ("reading blocks", trace.read_layers, other.read_layers),
        ("number of heads", trace.read_attention.shape[1], other.read_attention.shape[1]),
    ):
        if one != two:
            found = "they differ" if what == "text" else f"{one} and {two}"
            raise ValueError(
                f"two traces are shown side by side only if they agree in {what}: {found}. Show each in its own explorer"
            )


# ---- trace → payload ----


def _pack(trace: MemoryTrace) -> dict:
    """A trace as something that JSON can hold."""
    words: dict[str, int] = {}  # each string and its number

    def numbers_of(strings) -> np.ndarray:
        return np.array([words.setdefault(_clean(string), len(words)) for string in strings], np.uint32)

    shown = {number: int(numbers_of([word])[0]) for number, word in trace.next_words.items()}
    ids, inverse = np.unique(trace.next_tokens, return_inverse=True)
    next_words = np.array([shown[number] for number in ids.tolist()], np.uint32)[inverse.reshape(trace.next_tokens.shape)]
    arrays = {
        "tokens": numbers_of(trace.tokens),
        "write": _shares(written(trace), 16),
        "read": _shares(trace.read_attention, 8),
        "moved": trace.moved.astype(np.float32),
        "sources": trace.source_tokens.astype(np.int32),
        "shares": _shares(trace.source_shares, 16),
        "initial": _shares(trace.initial_share, 16),
        "rest": _shares(trace.rest_share, 16),
        "next": next_words,
        "nextShares": _shares(trace.next_probabilities, 16),
        "entropy": trace.entropy.astype(np.float32),
    }
    if trace.gradient is not None:
        arrays["gradient"] = trace.gradient.astype(np.float32)
    where, block = {}, bytearray()
    for name, array in arrays.items():
        where[name] = {"type": array.dtype.name, "shape": list(array.shape), "offset": len(block)}
        block += array.astype(array.dtype.newbyteorder("<")).tobytes()
        block += bytes(-len(block) % 4)
    return {
        "segmentLength": trace.segment_length,
        "readLayers": trace.read_layers,
        "valuesMix": trace.values_mix,
        "words": list(words),
        "arrays": where,
        "data": b64encode(zlib.compress(bytes(block), 9)).decode("ascii"),
    }


def _shares(values: np.ndarray, bits: int) -> np.ndarray:
    """Shares as whole numbers of `bits` bits. 0 stands for exactly 0, the greatest for exactly 1: both mean something."""
    most = 2**bits - 1
    values = np.asarray(values, np.float64)
    inside = (values > 0) & (values < 1)
    levels = np.where(inside, np.clip(np.rint(values * most), 1, most - 1), np.clip(values, 0, 1) * most)
    return levels.astype(f"uint{bits}")


def _clean(text: str) -> str:
    """The text, with a question mark for half of a surrogate pair, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
