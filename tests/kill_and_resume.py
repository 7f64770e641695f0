"""Does a training run that is killed again and again, and resumed each time, end with the same bits?

    python tests/kill_and_resume.py                         # 50 kills
    python tests/kill_and_resume.py --kills 500 --seed 1    # more of them, at other moments

A small model with random slots and dropout, so that the model draws random numbers itself, learns through three stages; every
step writes a checkpoint. One run is left alone. Another is killed (SIGKILL) at random moments, half of them chosen such that a
checkpoint is being written, and is started again each time as a new process would be. At its end its checkpoint must hold
the tensors (parameters, optimizer, random numbers) and the header (history, stage, settings) of the undisturbed one, bit for bit.

When a kill comes and when it is too late depends on the machine; whether the bits are the same must not. A run that reaches its
end before all the kills were made is compared, and another one started. The exit status is 0 if all were the same.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

import memgpt_lite as ml
from memgpt_lite.tasks import Copy

STAGES = [Copy(2, 1, 4), Copy(2, 2, 4), Copy(3, 3, 4)]


def train_in_a_new_process(file: Path, steps: int) -> int:
    """Begin the run, or resume it where its checkpoint exists; returns the process's number at once.

    The process is a copy of this one, which has imported everything and computed nothing: that saves seconds for each kill.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            ml.setup(seed=0)
        config = ml.MemGPTConfig(
            vocab_size=66, segment_length=4, n_embd=32, n_layer=2, n_head=2, num_memory_slots=4,
            memory_init="normal", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
        )  # fmt: skip
        ml.train(
            ml.MemGPT(config), STAGES, steps=steps, batch_size=4, promote_at=0.0, window=steps // 3,
            checkpoint=file, checkpoint_every=1, resume=file.exists(), progress=False,
        )  # fmt: skip
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def ended(child: int, patience: float) -> bool:
    """Wait that many seconds for the process. True when it has ended well, False when it still runs; an error if it failed."""
    until = time.monotonic() + patience
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid and status:
            raise RuntimeError(f"the training ended with status {os.waitstatus_to_exitcode(status)}, its error is above")
        if pid or time.monotonic() >= until:
            return bool(pid)
        time.sleep(0.0002)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def run_to_the_end(file: Path, steps: int) -> None:
    child = train_in_a_new_process(file, steps)
    if not ended(child, patience=120):
        kill(child)
        raise RuntimeError("the training did not end within 120 seconds")


def read(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(file, framework="pt") as checkpoint:
        return checkpoint.metadata(), {name: checkpoint.get_tensor(name) for name in checkpoint.keys()}  # noqa: SIM118


def differences(one: Path, other: Path) -> list[str]:
    """The names of the header's entries and of the tensors in which two checkpoints differ, by a single bit even."""
    (header, tensors), (other_header, other_tensors) = read(one), read(other)
    bits = [
        {name: (t.dtype, t.shape, t.flatten().view(torch.uint8).tolist()) for name, t in some.items()}
        for some in (tensors, other_tensors)
    ]
    return [
        name
        for here, there in ((header, other_header), bits)
        for name in sorted(here.keys() | there.keys())
        if name not in here or name not in there or here[name] != there[name]
    ]


def steps_in(file: Path) -> int:
    return len(json.loads(read(file)[0]["history"])["loss"]) if file.exists() else 0


def identity(folder: Path) -> tuple[int, int] | None:
    """What differs between two folders of the same name; None where there is none."""
    try:
        state = folder.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns


class Report(NamedTuple):
    """kills: of each, the steps that the checkpoint then held, and whether another was being written ("", "half" or "whole")."""

    kills: list[tuple[int, str]]
    runs: int
    different: list[str]


def kill_and_resume(kills: int, seed: int, folder: Path) -> Report:
    """Kill a run that often, resume it to its end, and compare it with one that was left alone."""
    random.seed(seed)
    steps = max(30, 3 * kills)
    undisturbed = folder / "undisturbed.safetensors"
    began = time.monotonic()
    run_to_the_end(undisturbed, steps)
    a_step = (time.monotonic() - began) / steps
    made, runs, different = [], 0, set()
    while len(made) < kills:
        runs += 1
        file = folder / f"killed {runs}.safetensors"
        writing = file.with_name(file.name + ".writing")
        over = False
        while not over and len(made) < kills:
            before = identity(writing)  # an earlier kill may have left it
            child = train_in_a_new_process(file, steps)
            over = ended(child, patience=random.uniform(0, 8 * a_step))
            if random.random() < 0.5:
                while not over and identity(writing) in (None, before):
                    over = ended(child, patience=0)
            if not over:
                kill(child)
                inside = identity(writing) not in (None, before)
                made.append((steps_in(file), "" if not inside else "whole" if (writing / file.name).exists() else "half"))
        if not over:
            run_to_the_end(file, steps)
        different |= set(differences(undisturbed, file))
        left_behind = {path.name for path in folder.iterdir()} - {undisturbed.name, file.name}
        different |= {f"{name} was left behind" for name in left_behind}
        file.unlink()
    return Report(made, runs, sorted(different))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill a training run at random moments, resume it, and compare the bits.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report = kill_and_resume(options.kills, options.seed, Path(folder))
    at = Counter(step for step, _ in report.kills)
    print(f"{len(report.kills)} kills in {report.runs} run(s); by the number of steps that were safe at that moment:")
    print("  " + ", ".join(f"{step}" + (f" ({n} times)" if n > 1 else "") for step, n in sorted(at.items())))
    inside = Counter(state for _, state in report.kills)
    print(f"{inside['half'] + inside['whole']} of them while a checkpoint was being written, {inside['half']} with half a file")
    if report.different:
        print(f"FAIL: not as in the undisturbed run: {', '.join(report.different)}")
        return 1
    print("PASS: parameters, optimizer, random numbers and history are those of the undisturbed run, bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
