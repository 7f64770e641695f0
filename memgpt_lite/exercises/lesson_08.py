"""The exercises of notebook 08, text generation: bits per character, a cache, what comes back and what would by chance."""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ..applications.text_generation import comes_back
from .checking import Exercise, Mistake

# ---- 8.1 ----


def bits_per_character(logits: Tensor, input_ids: Tensor, lengths: Tensor) -> Tensor:
    following = input_ids[1:]  # (T − 1): position t predicts token t + 1
    log_p = logits[:-1].log_softmax(-1).gather(-1, following[:, None])  # (T − 1, 1)
    return -log_p.sum() / math.log(2) / lengths[following].sum()


def predictions_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for T, V, dtype in ((2, 2, torch.float32), (5, 3, torch.float64), (9, 7, torch.float32), (40, 20, torch.float64)):
        lengths = torch.randint(1, 6, (V,), generator=generator)
        lengths[0] = 9  # the first token of each text is by far the longest
        input_ids = torch.randint(1, V, (T,), generator=generator)
        input_ids[0] = 0
        yield (3 * torch.randn(T, V, generator=generator, dtype=dtype)).requires_grad_(), input_ids, lengths


LN2 = math.log(2)


def _bits(logits, following, characters, unit=LN2):
    return -logits.log_softmax(-1).gather(-1, following[:, None]).sum() / unit / characters


BITS = Exercise(
    number="8.1",
    title="Bits per character",
    difficulty=1,
    minutes=10,
    solution=bits_per_character,
    cases=predictions_of_all_kinds,
    mistakes=(
        Mistake(
            lambda logits, ids, lengths: _bits(logits[:-1], ids[1:], lengths[ids[1:]].sum(), 1.0),
            "these are nats, of the natural logarithm: divide by ln 2 for bits.",
        ),
        Mistake(
            lambda logits, ids, lengths: _bits(logits, ids, lengths[ids].sum()),
            "position t is asked for token t itself, which it has read: it must predict token t + 1.",
        ),
        Mistake(
            lambda logits, ids, lengths: _bits(logits[:-1], ids[1:], len(ids) - 1),
            "this is bits per *token*: divide by the number of characters.",
        ),
        Mistake(
            lambda logits, ids, lengths: _bits(logits[:-1], ids[1:], lengths[ids].sum()),
            "the first token is not predicted, so its characters do not count.",
        ),
        Mistake(
            lambda logits, ids, lengths: _bits(logits[:-1], ids[1:], lengths[ids[1:]].sum()) / (len(ids) - 1),
            "the bits are averaged over the tokens *and* divided by the characters: sum the bits.",
        ),
        Mistake(
            lambda logits, ids, lengths: (
                -(logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0] / lengths[ids[1:]]).mean() / math.log(2)
            ),
            "this is the mean of each token's bits per character: a short token then weighs as much as a long one. Divide sum by sum.",
        ),
        Mistake(
            lambda logits, ids, lengths: -logits[:-1].gather(-1, ids[1:, None]).sum() / math.log(2) / lengths[ids[1:]].sum(),
            "logits are not log-probabilities yet: take `log_softmax` first.",
        ),
    ),
    hints=(
        "What is asked of position 0? Of the last one?",
        "`logits[:-1].log_softmax(-1)`, and of each row the entry of the token that follows (`gather`). Sum, and change the sign.",
        "`bits / lengths[input_ids[1:]].sum()`, with bits = −sum / ln 2.",
    ),
    notice="Sums are divided, not means: so the number says how many bits a character takes in a file of the text, compressed with "
    "this model's predictions (Shannon 1951). However the text is cut into tokens, its characters are the same.",
)

# ---- 8.2 ----


def cache(memory: Tensor, context_vectors: Tensor, counts: Tensor) -> Tensor:
    num_slots = memory.size(1)
    return torch.stack(
        [torch.cat([old, new[:count]])[-num_slots:] for old, new, count in zip(memory, context_vectors, counts.tolist())]
    )


