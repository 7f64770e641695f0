"""The exercises of notebook 15, the memory zoo: one token of erase-and-add, one of the delta rule, the half-life of a memory."""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from .checking import Exercise, Mistake


def _shapes(generator: Generator) -> Iterator[tuple[int, int, torch.dtype]]:
    yield 1, 1, torch.float64
    yield 2, 1, torch.float32
    yield 3, 2, torch.float32
    for dtype in (torch.float32, torch.float64):
        slots, width = torch.randint(2, 20, (2,), generator=generator).tolist()
        yield slots, width, dtype


# ---- 15.1 ----


def erase_add_token(memory: Tensor, address: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    w = address[:, None]  # (M, 1)
    return memory * (1 - w * erase) + w * add


def writes_of_all_sizes(generator: Generator) -> Iterator[tuple[Tensor, ...]]:
    for slots, width, dtype in _shapes(generator):
        numbers = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((slots, width), slots, width, width)]
        memory, address, erase, add = numbers
        address = address.softmax(0) if slots > 1 else torch.full_like(address, 0.5)
        yield tuple(x.detach().requires_grad_() for x in (memory, address, erase.sigmoid(), add))


def _written_in_place(memory: Tensor, address: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    with torch.no_grad():
        return memory.mul_(1 - address[:, None] * erase).add_(address[:, None] * add)


ERASE_ADD = Exercise(
    number="15.1",
    title="Erase and add, one token",
    difficulty=1,
    minutes=8,
    solution=erase_add_token,
    cases=writes_of_all_sizes,
    mistakes=(
        Mistake(
            lambda memory, address, erase, add: memory * (1 - address[:, None] * erase) + add,
            "what is added has to be weighed by the address too: yours is written into every slot in full.",
        ),
        Mistake(
            lambda memory, address, erase, add: memory * (1 - erase) + address[:, None] * add,
            "what is erased has to be weighed by the address: yours wipes every slot, even those the token does not address.",
        ),
        Mistake(
            lambda memory, address, erase, add: (memory + address[:, None] * add) * (1 - address[:, None] * erase),
            "first erase, then add: yours erases a part of what was added in the same step.",
        ),
        Mistake(
            lambda memory, address, erase, add: memory * address[:, None] * erase + address[:, None] * add,
            "erase says how much goes away, not how much stays: multiply by 1 − w · erase.",
        ),
        Mistake(
            lambda memory, address, erase, add: memory - address[:, None] * erase + address[:, None] * add,
            "erasing multiplies the slot, m ⊙ (1 − w e): yours subtracts the gate itself, whatever the slot holds.",
        ),
        Mistake(
            lambda memory, address, erase, add: memory * (1 - address[:, None] * erase) + address[:, None] * erase * add,
            "what is added has no gate of its own in this rule: the erase gate does not weigh it.",
        ),
        Mistake(
            _written_in_place, "the memory was changed in place: whoever passed it in still needs it, and so does the gradient."
        ),
    ),
    hints=(
        "Each slot has its own weight w, each dimension its own gate: make (M, 1) and (D) meet by broadcasting.",
        "`address[:, None]` is (M, 1). In each dimension slot j keeps the share 1 − w_j · erase.",
        "memory * (1 - w * erase) + w * add, with w = address[:, None].",
    ),
    notice="An address of exactly 0 would leave a slot alone. Softmax never gives one: each token wears each slot down a little.",
)


# ---- 15.2 ----


def delta_token(memory: Tensor, key: Tensor, value: Tensor, step: Tensor) -> Tensor:
    says = key @ memory  # (D): what the memory says at this address
    return memory + step * key[:, None] * (value - says)


def corrections_of_all_sizes(generator: Generator) -> Iterator[tuple[Tensor, ...]]:
    for slots, width, dtype in _shapes(generator):
        numbers = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((slots, width), slots, width, ())]
        memory, key, value, step = numbers
        key = key.softmax(0) if slots > 1 else torch.full_like(key, 0.5)
        yield tuple(x.detach().requires_grad_() for x in (memory, key, value, step.sigmoid()))


def _corrected_in_place(memory: Tensor, key: Tensor, value: Tensor, step: Tensor) -> Tensor:
    with torch.no_grad():
        return memory.add_(step * key[:, None] * (value - key @ memory))


DELTA = Exercise(
    number="15.2",
    title="The delta rule, one token",
    difficulty=2,
    minutes=12,
    solution=delta_token,
    cases=corrections_of_all_sizes,
    mistakes=(
        Mistake(
            lambda memory, key, value, step: memory + step * key[:, None] * value,
            "this adds the value to whatever is there (Hebb's rule). The delta rule adds what is *missing*: value − what the memory says.",
        ),
        Mistake(
            lambda memory, key, value, step: memory + step * key[:, None] * (value - memory),
            "each slot is drawn towards the value on its own. The memory *says* one vector, Σ_j k_j m_j, and this is corrected.",
        ),
        Mistake(
            lambda memory, key, value, step: memory + key[:, None] * (value - key @ memory),
            "the step is missing: with β = 1 every token is believed in full.",
        ),
        Mistake(
            lambda memory, key, value, step: memory - step * key[:, None] * (value - key @ memory),
            "the sign is turned round: yours moves away from the value.",
        ),
        Mistake(
            lambda memory, key, value, step: (1 - step) * memory + step * key[:, None] * value,
            "every slot fades by the step, even those the key does not point at: replace only what stands at the address.",
        ),
        Mistake(
            lambda memory, key, value, step: memory + step * (value - key @ memory),
            "the correction is not sent to the address: weigh it with k_j for slot j.",
        ),
        Mistake(
            _corrected_in_place, "the memory was changed in place: whoever passed it in still needs it, and so does the gradient."
        ),
    ),
    hints=(
        "First ask: what does the memory say at this address? A mixture of the slots, with the key as weights.",
        "`key @ memory` is (D). The error is the value minus this.",
        "Slot j moves by step · k_j · error: `step * key[:, None] * (value - key @ memory)`.",
    ),
    notice="For a key that is 1 at one slot and 0 elsewhere, the slot moves by β towards the value and all others stay. For a spread key "
    "the correction is spread as well, and other addresses feel it: memories that share slots disturb each other.",
)


