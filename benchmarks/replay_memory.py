"""How much memory does a training step need, and how long does it take, when a text grows from 4 to 256 segments?

    python benchmarks/replay_memory.py            # prints the table
    python benchmarks/replay_memory.py --write    # also writes replay_memory.md and replay_memory.png beside this script

Plain back-propagation through time keeps every segment's activations until the gradient comes back; memory replay keeps the memory that
entered each segment, and reads the segment again (Memformer, Wu et al. 2022). Both give the same gradient, which is checked here too.

Memory is not read off the process, whose allocator keeps what it once had, but counted: `LiveBytes` adds up the tensors that are alive.
"""

import argparse
import platform
import time
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import memgpt_lite as ml

B, L, M, D, LAYERS, HEADS, V = 4, 32, 16, 128, 2, 2, 66
SEGMENTS = (4, 8, 16, 32, 64, 128, 256)
MODES = {"plain": {}, "memory_replay": {"memory_replay": True}}
COLOURS = {"plain": "#d55e00", "memory_replay": "#0072b2"}  # Okabe and Ito's, which colour-blind readers can tell apart


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that were made inside the `with` block and are still alive: `.live` now, `.peak` at most.

    Tensors from before, such as parameters, do not count, nor do views, which share their bytes with another tensor. Each storage is
    counted when an operation returns it and discounted when it is freed, so the numbers are the same at every run. What an
    operation needs inside itself, and PyTorch's random state (5,056 bytes on a CPU), are not seen.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, *(kwargs or {}).values()))}  # addresses
        for tensor in _tensors((result,)):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._alive:
                self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._freed(key, size))
                self.live += size
                self.peak = max(self.peak, self.live)
        return result

    def _freed(self, key: int, size: int) -> None:
        del self._alive[key]
        self.live -= size


def _tensors(values):
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


class Memory(NamedTuple):
    """In bytes: what is kept between forward and backward, and the most that is alive at any time."""

    kept: int
    peak: int


def measure_memory(model, input_ids: Tensor, memory: Tensor, **options) -> Memory:
    """The memory of one training step without its optimizer. The gradients of the parameters are part of the peak."""
    model.zero_grad()
    with LiveBytes() as bytes_:
        loss = model(input_ids, memory=memory, labels=input_ids, output_attentions=False, **options).loss
        kept = bytes_.live
        loss.backward()
    return Memory(kept, bytes_.peak)


def measure_time(model, input_ids: Tensor, memory: Tensor, repeats: int, **options) -> float:
    """Seconds of processor time for one token, forward and backward: the fastest of some runs."""
    seconds = []
    for _ in range(repeats):
        model.zero_grad()
        begin = time.process_time()
        model(input_ids, memory=memory, labels=input_ids, output_attentions=False, **options).loss.backward()
        seconds.append(time.process_time() - begin)
    return min(seconds) / input_ids.numel()


class Result(NamedTuple):
    peak: float  # MB
    microseconds: float  # for one token


def measure(repeats: int) -> dict[str, list[Result]]:
    """For each mode, a result for each number of segments."""
    torch.manual_seed(0)
    config = ml.MemGPTConfig(
        vocab_size=V, segment_length=L, n_embd=D, n_layer=LAYERS, n_head=HEADS, num_memory_slots=M, memory_init="zeros"
    )
    model = ml.MemGPT(config).train()
    results = {name: [] for name in MODES}
    for segments in SEGMENTS:
        input_ids, memory = torch.randint(V, (B, segments * L)), torch.randn(B, M, D)
        gradients = []
        for name, options in MODES.items():
            peak = measure_memory(model, input_ids, memory, **options).peak
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            results[name].append(Result(peak / 1e6, 1e6 * measure_time(model, input_ids, memory, repeats, **options)))
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    return results


def table(results: dict[str, list[Result]]) -> str:
    lines = [
        "| segments | tokens of a text | plain, peak MB | replay, peak MB | plain, µs a token | replay, µs a token | time, replay / plain |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for segments, plain, replay in zip(SEGMENTS, *results.values()):
        lines.append(
            f"| {segments} | {segments * L:,} | {plain.peak:.2f} | {replay.peak:.2f} | {plain.microseconds:.1f} | "
            f"{replay.microseconds:.1f} | {replay.microseconds / plain.microseconds:.2f} |"
        )
    return "\n".join(lines)


def growth(results: dict[str, list[Result]]) -> str:
    """How much the peak grows with every segment, from 4 to 256 of them, in kB."""
    more = SEGMENTS[-1] - SEGMENTS[0]
    plain, replay = (1e3 * (rows[-1].peak - rows[0].peak) / more for rows in results.values())
    state, labels = B * M * D * 4 / 1e3, B * L * 8 / 1e3
    return (
        f"Each further segment adds {plain:.1f} kB to the plain peak and {replay:.1f} kB to that of memory replay, of which {state:.1f} kB "
        f"are the memory that entered it (B·M·D numbers of 4 bytes) and {labels:.1f} kB its labels (B·L of 8). "
        "Not counted is PyTorch's random state, 5.1 kB a segment, which memory replay keeps for dropout."
    )


def draw(results: dict[str, list[Result]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, rows), marker, label in zip(results.items(), "os", ("plain back-propagation", "memory replay")):
        peaks = [row.peak for row in rows]
        axes.plot(SEGMENTS, peaks, color=COLOURS[name], marker=marker, linewidth=2)
        axes.annotate(
            label,
            (SEGMENTS[4], peaks[4]),
            xytext=(-8, 10),
            textcoords="offset points",
            color=COLOURS[name],
            ha="right",
            weight="bold",
        )
    plain, replay = (rows[-1].peak for rows in results.values())
    axes.set(xscale="log", yscale="log", xlabel=f"segments in a text (of {L} tokens each)", ylabel="peak memory of a step (MB)")
    axes.set_title(f"At {SEGMENTS[-1]} segments, memory replay needs {plain / replay:.0f} times less memory", loc="left")
    axes.set_xticks(SEGMENTS, [str(segments) for segments in SEGMENTS])
    axes.minorticks_off()
    axes.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def facts() -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    return (
        f"{B} texts at a time, segments of {L} tokens, {M} slots, width {D}, {LAYERS} layers, {HEADS} heads, vocabulary {V}, float32, no dropout; "
        f"forward and backward, without an optimizer. One thread, processor time. Python {platform.python_version()}; {versions}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory and time of a training step for 4 to 256 segments.")
    parser.add_argument("--repeats", type=int, default=3, help="how often each time is taken (3)")
    parser.add_argument("--write", action="store_true", help="write replay_memory.md and replay_memory.png beside this script")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    results = measure(arguments.repeats)
    page = "\n\n".join([table(results), growth(results), facts()])
    print(page)
    if arguments.write:
        here = Path(__file__)
        command = f"python benchmarks/replay_memory.py --repeats {arguments.repeats} --write"
        plain, replay = (f"{rows[0].peak:.1f} to {rows[-1].peak:.1f} MB" for rows in results.values())
        picture = (
            f"![Peak memory of a training step against the number of segments, 4 to 256, both axes logarithmic: plain back-propagation rises "
            f"in a straight line from {plain}, memory replay stays almost level, from {replay}.](replay_memory.png)"
        )
        text = f"# Memory of a training step, plain and with memory replay\n\nMade by `{command}`.\n\n{picture}\n\n{page}\n"
        here.with_suffix(".md").write_text(text, encoding="utf-8")
        draw(results, here.with_suffix(".png"))


if __name__ == "__main__":
    main()
