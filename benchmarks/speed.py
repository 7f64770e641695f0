"""How many tokens per second does each system train on? One thread, about 0.8 M parameters.

    python benchmarks/speed.py [--rounds 7] [--steps 5] [--write]

A step is forward, backward and AdamW on 16 texts of 256 tokens: as four segments of 64 with a memory of 8 slots (ours), 8 memory
tokens (RMT) or 8 state vectors (Block-Recurrent), or all 256 at once (GPT-2). The gradient goes back over all four segments.
Each system predicts the same 256 next tokens of the same batches, with the same optimiser, without dropout and without clipping.

Why each system has the settings it has: README.md in this directory.

Symbols: V vocabulary, D width, B texts, S segments, L tokens of a segment, M memory slots.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from block_recurrent_transformer_pytorch import BlockRecurrentTransformer
from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper
from side_by_side import ff_mult, processor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from memgpt_lite import MemGPT, MemGPTConfig

V, D, LAYERS, HEADS = 64, 128, 4, 2  # heads of width 64, which all four systems recommend
B, S, L, M = 16, 4, 64, 8
TOKENS = B * S * L  # of a step
TOLERANCE = 0.05  # how far a parameter count may be from GPT-2's

Loss = Callable[[Tensor], Tensor]


def memgpt(width: int) -> tuple[nn.Module, Loss]:
    """Ours. The loss asks for no read and write attentions, as training does not."""
    config = MemGPTConfig(
        vocab_size=V, n_embd=D, n_layer=LAYERS, n_head=HEADS, n_inner=width, segment_length=L, num_memory_slots=M,
        activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    model = MemGPT(config)
    return model, lambda tokens: model(tokens[:, :-1], shift_labels=tokens[:, 1:], output_attentions=False).loss


def gpt2(width: int) -> tuple[nn.Module, Loss]:
    """Transformers' GPT-2, which sees the whole text at once."""
    config = GPT2Config(
        vocab_size=V, n_embd=D, n_layer=LAYERS, n_head=HEADS, n_inner=width, n_positions=S * L,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=None, eos_token_id=None,
        activation_function="gelu_pytorch_tanh", attn_implementation="sdpa",
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    return model, lambda tokens: F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())


def recurrent_memory_transformer(width: int) -> tuple[nn.Module, Loss]:
    """RMT (Bulatov et al. 2022) of recurrent-memory-transformer-pytorch; its wrapper carries the memory over the segments."""
    transformer = RecurrentMemoryTransformer(
        num_tokens=V, dim=D, depth=LAYERS, heads=HEADS, dim_head=D // HEADS, ff_mult=ff_mult(width),
        seq_len=L, num_memory_tokens=M, use_flash_attn=True, use_xl_memories=False, num_residual_streams=1,
    )  # fmt: skip
    model = RecurrentMemoryTransformerWrapper(transformer)
    return model, lambda tokens: model(tokens, return_loss=True)[0]


def block_recurrent_transformer(width: int) -> tuple[nn.Module, Loss]:
    """Block-Recurrent Transformer (Hutchins et al. 2022) of block-recurrent-transformer-pytorch.

    It detaches its states at the end of `max_seq_len` and not between the blocks within, so that one call is the whole text.
    """
    model = BlockRecurrentTransformer(
        num_tokens=V, dim=D, depth=LAYERS, heads=HEADS, dim_head=D // HEADS, ff_mult=ff_mult(width),
        max_seq_len=S * L, block_width=L, num_state_vectors=M, use_flash_attn=False,
    )  # fmt: skip
    return model, lambda tokens: model(tokens, return_loss=True)[0]


SYSTEMS = {
    "memgpt_lite": memgpt,
    "GPT-2 (transformers)": gpt2,
    "recurrent-memory-transformer-pytorch": recurrent_memory_transformer,
    "block-recurrent-transformer-pytorch": block_recurrent_transformer,
}
OURS = "memgpt_lite"


class System(NamedTuple):
    """A system that is ready to be trained."""

    width: int  # of the feed-forward
    parameters: int
    step: Callable[[Tensor], float]  # tokens (B, S·L + 1) → loss before the step, in nats


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def fitting_width(build: Callable, target: int) -> int:
    """The feed-forward width, a multiple of 16, that brings the parameters nearest to `target`; they grow linearly with it."""
    at_16, at_32 = (count_parameters(build(width)[0]) for width in (16, 32))
    return 16 * round(1 + (target - at_16) / (at_32 - at_16))


