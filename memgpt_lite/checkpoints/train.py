"""Train the models that come with the package: `python -m memgpt_lite.checkpoints.train recall`.

The seeds are trained and measured in turn, and their results are added to the model's `results.json`; the weights of seed 0 are
kept. Runs side by side need an `--output` each: if two ended at once, one would be missing from a shared file. On another
processor or PyTorch version the last digits may differ.
"""

import argparse
from pathlib import Path

import torch

from .. import applications
from . import FOLDER
from .recalling import RECIPES
from .recipe import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*RECIPES, *applications.MODULE_OF])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="folder to write to (default: the package's own)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES.get(options.name) or applications.recipe(options.name)
    for seed in options.seeds:
        run(options.name, recipe, seed, options.output or FOLDER / options.name)


if __name__ == "__main__":
    main()
