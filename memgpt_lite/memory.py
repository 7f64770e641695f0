"""Steps 2 and 4: where does a language model keep what it must not forget?

In a matrix of M slots, each a vector of width D. `initial_memory` makes the matrix that a text starts from, an *update
rule* turns the matrix before a segment into the matrix after it, and `provenance` says exactly which tokens a slot is
made of. The rule here is keep-attention, the default; `rules` holds others to compare it with.

Shapes: B texts, M slots, D width, L tokens in a segment.

    memory           (B, M, D)
    context_vectors  (B, L, D)      one for each token of the segment that was just read
    mask             (B, L)         True for a token, False for padding
    write_attention  (B, M, 1 + L)  each row sums to 1; column 0 is what the slot keeps, column 1 + t what it takes from token t

Every rule is a module that is called as `rule(memory, context_vectors, mask)` and returns a `MemoryUpdate`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

INITIALISATIONS = ("normal", "zeros", "orthogonal", "learned")


def initial_memory(
    kind: str,
    batch_size: int,
    num_slots: int,
    width: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The slots before the first segment, (B, M, D).

    - `"normal"`: independent draws from N(0, 1), as the original tutorial has it;
    - `"zeros"`: all slots equal, and a rule that tells slots apart by what they hold keeps them equal (notebook 02);
    - `"orthogonal"`: a random orthonormal set of directions, scaled to norm √D, about the norm of a normal slot.
      With more slots than dimensions (M > D) the columns are orthogonal instead, since D + 1 directions cannot all be.

    `"learned"` slots are parameters of the model: `MemGPT.init_memory` returns them.

    Raises `ValueError` for an unknown kind.
    """
    shape = (batch_size, num_slots, width)
    if kind == "zeros":
        return torch.zeros(shape, device=device, dtype=dtype)
    if kind not in ("normal", "orthogonal"):
        raise ValueError(f"unknown memory initialisation {kind!r}: choose one of {', '.join(INITIALISATIONS)}")
    drawn_on = device if generator is None else generator.device
    normal = torch.randn(shape, generator=generator, device=drawn_on, dtype=dtype).to(device or drawn_on)
    if kind == "normal":
        return normal
    tall = normal if num_slots >= width else normal.mT  # at least as many rows as columns, as QR needs
    q, r = torch.linalg.qr(tall.to(torch.promote_types(normal.dtype, torch.float32)))  # half precision has no QR
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes the draw uniform over rotations (Mezzadri 2007)
    directions = q if num_slots >= width else q.mT  # (B, M, D)
    return (directions * max(num_slots, width) ** 0.5).to(normal.dtype)


def sparsemax(scores: Tensor) -> Tensor:
    """The probability vector nearest to the scores, along the last dimension (Martins & Astudillo 2016, Algorithm 1).

    p = max(z − τ, 0), with the threshold τ such that p sums to 1. Unlike softmax it gives exact zeros, and gives exactly 1
    to a score that is ahead of every other by at least 1. A score of −∞ always gets 0.

    scores: (..., N), with at least one finite number in each row. Returns (..., N).
    """
    z = scores.to(torch.promote_types(scores.dtype, torch.float32))  # in half precision p would sum to 0.98 or 1.02
    z = z - z.amax(-1, keepdim=True)  # the winner's score is now exactly 0, so that exactly 1 can be reached
    ordered = z.sort(dim=-1, descending=True).values
    rank = torch.arange(1, z.size(-1) + 1, device=z.device, dtype=z.dtype)
    total = ordered.cumsum(-1)
    support = (1 + rank * ordered > total).sum(-1, keepdim=True).clamp(min=1)  # how many are above zero; 1 where all is NaN
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (z - threshold).clamp(min=0).to(scores.dtype)


def softmax(scores: Tensor) -> Tensor:
    """Softmax along the last dimension: never exactly 0, so every update changes every slot a little."""
    return scores.softmax(-1)


class MemoryUpdate(NamedTuple):
    """What an update rule returns: the new memory (B, M, D) and how it came about (B, M, 1 + L)."""

    memory: Tensor
    write_attention: Tensor


class KeepAttention(nn.Module):
    """Every slot weighs itself against the segment's tokens, and becomes the mixture.

        z_j = [ keep(m_j) ; q(m_j)·k(c_1)/√D … q(m_j)·k(c_L)/√D ]
        a_j = sparsemax(z_j)
        m_j ← a_j,keep · m_j + Σ_t a_j,t · v(c_t)

    One row-stochastic matrix (M × (1 + L)) describes the whole update. With sparsemax a_j,keep can be exactly 1: the slot is
    then unchanged bit for bit, however many segments go by. With `normalise=softmax` a_j,keep never is.

    `values_mix` says that a slot is exactly a mixture of token values, so that `provenance` holds for this rule.
    """

    values_mix = True

    def __init__(self, width: int, *, keep_bias: float = 0.0, normalise=sparsemax):
        super().__init__()
        self.keep = nn.Linear(width, 1)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.keep_bias = keep_bias
        nn.init.constant_(self.keep.bias, keep_bias)
        self.normalise = normalise

    def scores(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """z, (B, M, 1 + L), with −∞ where the mask says padding."""
        q, k = self.query(memory), self.key(context_vectors)  # (B, M, D), (B, L, D)
        to_tokens = q @ k.mT / memory.size(-1) ** 0.5  # (B, M, L)
        if mask is not None:
            to_tokens = to_tokens.masked_fill(~mask.unsqueeze(-2), -torch.inf)
        return torch.cat([self.keep(memory), to_tokens], dim=-1)  # (B, M, 1 + L)

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        attention = self.normalise(self.scores(memory, context_vectors, mask))  # (B, M, 1 + L)
        keep, write = attention[..., :1], attention[..., 1:]  # (B, M, 1), (B, M, L)
        return MemoryUpdate(keep * memory + write @ self.value(context_vectors), attention)


def provenance(write_attentions: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Which tokens the slots are made of, exactly: P ← [a_keep · P , a_tokens], one segment after the other.

    write_attentions: for each segment (B, M, 1 + L_s), in the order in which they were read.
    Returns (B, M, 1 + ΣL_s). Each row sums to 1; column 0 is what is left of the initial slot, column 1 + t the share of token t,
    counted from the start of the whole text. For a rule with `values_mix`, where V holds the values of all the tokens:

        memory = P[..., :1] · initial_memory + P[..., 1:] @ V

    Raises `ValueError` when there is no segment.
    """
    if not len(write_attentions):
        raise ValueError("provenance needs the write attention of at least one segment: pass `out.write_attentions`")
    still_kept = torch.ones_like(write_attentions[0][..., :1])  # (B, M, 1): what the later segments left
    shares = []
    for attention in reversed(write_attentions):
        shares.append(attention[..., 1:] * still_kept)  # (B, M, L_s)
        still_kept = attention[..., :1] * still_kept
    return torch.cat([still_kept, *reversed(shares)], dim=-1)
