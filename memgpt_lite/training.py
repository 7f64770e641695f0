"""Step 6: how does a model come to use its memory?

By being asked, many times, for something that only the memory can hold. `train_step` is one such lesson; `train` is the
course: stages from easy to hard, a learning rate that rises and falls, and a checkpoint from which an interrupted run goes
on as if nothing had happened, bit for bit.

The tutorial maximises the probability that the model gives to the right tokens; this is the same as minimising

    loss = −(1/N) Σ_t log y_t[label_t]          over the N labelled positions, in nats

with AdamW (Loshchilov & Hutter 2019) and a one-cycle learning rate (Smith & Topin 2018).
"""

import contextlib
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from . import storage

CHECKPOINT_FORMAT = "memgpt_lite training checkpoint, version 1"
UNRELATED = ("transformers_version", "architectures", "dtype", "_name_or_path")  # settings that do not change a model


class StepResult(NamedTuple):
    """What `train_step` returns; nothing in it holds on to the graph.

    loss: in nats, a scalar tensor; memory (B, M, D): after the last segment; logits (B, T, V), None with `memory_replay`;
    gradient_norm: before clipping.
    """

    loss: Tensor
    memory: Tensor
    logits: Tensor | None
    gradient_norm: Tensor


def train_step(
    model,
    optimizer: torch.optim.Optimizer,
    input_ids: Tensor,
    memory: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    max_grad_norm: float = 1.0,
    **options,
) -> StepResult:
    """One step of training on one batch: forward, backward, clip the gradient, update the parameters.

    input_ids (B, T), memory (B, M, D) or None, labels (B, T), as in `MemGPT.forward`, to which `options` go too (`attention_mask`,
    `bptt_segments`, `memory_replay`, …). If the norm of the gradient over all parameters is above `max_grad_norm`, the gradient
    is scaled down to it.

    Also a method, `model.train_step(optimizer, …)`. The original tutorial calls it `train`, a name that PyTorch needs
    for switching dropout on and off (notebook 06).

    Raises `ValueError` without labels, and `FloatingPointError` when the loss or its gradient is not finite. Parameters,
    optimizer and the state of PyTorch's random numbers are then as they were before the step; gradients are None.
    """
    if labels is None and options.get("shift_labels") is None:
        raise ValueError("a training step needs labels: pass labels=input_ids to learn to predict every next token")
    if not max_grad_norm > 0:  # NaN is not, either
        raise ValueError(f"max_grad_norm must be above 0, not {max_grad_norm}: pass float('inf') to leave gradients as they are")
    random = _random_states(input_ids.device)
    _forget_gradients(model, optimizer)
    out = model(input_ids, memory=memory, labels=labels, **options)
    out.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    if not (torch.isfinite(out.loss) and torch.isfinite(norm)):
        _forget_gradients(model, optimizer)
        _set_random_states(random, input_ids.device)
        raise FloatingPointError(f"the loss is {out.loss.item()}, its gradient's norm {norm.item()}. {_advice(model, memory)}")
    optimizer.step()
    logits = None if out.logits is None else out.logits.detach()
    return StepResult(out.loss.detach(), out.memory.detach(), logits, norm.detach())


def _forget_gradients(model, optimizer: torch.optim.Optimizer) -> None:
    """Of model and optimizer: the norm is taken over the whole model, even where the optimizer trains only a part of it."""
    model.zero_grad()
    optimizer.zero_grad()


def _not_finite(model) -> list[str]:
    """The names of the parameters that hold NaN or infinity."""
    return [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]


def _advice(model, memory: Tensor | None) -> str:
    """What to do about a loss that is not finite: it depends on what was wrong before the step."""
    spoiled = _not_finite(model)
    if spoiled:
        return (
            f"NaN or infinity was in {len(spoiled)} of the parameters before this step, {spoiled[0]} the first of them: "
            "go back to an earlier copy, and look at what changed the parameters since"
        )
    if memory is not None and not torch.isfinite(memory).all():
        return "NaN or infinity was in the memory that was passed in, in no parameter: start from model.init_memory again"
    return (
        "The parameters are finite, and as they were before this step. Try a lower learning rate or max_grad_norm, a longer "
        "warm-up, or float32 where the model computes in 16 bits"
    )


