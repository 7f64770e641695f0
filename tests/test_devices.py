"""A model may be moved: what follows it computes where it is, and gives the same. See elsewhere.py for the device that is pretended here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICES = ["elsewhere", *(["cuda"] if torch.cuda.is_available() else [])]  # a GPU has to do the same, where there is one
JOBS = [
    *(f"train, {rule}" for rule in ("keep", "keep_softmax", "gated", "erase_add", "delta", "fifo")),
    "train, memory replayed", "train, taught", "initialise", "generate", "stream", "look into", "laboratory", "measure",
    "text generation", "translation", "semantic matching", "summarising", "question answering",
]  # fmt: skip


@pytest.fixture(scope="module", params=DEVICES)
def printed(request):
    """What elsewhere.py printed of a device, run in a process of its own."""
    script = Path(__file__).with_name("elsewhere.py")
    run = subprocess.run([sys.executable, script, "--device", request.param], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_pretended_device_is_as_strict_as_a_real_one(printed):
    assert printed["refused"] == {"adding": True, "writing into": True, "drawing": True, "NumPy": True}


def test_nothing_is_left_out(printed):
    assert list(printed["jobs"]) == JOBS


@pytest.mark.parametrize("job", JOBS)
def test_everything_follows_the_model_to_its_device(printed, job):
    assert printed["jobs"][job] == ""
