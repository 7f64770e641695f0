"""Does a slot matter? Act on a memory, and see what the model says then.

Provenance says what a slot is made of, attention says what is read. Neither says that an answer *depends* on it: to find out,
change the memory and leave all else as it was. A `Reading` is a text read up to some segment; reading on and acting on its slots
make a new `Reading`, so you can go back to any earlier one. `dependence` clears each slot alone, and all slots but one.

    reading = ml.Reading.start(model, input_ids, ml.tasks.decode).read_on()
    reading.clear([3]).predict(question)                                # the next token, had slot 3 never been written
    one, two = ml.swap_slots(one, 3, two, 5)                            # a fact moves from one memory to another

Ablation, and its limits when a second place stands in for the first: McGrath et al. 2023 (arXiv:2307.15771). Moving a state from
one run into another: Vig et al. 2020 (arXiv:2004.12265), Meng et al. 2022 (arXiv:2202.05262).

Shapes: T tokens of the text, L tokens of a segment, M slots, D width, V vocabulary, Q tokens of a question.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .tracing import percent
from .training import in_mode


class Source(NamedTuple):
    """A token that was read: of which text, where in it, in which segment, and how it is shown."""

    text: str
    position: int
    segment: int
    word: str


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """A text, read up to the end of some segment, and the memory as it is then, acts included. `Reading.start` makes one.

    memory: (1, M, D); initial: (1, M, D), what it was before the text; untouched: (1, M, D), what it would be without any act.
    sources: the tokens that the slots may be made of; shares: (M, 1 + len(sources)), what each slot is made of, the initial slot
        first, as in `ml.provenance`. A scaled slot's shares no longer sum to 1.
    frozen: the slots that reading on leaves alone.
    segments_read: how many.

    Reading on and every act on slots return a new Reading. Acts take the numbers of one or more slots, and raise `IndexError`
    for a slot that does not exist.
    """

    model: torch.nn.Module
    input_ids: Tensor
    words: Sequence[str]
    name: str
    memory: Tensor
    initial: Tensor
    untouched: Tensor
    sources: tuple[Source, ...]
    shares: Tensor
    frozen: frozenset[int] = frozenset()
    segments_read: int = 0

    @classmethod
    def start(
        cls,
        model,
        input_ids: Tensor,
        decode: Callable[[list[int]], str] | None = None,
        *,
        memory: Tensor | None = None,
        name: str = "text",
    ) -> "Reading":
        """A reading before its first segment. input_ids: (T,) or (1, T); decode: turns a list of one token number into a word,
        None shows the number; memory: (1, M, D), None for `model.init_memory`. Raises the model's errors for what cannot be read,
        and `ValueError` for more than one text."""
        input_ids = _as_batch(model, input_ids)  # (1, T)
        if len(input_ids) != 1:
            raise ValueError(f"a reading is of one text, but there are {len(input_ids)}: pass input_ids[i]")
        if memory is None:
            memory = model.init_memory(1)
        model._check_memory(memory, 1)
        memory = memory.detach().to(model.device, model.dtype, copy=True)  # (1, M, D), a copy: learned slots are a parameter
        return cls(
            model=model,
            input_ids=input_ids.to(model.device),
            words=[str(number) if decode is None else decode([number]) for number in input_ids[0].tolist()],
            name=name,
            memory=memory,
            initial=memory,
            untouched=memory,
            sources=(),
            shares=torch.ones(memory.size(1), 1),
        )

    def __repr__(self) -> str:
        return f"<Reading of {self.name!r}: {self.segments_read} of {self.segments} segments read, {self.slots} slots>"

    @property
    def slots(self) -> int:
        return self.memory.size(1)

    @property
    def segments(self) -> int:
        return -(-self.input_ids.size(1) // self.model.config.segment_length)

    @torch.no_grad()
    def read_on(self, segments: int | None = None) -> "Reading":
        """Read this many more segments, or, for None, all that are left. Frozen slots stay as they are."""
        reading, length = self, self.model.config.segment_length
        left = self.segments - self.segments_read
        frozen = sorted(self.frozen)
        for s in range(self.segments_read, self.segments_read + (left if segments is None else min(segments, left))):
            tokens = self.input_ids[:, s * length : (s + 1) * length]  # (1, l)
            out = _evaluate(self.model, tokens, reading.memory)
            memory, write = out.memory.clone(), out.write_attentions[0][0].float().cpu()  # (1, M, D), (M, 1 + l)
            memory[:, frozen] = reading.memory[:, frozen]
            write[frozen] = torch.eye(1, write.size(1))  # a frozen slot keeps all and takes nothing
            same = reading.untouched is reading.memory and not frozen
            reading = replace(
                reading,
                memory=memory,
                untouched=memory if same else _evaluate(self.model, tokens, reading.untouched).memory,
                shares=torch.cat([write[:, :1] * reading.shares, write[:, 1:]], dim=1),  # (M, 1 + sources + l)
                sources=(
                    *reading.sources,
                    *(Source(self.name, t, s, self.words[t]) for t in range(s * length, s * length + tokens.size(1))),
                ),
                segments_read=s + 1,
            )
        return reading

    def clear(self, slots: Iterable[int]) -> "Reading":
        """Put the slots back to what they were before the text."""
        slots = self._check(slots)
        memory, shares = self.memory.clone(), self.shares.clone()
        memory[:, slots] = self.initial[:, slots]
        shares[slots] = torch.eye(1, shares.size(1))  # all initial
        return replace(self, memory=memory, shares=shares)

    def scale(self, slots: Iterable[int], factor: float) -> "Reading":
        """Multiply the slots by a factor. Raises `ValueError` if it is not finite, or makes a slot too large to compute with."""
        slots = self._check(slots)
        if not math.isfinite(factor):
            raise ValueError(f"slots can be scaled by a finite number, not by {factor}")
        memory, shares = self.memory.clone(), self.shares.clone()
        memory[:, slots] *= factor
        shares[slots] *= factor
        squares = memory[:, slots].float().square().sum(-1)  # (1, slots): a layer norm computes them too
        if not (squares.isfinite().all() and shares.isfinite().all()):
            raise ValueError(f"scaled by {factor}, a slot is too large to compute with: choose a smaller number")
        return replace(self, memory=memory, shares=shares)

    def freeze(self, slots: Iterable[int]) -> "Reading":
        """Let the slots stay as they are from now on, whatever is read."""
        return replace(self, frozen=self.frozen | set(self._check(slots)))

    def thaw(self, slots: Iterable[int]) -> "Reading":
        """Let the slots be written again."""
        return replace(self, frozen=self.frozen - set(self._check(slots)))

    def predict(self, question: Tensor, *, untouched: bool = False) -> Tensor:
        """The probability of every next token after a question, (V,). question: (Q,) or (1, Q); untouched: as without any act."""
        return _next(self.model, question, self.untouched if untouched else self.memory)[0]

    def dependence(self, question: Tensor) -> "Dependence":
        """Which slots the answer to a question depends on: `ml.dependence`, slots cleared to what they were before the text."""
        return dependence(self.model, self.memory, question, cleared=self.initial)

    def held(self, slot: int) -> list[tuple[Source | None, float]]:
        """What a slot is made of, (token, share), greatest share first; None stands for its initial value."""
        (slot,) = self._check([slot])
        parts: dict[Source | None, float] = {}
        for source, share in zip([None, *self.sources], self.shares[slot].tolist()):
            # a token that first came by an exchange and was then read stands there twice
            parts[source] = parts.get(source, 0) + share
        return sorted(((source, share) for source, share in parts.items() if share != 0), key=lambda part: -part[1])

    def share_of(self, word: str) -> Tensor:
        """How much of each slot comes from tokens that are shown as `word`, wherever they stood: (M,)."""
        columns = [1 + i for i, source in enumerate(self.sources) if source.word == word]
        return self.shares[:, columns].sum(1)

    def _check(self, slots: Iterable[int]) -> list[int]:
        slots = slots.tolist() if isinstance(slots, Tensor) else list(slots)
        for slot in slots:
            if isinstance(slot, bool):
                raise TypeError("slots are given by their numbers: of a mask, pass mask.nonzero().flatten()")
            if not 0 <= slot < self.slots:
                raise IndexError(f"there is no slot {slot}: this memory has the slots 0 to {self.slots - 1}")
        return slots


def swap_slots(one: Reading, i: int, other: Reading, j: int) -> tuple[Reading, Reading]:
    """Exchange slot i of one reading and slot j of another, of the same model; within one reading, pass it twice and take either.

    Readings of different texts need different names: name, place and word tell which tokens both slots have in common.

    Raises `IndexError` for a slot that does not exist, `ValueError` for readings of two models.
    """
    one._check([i]), other._check([j])
    if one.model is not other.model:
        raise ValueError(
            "slots can be exchanged between two texts of one model, not between two models: their vectors mean different things"
        )
    if one is other:
        order = list(range(one.slots))
        order[i], order[j] = j, i
        both = replace(one, memory=one.memory[:, order], shares=one.shares[order])
        return both, both
    sources = tuple(dict.fromkeys([*one.sources, *other.sources]))
    column = {source: 1 + k for k, source in enumerate(sources)}

    def spread(reading: Reading) -> Tensor:
        shares = torch.zeros(reading.slots, 1 + len(sources))
        columns = torch.tensor([0, *(column[source] for source in reading.sources)])
        return shares.index_add_(1, columns, reading.shares)  # (M, 1 + sources of both); adds, where a token stands there twice

    memories = one.memory.clone(), other.memory.clone()
    memories[0][:, i], memories[1][:, j] = other.memory[:, j], one.memory[:, i]
    shares = spread(one), spread(other)
    shares[0][i], shares[1][j] = shares[1][j].clone(), shares[0][i].clone()
    return tuple(
        replace(reading, memory=memory, shares=share, sources=sources)
        for reading, memory, share in zip((one, other), memories, shares)
    )


class Dependence(NamedTuple):
    """What clearing slots does to an answer.

    answer: the likeliest next token, a number; probability: its probability with the memory as it is; guessed: with all slots cleared.
    without: (M,), for each slot the answer's probability with only this slot cleared.
    alone: (M,), for each slot the answer's probability with all slots but this one cleared.
    together: the slots that had to be cleared, one after the other in falling order of `alone`, until another answer was likelier.
        Not always the smallest such set. Empty where none of this changes the answer: then it does not come from the memory.
    """

    answer: int
    probability: float
    guessed: float
    without: Tensor
    alone: Tensor
    together: list[int]

    @property
    def necessary(self) -> list[int]:
        """The slots without which the answer's probability falls more than half of the way to a guess."""
        return (self.without < (self.probability + self.guessed) / 2).nonzero().flatten().tolist() if self.together else []

    @property
    def sufficient(self) -> list[int]:
        """The slots each of which alone keeps the answer's probability more than half of the way up from a guess."""
        return (self.alone > (self.probability + self.guessed) / 2).nonzero().flatten().tolist() if self.together else []

    def in_words(self, word: str, held: Tensor) -> str:
        """The findings in sentences, and whether provenance agrees. word: the answer as shown; held: (M,), `share_of(word)`."""
        says = f"“{word}” has probability {percent(self.probability)}, and {percent(self.guessed)} with all slots cleared."
        if not self.together:
            return f"{says} It stays the likeliest word: this answer does not depend on the memory."
        holders = (held > 0.5).nonzero().flatten().tolist()
        says += f" Necessary by itself: {_slots(self.necessary)}. Sufficient by itself: {_slots(self.sufficient)}."
        says += f" With {_slots(sorted(self.together))} cleared, another word is likelier."
        if not holders:
            return f"{says} No slot is mostly “{word}”: provenance says nothing here."
        agree = "provenance agrees" if holders == self.sufficient else "provenance does not agree"
        return f"{says} Mostly “{word}”: {_slots(holders)}; {agree}."


