"""Small trained models that come with the package, each in a folder with a card (README.md): data, split, seeds, time, results."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ..model import MemGPT
from .recipe import Results

FOLDER = Path(__file__).parent


def load_pretrained(name: str) -> MemGPT:
    """A trained model, ready to use (dropout off). `python -m memgpt_lite.checkpoints.train NAME` trains it again.

    Raises a `ValueError` that lists the names if no model has that name.
    """
    return MemGPT.from_pretrained(_folder(name, "model.safetensors")).eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer that a model was trained with. Raises a `ValueError` that lists the models that have one if this has none."""
    return PreTrainedTokenizerFast.from_pretrained(_folder(name, "tokenizer.json"))


def load_results(name: str) -> Results:
    """What was measured over several seeds: row → metric → a value for each seed. Raises a `ValueError` that lists the names."""
    return Results(json.loads((_folder(name, "results.json") / "results.json").read_text("utf-8"))["seeds"])


def _folder(name: str, needed: str) -> Path:
    names = sorted(file.parent.name for file in FOLDER.glob(f"*/{needed}"))
    if name not in names:
        raise ValueError(f"there is no trained model {name!r} with {needed}: choose one of {', '.join(names)}")
    return FOLDER / name
