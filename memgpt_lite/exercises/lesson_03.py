"""The exercises of notebook 03, forward: causal attention, context vectors, the share of right answers, a block without its read."""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..configuration import MemGPTConfig
from ..model import MemGPT
from ..training import answer_accuracy
from .checking import Exercise, Mistake

# ---- 3.1 ----


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, L, d) each
    scores = q @ k.mT / q.size(-1) ** 0.5  # (B, H, L, L)
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)  # True where u > t
    shares = scores.masked_fill(ahead, -torch.inf).softmax(-1)  # (B, H, L, L)
    return (shares @ v).transpose(1, 2).flatten(2)  # (B, H, L, d) → (B, L, D)


def segments_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    sizes = [(1, 2, 2, 1), (1, 1, 3, 1), (2, 3, 4, 2), (2, 5, 8, 4), (3, 7, 6, 2)]  # B, L, D, H
    for i, (B, L, D, H) in enumerate(sizes):
        dtype = torch.float64 if i % 2 else torch.float32
        yield (*(torch.randn(B, L, D, generator=generator, dtype=dtype).requires_grad_() for _ in "qkv"), H)


def attention_with(mix: Callable, *, split: Callable | None = None) -> Callable:
    """Attention with other shares, or with other heads: `split` makes the heads, `mix` the result from q, k, v (B, H, L, d)."""

    def attempt(q, k, v, num_heads):
        q, k, v = ((split or heads)(x, num_heads) for x in (q, k, v))
        return mix(q, k, v).transpose(1, 2).flatten(2)

    return attempt


def heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def ahead(scores: Tensor, diagonal: int = 1) -> Tensor:
    return torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal)


def scaled(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / q.size(-1) ** 0.5


def shares_from(scores: Tensor, diagonal: int = 1) -> Tensor:
    return scores.masked_fill(ahead(scores, diagonal), -torch.inf).softmax(-1)


def mask_after_softmax(q, k, v):
    scores = scaled(q, k)
    return scores.softmax(-1).masked_fill(ahead(scores), 0.0) @ v


def wrong_axis(q, k, v):
    scores = scaled(q, k)
    return scores.masked_fill(ahead(scores), -torch.inf).softmax(-2) @ v


def zero_for_infinity(q, k, v):
    scores = scaled(q, k)
    return scores.masked_fill(ahead(scores), 0.0).softmax(-1) @ v


def one_head(q, k, v, num_heads):
    return attention(q, k, v, 1)


def cut_without_transposing(x: Tensor, num_heads: int) -> Tensor:
    return x.reshape(x.size(0), num_heads, x.size(1), -1)


def heads_taken_for_each_other(q, k, v, num_heads):
    q, k, v = (heads(x, num_heads) for x in (q, k, v))
    mixed = shares_from(scaled(q, k)) @ v  # (B, H, L, d)
    return mixed.reshape(mixed.size(0), mixed.size(2), -1)


ATTENTION = Exercise(
    number="3.1",
    title="Causal attention, all heads at once",
    difficulty=2,
    minutes=20,
    points=3,
    solution=attention,
    cases=segments_of_all_kinds,
    mistakes=(
        Mistake(
            attention_with(lambda q, k, v: shares_from(q @ k.mT) @ v),
            "the scores are not divided by √d. Wide heads would give nearly everything to one position.",
        ),
        Mistake(
            attention_with(lambda q, k, v: shares_from(q @ k.mT / q.size(-1)) @ v),
            "the scores are divided by d, but they spread by √d: divide by √d.",
        ),
        Mistake(
            lambda q, k, v, num_heads: attention(q / num_heads**0.5, k, v, num_heads),
            "the scores are divided by √D. A head has only d = D / H numbers, so divide by √d.",
        ),
        Mistake(
            attention_with(wrong_axis),
            "softmax runs over the wrong axis: the shares of each position t must sum to 1 along the last dimension, u.",
        ),
        Mistake(
            attention_with(lambda q, k, v: scaled(q, k).softmax(-1) @ v),
            "there is no causal mask: positions look ahead, at the tokens that they are to predict.",
        ),
        Mistake(
            attention_with(lambda q, k, v: shares_from(scaled(q, k), diagonal=2) @ v),
            "the mask is off by one: a position still sees the next token, the very one that it is to predict. Hide all u > t.",
        ),
        Mistake(
            attention_with(lambda q, k, v: shares_from(scaled(q, k), diagonal=0) @ v),
            "the mask is off by one: a position must see itself. The first has nothing else to see: its row has become NaN.",
        ),
        Mistake(
            attention_with(mask_after_softmax),
            "the mask is put on after the softmax: hidden positions have already had their share, and the rows no longer sum to 1.",
        ),
        Mistake(
            attention_with(zero_for_infinity),
            "hidden scores are set to 0, but a score of 0 has a share like any other: only −∞ has none.",
        ),
        Mistake(
            one_head, "there is a single head of width D: first cut q, k and v into num_heads pieces along the last dimension."
        ),
        Mistake(
            attention_with(lambda q, k, v: shares_from(scaled(q, k)) @ v, split=cut_without_transposing),
            "the heads are mixed up with the positions: (B, L, D) cannot be read as (B, H, L, d). First (B, L, H, d), then .transpose(1, 2).",
        ),
        Mistake(
            heads_taken_for_each_other,
            "the heads are cut correctly, but not put back side by side: use .transpose(1, 2) before you make one dimension of two.",
        ),
        Mistake(
            lambda q, k, v, num_heads: attention(q, k.detach(), v, num_heads),
            "the values are right, but no gradient comes back to k: leave .detach() and torch.no_grad() out.",
        ),
    ),
    hints=(
        "Start with one text and one head: `attention` of section 2. What must change in `.T` and the mask when two dimensions stand in front?",
        "`q.unflatten(-1, (num_heads, -1))` is (B, L, H, d), and `.transpose(1, 2)` brings the heads in front of the positions: (B, H, L, d). Swap the last two "
        "dimensions with `k.mT`; a mask of shape (L, L) fits as it is.",
        "`scores = q @ k.mT / q.size(-1) ** 0.5`, hide `torch.ones(L, L).triu(1).bool()` with −∞, softmax over the last dimension, times v; then "
        "`.transpose(1, 2).flatten(2)`.",
    ),
    notice="No loop is left: batch and heads are two more dimensions, and both matrix products and the softmax run over them by themselves. "
    "PyTorch's `scaled_dot_product_attention` does the lines in the middle in one call.",
)


# ---- 3.2 ----


def context(hidden: Tensor, logits: Tensor, E: Tensor, W: Tensor) -> Tensor:
    expected = logits.softmax(-1) @ E  # (B, L, V) @ (V, D) → (B, L, D)
    return hidden + expected @ W.T


def outputs_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, ...]]:
    sizes = [(1, 1, 2, 2), (1, 3, 3, 3), (2, 4, 6, 4), (3, 5, 9, 8)]  # B, L, V, D; once as many positions as tokens
    for i, (B, L, V, D) in enumerate(sizes):
        dtype = torch.float64 if i % 2 else torch.float32
        shapes = (B, L, D), (B, L, V), (V, D), (D, D)
        yield tuple(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)