def _slots(slots: list[int]) -> str:
    return f"slot{'s' * (len(slots) > 1)} {', '.join(map(str, slots))}" if slots else "no slot"


def dependence(model, memory: Tensor, question: Tensor, *, cleared: Tensor | None = None) -> Dependence:
    """Which slots does an answer depend on? The question is read 3 M + 2 times, each time with other slots cleared.

    memory: (1, M, D); question: (Q,) or (1, Q), the answer is the likeliest token after it; cleared: (1, M, D), what cleared slots are
    set to, None for `model.init_memory`. Raises the model's errors for what does not fit.
    """
    cleared = model.init_memory(1) if cleared is None else cleared
    model._check_memory(memory, 1), model._check_memory(cleared, 1)
    M = memory.size(1)
    each = torch.eye(M, dtype=torch.bool)  # row j: slot j
    one_kept = _set_where(~each, memory, cleared)  # (M, M, D)
    probabilities = _next(
        model, question, torch.cat([memory, cleared, _set_where(each, memory, cleared), one_kept])
    )  # (2 + 2 M, V)
    answer = int(probabilities[0].argmax())
    before, guessed, without, alone = probabilities[:, answer].split([1, 1, M, M])
    order = alone.argsort(descending=True, stable=True)
    first = torch.zeros(M, M, dtype=torch.bool)  # row n: the n + 1 first slots in that order
    first[:, order] = torch.ones(M, M, dtype=torch.bool).tril()
    changed = (_next(model, question, _set_where(first, memory, cleared)).argmax(-1) != answer).nonzero()
    together = order[: int(changed[0]) + 1].tolist() if len(changed) else []
    return Dependence(answer, before.item(), guessed.item(), without, alone, together)


