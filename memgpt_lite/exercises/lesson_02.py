"""The exercises of notebook 02, memory initialisation: collapsed slots, right angles, rules that treat slots alike."""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor, nn

from ..memory import KeepAttention, MemoryUpdate
from ..rules import DeltaRule, FirstInFirstOut, GatedSlots
from .checking import Exercise, Mistake

# ---- 2.1 ----


def spread(memory: Tensor) -> Tensor:
    differences = memory[:, :, None] - memory[:, None, :]  # (B, M, M, D): every slot minus every other
    return differences.norm(dim=-1).amax(dim=(1, 2))  # (B)


def memories_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor]]:
    yield (torch.tensor([[[1.0], [1.5]]]),)
    yield (torch.tensor([[[3.0, 4.0]]]),)  # a slot alone
    yield (torch.tensor([[[0.0, 0.0], [2.0, 1.0], [1.0, 2.0]]], dtype=torch.float64),)
    far = [[1.0, 1.5], [0.0, 0.0], [1.0, 1.0], [3.0, 4.0]]
    yield (torch.tensor([far, [[2.0, 2.0]] * 4]),)  # the slots of the second text are equal
    for shape, dtype in (((2, 5, 3), torch.float32), ((3, 4, 9), torch.float64)):
        yield (torch.randn(shape, generator=generator, dtype=dtype),)


def pairs(memory: Tensor) -> Tensor:
    return memory[:, :, None] - memory[:, None, :]


SPREAD = Exercise(
    number="2.1",
    title="An alarm for collapsed slots",
    difficulty=1,
    minutes=5,
    solution=spread,
    cases=memories_of_all_kinds,
    mistakes=(
        Mistake(
            lambda memory: pairs(memory).square().sum(-1).amax((1, 2)),
            "that is the squared distance: the square root is missing.",
        ),
        Mistake(
            lambda memory: pairs(memory).abs().sum(-1).amax((1, 2)),
            "those are absolute differences, added up: square them first, and take the root of the sum.",
        ),
        Mistake(
            lambda memory: pairs(memory).abs().amax((1, 2, 3)),
            "that is the largest difference in a single dimension. A distance takes all dimensions together.",
        ),
        Mistake(
            lambda memory: (memory.amax(1) - memory.amin(1)).norm(dim=-1),
            "the largest and the smallest number of each dimension may belong to different pairs of slots: compare slot with slot.",
        ),
        Mistake(
            lambda memory: pairs(memory).norm(dim=-1).mean((1, 2)),
            "that is the mean distance, each slot's distance to itself included. One pair that is apart must show: take the largest.",
        ),
        Mistake(
            lambda memory: (memory - memory[:, :1]).norm(dim=-1).amax(1),
            "every slot is compared with slot 0 only: the two that are farthest apart may both be other slots.",
        ),
        Mistake(
            lambda memory: (memory - memory.roll(1, 1)).norm(dim=-1).amax(1),
            "only neighbours are compared: the two that are farthest apart need not stand side by side.",
        ),
        Mistake(
            lambda memory: spread(memory.flatten(0, 1)[None]).expand(len(memory)),
            "slots of different texts are compared: a text whose slots are all equal must give 0, whatever the others hold.",
        ),
        Mistake(
            lambda memory: spread(memory).amax(),
            "one number for each text is asked for, shape (B,), not one for the batch.",
        ),
    ),
    hints=(
        "The distance between two vectors is the norm of their difference. How do you get all M × M differences without a loop?",
        "`memory[:, :, None] - memory[:, None, :]` has shape (B, M, M, D): every slot minus every other.",
        "`.norm(dim=-1)` turns them into distances, (B, M, M); take the largest over the last two dimensions, `.amax(dim=(1, 2))`.",
    ),
    notice="Two slots that are equal give exactly 0 here. `torch.cdist` does the same in one call, but for many slots it multiplies matrices, and then equal "
    "slots may seem a little apart.",
)


# ---- 2.2 ----


def orthogonal(normal: Tensor) -> Tensor:
    directions = []
    for row in normal.unbind(dim=1):  # M times (B, D)
        for earlier in directions:
            row = row - (row * earlier).sum(-1, keepdim=True) * earlier  # what the two share
        directions.append(row / row.norm(dim=-1, keepdim=True))
    return torch.stack(directions, dim=1) * normal.size(-1) ** 0.5  # (B, M, D)


def draws_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor]]:
    yield (torch.tensor([[[0.5, 0.0, 0.0, 0.0]]]),)  # a slot alone
    yield (torch.tensor([[[2.0, 0.0], [1.0, -1.0]]], dtype=torch.float64),)
    for shape, dtype in (((1, 3, 5), torch.float32), ((2, 4, 4), torch.float64), ((3, 8, 16), torch.float32)):
        yield (torch.randn(shape, generator=generator, dtype=dtype),)


