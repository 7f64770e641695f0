import random
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import memgpt_lite as ml
from memgpt_lite.viz.figures import STYLE

ROOT = Path(__file__).parent.parent


def test_importing_sets_nothing():
    script = """
import random, signal
import matplotlib, numpy as np, torch, transformers

def state():
    return (
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
        np.random.get_state()[2], dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False), torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(), transformers.utils.logging.is_progress_bar_enabled(),
        transformers.utils.logging.get_verbosity(), np.get_printoptions(), signal.getsignal(signal.SIGINT), torch.is_grad_enabled(),
    )

torch.set_num_threads(2)
before = state()
import memgpt_lite
after = state()
print([i for i, (a, b) in enumerate(zip(before, after)) if a != b])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture
def clean():
    """What setup sets, put back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update(matplotlib.rcParamsDefault)
        yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("threads", [1, 2])
def test_setup_sets_threads_seeds_and_style_and_says_so(clean, capsys, threads):
    device = ml.setup(seed=7, threads=threads)
    said = capsys.readouterr().out
    assert torch.get_num_threads() == threads
    assert all(matplotlib.rcParams[name] == value for name, value in STYLE.items() if name != "axes.prop_cycle")
    assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][0] == "#0072B2"
    assert matplotlib.rcParams["axes.spines.top"] is False
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    word = "thread " if threads == 1 else "threads "
    assert f"seed 7 · {threads} PyTorch {word}" in said and "plot style" in said and device.type in said


def test_the_same_seed_gives_the_same_numbers(clean, capsys):
    def numbers(seed):
        ml.setup(seed)
        config = ml.MemGPTConfig(vocab_size=9, segment_length=4, n_embd=8, n_layer=1, n_head=2)
        out = ml.MemGPT(config)(torch.randint(0, 9, (2, 6)))
        return random.random(), np.random.rand(), out.logits

    first, again, other = numbers(1), numbers(1), numbers(2)
    assert first[:2] == again[:2] and torch.equal(first[2], again[2])
    assert first[0] != other[0] and first[1] != other[1] and not torch.equal(first[2], other[2])


def test_everything_public_is_there():
    assert all(hasattr(ml, name) for name in ml.__all__) and ml.__all__ == sorted(ml.__all__)
    assert ml.__version__.count(".") == 2
