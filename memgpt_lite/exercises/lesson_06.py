"""The exercises of notebook 06, training: clipping, what guessing scores, when a stage is passed, a loss to be predicted."""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from .checking import Exercise, Mistake

# ---- 6.1 ----


def clip(gradients: list[Tensor], max_norm: float) -> tuple[list[Tensor], float]:
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))  # of all of them, as one long vector
    factor = max_norm / norm if norm > max_norm else 1.0
    return [factor * g for g in gradients], norm


def gradients_of_all_lengths(generator: Generator) -> Iterator[tuple[list[Tensor], float]]:
    yield [torch.tensor([3.0]), torch.tensor([4.0])], 1.0  # a vector of length 5
    yield [torch.tensor([0.3]), torch.tensor([0.4])], 1.0  # short: nothing to do
    for scale, dtype in ((4.0, torch.float32), (0.01, torch.float64), (100.0, torch.float64)):
        yield [scale * torch.randn(shape, generator=generator, dtype=dtype) for shape in ((4, 3), (5,), (2, 2, 2))], 1.0
    yield [torch.randn(6, generator=generator), 5 + torch.randn(3, 2, generator=generator)], 2.5
    yield [torch.zeros(2), torch.zeros(3, 3)], 1.0


def norm_of(gradients: list[Tensor]) -> float:
    return clip(gradients, 1.0)[1]


def one_by_one(gradients, max_norm):
    return [clip([g], max_norm)[0][0] for g in gradients], norm_of(gradients)


def number_by_number(gradients, max_norm):
    return [g.clamp(-max_norm, max_norm) for g in gradients], norm_of(gradients)


def stretched_too(gradients, max_norm):
    norm = norm_of(gradients)
    return [g * max_norm / norm if norm else g for g in gradients], norm


def sum_of_norms(gradients, max_norm):
    norm = sum(g.norm().item() for g in gradients)
    return [min(1.0, max_norm / norm) * g if norm else g for g in gradients], norm


def without_the_root(gradients, max_norm):
    norm = norm_of(gradients) ** 2
    return [min(1.0, max_norm / norm) * g if norm else g for g in gradients], norm


def upside_down(gradients, max_norm):
    norm = norm_of(gradients)
    return [g * max(1.0, norm / max_norm) for g in gradients], norm


def norm_afterwards(gradients, max_norm):
    clipped, _ = clip(gradients, max_norm)
    return clipped, norm_of(clipped)


def clipped_in_place(gradients, max_norm):
    clipped, norm = clip(gradients, max_norm)
    for old, new in zip(gradients, clipped):
        old.copy_(new)
    return gradients, norm


def divided_by_zero(gradients, max_norm):
    norm = norm_of(gradients)
    return [g * min(1.0, max_norm / norm) for g in gradients], norm


CLIP = Exercise(
    number="6.1",
    title="Clip a gradient",
    difficulty=1,
    minutes=8,
    solution=clip,
    cases=gradients_of_all_lengths,
    tolerance=1e-3,  # PyTorch divides by the norm plus a millionth
    mistakes=(
        Mistake(
            one_by_one,
            "each gradient is clipped by itself: then their directions no longer fit together. Take one factor for all.",
        ),
        Mistake(
            number_by_number,
            "this clips number by number, which turns the gradient: scale all by one factor, and its direction stays.",
        ),
        Mistake(stretched_too, "a short gradient has been made longer: where the norm is below max_norm, nothing changes."),
        Mistake(
            sum_of_norms, "the norm is not the sum of the gradients' norms: sum the squares of ALL numbers, then take one root."
        ),
        Mistake(without_the_root, "the root is missing: the norm is the square root of the sum of the squares."),
        Mistake(upside_down, "the factor is upside down: max_norm / norm shortens what is too long."),
        Mistake(norm_afterwards, "the gradients are right, but the norm should be the one from *before* the clipping."),
        Mistake(clipped_in_place, "the gradients that were passed in have changed: return new ones, factor * g."),
        Mistake(divided_by_zero, "all gradients can be 0, and so can the norm: divide by it only where it is above max_norm."),
    ),
    hints=(
        "All gradients together are one long vector. Its squared length is the sum of the squares of all the numbers in all of them.",
        "`sum((g**2).sum() for g in gradients)` is the squared length. By what factor is the vector too long, if it is?",
        "The factor is `max_norm / norm` where the norm is larger than max_norm, and 1 where it is not.",
    ),
    notice="One factor for all: the direction stays, only the length changes. `torch.nn.utils.clip_grad_norm_` does the same in place, and returns the "
    "norm from before, which is worth looking at: notebook 06 keeps it in `history.gradient_norm`.",
)


