"""How an attempt is checked: against our solution, on newly drawn inputs, and against the mistakes that learners often make.

An exercise knows our solution, inputs of several sizes (the smallest first), and wrong versions that learners write. An attempt is right
if it agrees with ours on all of them: in values, shapes, dtypes and gradients, with its inputs left as they were. Where it does not, the
wrong versions are run on the same inputs; the one that gives the same as the attempt names the mistake.
"""

import copy
import html
import inspect
import re
import signal
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..viz.figures import Picture

SECONDS = 20  # for an attempt on all inputs together; one that still runs after that is taken never to end
NAMING = 5  # at most so many of these for finding out which mistake it is
FEW = 12  # an argument with more numbers is shown by its shape alone, a result with over four times as many by its mean
MARKED = re.compile(r"`([^`\n]+)`|(?<![\w*])\*(\S(?:[^*\n]*\S)?)\*(?![\w*])")  # `code`, *stressed*
MEANINGS = {  # a part of PyTorch's error message, and what it means here
    "leaf Variable that requires grad": "an argument is changed in place (+=, *=, x[…] = …): whoever passed it in still needs it, and so does the "
    "gradient. Make a new tensor instead: x = x + …, not x += …",
    "modified by an inplace operation": "the values are there, but autograd cannot go back: something that it needs for that was changed in place "
    "(+=, x[…] = …, masked_fill_). Make a new tensor instead: x = x.masked_fill(…), not x.masked_fill_(…)",
}


class Mistake(NamedTuple):
    """A wrong version, or a wrong answer, and what to say to somebody who has written it."""

    attempt: Any
    says: str


@dataclass(frozen=True)
class Exercise:
    """Something for the reader to write (`solution` is a function) or to predict (it is a value).

    number: "4.1", of notebook 04; title.
    difficulty: 1 to 3; minutes: how long it takes, estimated; points: for grading.
    solution: ours.
    cases: takes a generator of random numbers and yields the arguments to try, tuple by tuple, the smallest and the edge cases
        first. Where a tensor requires a gradient, its gradient is compared too.
    mistakes: the likely ones. A function is run beside the attempt; a value is compared with it.
    hints: up to three, from a nudge to nearly there. notice: what to look at in our solution.
    tolerance: the largest difference that does not count, relative and absolute, in float32; a thousandth of it in float64.
    """

    number: str
    title: str
    difficulty: int
    minutes: int
    solution: Any
    hints: tuple[str, ...]
    notice: str
    cases: Callable[[torch.Generator], Iterator[tuple]] | None = None
    mistakes: tuple[Mistake, ...] = ()
    points: int = 2
    tolerance: float = 1e-4


@dataclass(frozen=True, repr=False)
class Result:
    """What a check found. status: "right", "wrong" or "not attempted"; says: in words, as Markdown; best: the attempt if it is right, else ours."""

    exercise: Exercise
    status: str
    says: str
    best: Any
    picture: Picture | None = None

    def __repr__(self) -> str:
        says = MARKED.sub(lambda found: found[1] or found[2], self.says)
        return f"exercise {self.exercise.number} · {self.status}{': ' * bool(says)}{says}"

    def _repr_mimebundle_(self, **options) -> tuple[dict, dict]:
        colour = {"right": "#009E73", "wrong": "#D55E00"}.get(self.status, "#888888")
        says = MARKED.sub(
            lambda found: f"<code>{found[1]}</code>" if found[1] else f"<em>{found[2]}</em>", html.escape(self.says)
        ).replace("\n", "<br>")
        shown = (
            f'<div style="border-left: 5px solid {colour}; padding: 2px 10px; white-space: pre-wrap">'
            f"<b>Exercise {self.exercise.number} · {self.status}</b><br>{says}"
        )
        if self.picture is not None:
            source = f"data:image/png;base64,{b64encode(self.picture.png()).decode()}"
            shown += f'<br><img src="{source}" alt="{html.escape(self.picture.alt)}" style="max-width: 100%">'
        return {"text/plain": repr(self), "text/html": f"{shown}</div>"}, {}


