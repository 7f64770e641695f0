"""The exercises of notebook 14, how many slots: what a memory costs, the fewest slots for a target, how many slots hold a fact."""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from .checking import Exercise, Mistake

# ---- 14.1 ----


def cost(slots: int, width: int, length: int) -> tuple[int, int]:
    projections = (slots + 2 * length) * width**2  # a query for each slot; a key and a value for each token
    mixing = 2 * length * slots * width  # a score for each slot and token, and the mixture of the values
    return 4 * slots * width, projections + mixing


def memories_of_all_sizes(generator: Generator) -> Iterator[tuple[int, int, int]]:
    yield 1, 1, 1
    yield 1, 2, 3
    yield 16, 64, 16
    yield 64, 16, 8
    for _ in range(3):
        yield tuple(torch.randint(2, 100, (3,), generator=generator).tolist())


COST = Exercise(
    number="14.1",
    title="What a memory costs",
    difficulty=1,
    minutes=8,
    solution=cost,
    cases=memories_of_all_sizes,
    mistakes=(
        Mistake(
            lambda slots, width, length: (slots * width, cost(slots, width, length)[1]),
            "the first number counts *numbers*: each of them takes 4 bytes in float32.",
        ),
        Mistake(
            lambda slots, width, length: (4 * slots * width, (slots + length) * width**2 + 2 * length * slots * width),
            "a token is multiplied by two matrices, for its key and for its value: 2 L D².",
        ),
        Mistake(
            lambda slots, width, length: (4 * slots * width, (slots + 2 * length) * width**2 + length * slots * width),
            "L M D comes twice: once for the scores, once for the mixture of the values.",
        ),
        Mistake(
            lambda slots, width, length: (4 * slots * width, (2 * slots + length) * width**2 + 2 * length * slots * width),
            "slots and tokens are exchanged: a slot has a query, a token has a key and a value.",
        ),
        Mistake(
            lambda slots, width, length: (4 * slots * width, (slots + 2 * length) * width + 2 * length * slots * width),
            "a vector of width D times a D × D matrix takes D² multiply-adds, not D.",
        ),
        Mistake(
            lambda slots, width, length: (4 * slots * width, 2 * cost(slots, width, length)[1]),
            "a multiplication and the addition after it count as *one* multiply-add: you counted twice as many.",
        ),
    ),
    hints=(
        "Go through the update: what is multiplied by a D × D matrix, and how many times?",
        "M queries, L keys and L values: (M + 2L) D². Then M × L scores, each a sum of D products.",
        "The mixture takes, for each of M slots and D dimensions, a sum over L tokens: L M D once more.",
    ),
    notice="The first part hardly depends on M while M is far below 2L: the tokens' keys and values are computed once, for any number of slots. "
    "The width enters squared.",
)


# ---- 14.2 ----


def fewest_slots(facts: int, target: float, draws: float, guess: float) -> int:
    held = (target - guess) / (1 - guess)  # the share of the facts that some slot has to hold
    if facts == 1 or held <= 0:
        return 1
    return max(1, math.ceil(math.log(1 - held) / (draws * math.log(1 - 1 / facts))))


def aims_of_all_kinds(generator: Generator) -> Iterator[tuple[int, float, float, float]]:
    yield 2, 0.6, 1.0, 0.0
    yield 4, 0.99, 1.0, 0.0625
    yield 4, 0.85, 0.8, 0.5  # guessing does a part of the work
    yield 1, 0.9, 1.0, 0.0625  # a single fact: the first slot holds it
    yield 8, 0.05, 1.0, 0.0625  # guessing is good enough
    yield 3, 0.35, 9.0, 0.0  # one slot is more than enough
    yield 16, 0.999, 2.3, 0.0625
    for _ in range(4):
        facts = int(torch.randint(3, 30, (), generator=generator))
        target, draws = (torch.rand(2, generator=generator, dtype=torch.float64) * 0.5 + torch.tensor([0.45, 0.5])).tolist()
        yield facts, target, draws, 1 / 16


def _searched(facts, target, draws, guess, *, held=lambda facts, slots, draws: 1 - (1 - 1 / facts) ** (draws * slots), start=1):
    slots = start
    while held(facts, slots, draws) + (1 - held(facts, slots, draws)) * guess < target:
        slots += 1
    return slots


