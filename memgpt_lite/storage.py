"""Files written whole or not at all: beside the old file, then moved into its place. Safetensors with a checksum, and text."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def digest(tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> str:
    """SHA-256 of tensors, their names, types and shapes, and of a header."""
    result = hashlib.sha256(json.dumps(header or {}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        result.update(flat.view(torch.uint8).numpy())
    return result.hexdigest()


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors and header with their checksum. A reader finds the old file or the new one, whatever interrupts this.

    Raises `OSError` where the disk is full or the path is a folder.
    """
    _no_folder(path)
    header = header | {"sha256": digest(tensors, header)}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    _remove(beside)  # from a run that was killed
    beside.mkdir()  # a folder, since safetensors writes to a file of a random name first, which a kill would leave behind
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside / path.name, metadata=header)
        _to_disk(beside / path.name)
        os.replace(beside / path.name, path)
    except SafetensorError as error:
        raise OSError(f"{path} was not written ({error}), an earlier one is untouched: free some space, then go on") from None
    finally:
        _remove(beside)
    with contextlib.suppress(OSError):  # Windows cannot open a folder, and some network drives cannot do this
        _to_disk(path.parent)  # the move as well, or a power cut might undo it


def write_text(path: Path, text: str) -> None:
    """Write a text, in UTF-8. A reader finds the old file or the new one, whatever interrupts this."""
    beside = path.with_name(path.name + ".writing")
    try:
        beside.write_text(text, "utf-8")
        _to_disk(beside)
        os.replace(beside, path)
    finally:
        _remove(beside)


def read(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file that `write` wrote with `header["format"] == form`.

    Raises `FileNotFoundError`, and `ValueError` for a file that is of another format, cut short or changed.
    """
    _no_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Copies: a file's tensors lie at any address, and this can change the last bits of what is computed from a tensor.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): take an earlier copy") from None
    if header.get("format") != form:
        raise ValueError(f"{path} is a safetensors file, but no {form} (its format: {header.get('format')!r})")
    if header.pop("sha256", None) != digest(tensors, header):
        raise ValueError(f"{path} is damaged, its checksum does not match: take an earlier copy")
    return tensors, header


def _no_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until the disk has the file, or the folder's list of files."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