def answer_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the labelled positions whose label is the likeliest token. logits (B, T, V), labels (B, T), −100 not asked."""
    asked = labels[:, 1:] != -100  # position t answers with label t + 1
    if not asked.any():
        raise ValueError("no position is labelled: accuracy needs at least one label other than -100")
    right = logits[:, :-1].argmax(-1) == labels[:, 1:]
    return right[asked].float().mean().item()


def one_cycle(step: int, steps: int, peak: float, warm_up: float = 0.1) -> float:
    """The learning rate of a step: up from peak/25 to the peak for a share `warm_up` of the steps, then down to 0, by cosines."""
    up = max(1, round(warm_up * steps))
    if step < up:
        return peak * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * step / up)) / 2)
    return peak * (1 + math.cos(math.pi * (step - up) / max(1, steps - up))) / 2


@dataclass
class History:
    """What happened, one entry a step, and why the run ended ("steps", "target" or "interrupted")."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    stage: list[int] = field(default_factory=list)
    ended: str = ""

    def __len__(self) -> int:
        return len(self.loss)

    def recent_accuracy(self, window: int) -> float:
        """Mean accuracy of the last `window` steps of the present stage; 0 while there are fewer."""
        recent = [a for a, s in zip(self.accuracy[-window:], self.stage[-window:]) if s == self.stage[-1]]
        return sum(recent) / window if len(recent) == window else 0.0