CONTEXT = Exercise(
    number="3.2",
    title="What a position expects",
    difficulty=1,
    minutes=10,
    solution=context,
    cases=outputs_of_all_kinds,
    mistakes=(
        Mistake(
            lambda hidden, logits, E, W: hidden + logits @ E @ W.T,
            "logits are not probabilities: softmax comes first, over the V tokens.",
        ),
        Mistake(
            lambda hidden, logits, E, W: hidden + logits.softmax(1) @ E @ W.T,
            "softmax runs over the positions: each position has a distribution of its own, over the last dimension.",
        ),
        Mistake(
            lambda hidden, logits, E, W: hidden + logits.softmax(-1) @ E @ W,
            "W is the wrong way round: W e for a vector e becomes e @ W.T for rows, as in nn.Linear. (Both fit, as W is square.)",
        ),
        Mistake(
            lambda hidden, logits, E, W: logits.softmax(-1) @ E @ W.T,
            "what the position has read is missing: add hidden.",
        ),
        Mistake(
            lambda hidden, logits, E, W: hidden + logits.softmax(-1) @ E,
            "the expected embedding is added as it is: multiply it by W first.",
        ),
        Mistake(
            lambda hidden, logits, E, W: (hidden + logits.softmax(-1) @ E) @ W.T,
            "W is applied to both terms. It belongs to the second term alone; the hidden state is added as it is.",
        ),
        Mistake(
            lambda hidden, logits, E, W: hidden + E[logits.argmax(-1)] @ W.T,
            "only the likeliest token counts here. The mean is over all, weighted by probability (and argmax has no gradient).",
        ),
        Mistake(
            lambda hidden, logits, E, W: context(hidden, logits.detach(), E, W),
            "the values are right, but no gradient comes back to the logits: leave .detach() and torch.no_grad() out.",
        ),
    ),
    hints=(
        "Begin with the sum: a mean of V vectors, weighted by V probabilities. Which shapes do they have, and which product is it?",
        "`logits.softmax(-1) @ E` is (B, L, V) @ (V, D). A row e times W is `e @ W.T`.",
    ),
    notice="The sum over the vocabulary is one matrix product. It is soft: a model that wavers between two places writes a bit of both, and the gradient "
    "reaches every logit.",
)


