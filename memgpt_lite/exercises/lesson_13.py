"""The exercises of notebook 13, a million tokens: what no error proves, reading ahead, which slots wrote, how rare a false write must be."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .checking import Exercise, Mistake

# ---- 13.1 ----


def error_at_most(errors: int, questions: int, confidence: float = 0.95) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        so_few = sum(math.comb(questions, i) * rate**i * (1 - rate) ** (questions - i) for i in range(errors + 1))
        low, high = (rate, high) if so_few > 1 - confidence else (low, rate)
    return high


def counts_of_all_kinds(generator: Generator) -> Iterator[tuple[int, int, float]]:
    yield 0, 1, 0.95
    yield 1, 1, 0.95  # all of them wrong: no rate is too high
    yield 0, 10, 0.95
    yield 0, 1024, 0.99
    yield 1, 10, 0.9
    yield 3, 8, 0.95
    for most in (100, 3000):
        questions = int(torch.randint(30, most, (), generator=generator))
        yield int(torch.randint(1, 12, (), generator=generator)), questions, 0.95


def _bisect(questions: int, likely: Callable[[float], float], confidence: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        low, high = (rate, high) if likely(rate) > 1 - confidence else (low, rate)
    return high


def _three_more(errors: int, questions: int, confidence: float) -> float:
    return min(1.0, (errors + 3) / questions)


def _three_at_most(errors: int, questions: int, confidence: float) -> float:
    return 3 / questions


def _three_more_at_most(errors: int, questions: int, confidence: float) -> float:
    return (errors + 3) / questions


def _two_sided(errors: int, questions: int, confidence: float) -> float:
    return error_at_most(errors, questions, (1 + confidence) / 2)


def _normal(errors: int, questions: int, confidence: float) -> float:
    rate = errors / questions
    return rate + statistics.NormalDist().inv_cdf(confidence) * (rate * (1 - rate) / questions) ** 0.5


def _fewer(errors: int, questions: int, confidence: float) -> float:
    return error_at_most(errors - 1, questions, confidence)


def _exactly_so_many(errors: int, questions: int, confidence: float) -> float:
    def likely(rate):
        if rate < errors / questions:
            return 1.0  # the probability rises up to there
        return math.comb(questions, errors) * rate**errors * (1 - rate) ** (questions - errors)

    return _bisect(questions, likely, confidence)


def _halved_ten_times(errors: int, questions: int, confidence: float) -> float:
    return math.ceil(error_at_most(errors, questions, confidence) * 2**10) / 2**10


def _always_95(errors: int, questions: int, confidence: float) -> float:
    return error_at_most(errors, questions)


AT_MOST = Exercise(
    number="13.1",
    title="How wrong could it be?",
    difficulty=2,
    minutes=12,
    solution=error_at_most,
    cases=counts_of_all_kinds,
    mistakes=(
        Mistake(_three_more, "the rule 3/n is for no errors, many questions and 95%: in general, use the binomial distribution."),
        Mistake(
            _three_at_most,
            "3/n knows nothing of the errors that were made, nor of `confidence`, and for very few questions it is above 1: use the binomial distribution.",
        ),
        Mistake(
            _three_more_at_most,
            "no rate is above 1: (k + 3)/n is a guess from the rule for no errors, many questions and 95%.",
        ),
        Mistake(
            _two_sided,
            "half of 1 − confidence was set aside for the other side: here the question is only how *high* the rate may be.",
        ),
        Mistake(_normal, "this is the normal approximation: after no errors it says 0, as if nothing could ever go wrong."),
        Mistake(_fewer, "only *fewer* errors than were seen are counted: count as many, too, `range(errors + 1)`."),
        Mistake(_exactly_so_many, "only *exactly* so many errors are counted: what must be unlikely is so few errors, or fewer."),
        Mistake(
            lambda errors, questions, confidence: 1 - error_at_most(errors, questions, confidence),
            "this is the least share of right answers: 1 minus this share is asked for.",
        ),
        Mistake(
            _halved_ten_times,
            "the search stops too early: ten halvings give three decimals, since 2¹⁰ is about 1,000, and twenty give six.",
        ),
        Mistake(_always_95, "`confidence` is not used: 0.99 asks for a higher bound than 0.95."),
    ),
    hints=(
        "How probable are at most `errors` errors, if the rate is r? The higher r, the less probable. Look for the r at which it is 1 − confidence.",
        "At most k errors: the sum over i from 0 to k of `math.comb(n, i) * r**i * (1 - r) ** (n - i)`.",
        "Halve the interval from 0 to 1 fifty times: where so few errors are still more probable than 1 − confidence, the rate may be higher.",
    ),
    notice="If all answers are wrong, no extra case is needed: at most n errors of n are certain at every rate, so the search ends at 1. "
    "For no errors the bound is 1 − (1 − confidence)^(1/n), which is nearly 3/n at 95%.",
    tolerance=1e-6,
)


# ---- 13.2 ----


def read_ahead(read: Callable[[Tensor, Tensor], Tensor], segments: Tensor, memory: Tensor, ahead: int) -> tuple[Tensor, int]:
    at = calls = 0
    while at < len(segments):
        after = read(segments[at : at + ahead], memory)  # (N, M, D)
        calls += 1
        changed = (after != memory).flatten(1).any(-1)  # (N)
        last = int(changed.long().argmax()) if changed.any() else len(after) - 1  # the last that was read rightly
        memory, at = after[last], at + last + 1
    return memory, calls


@dataclass(frozen=True)
class ToyModel:
    """A segment that begins with a 1 mixes itself into one slot, which its next token names; all others write nothing."""

    def __call__(self, segments: Tensor, memory: Tensor) -> Tensor:
        """segments (N, L), memory (M, D) → (N, M, D): the memory after each of them, had it been the only one."""
        after = memory.repeat(len(segments), 1, 1)
        for i, segment in enumerate(segments):
            if segment[0] == 1:
                slot = int(segment[1]) % len(memory)
                after[i, slot] = 0.5 * after[i, slot] + segment.float().mean()
        return after


def texts_with_writes(generator: Generator) -> Iterator[tuple[ToyModel, Tensor, Tensor, int]]:
    def case(segments: int, writes: tuple[int, ...], ahead: int, slots: int = 3):
        text = torch.randint(2, 50, (segments, 4), generator=generator)
        text[list(writes), 0] = 1
        return ToyModel(), text, torch.randn(slots, 2, generator=generator), ahead

    yield case(1, (), 4)
    yield case(5, (), 2)  # the last call has one segment left
    yield case(6, (2,), 4)
    yield case(7, (2, 3), 7)  # two in one call
    yield case(5, (1, 4), 3, slots=1)  # a write changes all there is, and the last segment writes
    yield case(8, (0, 1, 6), 3)
    yield case(40, tuple(torch.randperm(40, generator=generator)[:6].tolist()), 16)


def _ahead_by(rule: Callable) -> Callable:
    """A reading whose `rule(after, changed, memory)` says which memory to go on with, and how many segments further on."""

    def attempt(read, segments, memory, ahead):
        at = calls = 0
        while at < len(segments):
            after = read(segments[at : at + ahead], memory)
            calls += 1
            memory, on = rule(after, (after != memory).flatten(1).any(-1), memory)
            at += on
        return memory, calls

    return attempt


def _last_right(changed: Tensor) -> int:
    return int(changed.long().argmax()) if changed.any() else len(changed) - 1


def _last_left(read, segments, memory, ahead):
    at = calls = 0
    while at + ahead <= len(segments):
        after = read(segments[at : at + ahead], memory)
        calls += 1
        last = _last_right((after != memory).flatten(1).any(-1))
        memory, at = after[last], at + last + 1
    return memory, calls


def _one_by_one(read, segments, memory, ahead):
    return read_ahead(read, segments, memory, 1)


def _only_whole_changes(read, segments, memory, ahead):
    return _ahead_by(
        lambda after, _, memory: (
            after[(i := _last_right((after != memory).flatten(1).all(-1)))],
            i + 1,
        )
    )(read, segments, memory, ahead)


READ_AHEAD = Exercise(
    number="13.2",
    title="Reading ahead",
    difficulty=3,
    minutes=20,
    solution=read_ahead,
    cases=texts_with_writes,
    mistakes=(
        Mistake(
            _ahead_by(lambda after, changed, memory: (after[-1], len(after))),
            "the last memory of each call is taken: what the segments before it wrote is not in it. Stop at the first that wrote.",
        ),
        Mistake(
            _ahead_by(lambda after, changed, memory: (after[_last_right(changed)], len(after))),
            "the segments after the first that wrote are left out: they were read with an old memory and must be read again.",
        ),
        Mistake(
            _ahead_by(
                lambda after, changed, memory: (
                    after[_last_right(changed)],
                    max(1, _last_right(changed) + (not bool(changed.any()))),
                )
            ),
            "the segment that wrote is read again, after its own write: it was read rightly the first time, so go on after it.",
        ),
        Mistake(
            _ahead_by(lambda after, changed, memory: (memory, _last_right(changed) + 1)),
            "what a segment wrote is lost: go on with the memory *after* it.",
        ),
        Mistake(
            _ahead_by(
                lambda after, changed, memory: (
                    after[i := int(changed.nonzero().amax()) if changed.any() else -1],
                    i % len(after) + 1,
                )
            ),
            "you stop at the *last* segment of a call that wrote: those after the first were read with an old memory.",
        ),
        Mistake(_last_left, "the end of the text is not read: the last call may have fewer than `ahead` segments."),
        Mistake(_one_by_one, "every call reads one segment: pass up to `ahead` of them at once."),
        Mistake(_only_whole_changes, "a segment counts as one that wrote only if it changed *every* number: `any`, not `all`."),
    ),
    hints=(
        "Read up to `ahead` segments from where you are. Which of the memories that come back can you trust?",
        "All up to and including the first that differs from the memory that you passed in: nothing was written before it.",
        "`changed = (after != memory).flatten(1).any(-1)`; its first True, if any, is at `int(changed.long().argmax())`.",
    ),
    notice="The comparison is exact, `!=` and no tolerance. A rule that changes every slot a little makes `changed` true at once, and each call "
    "gets one segment further. The library also reads fewer segments after a write, then twice as many each time, so that less is read in vain.",
)


# ---- 13.3 ----


def which_wrote(write_attention: Tensor) -> list[tuple[int, int, int]]:
    length = write_attention.size(-1) - 1
    found = []
    for segment, slot in (write_attention[..., 0] != 1).nonzero().tolist():
        token = write_attention[segment, slot, 1:].argmax().item()
        found.append((segment, slot, segment * length + token))
    return found


def attentions_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor]]:
    def rows(segments: int, slots: int, length: int, *writes: tuple[int, int, float]) -> Tensor:
        """Every slot keeps all, except for each (segment, slot, what it keeps)."""
        attention = torch.zeros(segments, slots, 1 + length)
        attention[..., 0] = 1
        for segment, slot, keep in writes:
            taken = torch.rand(length, generator=generator).pow(4)
            attention[segment, slot] = torch.cat([torch.tensor([keep]), (1 - keep) * taken / taken.sum()])
        return attention

    yield (rows(1, 1, 1),)
    yield (rows(1, 1, 2, (0, 0, 0.0)),)
    yield (rows(3, 2, 4, (2, 1, 0.75)),)  # keeps most, and yet it changed
    yield (rows(4, 3, 5, (1, 2, 0.0), (1, 0, 0.4), (3, 1, 0.0)),)  # two slots in one segment
    yield (rows(3, 4, 4, (0, 3, 0.1), (2, 0, 0.999)),)  # the later segment has the earlier slot
    some = [(int(i) // 8, int(i) % 8, 0.3) for i in torch.randperm(160, generator=generator)[:9]]
    yield (rows(20, 8, 16, *some, (19, 7, 0.9)),)


def _at_half(write_attention):
    return [found for found in which_wrote(write_attention) if write_attention[found[0], found[1], 0] < 0.5]


def _with_keep_column(write_attention):
    length = write_attention.size(-1) - 1
    return [(s, j, s * length + write_attention[s, j].argmax().item()) for s, j, _ in which_wrote(write_attention)]


def _one_too_far(write_attention):
    return [(s, j, t + 1) for s, j, t in which_wrote(write_attention)]


def _in_the_segment(write_attention):
    length = write_attention.size(-1) - 1
    return [(s, j, t % length) for s, j, t in which_wrote(write_attention)]


def _segments_too_long(write_attention):
    return [(s, j, t + s) for s, j, t in which_wrote(write_attention)]


def _slot_after_slot(write_attention):
    return sorted(which_wrote(write_attention), key=lambda found: (found[1], found[0]))


def _one_a_segment(write_attention):
    found = {}
    for s, j, t in which_wrote(write_attention):
        found.setdefault(s, (s, j, t))
    return list(found.values())


WHICH_WROTE = Exercise(
    number="13.3",
    title="Who took what, and where?",
    difficulty=1,
    minutes=8,
    solution=which_wrote,
    cases=attentions_of_all_kinds,
    mistakes=(
        Mistake(_at_half, "slots that keep more than half are left out: whatever does not keep exactly 1 has changed."),
        Mistake(_with_keep_column, "the column of keep takes part in the search for the token: search in `[1:]`."),
        Mistake(_one_too_far, "the tokens are one too far to the right: column 0 is keep, and column 1 + t is token t."),
        Mistake(_in_the_segment, "the tokens are counted within their segment: segment s begins at token s·L of the text."),
        Mistake(_segments_too_long, "segment s begins at token s·L, and L is one less than the number of columns."),
        Mistake(_slot_after_slot, "the order is slot after slot: the text's order is asked for, segment after segment."),
        Mistake(_one_a_segment, "at most one slot of each segment is named: several can change in the same segment."),
    ),
    hints=(
        "Column 0 alone shows which slots changed. Which number stands there where nothing changed?",
        "`(write_attention[..., 0] != 1).nonzero().tolist()` lists segments and slots, in the order of the text.",
        "The token is `write_attention[s, j, 1:].argmax().item()`, plus where its segment begins.",
    ),
    notice="The comparison is `!= 1`, exactly: sparsemax gives exactly 1. For softmax, what counts as a write would be a matter of taste.",
)


# ---- 13.4 ----

NO_FALSE_WRITE = Exercise(
    number="13.4",
    title="One in a million (a prediction)",
    difficulty=1,
    minutes=3,
    solution=93.7,
    mistakes=(
        Mistake(35.0, "this counts one chance of a false write for every *token*: there is one for every segment, of 16 tokens."),
        Mistake(6.3, "this is the share of texts that have one: the share without is asked for."),
        Mistake(100.0, "this is about the chance for one segment: there are 65,536 segments, and all must go well."),
        Mistake(0.0, "a text has far fewer than a million chances of a false write. How many?"),
        Mistake(
            50.0,
            "whether one comes is not the toss of a coin: the chance of none is (1 − p) to the power of the number of segments.",
        ),
    ),
    hints=(
        "How many segments does the text have? All of them must be free of a false write.",
        "(1 − 1/1,000,000) to the power of 65,536. For small p that is about 1 − p · 65,536.",
    ),
    notice="1,048,576 tokens are 65,536 segments, and (1 − 10⁻⁶)^65,536 = 93.7%. At 50 million tokens it would be 4.4%.",
    points=1,
    tolerance=0.005,
)

EXERCISES = [AT_MOST, READ_AHEAD, WHICH_WROTE, NO_FALSE_WRITE]
