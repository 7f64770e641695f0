"""Train the models that come with the package: `python -m memgpt_lite.checkpoints.train recall`.

Each seed is trained and measured in its turn, and added to the model's `results.json`; the weights of seed 0 are kept. Runs of
different seeds may go on side by side. On another processor or PyTorch version the last digits may differ.
"""

import argparse
from pathlib import Path

import torch

from .. import applications, tasks
from ..model import MemGPT, MemGPTConfig
from ..training import train
from . import FOLDER
from .recipe import Recipe, Rows, Trained, run


def train_recall(seed: int) -> Trained:
    config = MemGPTConfig(
        vocab_size=len(tasks.VOCABULARY),
        segment_length=16,
        n_embd=64,
        n_layer=2,
        n_head=2,
        num_memory_slots=16,
        memory_init="learned",
    )
    model = MemGPT(config)
    history = train(model, tasks.AssociativeRecall.curriculum(4), steps=3000, batch_size=64, seed=seed)
    accuracy = history.recent_accuracy(20)
    return Trained(model, None, f"{len(history):,} steps of 64 documents, accuracy in the last 20 of them {accuracy:.4f}")


def evaluate_recall(model: MemGPT, tokenizer: None) -> Rows:
    rows = {}
    for segments in (4, 64, 2048):
        result = tasks.measure_recall(model, segments)
        row = {
            "questions": result.questions,
            "answered rightly, %": 100 * result.accuracy,
            "slots changed, %": 100 * result.slots_changed,
        }
        rows[f"{segments:,} segments, {16 * segments:,} tokens"] = row
    return rows


RECALL = Recipe(
    train_recall,
    evaluate_recall,
    about="A MemGPT that recalls facts: four names with their places in the first segment, noise, four questions in the last.",
    data=f"`memgpt_lite.tasks.AssociativeRecall`, made up as it trains; vocabulary of {len(tasks.VOCABULARY)} words; 1 to 4 segments. "
    "Measured on 1,024 documents from a seed that training does not use (`memgpt_lite.tasks.measure_recall`).",
    limits=f"anything else. It knows {len(tasks.VOCABULARY)} words, was never asked about more than four facts, and takes a second "
    "fact about the same name only as it comes.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["recall", *applications.MODULE_OF])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="folder to write to (default: the package's own)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECALL if options.name == "recall" else applications.recipe(options.name)
    for seed in options.seeds:
        run(options.name, recipe, seed, options.output or FOLDER / options.name)


if __name__ == "__main__":
    main()
