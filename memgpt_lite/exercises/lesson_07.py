"""The exercises of notebook 07, inside the slots: an ablation, the smallest set of slots, when a copy becomes necessary."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Generator, Tensor

from .checking import Exercise, Mistake

# ---- 7.1 ----


def keep_only(memory: Tensor, start: Tensor, slots: list[int]) -> Tensor:
    kept = start.clone()
    kept[:, slots] = memory[:, slots]
    return kept


def memories_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    for M, D, slots in ((2, 1, [0]), (2, 3, []), (3, 2, [0, 1, 2]), (4, 5, [3]), (5, 2, [4, 0]), (16, 8, [1, 2, 9, 15])):
        yield *(torch.randn(1, M, D, generator=generator) for _ in range(2)), slots
    yield *(torch.randn(1, 8, 6, generator=generator) for _ in range(2)), torch.randperm(8, generator=generator)[:3].tolist()


def the_others(memory: Tensor, slots: list[int]) -> list[int]:
    return [j for j in range(memory.size(1)) if j not in slots]


def memory_in_place(memory, start, slots):
    cleared = the_others(memory, slots)
    memory[:, cleared] = start[:, cleared]
    return memory


def start_in_place(memory, start, slots):
    start[:, slots] = memory[:, slots]
    return start


def cleared_to_zero(memory, start, slots):
    return keep_only(memory, torch.zeros_like(start), slots)


def only_the_last_one(memory, start, slots):
    return keep_only(memory, start, slots[-1:])


def counted_from_one(memory, start, slots):
    return keep_only(memory, start, [j - 1 for j in slots])


def into_the_first_places(memory, start, slots):
    kept = start.clone()
    kept[:, : len(slots)] = memory[:, slots]
    return kept


KEEP_ONLY = Exercise(
    number="7.1",
    title="Sufficient together",
    difficulty=1,
    minutes=10,
    solution=keep_only,
    cases=memories_of_all_kinds,
    mistakes=(
        Mistake(
            lambda memory, start, slots: keep_only(start, memory, slots),
            "it is the other way round: the slots of the list stay, all *others* are cleared.",
        ),
        Mistake(cleared_to_zero, "a cleared slot is not zero but what it was before the text: take it from start."),
        Mistake(
            memory_in_place,
            "memory was changed in place, and the next ablation would begin from what is left: begin with a .clone().",
        ),
        Mistake(
            start_in_place,
            "start was changed in place, and the next slot would be cleared to what you put there: begin with a .clone().",
        ),
        Mistake(
            lambda memory, start, slots: memory[:, slots],
            "the memory has become smaller, but cleared slots must stay, with what they began with: the shape stays (1, M, D).",
        ),
        Mistake(only_the_last_one, "only the last of the slots stays: is the copy of start made anew in every turn of the loop?"),
        Mistake(counted_from_one, "every slot is off by one: slots are counted from 0."),
        Mistake(into_the_first_places, "the slots that stay have moved to the front: each keeps its place."),
    ),
    hints=(
        "Which of the two is nearer to the result if hardly any slot stays? Begin with a copy of that one.",
        "Begin with `start.clone()`, and put back the slots that stay.",
        "A list of numbers can serve as an index: `kept[:, slots] = memory[:, slots]`. Mind the first dimension, which is the batch.",
    ),
    notice="The copy comes first: an ablation that changes the memory in place makes the next one wrong, and gives no error. And *cleared* is a choice. We put "
    "back what the slot began with; zeros, or another text's slot, would ask another question.",
)


# ---- 7.2 ----


@dataclass(frozen=True)
class Changes:
    """Whether the answer changes when slots are cleared: it does if they contain all of one of these sets."""

    sets: tuple[tuple[int, ...], ...]

    def __call__(self, slots: Iterable[int]) -> bool:
        cleared = set(slots)
        return any(cleared.issuperset(needed) for needed in self.sets)


def smallest_set(num_slots: int, changes: Callable[[Iterable[int]], bool], most: int) -> list[int]:
    for size in range(1, most + 1):
        for slots in combinations(range(num_slots), size):
            if changes(slots):
                return list(slots)
    return []


def answers_of_all_kinds(generator: Generator) -> Iterator[tuple[int, Changes, int]]:
    yield 1, Changes(((0,),)), 1
    yield 3, Changes(((1,), (2,))), 2  # two sets are the smallest: the first of them
    yield 4, Changes(((2, 3), (0, 1, 2))), 3  # a search from the front finds the larger one
    yield 5, Changes(((1, 3),)), 3  # with a slot between them
    yield 4, Changes(((0, 2, 3),)), 3  # as large as may be tried
    yield 4, Changes(((0, 1, 3),)), 2  # one more than may be tried
    yield 5, Changes(()), 4  # an answer that does not come from the memory
    for M in (6, 8):
        a, b, c, d, e, *_ = torch.randperm(M, generator=generator).tolist()
        yield M, Changes((tuple(sorted((a, b))), tuple(sorted((c, d, e))))), 4


def one_after_the_other(num_slots, changes, most):
    cleared = []
    for slot in range(num_slots):
        cleared.append(slot)
        if changes(cleared):
            return cleared
    return []


def one_size_too_few(num_slots, changes, most):
    return smallest_set(num_slots, changes, most - 1)


def without_an_end(num_slots, changes, most):
    return smallest_set(num_slots, changes, num_slots)


def largest_first(num_slots, changes, most):
    for size in range(most, 0, -1):
        for slots in combinations(range(num_slots), size):
            if changes(slots):
                return list(slots)
    return []


def the_last_of_them(num_slots, changes, most):
    found = len(smallest_set(num_slots, changes, most))
    return [list(slots) for slots in combinations(range(num_slots), found) if found and changes(slots)][-1] if found else []


def all_of_them(num_slots, changes, most):
    found = len(smallest_set(num_slots, changes, most))
    return [list(slots) for slots in combinations(range(num_slots), found) if changes(slots)] if found else []


def neighbours_only(num_slots, changes, most):
    for size in range(1, most + 1):
        for first in range(num_slots - size + 1):
            if changes(range(first, first + size)):
                return list(range(first, first + size))
    return []


SMALLEST = Exercise(
    number="7.2",
    title="The smallest set",
    difficulty=2,
    minutes=15,
    solution=smallest_set,
    cases=answers_of_all_kinds,
    mistakes=(
        Mistake(
            one_after_the_other,
            "this clears one slot after the other and never takes one back: it finds a set, not the smallest. Try all sets of each size.",
        ),
        Mistake(one_size_too_few, "sets of `most` slots are never tried: range(1, most + 1)."),
        Mistake(without_an_end, "larger sets than `most` are tried: with many slots there are too many of them."),
        Mistake(
            largest_first, "large sets are tried first, so that what is found is not the smallest: begin with sets of one slot."
        ),
        Mistake(
            the_last_of_them,
            "of several smallest sets this is the last: stop at the first one, with a return inside the loop.",
        ),
        Mistake(all_of_them, "these are all the smallest sets: return the first one, as a list of slots."),
        Mistake(neighbours_only, "only slots that stand side by side are tried together: the slots of a fact may be anywhere."),
        Mistake(
            lambda num_slots, changes, most: smallest_set(num_slots, changes, 1),
            "single slots alone are tried. Where an answer stands in two copies, no single slot changes it.",
        ),
    ),
    hints=(
        "Two loops: over the sizes, from 1 on, and over all sets of that size.",
        "`itertools.combinations(range(num_slots), size)` gives the sets of one size, the first slots first.",
        "`for size in range(1, most + 1): for slots in combinations(range(num_slots), size): …` and `return list(slots)` at the first that changes "
        "the answer; `return []` at the end.",
    ),
    notice="With 16 slots there are 560 sets of 3, and 12,870 of 8. That is why the library is greedy: for `together` it clears at most 16 sets, in the order of what each slot "
    "can do alone, and its docstring says “not always the smallest”.",
)


# ---- 7.3 ----

NECESSARY = Exercise(
    number="7.3",
    title="From spare to necessary (a prediction)",
    difficulty=1,
    minutes=3,
    solution=3,
    mistakes=(
        Mistake(0, "with nothing cleared no slot was necessary: every one of the four has three others to stand in for it."),
        Mistake(1, "three copies are left then, and each of them alone is sufficient: any one can still be spared."),
        Mistake(2, "two copies are left then, and here either still stands in for the other one."),
        Mistake(4, "then no copy is left: the answer is gone already, and nothing is left to be necessary."),
        Mistake(15, "the other twelve slots do not hold the fact: clearing them changes nothing for it."),
    ),
    hints=(
        "A slot is necessary if the answer falls when it is cleared, *in the memory as it is then*.",
        "As long as two sufficient slots are left, either can go.",
    ),
    notice="Of Leo's four copies three must go, whichever they are. Then the fourth is necessary, although nothing in it has changed: that depends on the other "
    "slots. Try Gus as well, who has two copies: with one cleared, the other is necessary.",
    points=1,
)

EXERCISES = [KEEP_ONLY, SMALLEST, NECESSARY]