def prepare(build: Callable, target: int) -> System:
    """The system with about `target` parameters, and its training step."""
    width = fitting_width(build, target)
    torch.manual_seed(0)
    model, loss_of = build(width)
    model.train()
    parameters = count_parameters(model)
    if abs(parameters / target - 1) > TOLERANCE:
        raise RuntimeError(f"{build.__name__} has {parameters:,} parameters at width {width}: not within 5% of {target:,}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(tokens: Tensor) -> float:
        optimizer.zero_grad()
        loss = loss_of(tokens)
        loss.backward()
        optimizer.step()
        return loss.item()

    return System(width, parameters, step)


def texts(steps: int, seed: int = 0) -> Tensor:
    """Batches that can be learned, (steps, B, S·L + 1): each token is followed by one of 4, so the loss falls from ln 64 to ln 4."""
    generator = torch.Generator().manual_seed(seed)
    followers = torch.randint(V, (V, 4), generator=generator)
    tokens = torch.empty(steps, B, S * L + 1, dtype=torch.long)
    tokens[..., 0] = torch.randint(V, (steps, B), generator=generator)
    for t in range(1, S * L + 1):
        tokens[..., t] = followers[tokens[..., t - 1], torch.randint(4, (steps, B), generator=generator)]
    return tokens


class Speed(NamedTuple):
    """Tokens per second, one number for each round."""

    cpu: list[float]  # by the processor time of this process
    wall: list[float]  # by the clock
    losses: list[float]  # of every step, warm-up included


def measure(systems: dict[str, System], rounds: int, steps: int, warm_up: int = 3) -> dict[str, Speed]:
    """All systems in turn, `rounds` times over, so that whatever else the machine does meets them all alike."""
    batches = texts(warm_up + rounds * steps)
    speeds = {name: Speed([], [], [system.step(tokens) for tokens in batches[:warm_up]]) for name, system in systems.items()}
    for tokens_of_round in batches[warm_up:].split(steps):
        for name, system in systems.items():
            cpu, wall = time.process_time(), time.perf_counter()
            losses = [system.step(tokens) for tokens in tokens_of_round]
            speeds[name].cpu.append(steps * TOKENS / (time.process_time() - cpu))
            speeds[name].wall.append(steps * TOKENS / (time.perf_counter() - wall))
            speeds[name].losses.extend(losses)
    return speeds


def report(systems: dict[str, System], speeds: dict[str, Speed]) -> str:
    """The table, in Markdown, and the ratio to the fastest other system of each round."""
    lines = [
        "| system | parameters | feed-forward width | tokens/s, processor time (range) | tokens/s, clock (range) | loss, first → last step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (width, parameters, _) in systems.items():
        cpu, wall, losses = speeds[name]
        lines.append(
            f"| {name} | {parameters:,} | {width} | {_median_and_range(cpu)} | {_median_and_range(wall)} | "
            f"{losses[0]:.2f} → {losses[-1]:.2f} |"
        )
    for field, clock in (("cpu", "processor time"), ("wall", "the clock")):
        rates = {name: getattr(speed, field) for name, speed in speeds.items()}
        fastest_other = [max(others) for others in zip(*(rate for name, rate in rates.items() if name != OURS))]
        ratios = [ours / other for ours, other in zip(rates[OURS], fastest_other)]
        lines += [
            "",
            f"{OURS} / the fastest other system of the same round, by {clock}: "
            f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
    return "\n".join(lines)


def _median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def facts() -> str:
    packages = ("torch", "transformers", "recurrent-memory-transformer-pytorch", "block-recurrent-transformer-pytorch")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{processor()}, one thread, Python {platform.python_version()}; {versions}."


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed of four systems of the same size, on one thread.")
    parser.add_argument("--rounds", type=int, default=7, help="how often each system has its turn (7)")
    parser.add_argument("--steps", type=int, default=5, help="training steps in a turn (5)")
    parser.add_argument("--write", action="store_true", help="write the table to speed.md, beside this script")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # from a package that calls PyTorch by an old name
    torch.set_num_threads(1)

    target = count_parameters(gpt2(4 * D)[0])
    systems = {name: prepare(build, target) for name, build in SYSTEMS.items()}
    table = report(systems, measure(systems, arguments.rounds, arguments.steps))
    print(table, facts(), sep="\n\n")
    if arguments.write:
        command = f"python benchmarks/speed.py --rounds {arguments.rounds} --steps {arguments.steps} --write"
        page = f"# Training speed\n\nMade by `{command}`; README.md in this directory says how.\n\n{table}\n\n{facts()}\n"
        Path(__file__).with_name("speed.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
