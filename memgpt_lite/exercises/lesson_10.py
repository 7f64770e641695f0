"""The exercises of notebook 10, semantic matching: the contrastive loss, the metric, which pairs of tokens make a score."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..applications.semantic_matching import info_nce
from .checking import Exercise, Mistake

# ---- 10.1 ----


def scores_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, float]]:
    for N, temperature, dtype in (
        (2, 1.0, torch.float32),
        (1, 0.5, torch.float32),
        (3, 0.1, torch.float32),
        (5, 0.3, torch.float64),
        (8, 0.5, torch.float32),
    ):
        cosines = 2 * torch.rand(N, N, generator=generator, dtype=dtype) - 1
        yield cosines.requires_grad_(), temperature


def one_way(scores, temperature):
    return F.cross_entropy(scores / temperature, torch.arange(len(scores)))


def the_other_way(scores, temperature):
    return F.cross_entropy(scores.T / temperature, torch.arange(len(scores)))


def partner_left_out_below(scores, temperature):
    if len(scores) == 1:
        return info_nce(scores, temperature)
    z = scores / temperature
    others = z.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return (others.logsumexp(1) + others.logsumexp(0) - 2 * z.diagonal()).mean() / 2


def over_all_pairs(scores, temperature):
    return -(scores / temperature).flatten().log_softmax(0).reshape(scores.shape).diagonal().mean()


def probability_instead(scores, temperature):
    z = scores / temperature
    return -(z.softmax(1).diagonal() + z.softmax(0).diagonal()).mean() / 2


INFO_NCE = Exercise(
    number="10.1",
    title="Find your partner",
    difficulty=2,
    minutes=15,
    solution=info_nce,
    cases=scores_of_all_kinds,
    mistakes=(
        Mistake(
            one_way,
            "each row looks for its column, but no column for its row: add this other direction (scores.T), and take half of the sum.",
        ),
        Mistake(the_other_way, "only the columns look for their rows: add the other direction, and take half of the sum."),
        Mistake(
            lambda scores, temperature: 2 * info_nce(scores, temperature),
            "this is twice as large as it should be: the mean of the two directions is asked for.",
        ),
        Mistake(
            lambda scores, temperature: len(scores) * info_nce(scores, temperature),
            "it grows with the number of pairs: take the mean over the rows, not their sum.",
        ),
        Mistake(
            lambda scores, temperature: info_nce(scores, 1.0),
            "the temperature is left out: divide the scores by it before the softmax.",
        ),
        Mistake(
            lambda scores, temperature: info_nce(scores, 1 / temperature),
            "the scores are multiplied by the temperature: divide by it.",
        ),
        Mistake(
            partner_left_out_below,
            "the partner is missing from the softmax's sum: its score stands above *and* below the line of the fraction.",
        ),
        Mistake(
            over_all_pairs, "this is one softmax over all N × N scores: each row needs one of its own, and so does each column."
        ),
        Mistake(
            probability_instead, "these are probabilities, not their logarithms: the loss is −log of the partner's probability."
        ),
        Mistake(
            lambda scores, temperature: -info_nce(scores, temperature), "the sign: a loss falls when the partner gets likelier."
        ),
    ),
    hints=(
        "A row of scores is like the logits of a classifier with N classes. Which class is right for row i?",
        "`F.cross_entropy(scores / temperature, torch.arange(N))` is one direction.",
        "The other direction is the same of `scores.T`; the loss is half of the sum.",
    ),
    notice="A batch of N pairs gives N positives and N² − N negatives without anybody having to look for them. How hard the negatives are depends on what stands together in a "
    "batch: that is why ours has eight verses of each chapter.",
)


# ---- 10.2 ----


def mean_reciprocal_rank(scores: Tensor, partner: Tensor) -> float:
    own = scores.gather(1, partner[:, None])  # (N, 1)
    rank = (scores >= own).sum(1)  # (N): the partner itself, and all that are as good or better
    return (1 / rank).mean().item()


def rounds_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    yield torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.8]]), torch.tensor([2, 0])  # rank 2 twice
    yield torch.tensor([[0.4, 0.4, 0.1], [0.9, 0.2, 0.1]]), torch.tensor([0, 0])  # a tie, and rank 1
    yield torch.zeros(2, 4), torch.tensor([0, 3])  # nothing but ties
    yield torch.tensor([[0.7, 0.1, 0.2, 0.3, 0.5], [0.6, 0.9, 0.1, 0.8, 0.7]]), torch.tensor([2, 2])  # ranks 4 and 5
    for N, C in ((1, 1), (5, 7), (20, 100)):
        yield torch.randn(N, C, generator=generator), torch.randint(0, C, (N,), generator=generator)


def rank_of(scores, partner):
    return (scores >= scores.gather(1, partner[:, None])).sum(1)


def ties_for_free(scores, partner):
    return (1 / (1 + (scores > scores.gather(1, partner[:, None])).sum(1))).mean().item()


def one_argsort(scores, partner):
    rank = scores.argsort(dim=1, descending=True).gather(1, partner[:, None])[:, 0] + 1
    return (1 / rank).mean().item()


RECIPROCAL_RANK = Exercise(
    number="10.2",
    title="Mean reciprocal rank",
    difficulty=1,
    minutes=10,
    solution=mean_reciprocal_rank,
    cases=rounds_of_all_kinds,
    mistakes=(
        Mistake(
            ties_for_free,
            "a tie counts in the partner's favour: equal scores for all would be perfect. Count those that are *as good*, too.",
        ),
        Mistake(
            lambda s, p: (rank_of(s, p) == 1).float().mean().item(),
            "that is top-1: a second place is worth nothing in it, and ½ here.",
        ),
        Mistake(
            lambda s, p: (1 / rank_of(s, p).float().mean()).item(),
            "this is the reciprocal of the mean rank: take 1 / rank of each row first, then the mean.",
        ),
        Mistake(
            lambda s, p: rank_of(s, p).float().mean().item(), "that is the mean rank: take the reciprocal of each rank first."
        ),
        Mistake(lambda s, p: (1 / (1 + rank_of(s, p))).mean().item(), "every rank is one too large: the best has rank 1, not 2."),
        Mistake(
            lambda s, p: mean_reciprocal_rank(-s, p), "the lowest score comes first in yours: a higher score is a better one."
        ),
        Mistake(
            lambda s, p: mean_reciprocal_rank(s, torch.zeros_like(p)),
            "the partner is taken to be the first column: `partner` says which it is.",
        ),
        Mistake(
            one_argsort,
            "`argsort` gives the column at a place, not the place of a column: count those that are as good or better instead.",
        ),
    ),
    hints=(
        "The partner's rank is a count: how many in its row score as much or more? (The partner is one of them.)",
        "`scores.gather(1, partner[:, None])` is, for each row, the score of its partner: (N, 1).",
        "`rank = (scores >= own).sum(1)`, and then the mean of `1 / rank`, as a number (`.item()`).",
    ),
    notice="Notice the `>=`: TF-IDF gives exact zeros where two texts share no word; with `>`, a query without any shared word would count as found.",
)


# ---- 10.3 ----


def by_pairs(P: Tensor, values: Tensor, Q: Tensor, others: Tensor) -> Tensor:
    m, n = P @ values, Q @ others  # (M, D) each: the two memories
    return (P.T @ Q) * (values @ others.T) / (m.norm() * n.norm())  # (T, U)


def memories_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, ...]]:
    for M, T, U, D, dtype in (
        (2, 2, 3, 2, torch.float32),
        (1, 1, 1, 1, torch.float32),
        (3, 4, 2, 5, torch.float64),
        (8, 6, 7, 16, torch.float32),
    ):
        shares = [torch.randn(M, N, generator=generator, dtype=dtype).softmax(-1) for N in (T, U)]
        vectors = [torch.randn(N, D, generator=generator, dtype=dtype) + 0.5 for N in (T, U)]
        yield shares[0], vectors[0], shares[1], vectors[1]


def not_divided(P, values, Q, others):
    return (P.T @ Q) * (values @ others.T)


def slots_mixed(P, values, Q, others):
    m, n = P @ values, Q @ others
    return P.sum(0)[:, None] * Q.sum(0) * (values @ others.T) / (m.norm() * n.norm())


def cosines_of_tokens(P, values, Q, others):
    return (P.T @ Q) * (F.normalize(values, dim=-1) @ F.normalize(others, dim=-1).T)


def without_shares(P, values, Q, others):
    m, n = P @ values, Q @ others
    return values @ others.T / (m.norm() * n.norm())


def without_values(P, values, Q, others):
    return P.T @ Q


def to_sum_one(P, values, Q, others):
    table = not_divided(P, values, Q, others)
    return table / table.sum()


def slot_by_slot(P, values, Q, others):
    m, n = P @ values, Q @ others  # (M, D)
    weight = 1 / (m.norm(dim=-1) * n.norm(dim=-1)) / len(m)  # (M): the mean of the slots' own cosines
    return torch.einsum("jt,ju,j->tu", P, Q, weight) * (values @ others.T)


BY_PAIRS = Exercise(
    number="10.3",
    title="Which pairs of words make a score",
    difficulty=3,
    minutes=20,
    solution=by_pairs,
    cases=memories_of_all_kinds,
    mistakes=(
        Mistake(
            not_divided, "the table sums to the dot product of the two memories, not to their cosine: divide by both lengths."
        ),
        Mistake(
            slots_mixed,
            "in yours every slot of one text meets every slot of the other: slot j should meet only slot j, so the shares are multiplied slot by slot, then summed.",
        ),
        Mistake(
            cosines_of_tokens,
            "each token's value is brought to length 1: divide by the lengths of the two memories instead, P @ values and Q @ others.",
        ),
        Mistake(without_shares, "the shares do not occur in yours: a token that no slot took should add nothing."),
        Mistake(
            without_values,
            "the values do not occur in yours: tokens in one slot add the dot product of their values, which may be negative.",
        ),
        Mistake(to_sum_one, "the table is made to sum to 1: it should sum to the score."),
        Mistake(
            lambda P, v, Q, w: by_pairs(Q, w, P, v), "rows and columns are exchanged: rows are the tokens of the first text."
        ),
        Mistake(
            slot_by_slot,
            "each slot has its own length here: the embedding is all slots in one vector, so it has one length, `m.norm()`.",
        ),
    ),
    hints=(
        "Write the dot product of the memories, Σ_j m_j·n_j, put m_j = Σ_t P_jt v_t and n_j = Σ_u Q_ju w_u into it, and leave out the sums over t and u.",
        "What is left is (Σ_j P_jt Q_ju) · (v_t·w_u): two tables, multiplied number by number.",
        "`(P.T @ Q) * (values @ others.T)`, divided by the lengths of `P @ values` and `Q @ others`.",
    ),
    notice="Two tables: *do the two tokens sit in the same slots?* and *do they mean something similar?* A pair counts only if both say yes.",
    points=3,
)


# ---- 10.4 ----

GUESSER = Exercise(
    number="10.4",
    title="What a guesser gets (a prediction)",
    difficulty=1,
    minutes=3,
    solution=5,
    mistakes=(
        Mistake(
            1,
            "that would be so if a second place were worth nothing. A guesser's partner is equally often at each of the 100 ranks, and each rank is worth something.",
        ),
        Mistake(
            2,
            "that is the reciprocal of the *mean rank*, 1 / 50.5. The mean of the reciprocals is larger: the few good ranks weigh most.",
        ),
        Mistake(50, "50 times 1% is one half, and this is what rank 2 is worth; most ranks are worth far less."),
        Mistake(10, "too high: 1 + ½ + ⅓ + … + 1/100 grows slowly, about as the logarithm of 100."),
    ),
    hints=(
        "Every rank from 1 to 100 is equally likely: what is the mean of 1, ½, ⅓, …, 1/100?",
        "1 + ½ + ⅓ + … + 1/n is about ln n + 0.58.",
    ),
    notice="5.19: the guesser has a top-1 of 1% and a mean reciprocal rank of 0.052. So an MRR begins at 0.05 here, not at 0.",
    points=1,
)

EXERCISES = [INFO_NCE, RECIPROCAL_RANK, BY_PAIRS, GUESSER]
