"""What the small models learn from: made-up documents whose right answers are known.

- `AssociativeRecall`: facts in the first segment, noise between, every name asked for in the last. The easy version.
- `HardRecall`: facts in any segment, marked by a token, among distractors of the same words, later facts overriding earlier ones.
- `Copy`: repeat the first segment, in order.
- `MQAR`: pairs at the start, each asked for once more, most of them soon. A published task that others measure with.
- `Mixture`: any of several tasks, as a stage of a curriculum.

A task draws its batches from a `torch.Generator`, so that a seed fixes the documents whatever else uses random numbers.
Answers are labelled at their own position, everything else with −100: `MemGPT.forward` shifts labels as GPT-2 does.
All tasks share one vocabulary, `VOCABULARY`, so that a model can go from one to the next.

After the associative recall of Graves et al. 2014 (arXiv:1410.5401) and Ba et al. 2016 (arXiv:1610.06258).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .streaming import read_ahead
from .training import in_mode

NAMES = "Ada Ben Cleo Dan Eve Finn Gus Hana Ian Joy Kim Leo Mia Ned Ola Pia".split()
PLACES = "Athens Bern Cairo Delhi Essen Fez Ghent Hanoi Izmir Jena Kyoto Lima Malmo Nice Oslo Paris".split()
NOISE = (
    "so well now then and but or yet hm oh ah er um like just very quite rather almost still "
    "even also too here there maybe perhaps indeed again soon later always"
).split()
VOCABULARY = ("SET", "ASK", *NAMES, *PLACES, *NOISE)  # 66 words

SET, ASK = 0, 1
FIRST_NAME = 2
FIRST_PLACE = FIRST_NAME + len(NAMES)
FIRST_NOISE = FIRST_PLACE + len(PLACES)
IGNORED = -100


def encode(text: str) -> list[int]:
    """The numbers of words of the tasks' vocabulary, separated by spaces. Raises `ValueError` for a word that is not in it."""
    unknown = [word for word in text.split() if word not in VOCABULARY]
    if unknown:
        raise ValueError(f"the tasks' vocabulary lacks {', '.join(unknown)}; it has {', '.join(VOCABULARY)}")
    return [VOCABULARY.index(word) for word in text.split()]


def decode(ids: Iterable[int] | Tensor) -> str:
    """The words of token numbers, separated by spaces."""
    return " ".join(VOCABULARY[int(i)] for i in ids)


class Batch(NamedTuple):
    """Documents of whole segments: input_ids (B, S·L) and labels (B, S·L), −100 where nothing is asked."""

    input_ids: Tensor
    labels: Tensor


