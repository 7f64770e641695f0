"""Real, freely licensed texts, which load without a network. `README.md` beside this file has each one's origin and licence."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent
KINDS = (".txt", ".tsv", ".jsonl", ".tiktoken")


def path(name: str) -> Path:
    """The path of a data file. Raises a `ValueError` that lists the files if none has that name."""
    file = FOLDER / name
    if file.suffix not in KINDS or not file.is_file():
        names = sorted(f.name for f in FOLDER.iterdir() if f.suffix in KINDS)
        raise ValueError(f"there is no data file {name!r}: choose one of {', '.join(names)}")
    return file


def load_text(name: str) -> str:
    """A whole text, such as `load_text("pride_and_prejudice.txt")`."""
    return path(name).read_text("utf-8")


def load_table(name: str) -> list[tuple[str, ...]]:
    """The rows of a tab-separated file, such as `load_table("kjv_web_narrative.tsv")`."""
    return [tuple(line.split("\t")) for line in load_text(name).splitlines()]


def load_records(name: str) -> list[dict]:
    """The records of a JSON file, one on each line, such as `load_records("python_docstrings.jsonl")`."""
    return [json.loads(line) for line in load_text(name).splitlines()]