def segments_and_slots(generator: Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    sizes = [(1, 3, 2, 1), (2, 2, 5, 3), (2, 4, 4, 2), (3, 6, 4, 8)]  # B, M, L, D
    for i, (B, M, L, D) in enumerate(sizes):
        dtype = torch.float64 if i % 2 else torch.float32
        memory = torch.randn(B, M, D, generator=generator, dtype=dtype).requires_grad_()
        context_vectors = torch.randn(B, L, D, generator=generator, dtype=dtype).requires_grad_()
        counts = torch.full((B,), L)
        counts[-1] = L - L // 2 if i else L  # the last text ends in padding, except in the smallest case
        yield memory, context_vectors, counts
    yield memory, context_vectors, torch.zeros_like(counts)  # padding alone: nothing may change


def _all_real(counts: Tensor, context_vectors: Tensor) -> Tensor:
    return torch.full_like(counts, context_vectors.size(1))


CACHE = Exercise(
    number="8.2",
    title="The plainest memory: a cache",
    difficulty=2,
    minutes=15,
    solution=cache,
    cases=segments_and_slots,
    mistakes=(
        Mistake(
            lambda m, c, n: cache(m, c, _all_real(n, c)),
            "padding is written: of text b only the first `counts[b]` context vectors are tokens.",
        ),
        Mistake(
            lambda m, c, n: cache(m.flip(1), c, n).flip(1),
            "the order is wrong: the oldest must stand in slot 0, the newest in the last one.",
        ),
        Mistake(
            lambda m, c, n: torch.stack([torch.cat([a, b[:k]])[: m.size(1)] for a, b, k in zip(m, c, n.tolist())]),
            "it keeps the *oldest* M, so nothing new is ever written.",
        ),
        Mistake(
            lambda m, c, n: torch.stack([torch.cat([b[:k], a])[: m.size(1)] for a, b, k in zip(m, c, n.tolist())]),
            "the new ones must be put *behind* the old ones before the last M are taken.",
        ),
        Mistake(
            lambda m, c, n: cache(m, c[:1].expand_as(c), n),
            "texts are mixed: every text must be written into its own slots.",
        ),
        Mistake(lambda m, c, n: cache(m.detach(), c, n), "no gradient reaches the old memory: leave .detach() out."),
        Mistake(
            lambda m, c, n: cache(m, c.detach(), n), "no gradient reaches the context vectors: then writing cannot be learned."
        ),
    ),
    hints=(
        "Write it for one text first: M old slots, n new vectors. Which M are left?",
        "`torch.cat([old, new[:count]])[-M:]` for each text, then `torch.stack`.",
    ),
    notice="A cache learns nothing and chooses nothing: what is older than M tokens is gone. `rules.FirstInFirstOut` does this "
    "for the whole batch at once, by sorting.",
)

# ---- 8.3 ----


def continuations(generator: Generator) -> Iterator[tuple[list[str], list[str]]]:
    yield ["Ann and Ann came", "Bob saw Ann", "nobody"], ["Ann", "Bob", "Ann"]
    names = ["Darcy", "Bingley", "Wickham", "Collins"]
    for size in (9, 30):
        given = [names[min(i % 5, 2)] for i in range(size)]  # one name more often than the others
        words = torch.randint(len(names) + 2, (size, 4), generator=generator).tolist()
        drawn = [" ".join([*names, "said", "went"][i] for i in row) for row in words]
        yield [f"{text} {name} {name}" if i % 2 else text for i, (text, name) in enumerate(zip(drawn, given))], given
        yield ["nobody", *[f"to {text}" for text in drawn]], ["Darcy", *given[::-1]]


def _share(answers) -> float:
    answers = list(answers)
    return sum(answers) / len(answers)


def _back(texts: list[str], given: list[str]) -> float:
    return _share(name in text for text, name in zip(texts, given))


RETURNS = Exercise(
    number="8.3",
    title="Does it come back, or would it have come anyway?",
    difficulty=2,
    minutes=15,
    solution=comes_back,
    cases=continuations,
    mistakes=(
        Mistake(
            lambda texts, given: (
                sum(text.count(name) for text, name in zip(texts, given)) / len(texts),
                comes_back(texts, given)[1],
            ),
            "you count occurrences: a text in which its name comes back twice must count once.",
        ),
        Mistake(
            lambda texts, given: (_back(texts, given), _share(_share(name in text for text in texts) for name in given)),
            "the base rate must leave out the texts that were given the same name: what came back would raise the rate it is compared with.",
        ),
        Mistake(
            lambda texts, given: (
                _back(texts, given),
                _share(_share(name in text for text, own in zip(texts, given) if own != name) for name in sorted(set(given))),
            ),
            "every name weighs the same in this base rate, but not in the first rate: take the mean over the *texts*.",
        ),
        Mistake(
            lambda texts, given: (
                _back(texts, given),
                _share(any(name in text for name in {*given} - {own}) for text, own in zip(texts, given)),
            ),
            "this is the chance of *some* other name: look in the other texts for the name of this text.",
        ),
        Mistake(lambda texts, given: comes_back(texts, given)[::-1], "the two rates are the wrong way round."),
    ),
    hints=(
        "For the first rate look in each text for its own name. For the second, look for that name in all texts that were given *another* one.",
        "For each text a share: of the texts with another name, how many hold this text's name? The base rate is the mean of these shares.",
        "`others = [name in text for text, own in zip(texts, given) if own != name]`, and `sum(others) / len(others)`, for each name in `given`.",
    ),
    notice="A name that is frequent in the book comes back whatever the prompt said. The difference between the two rates is what "
    "the prompt did; a rate alone says nothing.",
)

# ---- 8.4 ----

CONTEXT = Exercise(
    number="8.4",
    title="How much does it see? (a prediction)",
    difficulty=1,
    minutes=3,
    points=1,
    solution=8.5,
    mistakes=(
        Mistake(16, "the last position of a segment sees 16. What does the first one see?"),
        Mistake(8, "nearly: half of 16; but the first position sees one token, itself, not none."),
        Mistake(7.5, "position t has t tokens before it, and sees itself too: every prediction rests on one token more."),
        Mistake(15, "that is the most a token can have *before* it in its segment; the question asks for the mean."),
        Mistake(9, "the numbers are 1 to 16: what is their mean?"),
    ),
    hints=(
        "The first position of a segment sees one token, itself. The last sees all 16.",
        "The mean of 1, 2, …, 16.",
    ),
    notice="(1 + 16)/2 = 8.5 tokens. With segments of 64 it is 32.5; so the shorter the segments, the more there is for a memory to add.",
)

EXERCISES = [BITS, CACHE, RETURNS, CONTEXT]
