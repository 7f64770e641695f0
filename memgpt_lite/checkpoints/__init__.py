"""Small trained models that come with the package, each in a folder with a card (README.md): data, seed, time, results."""

from pathlib import Path

from ..model import MemGPT

FOLDER = Path(__file__).parent


def load_pretrained(name: str) -> MemGPT:
    """A trained model, ready to use (dropout off). `python -m memgpt_lite.checkpoints.train NAME` trains it again.

    Raises `ValueError` that lists the names when there is none of that name.
    """
    names = sorted(folder.name for folder in FOLDER.iterdir() if (folder / "model.safetensors").is_file())
    if name not in names:
        raise ValueError(f"there is no trained model {name!r}: choose one of {', '.join(names)}")
    return MemGPT.from_pretrained(FOLDER / name).eval()
