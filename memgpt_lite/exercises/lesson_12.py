"""The exercises of notebook 12, question answering: sentences that stay whole, a column of the heat map, what holds at the end."""

import random
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ..applications.question_answering import lay_out
from .checking import Exercise, Mistake


def _rng(generator: Generator) -> random.Random:
    return random.Random(int(torch.randint(2**62, (), generator=generator)))


# ---- 12.1 ----


def texts_of_all_kinds(generator: Generator) -> Iterator[tuple[list[list[int]], int, int, int]]:
    rng = _rng(generator)

    def text(*lengths: int) -> list[list[int]]:
        return [[rng.randint(1, 99) for _ in range(length)] for length in lengths]

    yield text(3), 4, 0, 3
    yield text(3, 3), 4, 0, 3  # the second would be cut
    yield text(4, 4), 4, 0, 4  # each fills a segment: no padding
    yield text(3, 5, 2), 4, 0, 3  # one that is long may be cut
    yield text(2, 2, 3, 1), 4, 100, 3  # one that ends exactly at the end
    yield text(9, 2, 2), 4, 0, 2  # the end of a long one, in the third segment
    yield text(*(rng.randint(1, 12) for _ in range(30))), 16, 0, 8
    yield text(*(rng.randint(1, 30) for _ in range(30))), 16, 0, 8


def _laid(pieces, segment_length, pad, short, *, room_of, when) -> list[int]:
    laid: list[int] = []
    for piece in pieces:
        room = room_of(laid, segment_length)
        if when(piece, room, short):
            laid += [pad] * room
        laid += piece
    return laid


def _left(laid: list[int], segment_length: int) -> int:
    return -len(laid) % segment_length


def never_padded(pieces, segment_length, pad, short):
    return [token for piece in pieces for token in piece]


def every_segment_one_sentence(pieces, segment_length, pad, short):
    return _laid(pieces, segment_length, pad, short, room_of=_left, when=lambda piece, room, short: len(piece) <= short)


def long_ones_too(pieces, segment_length, pad, short):
    return _laid(pieces, segment_length, pad, short, room_of=_left, when=lambda piece, room, short: room < len(piece))


def exact_fit_moved(pieces, segment_length, pad, short):
    return _laid(
        pieces,
        segment_length,
        pad,
        short,
        room_of=_left,
        when=lambda piece, room, short: len(piece) <= short and room <= len(piece),
    )


def full_is_empty(pieces, segment_length, pad, short):
    def room_of(laid, length):
        return length - len(laid) % length  # a full segment: `length`, not 0

    return _laid(
        pieces,
        segment_length,
        pad,
        short,
        room_of=room_of,
        when=lambda piece, room, short: len(piece) <= short and (room < len(piece) or room == segment_length),
    )


def shorter_only(pieces, segment_length, pad, short):
    return lay_out(pieces, segment_length, pad, short - 1)


LAY_OUT = Exercise(
    number="12.1",
    title="Sentences that stay whole",
    difficulty=2,
    minutes=12,
    solution=lay_out,
    cases=texts_of_all_kinds,
    mistakes=(
        Mistake(
            never_padded,
            "nothing is padded in yours: a short sentence that the end of a segment would cut should begin the next segment.",
        ),
        Mistake(
            every_segment_one_sentence,
            "every short sentence begins a segment: pad only where the room that is left is less than the sentence needs.",
        ),
        Mistake(long_ones_too, "sentences of more than `short` tokens are moved too: they may be cut."),
        Mistake(exact_fit_moved, "a sentence that fits exactly is moved: pad only where there is *less* room than it needs."),
        Mistake(
            full_is_empty,
            "a whole segment of padding appears: the room is 0 after a full segment, and before the first token too. "
            "`-len(laid) % segment_length` gives that.",
        ),
        Mistake(shorter_only, "a sentence of exactly `short` tokens is short, too: `<=`."),
    ),
    hints=(
        "Keep one list of what is laid out so far. How much room is left in its last segment?",
        "The room is `-len(laid) % segment_length`: 0 where the segment is full.",
        "Before each sentence: if it is short and longer than the room, first add `[pad] * room`.",
    ),
    notice="The room is written as `-len(laid) % segment_length`: Python's remainder is never negative, so a full segment has room 0, "
    "and so has the empty list. No case for the beginning is needed.",
)


# ---- 12.2 ----


def match_by_depth(right: Tensor, depth: Tensor, bands: int) -> Tensor:
    band = (depth * bands).long().clamp(max=bands - 1)  # (Q,)
    return torch.stack([right[band == i].float().mean() for i in range(bands)])


def questions_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, Tensor, int]]:
    yield torch.tensor([True, False]), torch.tensor([0.0, 1.0]), 2
    yield torch.tensor([True, True, False]), torch.tensor([0.0, 0.5, 1.0]), 1
    yield torch.tensor([True, False, False, True, False]), torch.tensor([0.5, 0.1, 0.2, 0.9, 0.95]), 2  # 0.5 is in the later half
    for count, bands in ((40, 4), (300, 5), (300, 10)):
        depth = torch.cat([(torch.arange(bands) + 0.5) / bands, torch.rand(count, generator=generator), torch.tensor([1.0])])
        yield torch.rand(len(depth), generator=generator) < depth * 0.8 + 0.1, depth, bands


def _of_all(right: Tensor, depth: Tensor, bands: int) -> Tensor:
    band = (depth * bands).long().clamp(max=bands - 1)
    return torch.stack([right[band == i].float().sum() / len(right) for i in range(bands)])


def _last_left_out(right: Tensor, depth: Tensor, bands: int) -> Tensor:
    band = (depth * bands).long()
    return torch.stack([right[band == i].float().mean() for i in range(bands)])


