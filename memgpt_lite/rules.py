"""Step 4, side by side: what other rules are there for what a slot keeps and what it takes?

Six rules behind one call, `rule(memory, context_vectors, mask)`, which returns a `MemoryUpdate`; shapes as in `memory`. m_j is a
slot, c_t a token's context vector, Q, K, V their projections, σ the sigmoid and β_t, e_t, g_j gates between 0 and 1.

    name          update                                                                           source
    keep          m_j ← a_j0 m_j + Σ_t a_jt V c_t,  a_j = sparsemax [keep(m_j) ; Q m_j·K c_t/√D]   this library, `KeepAttention`
    keep_softmax  the same with softmax                                                            the same
    gated         m_j ← g_j ⊙ m_j + (1 − g_j) ⊙ Σ_t softmax_t(Q m_j·K c_t/√D) V c_t                gate: Cho et al. 2014
    erase_add     m_j ← m_j ⊙ (1 − w_tj e_t) + w_tj a_t,  w_t = softmax_j(s_t cos(K c_t, m_j))     Graves et al. 2014
    delta         m_j ← m_j + β_t k_tj (V c_t − Σ_i k_ti m_i),  k_t = softmax(K c_t)               Schlag et al. 2021
    fifo          the last M of [m_1 … m_M ; c_1 … c_L]                                            Dai et al. 2019

What one segment of one text costs (for B texts, times B), and how much each rule has to learn. Each has a state of M·D numbers.

    name          multiply-adds                       steps in sequence   parameters
    keep(…)       (M + 2L) D² + 2LMD                  1                   3D² + 4D + 1
    gated         (3M + 2L) D² + 2LMD                 1                   5D² + 4D
    erase_add     3L D² + 6LMD                        L                   3D² + 4D + 1
    delta         L D² + 3LMD + L²M + L²D/2           1 triangular solve  D² + 2D + MD + M + 1
    fifo          0 (M·D numbers are copied)          1                   0

(Terms of order LD and MD are left out, and so is sparsemax's sort of M rows of 1 + L scores.)

What follows from the equations, in exact arithmetic:

- keep: a_j0 = 1 is reachable, so a slot can outlast any number of segments bit for bit. keep_softmax and gated: softmax and
  σ are never exactly 1, so every segment wears every slot down a little. erase_add and delta: every token changes every slot
  a little.
- erase_add: what is added is not bounded by what is erased, so a slot can grow with every token.
- delta: as |k_t| ≤ 1, two memories that read the same tokens never move apart, and no memory grows by more than β_t |V c_t|
  at token t (in the Frobenius norm).
- fifo: a token is held bit for bit until M more have been read, and is then gone. To remember it for longer, a
  model has to copy it from the slots into new context vectors itself.
- Equal slots stay equal under keep, gated and erase_add, which tell slots apart by what they hold; delta and fifo go by the
  number of a slot.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .memory import KeepAttention, MemoryUpdate, softmax


class GatedSlots(nn.Module):
    """Every slot looks at the tokens by softmax, and a gate decides, dimension by dimension, how much of what it sees to take.

        u_j = Σ_t softmax_t( q(m_j)·k(c_t)/√D ) · v(c_t)
        g_j = σ( G [m_j ; u_j] )
        m_j ← g_j ⊙ m_j + (1 − g_j) ⊙ u_j

    The gate of a GRU (Cho et al. 2014) on slots, without its reset gate and tanh. A sigmoid is never exactly 1, so every
    segment wears a slot down a little. The write attention reports the gate averaged over the width; a single number
    cannot stand for D different ones, so there is no exact provenance (`values_mix` is False).
    """

    values_mix = False

    def __init__(self, width: int, *, keep_bias: float = 0.0):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.keep = nn.Linear(2 * width, width)
        self.keep_bias = keep_bias
        nn.init.constant_(self.keep.bias, keep_bias)

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        q, k = self.query(memory), self.key(context_vectors)  # (B, M, D), (B, L, D)
        scores = q @ k.mT / memory.size(-1) ** 0.5  # (B, M, L)
        if mask is None:
            mask = torch.ones(context_vectors.shape[:-1], dtype=torch.bool, device=memory.device)
        scores = scores.masked_fill(~mask.unsqueeze(-2), torch.finfo(scores.dtype).min)
        look = scores.softmax(-1)  # (B, M, L)
        update = look @ self.value(context_vectors)  # (B, M, D)
        gate = torch.sigmoid(self.keep(torch.cat([memory, update], dim=-1)))  # (B, M, D)
        gate = gate.masked_fill(~mask.any(-1)[:, None, None], 1.0)  # nothing but padding: keep all
        keep = gate.mean(-1, keepdim=True)  # (B, M, 1)
        return MemoryUpdate(gate * memory + (1 - gate) * update, torch.cat([keep, (1 - keep) * look], dim=-1))


def stick_breaking(shares: Tensor) -> Tensor:
    """What each slot holds at the end, if token t replaced a share s_t of it: (B, M, L) → (B, M, 1 + L), each row sums to 1.

    Column 1 + t is s_t Π_{u>t} (1 − s_u), what the later tokens left of token t's share; column 0, keep, is Π_u (1 − s_u).
    It is exact for a rule in which each token addresses one slot (one-hot) and does m ← (1 − s_t) m + s_t v_t there; where an
    address is spread over several slots, a slot's new content depends on the others too, and this is a summary.
    """
    left = (1 - shares).flip(-1).cumprod(-1).flip(-1)  # (B, M, L): what token t and all later ones leave
    left_by_later = F.pad(left[..., 1:], (0, 1), value=1.0)  # (B, M, L)
    return torch.cat([left[..., :1], shares * left_by_later], dim=-1)


def direction(x: Tensor) -> Tensor:
    """x/|x| along the last dimension. Zeros have no direction: they stay zeros, with gradient zero where it would be infinite."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, torch.inf)