# ---- 3.3 ----


def answers_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    yield F.one_hot(torch.tensor([[1, 0]]), 3).float(), torch.tensor([[0, 1]])  # the first label is never asked for
    yield F.one_hot(torch.tensor([[1, 2, 0, 2]]), 3).float(), torch.tensor([[1, 1, 2, 1]])  # two of three are right
    for B, T, V in ((2, 6, 4), (3, 9, 7), (4, 12, 4)):
        labels = torch.randint(V, (B, T), generator=generator)
        logits = torch.randn(B, T, V, generator=generator)
        right = torch.rand(B, T - 1, generator=generator) < 0.5
        right[:, :4] = torch.tensor([True, False, True, True])
        right[0] = True
        logits[:, :-1] += 9 * right[..., None] * F.one_hot(labels[:, 1:], V)
        labels[0, 4:] = -100  # the texts are asked for different numbers of tokens
        labels[1:, 5::2] = -100
        labels[0, 0], logits[0, -1] = 1, 9 * F.one_hot(torch.tensor(1), V)  # a shift in a circle would get one more right
        yield logits, labels


def compare(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(-1) == labels)[labels != -100].float().mean().item()


def mean_of_texts(logits, labels):
    return sum(answer_accuracy(*(x[None] for x in pair)) for pair in zip(logits, labels)) / len(labels)


SHARE_RIGHT = Exercise(
    number="3.3",
    title="What share is right?",
    difficulty=2,
    minutes=10,
    solution=answer_accuracy,
    cases=answers_of_all_kinds,
    mistakes=(
        Mistake(compare, "nothing is shifted: the answer of position t belongs to label t + 1."),
        Mistake(
            lambda logits, labels: compare(logits[:, 1:], labels[:, :-1]),
            "shifted the wrong way: compare position t with label t + 1, so logits lose their last position and labels their first.",
        ),
        Mistake(
            lambda logits, labels: compare(logits, labels.roll(-1, 1)),
            "torch.roll moves in a circle: the last position is compared with the first label, but nothing follows it.",
        ),
        Mistake(
            lambda logits, labels: (logits[:, :-1].argmax(-1) == labels[:, 1:]).float().mean().item(),
            "positions that are not asked count as wrong: divide by the number of those with a label, not by all.",
        ),
        Mistake(
            lambda logits, labels: (logits[:, :-1].argmax(-1) == labels[:, 1:])[labels[:, 1:] > 0].float().mean().item(),
            "label 0 is left out, but 0 is a token: only −100 says “not asked”.",
        ),
        Mistake(
            mean_of_texts,
            "this is the mean of the texts' own means: a text with one question counts as much as one with many. Take all questions together.",
        ),
        Mistake(
            lambda logits, labels: (logits[:, :-1].argmax(-1) == labels[:, 1:]).sum().item(),
            "that is the number of right answers, not a share: divide by the number of questions.",
        ),
        Mistake(
            lambda logits, labels: F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item(),
            "that is the loss. The question is how often the likeliest token is the right one.",
        ),
    ),
    hints=(
        "Which label does position t answer? How many positions have an answer that you can check?",
        "Compare `logits[:, :-1].argmax(-1)` with `labels[:, 1:]`: the last position's answer would lie outside the text.",
        "Of the result, (B, T − 1) truth values, take those where the label is not −100: `right[asked].float().mean()`.",
    ),
    notice="Both are cut, logits at the end and labels at the start, and only then compared. Indexing by truth values puts all questions in one long row, "
    "so that each counts alike.",
)


# ---- 3.4 ----


def without_read(model: MemGPT, block_number: int, ids: Tensor) -> Tensor:
    c_proj = model.transformer.h[block_number].crossattention.c_proj
    saved = [parameter.detach().clone() for parameter in c_proj.parameters()]
    with torch.no_grad():
        for parameter in c_proj.parameters():
            parameter.zero_()
        logits = model(ids).logits
        for parameter, before in zip(c_proj.parameters(), saved):
            parameter.copy_(before)
    return logits


def blindfold(model: MemGPT, layers: list[torch.nn.Module], ids: Tensor, names: tuple[str, ...] = ("weight", "bias")) -> Tensor:
    """The logits while the parameters of these layers are 0; afterwards they are what they were."""
    parameters = [getattr(layer, name) for layer in layers for name in names]
    saved = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
        logits = model(ids).logits
        for parameter, before in zip(parameters, saved):
            parameter.copy_(before)
    return logits


