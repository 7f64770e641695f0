"""What was measured by programs that run longer than a notebook may: the scripts in `benchmarks/` write it, notebooks show it.

A measurement is a JSON file, one case on each line: what was varied, what came of it, and how long it took. A script that is
started again measures what is missing and adds it, so that a long one may be interrupted.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent


def load(name: str) -> list[dict]:
    """The cases of a measurement. Raises a `ValueError` that lists the names if no measurement has that name."""
    names = sorted(file.stem for file in FOLDER.glob("*.jsonl"))
    if name not in names:
        raise ValueError(f"there is no measurement {name!r}: choose one of {', '.join(names)}")
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]


def missing(name: str, cases: list[dict]) -> list[dict]:
    """The cases that have not been measured yet; each is given by what is varied in it."""
    done = load(name) if (FOLDER / f"{name}.jsonl").exists() else []
    return [case for case in cases if not any(case.items() <= other.items() for other in done)]


def add(name: str, case: dict) -> None:
    """Append a case."""
    with (FOLDER / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(case, ensure_ascii=False) + "\n")
