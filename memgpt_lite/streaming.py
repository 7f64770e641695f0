"""How does a model read a text that never fits in memory?

A segment at a time, from an iterator. Between two segments only two things have to be kept: the memory, M × D numbers, and how
many tokens have been read. With these the reading can go on tomorrow, on another machine, as if it had never stopped.

    for segment in ml.stream(model, tokens):                # tokens: any iterator of token numbers
        if segment.tokens_read % 6_400 == 0:
            ml.save_memory("reading.safetensors", segment.memory, model, tokens_read=segment.tokens_read)

    saved = ml.load_memory("reading.safetensors", model)
    for segment in ml.stream(model, tokens, saved.memory, skip=saved.notes["tokens_read"]): …

And if you want only the memory at the end, does a segment have to wait for the one before it? Not as long as nothing is written:
`read_ahead` reads many segments at once.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import storage

MEMORY_FORMAT = "memgpt_lite memory, version 1"


class StreamedSegment(NamedTuple):
    """What `stream` yields for each segment.

    input_ids: (B, L); logits: (B, L, V), of the token after each; memory: (B, M, D), after the segment; write_attention:
    (B, M, 1 + L); tokens_read: how many of each text have been read so far, in earlier sessions too.
    """

    input_ids: Tensor
    logits: Tensor
    memory: Tensor
    write_attention: Tensor
    tokens_read: int


def stream(
    model, tokens: Iterable[int] | Iterable[Sequence[int]], memory: Tensor | None = None, *, skip: int = 0
) -> Iterator[StreamedSegment]:
    """Read a text of any length from an iterator, in the space of one segment.

    tokens: token numbers, one after the other; or, for B texts side by side, B of them at a time, (T, B). No more of them are taken
        than the segment at hand needs.
    memory: (B, M, D) to start from; None starts from `model.init_memory`.
    skip: how many of the tokens were read before; these are passed over. Resume at a `tokens_read` that is a multiple of the
        segment length, as it is after every segment but a text's last: then what follows is what an uninterrupted reading gives,
        bit for bit. At any other number, what follows begins a new segment.

    No gradient is kept. The model reads in the mode that it is in: call `model.eval()` first where it has dropout.

    Raises `ValueError` for a `skip` that is negative, comes without its memory, or is more than the text has tokens; and the
    model's errors, with the numbers of the tokens in which they occurred (the text's first is 0).
    """
    if skip < 0 or (skip and memory is None):
        raise ValueError(
            f"skip={skip} tokens were read before: pass the memory that they left, and a number that is not negative"
        )
    if isinstance(tokens, Tensor):
        tokens = tokens.cpu().numpy()  # an iterator over a tensor makes small tensors of all of it first
    return _segments(model, iter(tokens), memory, skip)


@torch.no_grad()
def _segments(model, tokens: Iterator, memory: Tensor | None, skip: int) -> Iterator[StreamedSegment]:
    read = sum(1 for _ in itertools.islice(tokens, skip))
    if read < skip:
        raise ValueError(f"skip={skip} tokens were read before, but there are {read}: pass the same text, from its beginning")
    while segment := list(itertools.islice(tokens, model.config.segment_length)):
        try:
            input_ids = _input_ids(segment).to(model.device)  # (B, L)
            out = model(input_ids, memory=memory)
        except (TypeError, ValueError) as error:
            raise type(error)(f"in tokens {read} to {read + len(segment) - 1}: {error}") from error
        memory, read = out.memory, read + len(segment)
        yield StreamedSegment(input_ids, out.logits, memory, out.write_attentions[0], read)


class ReadAhead(NamedTuple):
    """What `read_ahead` returns. memory: (B, M, D), after the text; written: (B, S), True where a segment changed a slot."""

    memory: Tensor
    written: Tensor


@torch.no_grad()
def read_ahead(model, input_ids: Tensor, memory: Tensor | None = None, *, ahead: int = 256) -> ReadAhead:
    """The memory after a text, whose segments are read side by side for as long as nothing is written.

    All that a segment needs of those before it is what they left in the memory. Up to `ahead` segments are read at once, as if
    none of them wrote anything. Up to and including the first that does write, this was right, and the result stands; those after
    it are read again, with the memory that it left. Sparsemax makes this worthwhile: a slot that keeps is unchanged bit for bit.
    A rule that changes every slot a little in every segment gains nothing. (Guessing, then checking all guesses at once:
    speculative decoding, Leviathan et al. 2023, arXiv:2211.17192.)

    input_ids: (B, T); memory: (B, M, D) to start from, None is `model.init_memory`. The result is what
    `model(input_ids, memory).memory` is, up to rounding: a matrix product of many segments may be rounded differently from one
    of a single segment. No gradient is kept, and the model reads in the mode that it is in.

    Raises `ValueError` where `ahead` is below 1, and what `MemGPT.forward` raises.
    """
    if ahead < 1:
        raise ValueError(f"ahead must be at least 1 segment, not {ahead}")
    model._check_inputs(input_ids, memory, None, None, None, None)
    length = model.config.segment_length
    memory = model.init_memory(len(input_ids)) if memory is None else memory
    whole = input_ids[:, : input_ids.size(1) // length * length].unflatten(1, (-1, length))  # (B, S, L)
    slots, written = [], []
    for segments, m in zip(whole, memory):  # (S, L), (M, D)
        changes, at, together = [], 0, ahead
        while at < len(segments):
            guess = segments[at : at + together]  # (N, L)
            after = model(guess, memory=m.expand(len(guess), -1, -1), output_attentions=False).memory  # (N, M, D)
            changed = (after != m).flatten(1).any(-1)  # (N)
            first = int(changed.long().argmax()) if changed.any() else len(guess) - 1  # the last one read with the right memory
            m, at = after[first], at + first + 1
            changes.append(changed[: first + 1])
            together = 1 if changed.any() else min(2 * together, ahead)
        slots.append(m)
        written.append(torch.cat(changes) if changes else memory.new_zeros(0, dtype=torch.bool))
    before, rest = torch.stack(slots), input_ids[:, whole.size(1) * length :]
    if not rest.size(1):
        return ReadAhead(before, torch.stack(written))
    after = model(rest, memory=before, output_attentions=False).memory
    return ReadAhead(after, torch.cat([torch.stack(written), (after != before).flatten(1).any(-1, keepdim=True)], dim=1))


def _input_ids(segment: list) -> Tensor:
    """L token numbers, or L times B of them → (B, L)."""
    columns = [torch.as_tensor(token) for token in segment]  # each () or (B)
    if len({column.shape for column in columns}) > 1:
        raise ValueError(f"the number of texts differs between positions: shapes {[tuple(column.shape) for column in columns]}")
    input_ids = torch.atleast_2d(torch.stack(columns, dim=-1))  # (B, L)
    return input_ids if input_ids.is_floating_point() else input_ids.long()  # files of tokens often hold uint16


class SavedMemory(NamedTuple):
    """memory: (B, M, D); notes: what was saved with it."""

    memory: Tensor
    notes: dict[str, Any]


def save_memory(path: str | Path, memory: Tensor, model, **notes) -> None:
    """Save a memory (B, M, D), the checksum of the model it belongs to, and notes, as safetensors.

    notes: numbers, texts, lists and dictionaries, which come back as JSON has them (a tuple as a list).

    The file is written whole or not at all, and replaces what was there.

    Raises `ValueError` for a memory that does not fit this model, `FloatingPointError` for one with NaN or infinity in it,
    `TypeError` for notes that JSON cannot hold, and `OSError` where the file cannot be written. What was there is then kept.
    """
    model._check_memory(memory, _batch_size(memory))
    if not torch.isfinite(memory).all():
        raise FloatingPointError(f"NaN or infinity is in the memory: {path} was left as it was, go on from an earlier memory")
    try:
        notes = json.dumps(notes)
    except (TypeError, ValueError) as error:
        raise TypeError(f"notes may hold what JSON can, numbers, texts, lists and dictionaries of these: {error}") from None
    header = {"format": MEMORY_FORMAT, "model": _fingerprint(model), "notes": notes}
    storage.write(Path(path), {"memory": memory.detach()}, header)


def inspect_memory(path: str | Path) -> dict[str, Any]:
    """What a memory's file holds, without its model: shape (B, M, D), dtype, the model's checksum, and the notes.

    Raises `FileNotFoundError`, and `ValueError` for a file that is no memory, or damaged.
    """
    memory, header = _read(path)
    return {"shape": tuple(memory.shape), "dtype": memory.dtype, "model": header["model"], "notes": json.loads(header["notes"])}


def load_memory(path: str | Path, model) -> SavedMemory:
    """A memory that `save_memory` saved, on the model's device, and its notes.

    Raises `FileNotFoundError`, and `ValueError` for a file that is no memory, or damaged, or that another model wrote: its slots
    would mean nothing.
    """
    memory, header = _read(path)
    if header["model"] != _fingerprint(model):
        raise ValueError(f"{path} was written by a model with other parameters, to which its slots mean something else")
    model._check_memory(memory, _batch_size(memory))  # the number of slots is no parameter
    return SavedMemory(memory.to(model.device), json.loads(header["notes"]))


def _read(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    tensors, header = storage.read(Path(path), MEMORY_FORMAT)
    return tensors["memory"], header


def _batch_size(memory: Tensor) -> int:
    return len(memory) if getattr(memory, "ndim", 0) else 1  # the model refuses what is no memory at all


def _fingerprint(model) -> str:
    return storage.digest(dict(model.named_parameters()))