# ---- 6.2 ----


def not_yet_named(num_facts: int, num_places: int) -> float:
    p = sum(1 / left for left in range(1, num_facts + 1)) / num_facts
    return p + (1 - p) / num_places  # the wrong fact may have the right place


def facts_and_places(generator: Generator) -> Iterator[tuple[int, int]]:
    yield from ((1, 16), (2, 16), (4, 16), (4, 10**9), (3, 2))
    for _ in range(3):
        facts, places = torch.randint(2, 20, (2,), generator=generator).tolist()
        yield facts, places


def chance_alone(num_facts, num_places):
    return sum(1 / left for left in range(1, num_facts + 1)) / num_facts


def lucky(p, num_places):
    return p + (1 - p) / num_places


GUESSING = Exercise(
    number="6.2",
    title="What guessing is worth",
    difficulty=2,
    minutes=10,
    solution=not_yet_named,
    cases=facts_and_places,
    mistakes=(
        Mistake(
            chance_alone, "a guess at the wrong fact may still be lucky: that fact has the same place once in num_places times."
        ),
        Mistake(
            lambda num_facts, num_places: lucky(1 / num_facts, num_places),
            "this is “any place that was told”: every question has the same odds. Here the places already named are struck off.",
        ),
        Mistake(
            lambda num_facts, num_places: lucky(sum(1 / n for n in range(2, num_facts + 2)) / num_facts, num_places),
            "one place too many at every question: at the last one, a single place is left, and the guess is certain.",
        ),
        Mistake(
            lambda num_facts, num_places: chance_alone(num_facts, num_places) * num_facts,
            "this is how many answers are right, the sum over the questions: the accuracy is their mean.",
        ),
        Mistake(
            lambda num_facts, num_places: chance_alone(num_facts, num_places) + 1 / num_places,
            "luck helps only where the pick was wrong: it adds (1 − p) / num_places; otherwise the accuracy could pass 1.",
        ),
        Mistake(
            lambda num_facts, num_places: lucky(chance_alone(num_facts, num_places), 16),
            "it holds for 16 places only: use num_places.",
        ),
        Mistake(
            lambda num_facts, num_places: lucky(2 / (num_facts + 1), num_places),
            "the mean of 1/n is not 1 over the mean of n: take the odds of each question first, then their mean.",
        ),
    ),
    hints=(
        "Section 2 has it for four facts: the mean of 1/4, 1/3, 1/2 and 1, and then the lucky hits.",
        "For n facts: p is the mean of 1, 1/2, …, 1/n. Of the remaining 1 − p, a share of 1/num_places is right by luck.",
        "`p = sum(1 / left for left in range(1, num_facts + 1)) / num_facts`.",
    ),
    notice="p falls slowly: 0.52 for four facts, 0.34 for eight. The better guessing pays, the less there is to gain by finding out: with two facts even “any place "
    "that was told” scores 1/2 + 1/32 = 0.53.",
)


# ---- 6.3 ----


def stage_of_each_step(accuracy: list[float], num_stages: int, promote_at: float, window: int) -> list[int]:
    stages, stage, began = [], 0, 0
    for step in range(len(accuracy)):
        stages.append(stage)
        recent = accuracy[max(began, step + 1 - window) : step + 1]  # of this stage alone
        passed = len(recent) == window and sum(recent) / window >= promote_at
        if passed and stage + 1 < num_stages:
            stage, began = stage + 1, step + 1
    return stages


def accuracies_of_all_kinds(generator: Generator) -> Iterator[tuple[list[float], int, float, int]]:
    yield [1.0, 1.0, 1.0], 2, 1.0, 1  # a window of one
    yield [0.5, 1.0, 1.0, 0.5, 0.5, 0.5], 2, 0.75, 2  # 0.75 exactly is enough
    yield [0.0, 0.5, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0], 3, 0.75, 3
    yield [1.0] * 12, 3, 0.75, 4  # the last stage has none after it
    yield [0.75, 1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0], 4, 0.625, 4
    for steps, num_stages, window in ((24, 3, 3), (40, 5, 4)):
        quarters = torch.randint(1, 5, (steps,), generator=generator) / 4  # their sums are exact
        yield quarters.tolist(), num_stages, 0.75, window


