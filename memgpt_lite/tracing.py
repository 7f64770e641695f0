"""What happened in the memory while a text was read?

A trace records every segment of one text: the slots, what was written and what was read, which tokens a slot is made of, and what
the model expected next. It is a set of numpy arrays, small enough to save and to show: a text of 100,000 tokens takes under 50 MB
with 16 slots of width 64.

    trace = ml.trace(model, input_ids, decode=ml.tasks.decode)
    print(trace.in_words(slot=3))               # slot 3: 97% “Elizabeth” (segment 2), unchanged for 1,204 segments

Shapes: T tokens of the text, L tokens of a segment, S = ⌈T / L⌉ segments, M slots, D width, R blocks that read, H heads, K strongest
tokens of a slot, V vocabulary. Tokens, segments, slots and heads are counted from 0; *after s segments* goes from 0 to S.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import storage
from .backward import memory_gradients
from .training import in_mode

TRACE_FORMAT = "memgpt_lite trace, version 1"
SHOWN_SHARE = 0.1  # of a slot: parts below it are not named in words, unless there is no greater one
HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False, repr=False)
class MemoryTrace:
    """What `trace` recorded of one text.

    tokens: the T tokens as they are shown.
    segment_length: L.
    read_layers: the numbers of the R blocks that read.
    values_mix: whether a slot is exactly a mixture of token values, so that sources and shares are exact. Otherwise they say
        what the rule's write attention, a summary, amounts to.
    memory: (S + 1, M, D) float16, the slots before the first segment and after each; cut off at ±65,504, float16's greatest number.
    write_attention: (S, M, 1 + L) float16; column 0 is keep, column 1 + t token t of the segment, 0 where the last segment has none.
    read_attention: (R, H, T, M) float16.
    moved: (S, M) float32, |after − before|, how far a segment moved a slot; 0 where, and only where, it left all of its numbers alone.
        (Keep does not show this: 0.9999 is 1 in float16.)
    source_tokens: (S + 1, M, K) int32, the tokens that a slot is most made of, strongest first; −1 where there are fewer than K.
    source_shares: (S + 1, M, K) float32, their shares.
    initial_share: (S + 1, M) float32, what is left of the slot before the first segment.
    rest_share: (S + 1, M) float32, all other tokens together: initial + Σ source + rest = 1, as nearly as the model's rows sum to 1.
    next_tokens: (T, 5) int32, the likeliest tokens after each position, likeliest first; fewer columns where V < 5.
    next_probabilities: (T, 5) float16.
    entropy: (T,) float32, of all V probabilities, in nats.
    next_words: for each number in `next_tokens` how it is shown.
    gradient: (S + 1, M) float32, |∂loss/∂slot| before the first segment and after each; None without labels.

    The methods raise `IndexError` for a slot that does not exist, and for more segments than were read.
    """

    tokens: list[str]
    segment_length: int
    read_layers: list[int]
    values_mix: bool
    memory: np.ndarray
    write_attention: np.ndarray
    read_attention: np.ndarray
    moved: np.ndarray
    source_tokens: np.ndarray
    source_shares: np.ndarray
    initial_share: np.ndarray
    rest_share: np.ndarray
    next_tokens: np.ndarray
    next_probabilities: np.ndarray
    entropy: np.ndarray
    next_words: dict[int, str]
    gradient: np.ndarray | None = None

    def __repr__(self) -> str:
        segments, slots = self.moved.shape
        return (
            f"<MemoryTrace: {len(self.tokens):,} tokens in {segments:,} segments, {slots} slots of width {self.memory.shape[2]}>"
        )

    def held(self, slot: int, after: int | None = None) -> list[tuple[int, float]]:
        """The strongest tokens of a slot after `after` segments (None: all): (number of the token, share), strongest first."""
        after = self._check(slot, after)
        found = self.source_tokens[after, slot] >= 0  # (K)
        return list(zip(self.source_tokens[after, slot][found].tolist(), self.source_shares[after, slot][found].tolist()))

    def unchanged_since(self, slot: int, after: int | None = None) -> int:
        """After how many segments the slot got the value that it has after `after` (None: all); 0 if it began with it.

        It has been unchanged for `after − unchanged_since(slot, after)` segments.
        """
        after = self._check(slot, after)
        changes = np.flatnonzero(self.moved[:after, slot])
        return int(changes[-1]) + 1 if len(changes) else 0

    def in_words(self, slot: int, after: int | None = None) -> str:
        """What a slot holds after `after` segments (None: all), in one sentence."""
        after = self._check(slot, after)
        parts = [(share, f"“{self.tokens[t]}” (segment {t // self.segment_length})") for t, share in self.held(slot, after)]
        parts.append((float(self.rest_share[after, slot]), "other tokens"))
        parts.append((float(self.initial_share[after, slot]), "its initial value"))
        parts.sort(key=lambda part: -part[0])
        says = [f"{percent(share)} {what}" for i, (share, what) in enumerate(parts) if i == 0 or share >= SHOWN_SHARE]
        since = self.unchanged_since(slot, after)
        if since < after:
            says.append(f"unchanged for {after - since:,} segment{'s' if after - since > 1 else ''}")
        elif after > 0:
            says.append(f"changed in segment {after - 1}")
        return f"slot {slot}{'' if self.values_mix else ', by its write attention'}: {', '.join(says)}"

    def _check(self, slot: int, after: int | None) -> int:
        segments, slots = self.moved.shape
        if not 0 <= slot < slots:
            raise IndexError(f"there is no slot {slot}: this trace has the slots 0 to {slots - 1}")
        if after is None:
            return segments
        if not 0 <= after <= segments:
            raise IndexError(f"`after` counts segments that have been read, 0 to {segments} in this trace, not {after}")
        return after

    def save(self, path: str | Path) -> None:
        """Save as safetensors: whole, or not at all. Raises `OSError` where the file cannot be written."""
        arrays, about = {}, {}
        for field in fields(self):
            value = getattr(self, field.name)
            (arrays if isinstance(value, np.ndarray) else about)[field.name] = value
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)  # in a header it could be too long
        tensors = {name: torch.tensor(array) for name, array in arrays.items()}  # copies: safetensors refuses shared storage
        storage.write(Path(path), tensors, {"format": TRACE_FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> "MemoryTrace":
        """A trace that `save` saved. Raises `FileNotFoundError`, and `ValueError` for a file that is no trace, or damaged."""
        tensors, _ = storage.read(Path(path), TRACE_FORMAT)
        about = json.loads(tensors.pop("about").numpy().tobytes())
        about["next_words"] = {int(number): word for number, word in about["next_words"].items()}  # JSON's keys are strings
        return cls(**about, **{name: tensor.numpy() for name, tensor in tensors.items()})


def trace(
    model,
    input_ids: Tensor,
    tokens: Sequence[str] | None = None,
    *,
    decode: Callable[[list[int]], str] | None = None,
    memory: Tensor | None = None,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    keep: int = 8,
) -> MemoryTrace:
    """Read one text and record what happens in the memory, segment by segment, without dropout.

    input_ids: (T,) or (1, T).
    tokens: T strings, as the text's tokens are to be shown; None asks `decode`.
    decode: turns a list of one token number into what is shown, as `ml.tasks.decode` and a tokenizer's `decode` do, for the text's
        tokens and for those that the model expects; None shows the numbers.
    memory: (1, M, D) to start from; None starts from `model.init_memory`.
    attention_mask: shaped like input_ids, 0 for padding, as `make_segments` puts it behind a part to fill its last segment; None:
        no padding.
    labels: shaped like input_ids; with them the gradient of the loss at every slot is recorded too, for a second reading.
    keep: K, how many tokens of a slot are recorded one by one.

    Raises `ValueError` for more than one text, a wrong number of tokens, padding in front of tokens (in a segment or in the
    text), or `keep` below 1; `TypeError` where something to be shown is not a string; and the model's errors.
    """
    input_ids, attention_mask, labels = (
        x[None] if isinstance(x, Tensor) and x.dim() == 1 else x for x in (input_ids, attention_mask, labels)
    )  # (1, T)
    model._check_inputs(input_ids, None, attention_mask, labels, None, None)
    if len(input_ids) != 1:
        raise ValueError(
            f"a trace is of one text, but there are {len(input_ids)}: pass input_ids[i], and the labels and memory of i"
        )
    if memory is not None:
        model._check_memory(memory, 1)
    if tokens is not None and len(tokens) != input_ids.size(1):
        raise ValueError(f"{len(tokens)} tokens were given for {input_ids.size(1)} positions: pass one string for each")
    if keep < 1:
        raise ValueError(f"keep, how many tokens of a slot are recorded, must be at least 1, not {keep}")
    input_ids = input_ids.to(model.device)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(model.device)  # (1, T)
    if not mask[0, 0] or any((part.diff() > 0).any() for part in mask.long().split(model.config.segment_length, dim=1)):
        raise ValueError(
            "padding stands in front of tokens, in a segment or in the text: a trace takes it behind them only, as `make_segments` puts it"
        )
    memory = model.init_memory(1) if memory is None else memory.to(model.device, model.dtype)  # (1, M, D)

    show = _Words(decode)
    tokens = [show[number] for number in input_ids[0].tolist()] if tokens is None else [_string(token) for token in tokens]
    gradient = None
    with in_mode(model, training=False):
        arrays = _read(model, input_ids, mask, memory, keep)
        if labels is not None:
            labels = labels.to(model.device)
            gradients = memory_gradients(
                model, input_ids, labels, memory, attention_mask=mask, memory_replay=True
            )  # (S + 1, 1, M, D)
            gradient = gradients[:, 0].cpu().double().norm(dim=-1).float().numpy()  # (S + 1, M)
    return MemoryTrace(
        tokens=tokens,
        segment_length=model.config.segment_length,
        read_layers=[i for i, block in enumerate(model.transformer.h) if block.reads],
        values_mix=model.update_rule.values_mix,
        next_words={number: show[number] for number in np.unique(arrays["next_tokens"]).tolist()},
        gradient=gradient,
        **arrays,
    )


@torch.no_grad()
def _read(model, input_ids: Tensor, mask: Tensor, memory: Tensor, keep: int) -> dict[str, np.ndarray]:
    """The arrays of a `MemoryTrace`, by their names. input_ids, mask: (1, T), memory: (1, M, D)."""
    length, T = model.config.segment_length, input_ids.size(1)
    S, K, (M, D) = -(-T // length), keep, memory.shape[1:]
    R, H, N = sum(block.reads for block in model.transformer.h), model.config.n_head, min(5, model.config.vocab_size)
    half, single = np.float16, np.float32
    arrays = {
        "memory": np.empty((S + 1, M, D), half),
        "write_attention": np.zeros((S, M, 1 + length), half),
        "read_attention": np.empty((R, H, T, M), half),
        "moved": np.empty((S, M), single),
        "source_tokens": np.empty((S + 1, M, K), np.int32),
        "source_shares": np.empty((S + 1, M, K), single),
        "initial_share": np.empty((S + 1, M), single),
        "rest_share": np.empty((S + 1, M), single),
        "next_tokens": np.empty((T, N), np.int32),
        "next_probabilities": np.empty((T, N), half),
        "entropy": np.empty(T, single),
    }
    sources = _Sources(M, K)
    sources.record(arrays, 0)
    before = _numbers(memory)  # (M, D)
    arrays["memory"][0] = before.clip(-HALF_MAX, HALF_MAX)
    for s, start in enumerate(range(0, T, length)):
        here = slice(start, min(start + length, T))
        out = model(input_ids[:, here], memory=memory, attention_mask=mask[:, here])
        memory = out.memory
        after, write = _numbers(memory), _numbers(out.write_attentions[0])  # (M, D), (M, 1 + l)
        arrays["memory"][s + 1] = after.clip(-HALF_MAX, HALF_MAX)
        arrays["write_attention"][s, :, : write.shape[1]] = write
        arrays["read_attention"][:, :, here] = _numbers(torch.stack(out.read_attentions, dim=1))  # (R, H, l, M)
        distance = np.linalg.norm(after - before, axis=-1)
        least = np.where((after != before).any(-1), np.finfo(single).tiny, 0)  # what moved is not rounded to 0
        arrays["moved"][s] = np.maximum(distance, least)
        sources.update(write, start)
        sources.record(arrays, s + 1)
        probabilities = out.logits[0].float().softmax(-1)  # (l, V)
        likeliest = probabilities.topk(N)  # (l, N)
        arrays["next_tokens"][here] = likeliest.indices.cpu()
        arrays["next_probabilities"][here] = likeliest.values.cpu()
        arrays["entropy"][here] = torch.special.entr(probabilities).sum(-1).cpu()
        before = after
    return arrays


class _Sources:
    """What M slots are made of: their K strongest tokens, the rest and the initial slot, which sum to 1. Cf. `memory.provenance`.

    A segment multiplies the shares of all the tokens that a slot has seen by the same number, keep, and adds its own tokens. So the
    order among the older ones stays as it was: of these, one that is not among the K strongest never will be, since the K that
    are ahead of it stay ahead. The K strongest after the segment are therefore among the K before it and the segment's own, and
    nothing is lost by carrying no more than K, however long the text.
    """

    def __init__(self, M: int, K: int):
        self.tokens = np.full((M, K), -1)
        self.shares = np.zeros((M, K))
        self.initial, self.rest = np.ones(M), np.zeros(M)

    def update(self, write: np.ndarray, start: int) -> None:
        """write: (M, 1 + l), the write attention of a segment whose first token is number `start`."""
        keep, taken = write[:, :1], write[:, 1:]  # (M, 1), (M, l)
        numbers = np.broadcast_to(start + np.arange(taken.shape[1]), taken.shape)  # (M, l)
        K = self.tokens.shape[1]
        tokens = np.concatenate([self.tokens, numbers], axis=1)  # (M, K + l)
        shares = np.concatenate([keep * self.shares, taken], axis=1)  # (M, K + l)
        order = (-shares).argsort(axis=1, kind="stable")  # (M, K + l): strongest first, of equal ones the older
        tokens, shares = np.take_along_axis(tokens, order, axis=1), np.take_along_axis(shares, order, axis=1)
        self.tokens, self.shares = tokens[:, :K], shares[:, :K]
        self.initial = keep[:, 0] * self.initial
        self.rest = keep[:, 0] * self.rest + shares[:, K:].sum(axis=1)

    def record(self, arrays: dict[str, np.ndarray], after: int) -> None:
        arrays["source_shares"][after] = self.shares
        arrays["source_tokens"][after] = np.where(arrays["source_shares"][after] > 0, self.tokens, -1)
        arrays["initial_share"][after], arrays["rest_share"][after] = self.initial, self.rest


class _Words(dict):
    """Token numbers and how they are shown, each decoded once."""

    def __init__(self, decode: Callable[[list[int]], str] | None):
        self.decode = decode

    def __missing__(self, number: int) -> str:
        self[number] = str(number) if self.decode is None else _string(self.decode([number]))
        return self[number]


def _string(token) -> str:
    if not isinstance(token, str):
        raise TypeError(f"tokens are shown as strings, but one is {token!r}: check `tokens`, or what `decode` returns")
    return token


def _numbers(x: Tensor) -> np.ndarray:
    """The only text of a batch, on the CPU, in double precision, which holds numbers of every other precision without loss."""
    return x[0].detach().cpu().double().numpy()


def percent(share: float) -> str:
    """A share, from 0 to 1, in words, which say 0% only for nothing at all and 100% only for everything."""
    return "over 99%" if 0.995 <= share < 1 else "under 1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"