def examine(exercise: Exercise, attempt: Any, seed: int) -> Result:
    """Check an attempt at an exercise, on the inputs that belong to a seed."""
    if attempt is None or attempt is ...:
        return Result(exercise, "not attempted", "", exercise.solution)
    if exercise.cases is None:
        return _examine_value(exercise, attempt)
    if not callable(attempt):
        says = f"a function is asked for, not {_kind(attempt)}: pass its name, without brackets after it"
        return Result(exercise, "wrong", says, exercise.solution)
    cases, until = list(exercise.cases(torch.Generator().manual_seed(seed))), time.monotonic() + SECONDS
    for i, arguments in enumerate(cases):
        right = _run(exercise.solution, arguments, time.monotonic() + SECONDS)
        yours = _run(attempt, arguments, until)
        if i == 0 and yours.value is ...:
            return Result(exercise, "not attempted", "", exercise.solution)
        wrong = _compare(exercise, yours, right)
        if wrong:
            named = _recognise(exercise, attempt, yours, cases[i:], min(until, time.monotonic() + NAMING))
            says = "\n".join(filter(None, (named, _show_arguments(exercise.solution, arguments), wrong)))
            return Result(exercise, "wrong", says, exercise.solution, _draw(exercise, yours, right))
    return Result(exercise, "right", f"the same as ours on {len(cases)} inputs", attempt)


def _examine_value(exercise: Exercise, attempt: Any) -> Result:
    if _same(attempt, exercise.solution, exercise.tolerance):
        return Result(exercise, "right", exercise.notice, attempt)
    named = next((m.says for m in exercise.mistakes if _same(attempt, m.attempt, exercise.tolerance)), "not this; look again")
    return Result(exercise, "wrong", named, exercise.solution)


# ---- running ----


class _Run(NamedTuple):
    """What came of a call: a value or an error, the gradients of its arguments, and the arguments that it changed, as they were before."""

    value: Any
    error: BaseException | None
    gradients: dict[str, Tensor]
    changed: dict[str, Any]


@torch.enable_grad()  # also in a notebook that has switched gradients off
def _run(function: Callable, arguments: tuple, until: float) -> _Run:
    """Call a function, and compute the gradients of what it returns; both are stopped at the time `until`."""
    before, used = copy.deepcopy(arguments), copy.deepcopy(arguments)
    names = _names(function, arguments)
    asked = {name: x for name, x in zip(names, used) if isinstance(x, Tensor) and x.requires_grad}
    try:
        with _stopped_at(until), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # for functions that draw random numbers themselves: they draw the same ones
            value = function(*used)
            gradients = _gradients(value, asked)
    except (Exception, _TooLong) as error:  # an attempt may raise anything, and what it raised is told
        return _Run(None, error, {}, {})
    return _Run(value, None, gradients, {name: old for name, old, new in zip(names, before, used) if not _same(new, old, 0.0)})


class _TooLong(BaseException):
    """Not an `Exception`, so that an attempt that catches exceptions does not catch this."""


