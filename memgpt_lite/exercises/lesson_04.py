"""The exercises of notebook 04, memory update: sparsemax, a whole update, provenance."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ..memory import sparsemax
from .checking import Exercise, Mistake

# ---- 4.1 ----


def scores_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor]]:
    yield (torch.tensor([1.0, 0.0], dtype=torch.float64),)  # a lead of exactly 1: a kink, where there is no single gradient
    for scores in ([0.3], [0.5, 0.5], [2.0, 0.1, 1.5]):  # one alone; a tie; one left out
        yield (torch.tensor(scores, dtype=torch.float64, requires_grad=True),)
    for shape, dtype in (((3, 4), torch.float32), ((2, 5, 5), torch.float64), ((2, 3, 9), torch.float32)):
        yield (torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(),)
    yield (20 * torch.randn(4, 6, generator=generator),)


def over_the_wrong_axis(scores: Tensor) -> Tensor:
    return sparsemax(scores.transpose(0, -1)).transpose(0, -1)


def without_the_clamp(scores: Tensor) -> Tensor:
    return scores - (scores.sum(-1, keepdim=True) - 1) / scores.size(-1)


def threshold_from_all(scores: Tensor) -> Tensor:
    return without_the_clamp(scores).clamp(min=0)


def one_too_few(scores: Tensor) -> Tensor:
    ordered = scores.sort(dim=-1, descending=True).values
    rank = torch.arange(1, scores.size(-1) + 1, dtype=scores.dtype)
    total = ordered.cumsum(-1)
    support = ((1 + rank * ordered > total).sum(-1, keepdim=True) - 1).clamp(min=1)
    return (scores - (total.gather(-1, support - 1) - 1) / support).clamp(min=0)


def clamped_and_divided(scores: Tensor) -> Tensor:
    positive = scores.clamp(min=0)
    return positive / positive.sum(-1, keepdim=True)


def in_place(scores: Tensor) -> Tensor:
    with torch.no_grad():
        scores -= scores.amax(-1, keepdim=True)
    return sparsemax(scores)


SPARSEMAX = Exercise(
    number="4.1",
    title="Sparsemax, all rows at once",
    difficulty=2,
    minutes=15,
    solution=sparsemax,
    cases=scores_of_all_kinds,
    mistakes=(
        Mistake(
            lambda scores: scores.softmax(-1), "this is softmax: it never gives an exact 0. Look for a threshold τ to subtract."
        ),
        Mistake(
            over_the_wrong_axis,
            "the rows are right, but along the wrong axis: the shares must sum to 1 along the *last* dimension.",
        ),
        Mistake(
            without_the_clamp,
            "it sums to 1, but some shares are negative: cut them off at 0, and find τ only from the scores that end above 0.",
        ),
        Mistake(threshold_from_all, "τ is computed from all scores, also from those that end at 0: only those above τ count."),
        Mistake(
            one_too_few, "you take one score too few: the count of those with 1 + k·z_(k) > z_(1) + … + z_(k) is already right."
        ),
        Mistake(
            clamped_and_divided,
            "dividing by the sum is not subtracting a threshold: if you raise all scores by 5, no share may change.",
        ),
        Mistake(
            lambda scores: torch.nn.functional.one_hot(scores.argmax(-1), scores.size(-1)).to(scores.dtype),
            "this is hardmax: the highest score takes all. Sparsemax shares where two scores are less than 1 apart.",
        ),
        Mistake(
            lambda scores: sparsemax(scores.detach()),
            "the values are right, but no gradient comes back to the scores: leave .detach() and .item() out.",
        ),
        Mistake(in_place, "the scores that were passed in have changed: write z = z - …, not z -= …"),
    ),
    hints=(
        "Sort the scores of each row, the highest first. If only the k highest get shares, what must τ be for these to sum to 1?",
        "τ(k) = (z₍₁₎ + … + z₍ₖ₎ − 1) / k. The right k is the greatest for which z₍ₖ₎ is still above its own τ(k).",
        "`ordered = scores.sort(-1, descending=True).values`, `total = ordered.cumsum(-1)`, `rank = torch.arange(1, N + 1)`; then "
        "`support = (1 + rank * ordered > total).sum(-1, keepdim=True)`, and `total.gather(-1, support - 1)` is the sum of those.",
    ),
    notice="The highest score is subtracted first. This changes nothing but the rounding: the winner is then exactly 0, and 0 − (−1) is *exactly* 1. "
    "Half precision is computed in float32, since many small roundings would add up to a row that sums to 0.98.",
)


# ---- 4.2 ----


def update(memory: Tensor, keep: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.mT / q.size(-1) ** 0.5  # (B, M, L)
    scores = scores.masked_fill(~mask[:, None], -torch.inf)  # padding gets no share
    shares = sparsemax(torch.cat([keep, scores], dim=-1))  # (B, M, 1 + L)
    return shares[..., :1] * memory + shares[..., 1:] @ v  # (B, M, D)


def segments_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, ...]]:
    sizes = [(1, 1, 2, 4), (2, 3, 4, 4), (2, 4, 4, 4), (3, 5, 7, 8)]  # B, M, L, D
    for i, (B, M, L, D) in enumerate(sizes):
        dtype = torch.float64 if i % 2 else torch.float32
        memory, q, k, v = (
            torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
            for shape in ((B, M, D), (B, M, D), (B, L, D), (B, L, D))
        )
        keep = torch.rand(B, M, 1, generator=generator, dtype=dtype).requires_grad_()
        mask = torch.ones(B, L, dtype=torch.bool)
        mask[-1, L - L // 2 :] = i == 0  # the last text ends in padding, except in the smallest case
        yield memory, keep, q, k, v, mask
    yield memory, keep, q, k, v, torch.zeros_like(mask)  # padding alone: nothing may change


def no_square_root(memory, keep, q, k, v, mask):
    return update(memory, keep, q * q.size(-1) ** 0.5, k, v, mask)


def wrong_axis(memory, keep, q, k, v, mask):
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~mask[:, None], -torch.inf)
    shares = sparsemax(torch.cat([keep, scores], dim=-1).mT).mT
    return shares[..., :1] * memory + shares[..., 1:] @ v


def keep_left_out(memory, keep, q, k, v, mask):
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~mask[:, None], -torch.inf)
    return sparsemax(torch.cat([keep, scores], dim=-1))[..., 1:] @ v


def keep_beside(memory, keep, q, k, v, mask):
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~mask[:, None], -torch.inf)
    shares = sparsemax(torch.cat([keep, scores], dim=-1))
    return memory + shares[..., 1:] @ v


def padding_written(memory, keep, q, k, v, mask):
    return update(memory, keep, q, k, v, torch.ones_like(mask))


def rows_mixed(memory, keep, q, k, v, mask):
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~mask[:, None], -torch.inf)
    shares = sparsemax(torch.cat([keep, scores], dim=-1))
    return shares[..., :1] * memory + shares[..., 1:] @ v[:1]


def with_softmax(memory, keep, q, k, v, mask):
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~mask[:, None], -torch.inf)
    shares = torch.cat([keep, scores], dim=-1).softmax(-1)
    return shares[..., :1] * memory + shares[..., 1:] @ v


def changed_in_place(memory, keep, q, k, v, mask):
    new = update(memory, keep, q, k, v, mask)
    memory.data.copy_(new.detach())
    return new


def gradient_cut(memory, keep, q, k, v, mask):
    return update(memory.detach(), keep, q, k, v, mask)


UPDATE = Exercise(
    number="4.2",
    title="A whole update",
    difficulty=2,
    minutes=20,
    points=3,
    solution=update,
    cases=segments_of_all_kinds,
    mistakes=(
        Mistake(no_square_root, "the scores are not divided by √D. With wide vectors they grow, and one token takes all."),
        Mistake(
            wrong_axis,
            "the shares are taken over the wrong axis: each *slot* has a row of shares, over keep and tokens, that must sum to 1.",
        ),
        Mistake(keep_left_out, "the keep column is left out of the new slot: what a slot keeps of itself is missing."),
        Mistake(keep_beside, "the slot is kept whole, whatever its keep share says: multiply it by its share."),
        Mistake(padding_written, "padding is written: its scores must be −∞ before the shares are computed."),
        Mistake(rows_mixed, "slots are mixed between batch rows: every text must write its own tokens only."),
        Mistake(with_softmax, "this is softmax. The rule takes `ml.sparsemax`, so that keep can be exactly 1."),
        Mistake(changed_in_place, "the memory that was passed in was changed in place: autograd and the caller still need it."),
        Mistake(gradient_cut, "no gradient reaches the old memory: without it no earlier segment can learn."),
    ),
    hints=(
        "First the scores of the tokens, `q @ k.mT`, scaled as in attention. Which shape do they have? Where does *keep* go?",
        "`torch.cat([keep, scores], dim=-1)` is (B, M, 1 + L). Mask the scores before it, take `ml.sparsemax` after it.",
        "The new slot: `shares[..., :1] * memory + shares[..., 1:] @ v`.",
    ),
    notice="One matrix of shares does it all: column 0 weighs the old slot, the others the tokens' values. `KeepAttention.forward` is these same lines, "
    "with `keep`, `q`, `k` and `v` computed from the memory and the context vectors by four learned matrices.",
)


# ---- 4.3 ----


def carry(shares: Tensor, write: Tensor) -> Tensor:
    keep, tokens = write[:, :1], write[:, 1:]  # (M, 1), (M, L)
    return torch.cat([keep * shares, tokens], dim=-1)  # (M, 1 + T + L)


def shares_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    yield torch.ones(2, 1), torch.tensor([[1.0, 0.0], [0.25, 0.75]])  # nothing read so far
    for M, T, L in ((2, 2, 2), (3, 5, 4), (4, 7, 1)):
        yield tuple(torch.randn(M, 1 + n, generator=generator, dtype=torch.float64).softmax(-1) for n in (T, L))


PROVENANCE = Exercise(
    number="4.3",
    title="Provenance, one segment on",
    difficulty=1,
    minutes=10,
    solution=carry,
    cases=shares_of_all_kinds,
    mistakes=(
        Mistake(
            lambda shares, write: torch.cat([shares, write[:, 1:]], -1),
            "older tokens keep their whole share: multiply it by what the slot keeps.",
        ),
        Mistake(
            lambda shares, write: torch.cat([shares[:, :1], write[:, :1] * shares[:, 1:], write[:, 1:]], -1),
            "the initial slot fades like everything else: column 0 must be multiplied by keep too.",
        ),
        Mistake(
            lambda shares, write: torch.cat([write[:, :1] * shares, write], -1),
            "the keep column is not a token: append only the columns of `write` from 1 on.",
        ),
        Mistake(
            lambda shares, write: torch.cat([write[:, 1:], write[:, :1] * shares], -1),
            "the order is wrong: what was there before stays in front, the new tokens follow.",
        ),
        Mistake(
            lambda shares, write: torch.cat([write[:, -1:] * shares, write[:, :-1]], -1),
            "keep is the *first* column of `write`, not the last.",
        ),
    ),
    hints=(
        "A slot keeps the share a_keep of itself. What happens to every part of which it was made?",
        "Every older share, the initial one too, is multiplied by `write[:, :1]`. The new tokens' shares stand in `write[:, 1:]`.",
        "`torch.cat([keep * shares, tokens], dim=-1)`.",
    ),
    notice="Each row still sums to 1: keep · 1 + Σ tokens = 1. `ml.provenance` goes through the segments from the last to the first, so that it "
    "multiplies one column instead of a growing matrix.",
)

# ---- 4.4 ----

FADING = Exercise(
    number="4.4",
    title="How long does a fact last? (a prediction)",
    difficulty=1,
    minutes=3,
    points=1,
    solution=69,
    mistakes=(
        Mistake(50, "after 50 segments 0.99⁵⁰ is still 61%: each takes a hundredth of what is *left*, not of the whole."),
        Mistake(68, "nearly: 0.99⁶⁸ is 50.5%."),
        Mistake(70, "one earlier it is below half already: 0.99⁶⁹ is 49.98%."),
        Mistake(100, "after 100 segments 37% is left. When was it half?"),
        Mistake(7, "that would be the answer for a keep of 0.9."),
    ),
    hints=(
        "After n segments 0.99ⁿ is left.",
        "0.99ⁿ < 0.5 means n > log 0.5 / log 0.99.",
    ),
    notice="0.99⁶⁹ = 49.98%. Keeping nearly everything is forgetting, at a steady pace; that is why a keep of exactly 1 makes the difference.",
)

EXERCISES = [SPARSEMAX, UPDATE, PROVENANCE, FADING]