# ---- 15.3 ----


def half_life(differences: Tensor) -> float:
    logs = differences.double().log()
    after = torch.arange(len(logs), dtype=torch.float64)
    after = after - after.mean()
    slope = ((after * (logs - logs.mean())).sum() / (after**2).sum()).item()
    return -math.log(2) / slope if slope < 0 else math.inf


def _slope(y: Tensor) -> float:
    after = torch.arange(len(y), dtype=torch.float64) - (len(y) - 1) / 2
    return ((after * (y - y.mean())).sum() / (after**2).sum()).item()


def _slope_from_origin(y: Tensor) -> float:
    after = torch.arange(len(y), dtype=torch.float64)
    return ((after * y).sum() / (after**2).sum()).item()


def _until(share: float, slope: float) -> float:
    return math.log(share) / slope if slope < 0 else math.inf


def decays_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor]]:
    yield (torch.tensor([1.0, 0.5]),)
    yield (torch.ones(3),)  # nothing is lost
    yield (torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64),)  # it grows
    yield (torch.tensor([8.0, 1.0, 2.0, 0.5], dtype=torch.float64),)
    for _ in range(4):
        rate, start = (torch.rand(2, generator=generator, dtype=torch.float64) * 0.5 + 0.1).tolist()
        noise = 0.2 * torch.randn(12, generator=generator, dtype=torch.float64)
        yield ((noise - rate * torch.arange(12)).exp() * start,)


HALF_LIFE = Exercise(
    number="15.3",
    title="The half-life of a memory",
    difficulty=2,
    minutes=12,
    solution=half_life,
    cases=decays_of_all_kinds,
    mistakes=(
        Mistake(
            lambda differences: math.log(0.5) / _slope(differences.double().log()),
            "where nothing is lost, or the difference grows, there is no half-life: return `math.inf`, not a negative number.",
        ),
        Mistake(
            lambda differences: -math.log(2) / slope if (slope := _slope(differences.double().log())) else -math.inf,
            "where nothing is lost the slope is 0, and NumPy and PyTorch divide by it: −ln 2/0 is −∞. Nothing lost means `math.inf`, and so does growth.",
        ),
        Mistake(
            lambda differences: _until(1 / math.e, _slope(differences.double().log())),
            "this is the time after which 1/e is left, about 37%. For the half-life, multiply it by ln 2.",
        ),
        Mistake(
            lambda differences: _until(0.5, (differences[-1].double() / differences[0]).log().item() / (len(differences) - 1)),
            "the first and the last point alone decide here: fit the line through all of them.",
        ),
        Mistake(
            lambda differences: _until(0.5, _slope(differences.double())),
            "the straight line is fitted to the differences themselves: a decay by a constant *factor* is a line in their logarithms.",
        ),
        Mistake(
            lambda differences: _until(0.5, _slope(differences.double().log2())),
            "base 2 and base e are mixed: with log2 the half-life is −1/slope, with ln it is −ln 2/slope.",
        ),
        Mistake(
            lambda differences: _until(0.5, _slope_from_origin(differences.double().log())),
            "the line is forced through the origin: subtract its mean from each of the two, or fit an intercept too.",
        ),
    ),
    hints=(
        "A decay by the same factor each time is a straight line if you take logarithms.",
        "The slope of the least-squares line: Σ (n − n̄)(y − ȳ) / Σ (n − n̄)², with y = ln d.",
        "Half is left where slope · n = −ln 2. With a slope of 0 or above, nothing is lost: `math.inf`.",
    ),
    notice="The half-life assumes that every segment takes the same share. A queue loses all at once, and a memory kept exactly loses nothing: "
    "for both, this one number says less than the curve.",
)


# ---- 15.4 ----

QUEUE = Exercise(
    number="15.4",
    title="A longer queue (a prediction)",
    difficulty=1,
    minutes=3,
    solution=3,
    mistakes=(
        Mistake(2, "after 2 segments 32 newer tokens stand behind it, and the queue has 40 places: it is still there."),
        Mistake(40, "a segment brings 16 tokens, not one."),
        Mistake(4, "one too many: after 3 segments 48 newer tokens have come, more than there are places."),
        Mistake(1, "that would be so with 16 slots. Here there are 40."),
    ),
    hints=(
        "After n segments 16 n newer tokens stand behind it.",
        "It is gone once the newer ones fill all 40 places: 16 n ≥ 40.",
    ),
    notice="16 · 2 = 32 leaves it in the queue, 16 · 3 = 48 does not. The last tokens of a segment last longest: its first one has 15 more behind it.",
    points=1,
)

EXERCISES = [ERASE_ADD, DELTA, HALF_LIFE, QUEUE]