FEWEST_SLOTS = Exercise(
    number="14.2",
    title="The fewest slots for a target",
    difficulty=2,
    minutes=15,
    solution=fewest_slots,
    cases=aims_of_all_kinds,
    mistakes=(
        Mistake(
            lambda facts, target, draws, guess: max(1, fewest_slots(facts, target, draws, guess) - 1),
            "one slot too few: the number is rounded down, and the target is missed. Round up.",
        ),
        Mistake(
            lambda facts, target, draws, guess: fewest_slots(facts, target, draws, 0.0),
            "guessing is left out: a fact that no slot holds is still answered rightly with the chance `guess`.",
        ),
        Mistake(
            lambda facts, target, draws, guess: fewest_slots(facts, target, 1 / draws, guess),
            "`draws` is on the wrong side: the more draws a slot is worth, the *fewer* slots are needed.",
        ),
        Mistake(
            lambda facts, target, draws, guess: _searched(facts, target, draws, guess, start=0),
            "0 slots come out where guessing is good enough: a memory has at least one.",
        ),
        Mistake(
            lambda facts, target, draws, guess: (
                1 if facts == 1 else _searched(facts, target, draws, guess, held=lambda f, m, a: 1 - (1 / f) ** (a * m))
            ),
            "1/F is the chance that a draw *takes* this fact; it is lost if all draws *miss* it, each with the chance 1 − 1/F.",
        ),
        Mistake(
            lambda facts, target, draws, guess: max(
                1, math.ceil(math.log(1 - max(0.0, (target - guess) / (1 - guess))) / (draws * math.log(1 - 1 / facts)))
            ),
            "a single fact breaks the formula: log(1 − 1/1) is the logarithm of 0. The first slot holds that fact.",
        ),
        Mistake(
            lambda facts, target, draws, guess: math.ceil(
                math.log(1 - (target - guess) / (1 - guess)) / (draws * math.log(1 - 1 / facts))
            ),
            "two cases break the formula: a single fact (the logarithm of 0; the first slot holds it), and a target that guessing reaches (one slot, not fewer).",
        ),
    ),
    hints=(
        "First take the guessing away: which share of the facts must be held, so that held + (1 − held) · guess reaches the target?",
        "held = (target − guess) / (1 − guess). Then solve 1 − (1 − 1/F)^(draws · M) = held for M.",
        "M = log(1 − held) / (draws · log(1 − 1/F)), rounded up, at least 1. One fact is a case of its own.",
    ),
    notice="Both logarithms are negative, so their quotient is positive. For many facts log(1 − 1/F) is near −1/F, so M is near "
    "F · log(1 / (1 − held)) / draws: proportional to F, and each time you want ten times fewer errors, it costs the same again.",
)


# ---- 14.3 ----


def participation(shares: Tensor) -> Tensor:
    total, squares = shares.sum(0), (shares**2).sum(0)  # (F), (F)
    return total**2 / squares.masked_fill(squares == 0, 1)  # 0 for a fact that no slot holds


def shares_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor]]:
    yield (torch.tensor([[1.0], [1.0]]),)
    yield (torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.1], [0.0, 1.0, 0.0]]),)
    yield (torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.25, 0.0]]),)  # the second fact is nowhere
    for slots, facts, dtype in ((16, 4, torch.float32), (8, 3, torch.float64), (3, 6, torch.float64)):
        shares = torch.rand(slots, facts, generator=generator, dtype=dtype)
        yield (shares * (torch.rand(slots, facts, generator=generator) < 0.7) / facts,)


PARTICIPATION = Exercise(
    number="14.3",
    title="How many slots hold a fact",
    difficulty=2,
    minutes=10,
    solution=participation,
    cases=shares_of_all_kinds,
    mistakes=(
        Mistake(
            lambda shares: 1 / (shares**2).sum(0),
            "the shares of a fact do not sum to 1: divide each by their sum first, or put the square of the sum above the line.",
        ),
        Mistake(
            lambda shares: participation(shares.mT),
            "this counts for each slot how many facts it holds: sum over the slots, dimension 0.",
        ),
        Mistake(
            lambda shares: (shares > 0).sum(0).to(shares.dtype),
            "every slot counts in full, even with the smallest share: weigh the slots by their shares.",
        ),
        Mistake(
            lambda shares: shares.sum(0) ** 2 / (shares**2).sum(0),
            "a fact that no slot holds gives 0/0 in yours: it should give 0, since 0 slots hold it.",
        ),
        Mistake(
            lambda shares: shares.sum(0),
            "this is the sum of the shares: ten slots with a tenth each would count as one. The participation ratio says ten.",
        ),
        Mistake(
            lambda shares: participation(shares) ** 0.5,
            "one root too many: two slots with equal shares should give 2.",
        ),
    ),
    hints=(
        "Try it on paper: shares 1, 1, 0 should give 2, and so should 0.3, 0.3, 0.",
        "(Σ_j p_j)² / Σ_j p_j², with both sums over the slots.",
        "Where the lower sum is 0, so is the upper one: put 1 in place of the lower one with `masked_fill`.",
    ),
    notice="Multiplying all shares by the same number changes nothing, since it enters squared above and below. Equal shares of n slots give exactly n; "
    "anything less equal gives less.",
)


# ---- 14.4 ----

WIDTH_OR_NUMBER = Exercise(
    number="14.4",
    title="As many bytes, otherwise divided (a prediction)",
    difficulty=2,
    minutes=5,
    solution=3.0,
    mistakes=(
        Mistake(1.0, "the *bytes* are the same. The update multiplies by D × D matrices: what does twice the width do to these?"),
        Mistake(2.0, "D² is four times as much, and M half as much, but not everything grows with D², and there are as many tokens as before."),
        Mistake(4.0, "nearly: D² is four times as much. But there are fewer slots, and L M D stays as it is."),
        Mistake(0.5, "half the slots do not halve it: most of the work is for the tokens, and grows with D²."),
        Mistake(5.14, "M is halved, not doubled: (8 + 32) · 128² + 2 · 16 · 8 · 128."),
        Mistake(8.0, "that would be D³. The width enters squared at most, and in one part only once: 2 L M D."),
    ),
    hints=(
        "Write (M + 2L) D² + 2LMD down for both, with L = 16.",
        "16 slots of 64: 48 · 4,096 + 32,768. 8 slots of 128: 40 · 16,384 + 32,768.",
    ),
    notice="688,128 / 229,376 = 3.0. Width costs more than number: it enters squared, for every token, and it is the width of the whole model too.",
    points=1,
    tolerance=0.01,
)  # fmt: skip

EXERCISES = [COST, FEWEST_SLOTS, PARTICIPATION, WIDTH_OR_NUMBER]