def gram_schmidt(normal: Tensor, *, against: Callable, scale: float | None = None) -> Tensor:
    """Like `orthogonal`, but `against` chooses what is removed: from the directions made so far and the earlier draws."""
    directions, rows = [], normal.unbind(dim=1)
    for j, row in enumerate(rows):
        for earlier in against(directions, rows[:j]):
            row = row - (row * earlier).sum(-1, keepdim=True) * earlier
        directions.append(row / row.norm(dim=-1, keepdim=True))
    return torch.stack(directions, dim=1) * (normal.size(-1) ** 0.5 if scale is None else scale)


def not_normalised_in_between(normal: Tensor) -> Tensor:
    rows = []
    for row in normal.unbind(dim=1):
        for earlier in rows:
            row = row - (row * earlier).sum(-1, keepdim=True) * earlier
        rows.append(row)
    made = torch.stack(rows, dim=1)
    return made / made.norm(dim=-1, keepdim=True) * normal.size(-1) ** 0.5


def removed_in_place(normal: Tensor) -> Tensor:
    normal.copy_(orthogonal(normal.clone()))
    return normal


ORTHOGONAL = Exercise(
    number="2.2",
    title="Right angles for a whole batch",
    difficulty=2,
    minutes=15,
    solution=orthogonal,
    cases=draws_of_all_kinds,
    mistakes=(
        Mistake(lambda normal: orthogonal(normal) / normal.size(-1) ** 0.5, "the norms are 1: scale the slots to √D at the end."),
        Mistake(
            lambda normal: gram_schmidt(normal, against=lambda made, _: made, scale=normal.size(1) ** 0.5),
            "scaled by √M. The norm of a normal slot grows as √D, with its dimensions, not with the number of slots.",
        ),
        Mistake(
            lambda normal: gram_schmidt(normal, against=lambda made, _: []),
            "the slots have the right norm, but their angles are those of the draws: remove from each what it shares with the ones before it.",
        ),
        Mistake(
            lambda normal: gram_schmidt(normal, against=lambda made, _: made[-1:]),
            "you remove only what a slot shares with the one directly before it: it must be at right angles to all earlier ones.",
        ),
        Mistake(
            lambda normal: gram_schmidt(normal, against=lambda _, rows: [row / row.norm(dim=-1, keepdim=True) for row in rows]),
            "you remove what a slot shares with the earlier *draws*. These are not at right angles to each other: use the directions already made.",
        ),
        Mistake(
            not_normalised_in_between,
            "(row · earlier) · earlier is what the two share only if `earlier` has norm 1: divide each row by its norm before the next needs it.",
        ),
        Mistake(
            lambda normal: gram_schmidt(normal, against=lambda made, _: [earlier[:1] for earlier in made]),
            "the texts are mixed: every text's slots are compared with those of text 0. Keep the batch dimension.",
        ),
        Mistake(
            lambda normal: torch.linalg.qr(normal.mT).Q.mT * normal.size(-1) ** 0.5,
            "angles and norms fit, but some slots are turned around: QR chooses signs of its own. Multiply by the sign of R's diagonal, "
            "so that each slot points to the side to which its draw pointed.",
        ),
        Mistake(
            removed_in_place,
            "the draws that were passed in have changed: write row = row - …, not row -= …, and collect the rows in a new list.",
        ),
    ),
    hints=(
        "Take the loop of section 3. A row is now (B, D), one vector for each text: what must `row @ earlier` become?",
        "`(row * earlier).sum(-1, keepdim=True)` is the dot product text by text, (B, 1); `row.norm(dim=-1, keepdim=True)` is the norm.",
        "`normal.unbind(dim=1)` gives the M rows one after the other. At the end `torch.stack(directions, dim=1)`, times √D.",
    ),
    notice="The loop runs over slots; all texts go through it together. `ml.initial_memory` leaves this to `torch.linalg.qr`, which rounds less, and turns the "
    "signs so that the two agree (for fewer slots than dimensions; with as many, it makes the columns orthogonal, and thereby the rows).",
)


# ---- 2.3 ----


def treats_alike(rule: Callable, memory: Tensor, context_vectors: Tensor) -> bool:
    slots = list(range(memory.size(1)))
    swapped = [*reversed(slots[:2]), *slots[2:]]  # 1, 0, 2, 3, …
    moved_on = [*slots[1:], slots[0]]  # 1, 2, 3, …, 0
    after = rule(memory, context_vectors).memory
    return all(
        torch.allclose(rule(memory[:, order], context_vectors).memory, after[:, order], atol=1e-4)
        for order in (swapped, moved_on)
    )


class InACircle(nn.Module):
    """Every slot takes what the one before it held."""

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        return MemoryUpdate(memory.roll(1, 1), None)


class Neighbours(nn.Module):
    """Every slot becomes the mean of itself and the two beside it."""

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        return MemoryUpdate((memory.roll(1, 1) + memory + memory.roll(-1, 1)) / 3, None)


class SparesTheLast(KeepAttention):
    """Keep-attention for all slots but the last, which nothing changes."""

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        after = super().forward(memory, context_vectors, mask).memory
        return MemoryUpdate(torch.cat([after[:, :-1], memory[:, -1:]], dim=1), None)