def _choose(batch_size: int, among: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `among` for each document, in random order: (B, count)."""
    return torch.rand(batch_size, among, generator=generator).argsort(-1)[:, :count]


def _random(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)


def noise(batch_size: int, length: int, generator: torch.Generator) -> Tensor:
    """Noise words, (B, length)."""
    return _random(FIRST_NOISE, len(VOCABULARY), (batch_size, length), generator)


@dataclass(frozen=True)
class AssociativeRecall:
    """Easy recall: "Ada Paris … (noise) … Ada → ?".

    In the first segment stand `num_facts` facts: a name and a place, no name twice, each beginning at any token. In the last
    segment the same names, in another order and at other tokens, are each followed by their place, which is labelled. All else is
    noise, from words of its own. With a single segment the facts take its first half and the questions its second. With
    `on_grid`, facts and questions begin only at every second token (what a model learns from that: notebook 13).
    """

    num_segments: int = 4
    num_facts: int = 4
    segment_length: int = 16
    on_grid: bool = False

    def __post_init__(self):
        pairs = self.segment_length // 2
        room = min(pairs if self.num_segments > 1 else pairs // 2, len(NAMES))
        if self.num_segments < 1 or not 1 <= self.num_facts <= room:
            raise ValueError(
                f"{self.num_facts} facts do not fit into {self.num_segments} segment(s) of {self.segment_length} tokens: "
                f"take at least 1 segment, and 1 to {room} facts"
            )

    def batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        length = self.segment_length
        ids = noise(batch_size, self.num_segments * length, generator)  # (B, S·L)
        names = FIRST_NAME + _choose(batch_size, len(NAMES), self.num_facts, generator)  # (B, F)
        places = _random(FIRST_PLACE, FIRST_NOISE, (batch_size, self.num_facts), generator)  # (B, F)
        room, last = (length // 2, length // 2) if self.num_segments == 1 else (length, ids.size(1) - length)  # in tokens
        told = self._starts(batch_size, room, generator)  # (B, F)
        asked = last + self._starts(batch_size, room, generator)
        for where in (told, asked):
            ids.scatter_(1, where, names).scatter_(1, where + 1, places)
        return Batch(ids, torch.full_like(ids, IGNORED).scatter_(1, asked + 1, places))

    def _starts(self, batch_size: int, room: int, generator: torch.Generator) -> Tensor:
        """At which of `room` tokens each pair begins, (B, F), in random order; no two overlap, and all ways are equally likely."""
        if self.on_grid:
            return 2 * _choose(batch_size, room // 2, self.num_facts, generator)
        chosen = _choose(batch_size, room - self.num_facts, self.num_facts, generator)  # a pair taken as one token, (B, F)
        return chosen + chosen.argsort(-1).argsort(-1)  # each moves by one for each pair before it

    @classmethod
    def curriculum(cls, max_segments: int = 4, **options) -> list["Mixture"]:
        """One segment; then 1 or 2; and so on, up to any number from 1 to `max_segments`."""
        tasks = [cls(num_segments=s, **options) for s in range(1, max_segments + 1)]
        return [Mixture(tuple(tasks[: s + 1])) for s in range(max_segments)]


@dataclass(frozen=True)
class HardRecall:
    """Hard recall: "SET Ada Paris … um Ada Oslo … SET Ada Rome … ASK Ada → Rome".

    Every segment but the last has room for `segment_length // 3` triples of words, which begin at any token, with noise between
    them. `num_facts` of all these triples, in any segment, are facts: SET, a name, a place. They speak of `num_names` different
    names; with more facts than names, later ones override earlier ones. With `distractors`, half of the other triples hold a
    noise word, a name and a place, which mean nothing without SET. The last segment asks for every name once: ASK, the name, and
    the place that was told last, which is labelled. With `on_grid`, triples begin only at every third token of a segment (what a
    model learns from that: notebook 13).
    """

    num_segments: int = 4
    num_facts: int = 6
    num_names: int = 4
    segment_length: int = 16
    distractors: bool = True
    on_grid: bool = False

    def __post_init__(self):
        triples = self.segment_length // 3
        room = (self.num_segments - 1) * triples
        if not 1 <= self.num_names <= min(triples, len(NAMES)) or not self.num_names <= self.num_facts <= room:
            raise ValueError(
                f"{self.num_facts} facts about {self.num_names} names do not fit into {self.num_segments} segments of "
                f"{self.segment_length} tokens: take 1 to {min(triples, len(NAMES))} names, and at least as many facts, at most {room}"
            )

    def batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        triples = self.segment_length // 3
        ids = noise(batch_size, self.num_segments * self.segment_length, generator)  # (B, S·L)
        room = (self.num_segments - 1) * triples
        there = torch.zeros(batch_size, room, dtype=torch.bool)  # which triples are more than noise
        if self.distractors:
            there = torch.rand(batch_size, room, generator=generator) < 0.5
            false_names = _random(FIRST_NAME, FIRST_PLACE, there.shape, generator)
            false_places = _random(FIRST_PLACE, FIRST_NOISE, there.shape, generator)
        # (B, F): which triples are facts, in the order of the text; about which of the names each is; below, the place it tells
        told = _choose(batch_size, room, self.num_facts, generator).sort(-1).values
        about = torch.arange(self.num_facts).expand(batch_size, -1) % self.num_names
        about = about.gather(1, _choose(batch_size, self.num_facts, self.num_facts, generator))
        names = FIRST_NAME + _choose(batch_size, len(NAMES), self.num_names, generator)  # (B, K)
        places = _random(FIRST_PLACE, FIRST_NOISE, (batch_size, self.num_facts), generator)  # (B, F)
        asked = _choose(batch_size, triples, self.num_names, generator)  # (B, K)

        order = torch.arange(self.num_facts)
        said = about[:, None, :] == torch.arange(self.num_names)[:, None]  # (B, K, F)
        latest = torch.where(said, order, -1).amax(-1)  # (B, K)
        answers = places.gather(1, latest)  # (B, K)
        questions = torch.zeros(batch_size, triples, dtype=torch.bool).scatter(1, asked, True)
        start = self._starts(torch.cat([there.scatter(1, told, True), questions], dim=1), generator)  # (B, S·triples)
        if self.distractors:
            text, triple = there.nonzero(as_tuple=True)
            at = start[text, triple]
            ids[text, at + 1], ids[text, at + 2] = false_names[there], false_places[there]
        told, asked = start.gather(1, told), start.gather(1, room + asked)
        ids.scatter_(1, told, SET).scatter_(1, told + 1, names.gather(1, about)).scatter_(1, told + 2, places)
        ids.scatter_(1, asked, ASK).scatter_(1, asked + 1, names).scatter_(1, asked + 2, answers)
        return Batch(ids, torch.full_like(ids, IGNORED).scatter_(1, asked + 2, answers))

    def _starts(self, there: Tensor, generator: torch.Generator) -> Tensor:
        """At which token of the text each triple begins, (B, S·triples), if there is one; free tokens lie around at random."""
        there = there.unflatten(1, (self.num_segments, -1))  # (B, S, triples)
        if self.on_grid:
            within = 3 * torch.arange(there.size(-1)).expand_as(there)
        else:
            before = there.cumsum(-1) - there.long()  # how many stand before it in its segment
            free = self.segment_length - 3 * there.sum(-1, keepdim=True)
            chance = torch.rand(there.shape, generator=generator).masked_fill(~there, torch.inf).sort(-1).values
            gaps = (chance.nan_to_num(posinf=0) * (free + 1)).long()  # free tokens before the first, the second, … of them
            within = 3 * before + gaps.gather(-1, before)
        return (within + self.segment_length * torch.arange(self.num_segments)[:, None]).flatten(1)

    @classmethod
    def curriculum(cls, max_segments: int = 4, **options) -> list["Mixture"]:
        """More segments first, then distractors, then facts that override earlier ones."""
        if max_segments < 2:
            raise ValueError(f"max_segments must be at least 2 (facts and questions), not {max_segments}")
        names = options.pop("num_names", 4)
        overriding = options.pop("num_facts", names + 2)
        triples = options.get("segment_length", cls.segment_length) // 3

        def stage(segments: int, facts: int, distractors: bool) -> Mixture:
            some = range(2, segments + 1)
            return Mixture(tuple(cls(s, min(facts, (s - 1) * triples), names, distractors=distractors, **options) for s in some))

        lengths = [stage(s, names, False) for s in range(2, max_segments + 1)]
        return [*lengths, stage(max_segments, names, True), stage(max_segments, overriding, True)]


@dataclass(frozen=True)
class Copy:
    """Repeat in the last segment, after ASK, the words that followed SET in the first, in order; noise between."""

    num_segments: int = 2
    num_words: int = 8
    segment_length: int = 16

    def __post_init__(self):
        if self.num_segments < 2 or not 1 <= self.num_words < self.segment_length:
            raise ValueError(
                f"{self.num_words} words do not fit into {self.num_segments} segment(s) of {self.segment_length} tokens: "
                f"take at least 2 segments, and 1 to {self.segment_length - 1} words"
            )

    def batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        ids = noise(batch_size, self.num_segments * self.segment_length, generator)  # (B, S·L)
        words = _random(FIRST_NAME, FIRST_NOISE, (batch_size, self.num_words), generator)  # (B, W)
        last = (self.num_segments - 1) * self.segment_length
        labels = torch.full_like(ids, IGNORED)
        ids[:, 0], ids[:, last] = SET, ASK
        ids[:, 1 : 1 + self.num_words] = words
        ids[:, last + 1 : last + 1 + self.num_words] = labels[:, last + 1 : last + 1 + self.num_words] = words
        return Batch(ids, labels)


@dataclass(frozen=True)
class MQAR:
    """Multi-query associative recall, as published, with names for keys and places for values: "Ada Paris … Ada → Paris".

    The text begins with `num_pairs` different names, each with a place of its own. After them each name stands once more, at an
    even position; the k-th even position is chosen with a probability that falls as k^(power − 1), so most names are asked for
    soon. The answer is labelled at the position after the name. Unlike in the other tasks, it does not stand there: noise does.

    Arora et al. 2023 (arXiv:2312.04927), whose smallest setting is 64 tokens with 4 pairs, but with a vocabulary of 8,192 and
    with keys and values among the noise too: among so many words, those of the pairs seldom turn up there.
    """

    num_segments: int = 4
    num_pairs: int = 4
    segment_length: int = 16
    power: float = 0.01

    def __post_init__(self):
        room = min(max(1, self.num_segments) * self.segment_length // 4, len(NAMES))
        if self.num_segments < 1 or not 1 <= self.num_pairs <= room:
            raise ValueError(
                f"{self.num_pairs} pairs and as many questions do not fit into {self.num_segments} segment(s) of "
                f"{self.segment_length} tokens: take at least 1 segment, and 1 to {room} pairs"
            )

    def batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        ids = noise(batch_size, self.num_segments * self.segment_length, generator)  # (B, S·L)
        names = FIRST_NAME + _choose(batch_size, len(NAMES), self.num_pairs, generator)  # (B, P)
        places = FIRST_PLACE + _choose(batch_size, len(PLACES), self.num_pairs, generator)  # (B, P)
        begin = 2 * self.num_pairs
        ids[:, :begin:2], ids[:, 1:begin:2] = names, places
        likely = torch.arange(1, (ids.size(1) - begin) // 2 + 1).double() ** (self.power - 1)
        asked = begin + 2 * likely.expand(batch_size, -1).multinomial(self.num_pairs, generator=generator)  # (B, P)
        ids.scatter_(1, asked, names)
        return Batch(ids, torch.full_like(ids, IGNORED).scatter_(1, asked + 1, places))


@dataclass(frozen=True)
class Mixture:
    """A stage of a curriculum: every batch comes from one of several tasks, chosen at random."""

    tasks: tuple

    def batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        chosen = _random(0, len(self.tasks), (), generator)
        return self.tasks[chosen].batch(batch_size, generator)


class RecallResult(NamedTuple):
    """Share of the questions that were answered rightly, how many there were, and share of the slots that changed in the noise."""

    accuracy: float
    questions: int
    slots_changed: float


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each question was answered rightly. logits (B, L, V), labels (B, L): position t answers with label t + 1."""
    answers = labels[:, 1:]
    return (logits[:, :-1].argmax(-1).cpu() == answers)[answers != IGNORED]


@torch.no_grad()
def measure_recall(
    model, num_segments: int, *, num_documents: int = 1024, batch_size: int = 256, seed: int = 1_000_000, task=None
) -> RecallResult:
    """How well a model recalls facts over `num_segments` segments of easy recall: at least 2, and as many as you like.

    The noise is made and read 256 segments at a time, so that memory use does not grow with the length of the documents.
    The seed is far from those that training uses. Dropout is off while it measures.
    """
    if num_segments < 2:
        raise ValueError(f"num_segments must be at least 2 (facts and questions), not {num_segments}")
    task = replace(task or AssociativeRecall(), num_segments=2)
    length = task.segment_length
    generator = torch.Generator().manual_seed(seed)
    right = asked = changed = slots = 0
    with in_mode(model, training=False):
        for start in range(0, num_documents, batch_size):
            ids, labels = task.batch(min(batch_size, num_documents - start), generator)
            memory = told = model(ids[:, :length].to(model.device), output_attentions=False).memory
            for done in range(0, num_segments - 2, 256):
                words = noise(len(ids), min(256, num_segments - 2 - done) * length, generator).to(model.device)
                memory = read_ahead(model, words, memory).memory
            logits = model(ids[:, length:].to(model.device), memory=memory, output_attentions=False).logits  # (B, L, V)
            hits = _hits(logits, labels[:, length:])
            right, asked = right + hits.sum().item(), asked + len(hits)
            changed += (memory != told).any(-1).sum().item()
            slots += told.shape[0] * told.shape[1]
    return RecallResult(right / asked, asked, changed / slots)


class AnswerResult(NamedTuple):
    """Share of the questions that were answered rightly, how many there were, and how many segments of a document changed a slot."""

    accuracy: float
    questions: int
    segments_written: float


@torch.no_grad()
def measure_answers(model, task, *, num_documents: int = 256, batch_size: int = 16, seed: int = 1_000_000) -> AnswerResult:
    """How well a model answers a task's questions, which stand in the last segment of documents of any length.

    Everything before the last segment is read with `read_ahead`. The seed is far from those that training uses. Dropout is off
    while it measures.
    """
    generator, length = torch.Generator().manual_seed(seed), task.segment_length
    right = asked = written = 0
    with in_mode(model, training=False):
        for start in range(0, num_documents, batch_size):
            ids, labels = task.batch(min(batch_size, num_documents - start), generator)
            before = read_ahead(model, ids[:, :-length].to(model.device))
            logits = model(ids[:, -length:].to(model.device), memory=before.memory, output_attentions=False).logits  # (B, L, V)
            hits = _hits(logits, labels[:, -length:])
            right, asked = right + hits.sum().item(), asked + len(hits)
            written += before.written.sum().item()
    return AnswerResult(right / asked, asked, written / num_documents)