def promoted_wrongly(
    enough=lambda mean, promote_at: mean >= promote_at,
    window_off=0,
    emptied=True,
    full=True,
    last=True,
    next_step=True,
    mean_of_all=False,
):
    """A wrong version of the rule; the arguments say what is wrong."""

    def wrong(accuracy, num_stages, promote_at, window):
        stages, stage, began, size = [], 0, 0, max(1, window + window_off)
        for step in range(len(accuracy)):
            stages.append(stage)
            first = began if emptied else 0
            recent = accuracy[first if mean_of_all else max(first, step + 1 - size) : step + 1]
            complete = len(recent) >= size or not full
            if complete and enough(sum(recent) / len(recent), promote_at) and (stage + 1 < num_stages or not last):
                stage, began = stage + 1, step + 1
                if not next_step:
                    stages[-1] = stage
        return stages

    return wrong


def a_single_step_is_enough(accuracy, num_stages, promote_at, window):
    return promoted_wrongly(window_off=1 - window)(accuracy, num_stages, promote_at, window)


PROMOTION = Exercise(
    number="6.3",
    title="When is a stage passed?",
    difficulty=2,
    minutes=15,
    solution=stage_of_each_step,
    cases=accuracies_of_all_kinds,
    mistakes=(
        Mistake(promoted_wrongly(lambda mean, limit: mean > limit), "a mean of exactly promote_at is enough: >=, not >."),
        Mistake(
            promoted_wrongly(window_off=-1), "the window is one too short: it holds the last `window` steps, this one among them."
        ),
        Mistake(
            promoted_wrongly(window_off=1), "the window is one too long: it holds the last `window` steps, this one among them."
        ),
        Mistake(
            promoted_wrongly(emptied=False),
            "after a promotion the window still holds steps of the stage before: one good run would carry the model through several stages.",
        ),
        Mistake(
            promoted_wrongly(full=False),
            "a stage that has hardly begun has been passed: with fewer than `window` steps in it there is no mean yet.",
        ),
        Mistake(
            promoted_wrongly(mean_of_all=True),
            "the mean runs over all steps of the stage: its slow beginning would count for ever. Take the last `window` alone.",
        ),
        Mistake(promoted_wrongly(last=False), "there is no stage after the last one: its number is num_stages − 1."),
        Mistake(
            promoted_wrongly(next_step=False),
            "the step that passes a stage still belongs to it: its documents were drawn before. The new stage begins at the next step.",
        ),
        Mistake(
            a_single_step_is_enough,
            "you promote after a single good step, so one lucky batch is enough: take the mean of the last `window` steps.",
        ),
    ),
    hints=(
        "Go through the steps in order. Note the stage of each step *before* you decide whether the next is in a new stage.",
        "Remember at which step the present stage began: the window is `accuracy[max(began, step + 1 - window) : step + 1]`, and must be full.",
        "Promotion: `len(recent) == window and sum(recent) / window >= promote_at`, and `stage + 1 < num_stages`. Then `began = step + 1`.",
    ),
    notice="`ml.train` has the same rule, in `History.recent_accuracy`: a mean of the present stage alone, 0 while the window is not full. The window is a compromise: "
    "if it is short, luck promotes; if it is long, every stage takes at least that many steps.",
    points=3,
)


# ---- 6.4 ----

LOSS = Exercise(
    number="6.4",
    title="A loss in nats (a prediction)",
    difficulty=2,
    minutes=5,
    solution=math.log(4),
    tolerance=1e-2,
    mistakes=(
        Mistake(math.log(16), "that is ln 16: even odds for all the places there are. The model knows which four were told."),
        Mistake(math.log(66), "that is ln 66: even odds for all words. The model knows much more than that."),
        Mistake(2.0, "that is the logarithm to base 2, in *bits*. Nats are natural logarithms."),
        Mistake(0.75, "that is the share of wrong answers. The loss is −log of the probability of the right one."),
        Mistake(0.25, "that is the probability of the right word. The loss is −log of it."),
        Mistake(-math.log(4), "a probability is below 1, so its logarithm is negative, and the loss, minus that, is positive."),
        Mistake(
            math.log(4) / 4,
            "the loss is a *mean* over the labelled positions, each of which costs the same: it need not be divided again.",
        ),
        Mistake(
            math.log(24) / 4,
            "you strike off what was named: ln 4, ln 3, ln 2 and 0 have this mean. The model in question does not: its odds are 1/4 each time.",
        ),
    ),
    hints=(
        "Which probability does the model give to the right word, at each of the questions?",
        "The cross-entropy is the mean of −log y[right] over the labelled positions; here all are the same.",
    ),
    notice="−ln(1/4) = 1.386 nats: e to the minus 1.386 is a quarter. A model that strikes off too has only the mean of ln 4, ln 3, ln 2 and ln 1, which is 0.794.",
    points=1,
)

EXERCISES = [CLIP, GUESSING, PROMOTION, LOSS]