def models_of_all_kinds(generator: Generator) -> Iterator[tuple[MemGPT, int, Tensor]]:
    config = MemGPTConfig(
        vocab_size=7, segment_length=3, n_embd=8, n_layer=2, n_head=2, num_memory_slots=3, memory_init="learned",
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = MemGPT(config).eval().requires_grad_(False)
        for block in model.transformer.h:  # after training no bias is 0
            for layer in (block.crossattention.c_proj, block.crossattention.q_attn, block.attn.c_proj):
                layer.bias.normal_()
    for block_number, (B, T) in ((0, (1, 3)), (1, (1, 4)), (1, (2, 7))):
        yield model, block_number, torch.randint(7, (B, T), generator=generator)


def left_at_zero(model, block_number, ids):
    for parameter in model.transformer.h[block_number].crossattention.c_proj.parameters():
        parameter.zero_()
    return model(ids).logits


BLINDFOLD = Exercise(
    number="3.4",
    title="Blindfold one block",
    difficulty=2,
    minutes=10,
    solution=without_read,
    cases=models_of_all_kinds,
    mistakes=(
        Mistake(
            left_at_zero,
            "the right logits, but the model is left blind: put back what you changed, weights or a switch. (If you did: a view becomes 0 with its parameter, a .clone() does not.)",
        ),
        Mistake(
            lambda model, block_number, ids: blindfold(
                model, [model.transformer.h[block_number].crossattention.c_proj], ids, names=("weight",)
            ),
            "the bias is left, and adds something of its own: set it to 0 like the weight.",
        ),
        Mistake(
            lambda model, block_number, ids: without_read(model, 0, ids),
            "it is block 0 that is blindfolded, whatever block_number says.",
        ),
        Mistake(
            lambda model, block_number, ids: blindfold(model, [h.crossattention.c_proj for h in model.transformer.h], ids),
            "all blocks are blindfolded: only the one with block_number is meant.",
        ),
        Mistake(
            lambda model, block_number, ids: blindfold(model, [model.transformer.h[block_number].attn.c_proj], ids),
            "that is self-attention, `attn`: the block no longer sees its own segment. The read is `crossattention`.",
        ),
        Mistake(
            lambda model, block_number, ids: blindfold(model, [model.transformer.h[block_number].crossattention.q_attn], ids),
            "with queries of 0 all slots get the same share, so their mean is still read: it is the output, c_proj, that must be 0.",
        ),
        Mistake(
            lambda model, block_number, ids: model(ids, memory=torch.zeros_like(model.init_memory(len(ids)))).logits,
            "the slots are zero at the start, but they are read by all blocks, and written after each segment: blindfold the block, not the memory.",
        ),
        Mistake(
            lambda model, block_number, ids: model(ids).logits,
            "these are the logits of the whole model: nothing was 0 while it ran. (A hook on c_proj is not called: the block computes with its weights directly.)",
        ),
    ),
    hints=(
        "Three steps: copy the parameters, set them to 0 and run the model, put the copy back. Which two parameters does `c_proj` have?",
        "A view is no copy: `saved = [p.clone() for p in c_proj.parameters()]`. Then `p.zero_()` for each, and in the end `p.copy_(before)`.",
    ),
    notice="The logits are computed before the weights are put back, and returned last. Such an intervention says more than a picture of shares: what is read "
    "need not be used.",
)


# ---- 3.5 ----

REACH = Exercise(
    number="3.5",
    title="How far does one token reach? (a prediction)",
    difficulty=1,
    minutes=3,
    points=1,
    solution=20,
    mistakes=(
        Mistake(12, "those are the positions of its own segment, 20 to 31. What goes on from there to the third segment?"),
        Mistake(19, "nearly: position 20 itself reads the changed token, and says something else about token 21."),
        Mistake(1, "later positions of its segment look at it, and later segments read what it left in the memory."),
        Mistake(24, "positions 16 to 19 stand before it in its segment: the causal mask keeps it from them."),
        Mistake(
            40, "nothing before token 20 can change: the mask hides it within the segment, and the memory only goes forward."
        ),
        Mistake(8, "those are the positions of the third segment, which the memory reaches. Token 20's segment has some too."),
    ),
    hints=(
        "Three segments: positions 0–15, 16–31, 32–39. In which one is token 20, and which positions there may look at it?",
        "After its segment, the memory has taken it in. Who reads the memory?",
    ),
    notice="Positions 20 to 39: in its own segment by self-attention, in the next by way of the memory. “At most”: the slots may have taken nothing of it, and then "
    "the third segment is the same to the last bit.",
)

EXERCISES = [ATTENTION, CONTEXT, SHARE_RIGHT, BLINDFOLD, REACH]
