"""Exercises whose checks teach: `check`, `hint`, `solution`, by the number that stands in the notebook.

    from memgpt_lite.exercises import check, hint, solution

    check("4.1", my_sparsemax)      # right, wrong (and probably why), or not attempted
    hint("4.1")                     # call it again for the next one; three at most
    solution("4.1")                 # ours, and what to notice in it
    rule = check("4.1", my_sparsemax).best      # yours once it is right, ours until then

The exercises of notebook NN are in `lesson_NN`, the machinery in `checking`.
"""

import importlib
import inspect
import os
import pkgutil
import random
from typing import Any

from IPython.display import Markdown

from .checking import Exercise, Mistake, Result, examine

EXERCISES: dict[str, Exercise] = {
    exercise.number: exercise
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("lesson_"))
    for exercise in importlib.import_module(f"{__name__}.{module}").EXERCISES
}
_hints_given: dict[str, int] = {}

__all__ = ["EXERCISES", "Exercise", "Mistake", "Result", "check", "hint", "solution"]


class NotRight(AssertionError):
    """Raised where nbgrader runs a notebook to grade it: there, what is not right must fail."""


def check(number: str, attempt: Any, *, seed: int | None = None) -> Result:
    """Compare an attempt with ours, on newly drawn inputs (or those of `seed`). A notebook shows the result if it ends a cell.

    Raises `ValueError` for an unknown exercise, and, where nbgrader grades, `NotRight` for what is wrong or not attempted.
    """
    exercise = _find(number)
    result = examine(exercise, attempt, random.SystemRandom().randrange(2**31) if seed is None else seed)
    if os.environ.get("NBGRADER_EXECUTION") and result.status != "right":
        raise NotRight(repr(result))
    return result


def hint(number: str) -> Markdown:
    """A hint; each further call adds one. Raises `ValueError` for an unknown exercise."""
    hints = _find(number).hints
    given = _hints_given[number] = min(_hints_given.get(number, 0) + 1, len(hints))
    more = (
        f'*Call `hint("{number}")` again for the next one.*'
        if given < len(hints)
        else f'*That was the last one. `solution("{number}")` shows ours.*'
    )
    shown = [f"**Hint {i} of {len(hints)}.** {text}" for i, text in enumerate(hints[:given], 1)]
    return Markdown("\n\n".join([*shown, more]))


def solution(number: str) -> Markdown:
    """Ours, and what to notice in it. Raises `ValueError` for an unknown exercise."""
    exercise = _find(number)
    ours = exercise.solution
    shown = f"```python\n{inspect.getsource(ours)}```" if callable(ours) else f"`{ours!r}`"
    return Markdown(f"**{number} · {exercise.title}**\n\n{shown}\n\n{exercise.notice}")


def _find(number: str) -> Exercise:
    if number not in EXERCISES:
        raise ValueError(f"there is no exercise {number!r}: choose one of {', '.join(EXERCISES)}")
    return EXERCISES[number]
