"""For teachers: `python notebooks/classroom.py release FOLDER` makes what students get, `… solved FOLDER` copies with our solutions.

The notebooks carry nbgrader's metadata: cells to write in, cells that are graded, answers to read. `release` lays out a course as nbgrader
expects it, an assignment for each notebook and with its name, and runs its `generate_assignment`, which records what is graded; from there on
nbgrader's own commands collect and grade (https://nbgrader.readthedocs.io). Nothing needs to be taken out of the notebooks: our solutions are in the library.
"""

import argparse
import ast
import os
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent
GLOSSARY = NOTEBOOKS / "GLOSSARY.md"
COURSE = "memgpt_lite"
PLACEHOLDER = " ...  #"  # stands where the reader is to write
SECONDS = 300  # after which a cell that does not come to an end counts as wrong
LINK = re.compile(r"\[([^\[\]]+)\]\((?!https?:)([\w./-]+\.\w+)(#[\w-]+)?\)")  # to another file


def lessons() -> list[Path]:
    """The notebooks that have exercises."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    return [path for path in paths if any("nbgrader" in cell.metadata for cell in nbformat.read(path, as_version=4).cells)]


def number_of(cell: NotebookNode) -> str | None:
    """The number of the exercise that a cell is to be written for, None for every other cell."""
    about = cell.metadata.get("nbgrader", {})
    if cell.cell_type != "code" or not about.get("solution"):
        return None
    return about["grade_id"].removeprefix("exercise-").replace("-", ".")


def solve(notebook: NotebookNode) -> NotebookNode:
    """A copy with our solutions in place of its placeholders, without outputs."""
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        number = number_of(cell)
        if number is not None:
            cell.source = solve_cell(cell.source, number)
    return notebook


def solve_cell(source: str, number: str) -> str:
    """The source of a cell with a call of our function, or our value, in place of `return ...` or `name = ...`."""
    lines = source.splitlines()
    (at,) = (i for i, line in enumerate(lines) if PLACEHOLDER in line)
    before, _ = lines[at].split(PLACEHOLDER)
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    arguments = f"({', '.join(argument.arg for argument in functions[-1].args.args)})" if functions else ""
    lines[at] = f'{before} EXERCISES["{number}"].solution{arguments}'
    return "\n".join(["from memgpt_lite.exercises import EXERCISES", "", *lines])


def write_solved(folder: Path) -> Path:
    """Solved copies of all of them, not run yet. Returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in lessons():
        nbformat.write(solve(nbformat.read(path, as_version=4)), folder / path.name)
    return folder


def linked_as_released(text: str) -> str:
    """Markdown whose links lead from one assignment's folder to another; what is not released is named without a link."""

    def relink(link: re.Match) -> str:
        says, path, anchor = link[1], Path(link[2]), link[3] or ""
        if path.name == link[2] == GLOSSARY.name:  # beside every notebook
            return link[0]
        if path.name == link[2] and path.suffix == ".ipynb":
            return f"[{says}](../{path.stem}/{path.name}{anchor})"
        return says

    return LINK.sub(relink, text)


def write_source(folder: Path) -> list[str]:
    """An assignment's folder for every notebook, with the glossary beside it. Returns their names."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        (folder / path.stem).mkdir(parents=True)
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = linked_as_released(cell.source)
        nbformat.write(notebook, folder / path.stem / path.name)
        (folder / path.stem / GLOSSARY.name).write_text(linked_as_released(GLOSSARY.read_text("utf-8")), "utf-8")
    return [path.stem for path in paths]


def course(folder: Path):
    """nbgrader's programming interface, for a course in a folder."""
    from nbgrader.apps import NbGraderAPI  # slow to import, and not needed for `solved`
    from traitlets.config import Config

    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where it looks for alembic
    config = Config()
    config.CourseDirectory.course_id = COURSE
    config.CourseDirectory.root = str(folder.resolve())
    config.ClearSolutions.enabled = False  # there are none in the notebooks
    config.Execute.timeout = SECONDS
    return NbGraderAPI(config=config)


def release(folder: Path) -> Path:
    """Lay out a course in an empty folder and let nbgrader make the students' notebooks. Returns where they are.

    Raises `FileExistsError` where there is something already, and `RuntimeError` with nbgrader's own words if it fails.
    """
    source = folder / "source"
    if source.exists():
        raise FileExistsError(f"{source} is there already: choose an empty folder, or delete it")
    assignments = write_source(source)
    (folder / "nbgrader_config.py").write_text(
        "c = get_config()\n"
        f"c.CourseDirectory.course_id = {COURSE!r}\n"
        "c.ClearSolutions.enabled = False  # there are none in the notebooks\n"
        f"c.Execute.timeout = {SECONDS}  # seconds a cell may take\n",
        "utf-8",
    )
    api = course(folder)
    for assignment in assignments:
        outcome = api.generate_assignment(assignment)
        if not outcome["success"]:
            raise RuntimeError(outcome["log"])
    return folder / "release"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The notebooks for a class.")
    parser.add_argument("what", choices=("release", "solved"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        where = release(given.folder) if given.what == "release" else write_solved(given.folder)
    except FileExistsError as error:
        parser.error(str(error))
    print(f"written to {where}")
