"""A notebook's first line: the same numbers for everyone, one thread, and readable plots."""

import random

import matplotlib
import numpy as np
import torch
from transformers.utils import logging

from .viz.figures import STYLE


def setup(seed: int = 0, threads: int = 1) -> torch.device:
    """Seed Python, NumPy and PyTorch, limit PyTorch's threads, set the plot style, print this, and return a device for models.

    Models start on the processor, which suits models as small as ours. `model.to(device)` moves a model; training, generating,
    streaming and looking inside follow it.

    Transformers' progress bars are switched off: models this small load at once.
    threads: 1 is fastest for models as small as ours; with two on a busy machine a step took 36 times as long.
    None of this happens on `import memgpt_lite`.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    matplotlib.rcParams.update(STYLE)
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = "" if device.type == "cpu" else f" (`model.to('{device}')` uses the GPU)"
    print(f"seed {seed} · {threads} PyTorch thread{'s' * (threads > 1)} · plot style set · computing on cpu{gpu}")
    return device
