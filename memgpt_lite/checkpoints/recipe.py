"""What a trained model comes from, and what was measured on it: a recipe, its results over several seeds, its card."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from .. import storage

Rows = dict[str, dict[str, float]]  # row → metric → value, such as {"memory": {"exact match": 0.999}}


class Trained(NamedTuple):
    """A model, its tokenizer (None: it reads token numbers of its own), and in a few words how long it was trained."""

    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerFast | None
    training: str


@dataclass(frozen=True)
class Recipe:
    """How a model that comes with the package is made, measured and described.

    train: seed → what was trained. evaluate: model, tokenizer → what was measured on texts that training did not see, row by row.
    about, data, limits: sentences for the card. licence: of the texts, which governs what may be done with the weights.
    """

    train: Callable[[int], Trained]
    evaluate: Callable[..., Rows]
    about: str
    data: str
    limits: str
    licence: str = "MIT, as the package"


class Results(dict):
    """row → metric → one value for each seed. A notebook shows it as a table: the mean, the lowest and the highest."""

    def __init__(self, by_seed: dict[str, dict]):
        self.seeds = sorted(by_seed, key=int)
        runs = [by_seed[seed]["rows"] for seed in self.seeds]
        super().__init__({row: {name: [run[row][name] for run in runs] for name in runs[0][row]} for row in runs[0]})

    def _repr_markdown_(self) -> str:
        metrics = list(dict.fromkeys(name for row in self.values() for name in row))
        lines = [f"| case | {' | '.join(metrics)} |", "| --- |" + " ---: |" * len(metrics)]
        for row, values in self.items():
            cells = [spread(values[name]) if name in values else "" for name in metrics]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        says = f"Mean of {len(self.seeds)} seeds; in brackets the lowest and the highest." if len(self.seeds) > 1 else "One seed."
        return "\n".join([*lines, "", says])

    __repr__ = _repr_markdown_


def spread(values: list[float]) -> str:
    """Mean, lowest and highest, to four digits: `0.9123 (0.9051 to 0.9204)`; one number where all are equal."""
    shown = [f"{value:.4g}" for value in (statistics.fmean(values), min(values), max(values))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def run(name: str, recipe: Recipe, seed: int, folder: Path) -> None:
    """Train and measure with one seed, and add the results to `results.json`; keep the weights and tokenizer of seed 0 too."""
    torch.manual_seed(seed)
    began = time.process_time()
    trained = recipe.train(seed)
    seconds = time.process_time() - began
    model = trained.model.eval()
    rows = recipe.evaluate(model, trained.tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    if seed == 0:
        model.save_pretrained(folder)
        if trained.tokenizer is not None:
            trained.tokenizer.save_pretrained(folder)
    file = folder / "results.json"
    by_seed = json.loads(file.read_text("utf-8"))["seeds"] if file.exists() else {}
    by_seed[str(seed)] = {
        "seconds": round(seconds),
        "training": trained.training,
        "versions": f"PyTorch {torch.__version__}, Transformers {transformers.__version__}, Python {platform.python_version()}",
        "rows": rows,
    }
    results = {
        "command": f"python -m memgpt_lite.checkpoints.train {name} --seeds {' '.join(sorted(by_seed, key=int))}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "seeds": dict(sorted(by_seed.items(), key=lambda entry: int(entry[0]))),
    }
    storage.write_text(file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    storage.write_text(folder / "README.md", card(name, recipe, results, model.config))


def card(name: str, recipe: Recipe, results: dict, config) -> str:
    """The card of a model, in Markdown."""
    runs = results["seeds"]
    seconds = ", ".join(f"{run['seconds']:,}" for run in runs.values())
    versions = "; ".join(dict.fromkeys(run["versions"] for run in runs.values()))  # in the order of the seeds
    return f"""# {name}

{recipe.about}

- **Model:** {results["parameters"]:,} parameters; {config.n_layer} blocks of width {config.n_embd}, {config.n_head} heads,
  {config.num_memory_slots} slots, segments of {config.segment_length} tokens, {config.vocab_size:,} tokens, update rule `{config.update_rule}`.
- **Data:** {recipe.data}
- **Training:** `{results["command"]}`: {next(iter(runs.values()))["training"]};
  {seconds} s of processor time on one core, seed{"s" * (len(runs) > 1)} {", ".join(runs)} ({versions}). The weights are those of seed 0.
- **Results** on texts that training did not see:

{Results(runs)}

- **What it cannot do:** {recipe.limits}
- **Licence:** {recipe.licence}.
"""