def _set_where(chosen: Tensor, memory: Tensor, cleared: Tensor) -> Tensor:
    """For each row of chosen, (N, M), the memory with its chosen slots cleared: (N, M, D)."""
    return torch.where(chosen.to(memory.device)[..., None], cleared, memory)


def _next(model, question: Tensor, memories: Tensor) -> Tensor:
    """The probability of every next token after a question, for each of N memories: (N, V), on the CPU. memories: (N, M, D)."""
    question = _as_batch(model, question)  # (1, Q)
    if len(question) != 1:
        raise ValueError(f"one question at a time, not {len(question)}: pass question[i]")
    logits = _evaluate(model, question.to(model.device).expand(len(memories), -1), memories).logits
    return logits[:, -1].float().softmax(-1).cpu()


def _as_batch(model, input_ids: Tensor) -> Tensor:
    """(T,) or (B, T) → (B, T). Raises the model's errors for what it cannot read."""
    if isinstance(input_ids, Tensor) and input_ids.dim() == 1:
        input_ids = input_ids[None]
    model._check_inputs(input_ids, None, None, None, None, None)
    return input_ids


@torch.no_grad()
def _evaluate(model, input_ids: Tensor, memory: Tensor):
    """`model(input_ids, memory=memory)` without dropout and without gradients; the model is left in the mode it was in."""
    with in_mode(model, training=False):
        return model(input_ids, memory=memory)