def _equal_counts(right: Tensor, depth: Tensor, bands: int) -> Tensor:
    parts = right[depth.argsort(stable=True)].float().tensor_split(bands)
    return torch.stack([part.mean() for part in parts])


def _rounded(right: Tensor, depth: Tensor, bands: int) -> Tensor:
    band = (depth * bands).round().long().clamp(max=bands - 1)
    return torch.stack([right[band == i].float().mean() for i in range(bands)])


BY_DEPTH = Exercise(
    number="12.2",
    title="A column of the heat map",
    difficulty=1,
    minutes=8,
    solution=match_by_depth,
    cases=questions_of_all_kinds,
    mistakes=(
        Mistake(_of_all, "each band is divided by the number of *all* questions: divide by those of its own band."),
        Mistake(_last_left_out, "depth 1 is in no band: it belongs to the last one."),
        Mistake(
            _equal_counts,
            "your bands have equally many questions: they should be equally *wide*, band i from i/bands to (i + 1)/bands.",
        ),
        Mistake(_rounded, "a depth in the upper half of a band goes into the next one: cut off (`.long()`), do not round."),
        Mistake(
            lambda right, depth, bands: match_by_depth(right, depth, bands).flip(0),
            "the bands run from the end of the text to its beginning: begin with depth 0.",
        ),
    ),
    hints=(
        "Which band is a depth in? `depth * bands`, cut off to a whole number, says it for all depths but one.",
        "`band = (depth * bands).long().clamp(max=bands - 1)`; the clamp is for depth 1.",
        "`right[band == i].float().mean()` is the share of right answers in band i.",
    ),
    notice="`clamp` puts depth 1, which would open a band of its own, into the last. A band without a question gives `nan`, and that is right: "
    "nothing was measured there.",
)


# ---- 12.3 ----


def holds_at_the_end(statements: list[tuple[str, str]]) -> dict[str, tuple[str, int]]:
    return {key: (value, place) for place, (key, value) in enumerate(statements)}


def stories(generator: Generator) -> Iterator[tuple[list[tuple[str, str]]]]:
    rng = _rng(generator)
    yield ([("Ada", "Cairo")],)
    yield ([("Ada", "Cairo"), ("Ada", "Oslo")],)
    yield ([("Ada", "Cairo"), ("Ben", "Cairo"), ("Ada", "Oslo"), ("Ada", "Cairo"), ("Ben", "Lima")],)
    yield ([("Ada", "Oslo"), ("Ben", "Paris"), ("Ada", "Oslo")],)  # told twice: the second time counts
    for count in (8, 30):
        yield ([(rng.choice("Ada Ben Cleo".split()), rng.choice("Oslo Lima Bern Fez".split())) for _ in range(count)],)


def _first(statements):
    found = {}
    for place, (key, value) in enumerate(statements):
        found.setdefault(key, (value, place))
    return found


def _place_of_first(statements):
    return {key: (value, _first(statements)[key][1]) for key, value in statements}


def _from_one(statements):
    return {key: (value, place + 1) for key, (value, place) in holds_at_the_end(statements).items()}


def _only_changes(statements):
    found: dict[str, tuple[str, int]] = {}
    for place, (key, value) in enumerate(statements):
        if found.get(key, ("", 0))[0] != value:
            found[key] = value, place
    return found


def _by_value(statements):
    return {value: (key, place) for place, (key, value) in enumerate(statements)}


LATEST = Exercise(
    number="12.3",
    title="What holds at the end",
    difficulty=1,
    minutes=6,
    solution=holds_at_the_end,
    cases=stories,
    mistakes=(
        Mistake(_first, "the first statement about somebody wins in your version: the *last* one holds."),
        Mistake(_place_of_first, "the value is that of the last statement, but the place is that of the first one."),
        Mistake(_from_one, "the places are one too high: they are counted from 0."),
        Mistake(
            _only_changes,
            "a statement that repeats what already holds is passed over: the place asked for is that of the last statement.",
        ),
        Mistake(_by_value, "the dictionary should lead from what a statement is about to what it says, not the other way round."),
    ),
    hints=(
        "Go through the statements in their order. What does a dictionary do with a key that it has already?",
        "`found[key] = (value, place)` replaces what was there.",
        "`enumerate(statements)` gives the place with each statement.",
    ),
    notice="A dictionary does what a slot must learn to do: find the entry with this key, and replace it. It has as many entries as it "
    "needs; a memory has M slots.",
)


# ---- 12.4 ----

IN_THE_WINDOW = Exercise(
    number="12.4",
    title="What a window can see (a prediction)",
    difficulty=1,
    minutes=3,
    solution=12.3,
    mistakes=(
        Mistake(12.8, "nearly: the question is in the window too, and takes up some of the 128 tokens."),
        Mistake(
            6.25, "this is what guessing one of 16 places gives, without any window: how much of the text does the window hold?"
        ),
        Mistake(1.6, "the window holds 128 tokens, however many statements these are: count tokens."),
        Mistake(87.7, "this is the part that the model does *not* see."),
        Mistake(100.0, "most of the text lies before the window when the question comes."),
    ),
    hints=(
        "How many tokens of the text are still in the window when the question has been read?",
        "128 − 5 = 123 of the 1,000 tokens are in the window; a statement is equally likely to stand anywhere in the 1,000.",
    ),
    notice="(128 − 5) / 1,000 = 12.3%. What guessing adds comes on top. A window twice as long sees about twice as much, and costs twice the state; a text twice as "
    "long halves the share.",
    points=1,
    tolerance=0.01,
)

EXERCISES = [LAY_OUT, BY_DEPTH, LATEST, IN_THE_WINDOW]
