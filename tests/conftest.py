"""What all tests share: one thread, a seed, a tiny model, and a slow sparsemax that is written straight from its definition."""

import os
import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import settings
from playwright.sync_api import sync_playwright

import memgpt_lite as ml

settings.register_profile("memgpt_lite", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("memgpt_lite")


@pytest.fixture(autouse=True)
def _seeded_on_one_thread():
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def recall():
    """The trained model that comes with the package. Nobody may change it."""
    return ml.load_pretrained("recall")


@pytest.fixture(scope="session")
def tiny():
    """`tiny(**settings)`: a small model in which every parameter is random, the biases too, so that none can be forgotten."""

    def build(dtype=torch.float32, seed=0, **options):
        small = {"vocab_size": 11, "segment_length": 4, "n_embd": 8, "n_layer": 2, "n_head": 2, "num_memory_slots": 3}
        model = ml.MemGPT(ml.MemGPTConfig(**{**small, **options}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.3, generator=generator)
        return model.to(dtype).eval()

    return build


def _project(scores: list[float]) -> list[float]:
    """The nearest point of the simplex: max(z − τ, 0), with the τ that makes it sum to 1 found by halving an interval."""
    finite = [z for z in scores if z != -float("inf")]
    low, high = min(finite) - 1.0, max(finite)
    for _ in range(200):
        middle = (low + high) / 2
        if sum(max(z - middle, 0.0) for z in finite) > 1:
            low = middle
        else:
            high = middle
    return [max(z - high, 0.0) if z != -float("inf") else 0.0 for z in scores]


@pytest.fixture(scope="session")
def project():
    return _project


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright. Without one the test is skipped, but fails under CI=true."""
    names = ("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as engine:
        found = next(filter(None, map(shutil.which, names)), None) or engine.chromium.executable_path
        if not os.path.exists(found):
            message = "no browser: install one with `apt-get install -y chromium` or `python -m playwright install chromium`"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        quiet = "--disable-component-update --disable-sync"
        chromium = engine.chromium.launch(executable_path=found, args=f"{flags} {quiet}".split())
        yield chromium
        chromium.close()