@contextmanager
def _stopped_at(until: float) -> Iterator[None]:
    """Stop what is running at a time of `time.monotonic`, where the system can: not on Windows, and only in the main thread, as in a notebook."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, until - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _gradients(value: Any, asked: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of a weighted sum of all numbers in the result, at each of the arguments; zeros where none arrives."""
    outputs = [x for x in _tensors(value) if x.is_floating_point() and x.requires_grad]
    if not asked or not outputs:
        return {name: torch.zeros_like(x) for name, x in asked.items()}
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum() for x in outputs)
    return dict(zip(asked, torch.autograd.grad(loss, list(asked.values()), allow_unused=True, materialize_grads=True)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _names(function: Callable, arguments: Sequence) -> list[str]:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some built-in functions have no signature
        names = []
    return [names[i] if i < len(names) else f"argument {i + 1}" for i in range(len(arguments))]


# ---- comparing ----


def _compare(exercise: Exercise, yours: _Run, right: _Run) -> str | None:
    """What is wrong with a run, None for nothing."""
    if isinstance(yours.error, _TooLong):
        return f"your function had not come to an end after {SECONDS} s: does every loop in it stop?"
    if yours.error is not None:
        raised = f"your function raised {type(yours.error).__name__}: {yours.error}"
        return next((means for part, means in MEANINGS.items() if part in str(yours.error)), raised)
    if yours.value is None or yours.value is ...:
        return f"your function returned {yours.value}, but {_show(right.value)} was expected: is a return missing on some path?"
    differs = _difference(yours.value, right.value, exercise.tolerance)
    if differs:
        return differs
    for name, was in yours.changed.items():
        if name not in right.changed:
            return f"the result is right, but {name} was changed in place: whoever passed it in still needs it. {_instead(name, was)}"
    for (name, gradient), expected in zip(yours.gradients.items(), right.gradients.values()):
        if expected.any() and not gradient.any():
            return f"the values are right, but no gradient reaches {name}: is there a .detach(), .item(), torch.no_grad() or a new torch.tensor?"
        differs = _difference(gradient, expected, exercise.tolerance)
        if differs:
            return f"the values are right, but the gradient at {name} is not: {differs}"
    return None


def _instead(name: str, was: Any) -> str:
    """What to do instead of changing an argument in place."""
    if isinstance(was, Tensor):
        return f"Begin with {name} = {name}.clone()"
    if isinstance(was, torch.nn.Module):
        return "Set back whatever you changed in it: weights, switches, hooks"
    return f"Begin with {name} = copy.deepcopy({name})"


def _difference(yours: Any, right: Any, tolerance: float) -> str | None:
    """The first difference in words, None for none."""
    if isinstance(right, Tensor):
        if not isinstance(yours, Tensor):
            return f"a tensor of shape {tuple(right.shape)} was expected, but {_kind(yours)} came"
        if yours.shape != right.shape:
            return f"the shape should be {tuple(right.shape)}, but is {tuple(yours.shape)}"
        if yours.dtype != right.dtype:
            return f"the dtype should be {right.dtype}, but is {yours.dtype}"
        if _same(yours, right, tolerance):
            return None
        return f"yours:  {_show(yours)}\ntarget: {_show(right)}"
    if isinstance(right, Mapping):
        if not isinstance(yours, Mapping) or set(yours) != set(right):
            return f"the keys {sorted(map(str, right))} were expected, but {_show(yours)} came"
        return next((f"at {k!r}: {d}" for k in right if (d := _difference(yours[k], right[k], tolerance))), None)
    if isinstance(right, list | tuple):
        if isinstance(yours, str) or not isinstance(yours, Sequence):
            return f"{_show(right)} was expected, but {_show(yours)} came"
        if len(yours) != len(right):
            return f"{len(right)} items were expected, but {len(yours)} came: {_show(yours)}, not {_show(right)}"
        return next(
            (f"at place {i}: {d}" for i, (a, b) in enumerate(zip(yours, right)) if (d := _difference(a, b, tolerance))), None
        )
    if _same(yours, right, tolerance):
        return None
    both = f"yours:  {_show(yours)}\ntarget: {_show(right)}"
    if isinstance(yours, float) and isinstance(right, float) and abs(yours - right) < 1e-3 * abs(right):
        return f"{both}\nnearly, by less than a thousandth: does a search stop too early, or is something rounded?"
    return both


def _same(one: Any, two: Any, tolerance: float) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape or one.dtype != two.dtype:
            return False
        near = tolerance * (1e-3 if one.dtype == torch.float64 else 1)
        return bool(torch.allclose(one.detach(), two.detach(), rtol=near, atol=near, equal_nan=True))
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        if one.dtype != two.dtype or one.shape != two.shape:
            return False
        if one.dtype.kind not in "biufc":  # words, say
            return _same(one.tolist(), two.tolist(), tolerance)
        # Copies: a tensor cannot have negative strides, as an array can.
        return _same(torch.from_numpy(one.copy()), torch.from_numpy(two.copy()), tolerance)
    if isinstance(one, torch.nn.Module) and isinstance(two, torch.nn.Module):
        mine, other = one.state_dict(), two.state_dict()
        return (
            mine.keys() == other.keys()
            and all(torch.equal(mine[name], other[name]) for name in mine)
            and _switches(one) == _switches(two)
        )
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key], tolerance) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(_same(a, b, tolerance) for a, b in zip(one, two))
    if _is_truth(one) or _is_truth(two):
        return _is_truth(one) and _is_truth(two) and bool(one) == bool(two)
    if isinstance(one, int) and isinstance(two, int):
        return one == two
    if _is_number(one) and _is_number(two):
        return bool(np.isclose(float(one), float(two), rtol=tolerance, atol=tolerance, equal_nan=True))
    if isinstance(two, str | bytes | set | frozenset | type(None)):
        return type(one) is type(two) and one == two
    return type(one) is type(two)  # a generator, a tokenizer: nothing that could be compared