class EraseAdd(nn.Module):
    """The write head of the Neural Turing Machine (Graves, Wayne & Danihelka 2014, equations 3 to 6), token after token.

        w_t = softmax_j( s_t · cos(key(c_t), m_j) )        over the slots, with strength s_t = softplus(strength(c_t))
        m_j ← m_j ⊙ (1 − w_tj e_t) + w_tj a_t              erase e_t = 1 − σ(keep(c_t)), add a_t = add(c_t), both of width D

    The paper's head is driven by a controller that has read the memory; here the context vector plays both parts. Slots are addressed by
    content alone, without interpolation with the last address, shift and sharpening (equations 7 to 9), which let a head walk
    from slot to slot. `keep_bias` governs what is erased; what is added has no gate of its own, as in the paper.

    The write attention takes w_tj times the mean of e_t over the width as the share that token t replaces (`stick_breaking`).
    """

    values_mix = False

    def __init__(self, width: int, *, keep_bias: float = 0.0):
        super().__init__()
        self.key = nn.Linear(width, width)
        self.strength = nn.Linear(width, 1)
        self.keep = nn.Linear(width, width)
        self.add = nn.Linear(width, width)
        self.keep_bias = keep_bias
        nn.init.constant_(self.keep.bias, keep_bias)

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        key = F.softplus(self.strength(context_vectors)) * direction(self.key(context_vectors))  # (B, L, D), of length s_t
        erase, add = torch.sigmoid(-self.keep(context_vectors)), self.add(context_vectors)  # (B, L, D) each
        after, addresses = memory, []
        for t in range(context_vectors.size(1)):
            address = (direction(after) @ key[:, t, :, None]).softmax(1)  # (B, M, 1)
            if mask is not None:
                address = address * mask[:, t, None, None]  # padding addresses no slot
            after = after * (1 - address * erase[:, t, None]) + address * add[:, t, None]  # (B, M, D)
            addresses.append(address)
        shares = torch.cat(addresses, dim=-1) * erase.mean(-1).unsqueeze(-2)  # (B, M, L)
        return MemoryUpdate(after.to(memory.dtype), stick_breaking(shares))