def rules_of_all_kinds(generator: Generator) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    width, num_slots = 6, 5
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        rules = KeepAttention(width), FirstInFirstOut(), GatedSlots(width), DeltaRule(width, num_slots), InACircle(), Neighbours()
        rules = (*rules, SparesTheLast(width, keep_bias=-2.0), InACircle(), DeltaRule(width, num_slots))
    for rule in rules:
        rule.requires_grad_(False)
        yield rule, *(torch.randn(2, n, width, generator=generator) for n in (num_slots, 7))


def agrees(order: Callable, *, back: Callable | None = None) -> Callable:
    """Tries a single shuffle of the slots, `order`; `back` is what is done to the plain result, `order` too if not given."""

    def attempt(rule, memory, context_vectors):
        after = rule(memory, context_vectors).memory
        return torch.allclose(rule(order(memory), context_vectors).memory, (back or order)(after), atol=1e-4)

    return attempt


def swap_two(memory: Tensor) -> Tensor:
    return torch.cat([memory[:, :2].flip(1), memory[:, 2:]], dim=1)


def shuffles_the_tokens(rule, memory, context_vectors):
    return torch.allclose(rule(memory, context_vectors.flip(1)).memory, rule(memory, context_vectors).memory, atol=1e-4)


def compares_the_means(rule, memory, context_vectors):
    means = [rule(slots, context_vectors).memory.mean(1) for slots in (memory, memory.flip(1))]
    return torch.allclose(*means, atol=1e-4)


ALIKE = Exercise(
    number="2.3",
    title="Does a rule treat its slots alike?",
    difficulty=2,
    minutes=10,
    solution=treats_alike,
    cases=rules_of_all_kinds,
    mistakes=(
        Mistake(
            agrees(lambda memory: memory.flip(1), back=lambda after: after),
            "the slots are shuffled before the update, but the plain result is not shuffled: shuffle it in the same way, then compare.",
        ),
        Mistake(
            agrees(lambda memory: memory),
            "every rule passes: this order leaves every slot in its place, so nothing is tested.",
        ),
        Mistake(
            agrees(lambda memory: memory.roll(1, 1)),
            "moving all slots on by one keeps them in the same circle. Your test misses a rule that passes things around in it (InACircle): "
            "try another order as well.",
        ),
        Mistake(
            agrees(lambda memory: memory.flip(1)),
            "back to front, neighbours stay neighbours. Your test misses a rule that looks at the slots beside a slot (Neighbours): try another "
            "order as well.",
        ),
        Mistake(
            agrees(swap_two),
            "only the first two slots change places. Your test misses a rule that treats another slot differently (SparesTheLast): try another "
            "order as well.",
        ),
        Mistake(
            agrees(lambda memory: memory.flip(0)),
            "the texts are shuffled, dimension 0, not the slots: memory[:, order].",
        ),
        Mistake(
            shuffles_the_tokens,
            "the tokens are shuffled, not the slots: whether a rule minds the order of what it reads is another question.",
        ),
        Mistake(
            compares_the_means,
            "a mean over the slots does not say which slot holds what: compare slot with slot.",
        ),
    ),
    hints=(
        "`memory[:, order]` shuffles the slots, with `order` a list of 0 … M − 1 in another order. A rule returns the new memory as `.memory`.",
        "Compare `rule(memory[:, order], context_vectors).memory` with `rule(memory, context_vectors).memory[:, order]`, by `torch.allclose(…, "
        "atol=1e-4)`.",
        "One order may miss a rule: moved on by one or back to front, neighbours stay neighbours. Try several, or one that mixes all slots up.",
    ),
    notice="Two orders suffice for any number of slots: every shuffle can be made of “swap the first two” and “move all on by one”. (On one memory, drawn at random, "
    "this is a test, not a proof.)",
)


# ---- 2.4 ----

TWO_KINDS = Exercise(
    number="2.4",
    title="Two kinds of slots (a prediction)",
    difficulty=1,
    minutes=3,
    points=1,
    solution=2,
    mistakes=(
        Mistake(
            16,
            "slots that start equal stay equal, even where other slots are different: what slot 3 does depends on what it holds, not on its number.",
        ),
        Mistake(8, "no copy ever leaves the others of its kind. Count the kinds, not the copies."),
        Mistake(
            1,
            "the two kinds may become one, where both take all from the same token, but they need not. The question was: at most.",
        ),
        Mistake(100, "a segment changes every slot of a kind in the same way: the number of kinds cannot grow with the text."),
        Mistake(
            4,
            "the two kinds do not mix: a slot sees only the tokens and itself. Even if it saw others, equal slots would see the same.",
        ),
    ),
    hints=(
        "Swap two slots that are equal. What changes in the memory, and so in everything that follows?",
        "Equal goes in, equal comes out, for each kind by itself.",
    ),
    notice="Swapping two equal slots changes nothing before the update, so it changes nothing after it. This holds for each group of equal slots: a memory never "
    "has more kinds of slots than it had at the start.",
)

EXERCISES = [SPREAD, ORTHOGONAL, ALIKE, TWO_KINDS]
