"""Step 5: how does the loss of a late segment teach what to write in an early one?

Through the memory. The loss of segment s depends on the memory that entered it, this memory on the one before, and so on back
to the first. The gradient goes back along this chain: back-propagation through time (Werbos 1990), with segments as time steps.

    ∂loss/∂memory_s = Σ_{r ≥ s} ∂loss_r/∂memory_s        memory_s: what segments 0 … s − 1 left, (B, M, D)

- `is_cut` decides where `bptt_segments` cuts this chain;
- `memory_gradients` measures ∂loss/∂memory_s at every segment;
- `sparsemax_backward` and `keep_attention_backward` are the same gradients by hand, with no autograd at all.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .memory import KeepAttention, sparsemax


def is_cut(segment: int, num_segments: int, bptt_segments: int | None) -> bool:
    """Whether the gradient stops at the memory that enters this segment (counted from 0).

    From the end of the text, every `bptt_segments` segments form a group, and no gradient crosses from a group into the one
    before it. So the last segment's loss reaches the last `bptt_segments` segments (itself included) with exactly the gradient
    of full back-propagation, and no earlier segment at all. None: no cut. (Truncated back-propagation: Williams & Peng 1990.)

    In a padded batch the groups are counted from the end of the longest text. A shorter text is filled up with padding, so it may
    be cut at other places than if it were read alone, and its last loss may reach fewer of its segments.
    """
    return bptt_segments is not None and segment > 0 and (num_segments - segment) % bptt_segments == 0


def memory_gradients(model, input_ids: Tensor, labels: Tensor, memory: Tensor | None = None, **options) -> Tensor:
    """∂loss/∂memory before the first segment and after each: (S + 1, B, M, D).

    Entry s is the gradient of the loss with respect to the memory that segments 0 … s − 1 left; the last entry is 0, as
    no segment reads it. With `bptt_segments` the entries at a cut are zero too. `options` go to the model. The gradients of the
    parameters (`.grad`) are left alone.
    """
    if memory is None:
        memory = model.init_memory(input_ids.size(0))
    memory = memory.detach().requires_grad_()
    with torch.enable_grad():
        out = model(input_ids, memory=memory, labels=labels, output_hidden_states=True, **options)
    return torch.stack(torch.autograd.grad(out.loss, out.memories, allow_unused=True, materialize_grads=True))


def sparsemax_backward(probabilities: Tensor, gradient: Tensor) -> Tensor:
    """∂loss/∂scores from sparsemax's result and ∂loss/∂probabilities, all (..., N) (Martins & Astudillo 2016, eq. 10).

    On the support (where p > 0), p moves as the scores do, less the mean of their moves, since p must go on summing to 1;
    elsewhere p does not move:  ∂loss/∂z_i = g_i − mean of g over the support, for p_i > 0; 0 otherwise.
    """
    support = probabilities > 0
    mean = (gradient * support).sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
    return (gradient - mean) * support


class KeepAttentionGradients(NamedTuple):
    """What `keep_attention_backward` returns: a gradient for each input, and one for each parameter, by its name in the rule."""

    memory: Tensor  # (B, M, D)
    context_vectors: Tensor  # (B, L, D)
    parameters: dict[str, Tensor]


@torch.no_grad()
def keep_attention_backward(
    rule: KeepAttention, memory: Tensor, context_vectors: Tensor, gradient: Tensor, mask: Tensor | None = None
) -> KeepAttentionGradients:
    """The gradient of one keep-attention update, derived by hand.

    With m' = a_keep m + A V, z = [κ ; Q Kᵀ/√D], a = sparsemax(z), and g = ∂loss/∂m':

        ∂a_keep = ⟨g, m⟩            ∂A = g Vᵀ               ∂V = Aᵀ g
        [∂κ ; ∂S] = sparsemax_backward(a, [∂a_keep ; ∂A])
        ∂Q = ∂S K / √D             ∂K = ∂Sᵀ Q / √D
        ∂m = a_keep g + ∂κ w_keepᵀ + ∂Q W_q                 (the three ways in which a slot enters its own update)
        ∂c = ∂K W_k + ∂V W_v

    and for every linear map y = x Wᵀ + b: ∂W = ∂yᵀ x, ∂b = Σ ∂y.

    memory (B, M, D), context_vectors (B, L, D), gradient (B, M, D), mask (B, L) with True for tokens.
    Raises `ValueError` for a rule that normalises by something other than sparsemax.
    """
    if not isinstance(rule, KeepAttention) or rule.normalise is not sparsemax:
        raise ValueError("keep_attention_backward is the gradient of KeepAttention with sparsemax; use autograd for others")
    root = memory.size(-1) ** 0.5
    attention = sparsemax(rule.scores(memory, context_vectors, mask))  # (B, M, 1 + L)
    keep, write = attention[..., :1], attention[..., 1:]  # (B, M, 1), (B, M, L)
    q, k, v = rule.query(memory), rule.key(context_vectors), rule.value(context_vectors)

    d_keep = (gradient * memory).sum(-1, keepdim=True)  # (B, M, 1)
    d_write = gradient @ v.mT  # (B, M, L)
    d_v = write.mT @ gradient  # (B, L, D)
    d_scores = sparsemax_backward(attention, torch.cat([d_keep, d_write], dim=-1))  # (B, M, 1 + L)
    d_kappa, d_to_tokens = d_scores[..., :1], d_scores[..., 1:] / root  # (B, M, 1), (B, M, L)
    d_q = d_to_tokens @ k  # (B, M, D)
    d_k = d_to_tokens.mT @ q  # (B, L, D)

    d_memory = keep * gradient + d_kappa @ rule.keep.weight + d_q @ rule.query.weight  # (B, M, D)
    d_context = d_k @ rule.key.weight + d_v @ rule.value.weight  # (B, L, D)
    parameters = {}
    for name, x, d_y in (
        ("keep", memory, d_kappa), ("query", memory, d_q), ("key", context_vectors, d_k), ("value", context_vectors, d_v),
    ):  # fmt: skip
        parameters[f"{name}.weight"] = d_y.flatten(0, 1).mT @ x.flatten(0, 1)  # (out, in)
        parameters[f"{name}.bias"] = d_y.sum(dim=(0, 1))  # (out)
    return KeepAttentionGradients(d_memory, d_context, parameters)