def train(
    model,
    stages: Sequence,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    bptt_segments: int | None = None,
    promote_at: float = 0.95,
    window: int = 20,
    target: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[History], None] | None = None,
) -> History:
    """Train through a curriculum, and return what happened.

    stages: from easy to hard; each has a method `batch(batch_size, generator)` that returns input_ids and labels, both (B, T), as
        a pair or by name, as `make_segments` does. By name, it may return more of what `MemGPT.forward` takes (`attention_mask`).
        When the mean accuracy of the last `window` steps reaches `promote_at`, the next stage begins.
    target: stop once that mean, on the last stage, reaches this; None: use all the steps.
    seed: of the documents. What the model draws itself (random slots, dropout) comes from PyTorch's generator: `ml.setup(seed=…)`.
    checkpoint: a file that is written every `checkpoint_every` steps and at the end, whole or not at all.
    resume: go on from that file. The parameters then become, bit for bit, those of a run that was never interrupted. Stages must
        be the same: they are compared by their `repr`, and a stage without a `repr` of its own by its class.
    on_step: called after each step with the history, for a live figure, say.

    Ctrl-C (in Jupyter: ■) ends the run after the step at hand; the model keeps what it has learned, and so does the checkpoint.

    Raises `FileExistsError` rather than write over another run's checkpoint, `ValueError` for a checkpoint that is corrupt or of
    another run, `OSError` when one cannot be written (the one before it is kept), `FloatingPointError` when the loss is not
    finite: it names the step, as counted in `History` (the first is 0), what to try, and the last checkpoint. The model then has the
    parameters it had before that step, and a checkpoint with NaN or infinity in it is never written.
    """
    stages = list(stages)
    if not stages:
        raise ValueError("train needs at least one stage: an object with a method batch(batch_size, generator)")
    settings = {
        "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm, "bptt_segments": bptt_segments, "promote_at": promote_at, "window": window,
        "seed": seed, "stages": [_describe(stage) for stage in stages],
    }  # fmt: skip
    for name in ("learning_rate", "weight_decay"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, not {settings[name]}")
    for name, count in (("window", window), ("checkpoint_every", checkpoint_every)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1 step, not {count}")
    if resume and checkpoint is None:
        raise ValueError("resume=True goes on from a checkpoint: pass checkpoint=… with the file that the earlier run wrote")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    history, stage = History(), 0
    saved = 0  # steps that the checkpoint holds
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        if checkpoint.is_dir():
            raise IsADirectoryError(f"{checkpoint} is a folder: name a file in it, such as {checkpoint / 'run.safetensors'}")
        if resume:
            history, stage = _load(checkpoint, model, optimizer, generator, settings)
            saved = len(history)
        elif checkpoint.exists():
            raise FileExistsError(f"{checkpoint} exists: pass resume=True to go on from it, or name another file")

    def on_target() -> bool:
        at_last_stage = history.stage[-1:] == [len(stages) - 1]
        return target is not None and at_last_stage and history.recent_accuracy(window) >= target

    history.ended = "target" if on_target() else "steps"  # a resumed run may have reached its end already
    bar = tqdm(total=steps, initial=len(history), disable=not progress, file=sys.stdout, mininterval=0.5, ncols=100)
    with bar, in_mode(model, training=True), _interrupts() as interrupted:
        while len(history) < steps and history.ended == "steps":
            rate = one_cycle(len(history), steps, learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = stages[stage].batch(batch_size, generator)
            batch = batch if isinstance(batch, Mapping) else dict(zip(("input_ids", "labels"), batch))
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            try:
                result = model.train_step(optimizer, **batch, max_grad_norm=max_grad_norm, bptt_segments=bptt_segments)
            except FloatingPointError as error:
                kept = f"{checkpoint} holds the run up to step {saved - 1}" if saved else "No checkpoint was written yet"
                raise FloatingPointError(f"in step {len(history)} of stage {stage}, {error}. {kept}") from None
            history.loss.append(result.loss.item())
            history.accuracy.append(answer_accuracy(result.logits, batch["labels"]))
            history.gradient_norm.append(result.gradient_norm.item())
            history.learning_rate.append(rate)
            history.stage.append(stage)
            bar.update()
            bar.set_postfix(stage=stage, loss=f"{history.loss[-1]:.3f}", accuracy=f"{history.accuracy[-1]:.3f}", refresh=False)
            if on_step is not None:
                on_step(history)

            if stage + 1 < len(stages) and history.recent_accuracy(window) >= promote_at:
                stage += 1
            if on_target():
                history.ended = "target"
            elif interrupted.is_set():
                history.ended = "interrupted"
            finished = history.ended != "steps" or len(history) == steps
            if checkpoint is not None and (finished or len(history) % checkpoint_every == 0):
                _save(checkpoint, model, optimizer, generator, settings, history, stage)
                saved = len(history)
    return history


def _describe(stage) -> str:
    """A stage as a checkpoint remembers it: the same words in every process, even for a stage without a `repr` of its own."""
    return type(stage).__qualname__ if type(stage).__repr__ is object.__repr__ else repr(stage)


@contextlib.contextmanager
def in_mode(model, *, training: bool):
    """Run a block with dropout or without it; then every module is as it was, even where an error ends the block."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextlib.contextmanager
def _interrupts():
    """Turn Ctrl-C into an event, so that it takes effect between two steps and never inside one."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


# ---- checkpoints: one safetensors file with the tensors of model, optimizer and random generators; JSON in its header ----


def _model_tensors(model) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied weights once."""
    return {f"model.{name}": tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of PyTorch's own random generators."""
    states = {"random.torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(tensors: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


def _save(path: Path, model, optimizer, generator, settings: dict, history: History, stage: int) -> None:
    """Everything that a run needs to go on as if nothing had happened, in one file."""
    if spoiled := _not_finite(model):
        raise FloatingPointError(
            f"after step {len(history) - 1} there is NaN or infinity in {spoiled[0]}: {path} was left as it was. "
            "Look at what changed the parameters in that step, and try a lower learning rate"
        )
    tensors = _model_tensors(model) | _random_states(model.device) | {"random.documents": generator.get_state()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    header = {
        "format": CHECKPOINT_FORMAT,
        "config": model.config.to_json_string(use_diff=False),
        "settings": json.dumps(settings),
        "history": json.dumps(asdict(history)),
        "stage": str(stage),
    }
    storage.write(path, tensors, header)


def _load(path: Path, model, optimizer, generator, settings: dict) -> tuple[History, int]:
    """Check everything first, then copy: a checkpoint that is refused leaves model and optimizer untouched."""
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}: pass resume=False to start a run that writes one")
    tensors, header = storage.read(path, CHECKPOINT_FORMAT)
    saved = json.loads(header["config"]) | json.loads(header["settings"])
    now = json.loads(model.config.to_json_string(use_diff=False)) | settings
    different = [f"{k}: {saved.get(k)!r} saved, {v!r} now" for k, v in now.items() if saved.get(k) != v and k not in UNRELATED]
    if different:
        raise ValueError(f"{path} belongs to a run with other settings ({'; '.join(different)}): pass the same, or start anew")
    own = _model_tensors(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("model.")}
    if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()}:
        raise ValueError(f"{path} holds a model of other parameters or shapes: build the model with the configuration it has")
    dtypes = [f"{tensors[n].dtype} saved, {tensor.dtype} now" for n, tensor in own.items() if tensors[n].dtype != tensor.dtype]
    if dtypes:
        raise ValueError(f"{path} holds a model of another precision ({dtypes[0]}): convert this one first, by model.to(…)")

    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(tensors["random.documents"])
    _set_random_states(tensors, model.device)
    return History(**json.loads(header["history"])), int(header["stage"])