class DeltaRule(nn.Module):
    """Every token corrects what the memory says at its address towards its own value, by a step β (Widrow & Hoff 1960).

        k_t = softmax(key(c_t))  in ℝ^M,      β_t = 1 − σ(keep(c_t)),      v_t = value(c_t)
        M ← M + β_t k_t (v_t − k_tᵀ M)ᵀ                                     M: the slots as a matrix, (M, D)

    The fast weights of DeltaNet (Schlag, Irie & Schmidhuber 2021, section 4.2), transposed. They divide a key by the sum of its
    entries and make these positive by a feature map; softmax does both. An address is then a distribution over slots, it can
    single one out, and |k| ≤ 1 keeps the update stable. (Yang et al. 2024 divide by the Euclidean norm instead; entries may
    be negative.)

    All tokens of a segment at once (Yang et al. 2024, from the WY and UT forms of a product of Householder matrices): the
    corrections u_t = β_t (v_t − k_tᵀ M_{t−1}), M_{t−1} itself being M + Σ_{u<t} k_u u_uᵀ, solve a triangular system

        (I + diag(β) tril(K Kᵀ, −1)) U = diag(β) (V − K M),      M ← M + Kᵀ U

    The write attention takes β_t k_tj as the share that token t replaces (`stick_breaking`).
    """

    values_mix = False

    def __init__(self, width: int, num_slots: int, *, keep_bias: float = 0.0):
        super().__init__()
        self.key = nn.Linear(width, num_slots)
        self.value = nn.Linear(width, width)
        self.keep = nn.Linear(width, 1)
        self.keep_bias = keep_bias
        nn.init.constant_(self.keep.bias, keep_bias)

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        key, value = self.key(context_vectors).softmax(-1), self.value(context_vectors)  # (B, L, M), (B, L, D)
        beta = torch.sigmoid(-self.keep(context_vectors))  # (B, L, 1)
        if mask is not None:
            beta = beta * mask.unsqueeze(-1)  # padding corrects nothing
        precise = torch.promote_types(memory.dtype, torch.float32)  # half precision has no triangular solve
        with torch.autocast(memory.device.type, enabled=False):
            m, k, v, b = (x.to(precise) for x in (memory, key, value, beta))
            earlier = b * (k @ k.mT).tril(-1)  # (B, L, L), the ones on its diagonal left out
            u = torch.linalg.solve_triangular(earlier, b * (v - k @ m), upper=False, unitriangular=True)  # (B, L, D)
            return MemoryUpdate((m + k.mT @ u).to(memory.dtype), stick_breaking((b * k).mT))


class FirstInFirstOut(nn.Module):
    """The slots are the context vectors of the last M tokens, the newest in the last slot. There is nothing to learn.

    The cache of Transformer-XL (Dai et al. 2019, section 3.2) for one layer. There every layer caches its own inputs, attention
    knows how far back each lies, and no gradient enters the cache; here slots have no positions, and the gradient goes
    through them (`bptt_segments=1` stops it, as in the paper). Memorizing Transformers (Wu et al. 2022) keep a much longer cache
    and read the nearest few.

    With fewer than M tokens in a segment the older slots move up; padding does not count. In the write attention every row is
    one-hot: column 1 + t where the slot now holds token t, column 0 where it holds what an older slot held. As that was
    another slot, `provenance` does not hold (`values_mix` is False).
    """

    values_mix = False

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        (batch_size, num_slots, width), length = memory.shape, context_vectors.size(1)
        if mask is None:
            mask = torch.ones(batch_size, length, dtype=torch.bool, device=memory.device)
        queue = torch.cat([memory, context_vectors.to(memory.dtype)], dim=1)  # (B, M + L, D)
        counts = F.pad(mask.long(), (num_slots, 0), value=1)  # (B, M + L): 0 for padding
        order = counts.argsort(dim=-1, stable=True)  # (B, M + L): padding goes to the front, all else stays in order
        newest = order[:, -num_slots:]  # (B, M)
        after = queue.gather(1, newest.unsqueeze(-1).expand(-1, -1, width))  # (B, M, D)
        column = (newest - num_slots + 1).clamp(min=0)  # (B, M)
        return MemoryUpdate(after, F.one_hot(column, 1 + length).to(memory.dtype))


UPDATE_RULES = {  # name → the rule for a configuration with `n_embd`, `num_memory_slots` and `keep_bias`
    "keep": lambda config: KeepAttention(config.n_embd, keep_bias=config.keep_bias),
    "keep_softmax": lambda config: KeepAttention(config.n_embd, keep_bias=config.keep_bias, normalise=softmax),
    "gated": lambda config: GatedSlots(config.n_embd, keep_bias=config.keep_bias),
    "erase_add": lambda config: EraseAdd(config.n_embd, keep_bias=config.keep_bias),
    "delta": lambda config: DeltaRule(config.n_embd, config.num_memory_slots, keep_bias=config.keep_bias),
    "fifo": lambda config: FirstInFirstOut(),
}
