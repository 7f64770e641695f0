"""Train the models that come with the package: `python -m memgpt_lite.checkpoints.train recall`.

Writes the model and its card into its folder. On another processor or PyTorch version the last digits may differ.
"""

import argparse
import platform
import time
from pathlib import Path

import torch
import transformers

from ..model import MemGPT, MemGPTConfig
from ..tasks import VOCABULARY, AssociativeRecall, measure_recall
from ..training import train
from . import FOLDER


def train_recall(folder: Path, seed: int) -> None:
    """Easy recall: four facts, noise, four questions; at most `max_segments` segments in training."""
    steps, batch_size, max_segments = 3000, 64, 4
    torch.manual_seed(seed)
    config = MemGPTConfig(
        vocab_size=len(VOCABULARY), segment_length=16, n_embd=64, n_layer=2, n_head=2, num_memory_slots=16, memory_init="learned"
    )
    model = MemGPT(config)
    began = time.process_time()
    history = train(model, AssociativeRecall.curriculum(max_segments), steps=steps, batch_size=batch_size, seed=seed)
    seconds = time.process_time() - began
    model.eval().save_pretrained(folder)
    rows = []
    for segments in (4, 64, 2048):
        result = measure_recall(model, segments)
        rows.append(
            f"| {segments:,} | {16 * segments:,} | {result.accuracy:.4%} of {result.questions:,} | {result.slots_changed:.2%} |"
        )
        print(rows[-1])
    card = f"""# recall

A MemGPT that recalls facts: four names with their places in the first segment, noise, four questions in the last.

- **Model:** {sum(p.numel() for p in model.parameters()):,} parameters; {config.n_layer} blocks of width {config.n_embd}, {config.n_head} heads,
  {config.num_memory_slots} slots, segments of {config.segment_length} tokens, update rule `{config.update_rule}`.
- **Data:** `memgpt_lite.tasks.AssociativeRecall`, made up as it trains; vocabulary of {len(VOCABULARY)} words; 1 to {max_segments} segments.
- **Training:** `python -m memgpt_lite.checkpoints.train recall --seed {seed}`: {steps:,} steps of {batch_size} documents, {seconds:.0f} s on one core
  (PyTorch {torch.__version__}, Transformers {transformers.__version__}, Python {platform.python_version()}).
  Mean accuracy of the last 20 training batches: {history.recent_accuracy(20):.4f}.
- **Results** on 1,024 documents from a seed that training does not use (`memgpt_lite.tasks.measure_recall`):

| segments | tokens | questions answered rightly | slots changed by the noise |
| --- | --- | --- | --- |
{chr(10).join(rows)}

- **What it cannot do:** anything else. It knows {len(VOCABULARY)} words, was never asked about more than four facts, and takes a
  second fact about the same name only as it comes.
- **Licence:** MIT, as the package.
"""
    (folder / "README.md").write_text(card, encoding="utf-8")


TRAINERS = {"recall": train_recall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TRAINERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder to write to (default: the package's own)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    TRAINERS[options.name](options.output or FOLDER / options.name, options.seed)


if __name__ == "__main__":
    main()
