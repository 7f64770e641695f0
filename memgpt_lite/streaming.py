"""How does a model read a text that never fits in memory?

A segment at a time, from an iterator. Between two segments all there is to keep is the memory, M × D numbers, and how many
tokens have been read: with these two the reading goes on tomorrow, on another machine, as if it had never stopped.

    for segment in ml.stream(model, tokens):                # tokens: any iterator of token numbers
        ml.save_memory("reading.safetensors", segment.memory, model, tokens_read=segment.tokens_read)

    saved = ml.load_memory("reading.safetensors", model)
    for segment in ml.stream(model, tokens, saved.memory, skip=saved.notes["tokens_read"]): …
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from . import storage

MEMORY_FORMAT = "memgpt_lite memory, version 1"


class StreamedSegment(NamedTuple):
    """What `stream` yields for each segment.

    input_ids: (B, L); logits: (B, L, V), of the token after each; memory: (B, M, D), after the segment; write_attention:
    (B, M, 1 + L); tokens_read: of each text so far, those of earlier sessions among them.
    """

    input_ids: Tensor
    logits: Tensor
    memory: Tensor
    write_attention: Tensor
    tokens_read: int


@torch.no_grad()
def stream(
    model, tokens: Iterable[int] | Iterable[Sequence[int]], memory: Tensor | None = None, *, skip: int = 0
) -> Iterator[StreamedSegment]:
    """Read a text of any length from an iterator, in the space of one segment.

    tokens: token numbers, one after the other; or, for B texts side by side, B of them at a time.
    memory: (B, M, D) to start from; None starts from `model.init_memory`.
    skip: how many of the tokens were read before, and are passed over. Resume at a `tokens_read` that is a multiple of the segment
        length, as all are but that of a text's last segment: then what follows is what an uninterrupted reading gives, bit for bit.

    Raises `ValueError` for a `skip` that is negative, or without the memory that goes with it.
    """
    if skip < 0 or (skip and memory is None):
        raise ValueError(
            f"skip={skip} tokens were read before: pass the memory that they left, and a number that is not negative"
        )
    tokens = itertools.islice(iter(tokens), skip, None)
    while segment := list(itertools.islice(tokens, model.config.segment_length)):
        input_ids = torch.as_tensor(segment, device=model.device).view(len(segment), -1).T  # (B, L)
        out = model(input_ids, memory=memory)
        memory, skip = out.memory, skip + len(segment)
        yield StreamedSegment(input_ids, out.logits, memory, out.write_attentions[0], skip)


class SavedMemory(NamedTuple):
    """memory: (B, M, D); notes: what was saved with it."""

    memory: Tensor
    notes: dict[str, Any]


def save_memory(path: str | Path, memory: Tensor, model, **notes) -> None:
    """Save a memory (B, M, D), the model it belongs to by its checksum, and notes (numbers, texts, lists), as safetensors.

    The file is written whole or not at all, and replaces what was there.

    Raises `ValueError` for a memory that is not one of this model's.
    """
    model._check_memory(memory, len(memory))
    header = {"format": MEMORY_FORMAT, "model": _fingerprint(model), "notes": json.dumps(notes)}
    storage.write(Path(path), {"memory": memory.detach()}, header)


def inspect_memory(path: str | Path) -> dict[str, Any]:
    """What a memory's file says of itself, without loading it: shape (B, M, D), dtype, its model's checksum, and the notes."""
    with safe_open(path, framework="pt") as file:
        header, memory = file.metadata(), file.get_slice("memory")
        notes = json.loads(header["notes"])
        return {"shape": tuple(memory.get_shape()), "dtype": memory.get_dtype(), "model": header["model"], "notes": notes}


def load_memory(path: str | Path, model) -> SavedMemory:
    """A memory that `save_memory` saved, on the model's device, and its notes.

    Raises `ValueError` for a file that is no such memory, or damaged, or that another model wrote: its slots would mean nothing.
    """
    tensors, header = storage.read(Path(path), MEMORY_FORMAT)
    if header["model"] != _fingerprint(model):
        raise ValueError(f"{path} was written by a model with other parameters, to which its slots mean something else")
    return SavedMemory(tensors["memory"].to(model.device), json.loads(header["notes"]))


def _fingerprint(model) -> str:
    return storage.digest(dict(model.named_parameters()))