def _switches(module: torch.nn.Module) -> list[dict[str, Any]]:
    """What besides its parameters decides what a module does, part by part: names set, flags, numbers, how many hooks."""
    return [
        {
            name: value if isinstance(value, bool | int | float | str) else len(value) if name.endswith("_hooks") else None
            for name, value in vars(part).items()
        }
        for part in module.modules()
    ]


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dim() == 0 and value.dtype == torch.bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) or (isinstance(value, Tensor) and value.dim() == 0)


def _recognise(exercise: Exercise, attempt: Callable, yours: _Run, cases: list[tuple], until: float) -> str | None:
    """The mistake that gives the same as the attempt: `yours` on the first case, which failed, and on as many others as time allows."""
    named: Sequence[Mistake] = ()
    for i, arguments in enumerate(cases):
        run = _run(attempt, arguments, until) if i else yours
        alike = [
            mistake
            for mistake in (named if i else exercise.mistakes)
            if _alike(run, _run(mistake.attempt, arguments, until), exercise.tolerance)
        ]
        if time.monotonic() > until:
            break
        named = alike
    return named[0].says if named else None


def _alike(one: _Run, two: _Run, tolerance: float) -> bool:
    if one.error is not None or two.error is not None:
        return type(one.error) is type(two.error) and str(one.error) == str(two.error)
    return (
        _same(one.value, two.value, tolerance)
        and len(one.changed) == len(two.changed)
        and _same(list(one.gradients.values()), list(two.gradients.values()), tolerance)
    )


# ---- showing ----


def _kind(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__} {_show(value)}"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() <= 4 * FEW:
            numbers = value.detach().cpu()
            numbers = (numbers.float() if numbers.is_floating_point() else numbers).numpy()
            return np.array2string(numbers, precision=3, suppress_small=True, separator=", ", max_line_width=100)
        return f"tensor{tuple(value.shape)}, mean {value.detach().float().mean():.3g}"
    if isinstance(value, torch.nn.Module):
        return f"<{type(value).__name__}>"
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:297]}…"


def _show_arguments(function: Callable, arguments: tuple) -> str:
    """The arguments, or, where that would be a wall of numbers, their shapes."""
    shown = []
    for name, value in zip(_names(function, arguments), arguments):
        if isinstance(value, Tensor):
            about = f"{name} {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
            shown.append(f"{about}: {_show(value)}" if value.numel() <= FEW else about)
        else:
            shown.append(f"{name}: {_show(value)}")
    return "\n".join(f"{'for ' if i == 0 else '    '}{line}" for i, line in enumerate(shown))


def _draw(exercise: Exercise, yours: _Run, right: _Run) -> Picture | None:
    """Yours and the target as two heat maps, where both are matrices small enough to take in."""
    values = [run.value for run in (yours, right)]
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in values) or values[0].shape != values[1].shape:
        return None
    matrices = [x.detach().cpu().float().numpy() for x in values]
    while matrices[0].ndim > 2:
        matrices = [matrix[0] for matrix in matrices]  # the first of a batch
    if matrices[0].ndim < 2 or min(matrices[0].shape) < 2 or max(matrices[0].shape) > 32:
        return None
    if np.allclose(*matrices, atol=exercise.tolerance):
        return None
    picture = Picture(figsize=(6.5, 1.2 + 0.16 * len(matrices[0])))
    low, high = min(np.nanmin(m) for m in matrices), max(np.nanmax(m) for m in matrices)
    panels = picture.subplots(1, 2, sharey=True)
    for axes, matrix, title in zip(panels, matrices, ("yours", "target")):
        image = axes.imshow(matrix, aspect="auto", cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(title)
    picture.colorbar(image, ax=panels)
    at = np.unravel_index(np.abs(matrices[0] - matrices[1]).argmax(), matrices[0].shape)
    picture.alt = f"Two heat maps, yours and target. They differ most in row {at[0]}, column {at[1]}: {matrices[0][at]:.3f} and {matrices[1][at]:.3f}."
    return picture
