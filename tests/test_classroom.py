"""The notebooks as assignments: what students get, and what the real nbgrader makes of what they hand in."""

import re
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from memgpt_lite.exercises import EXERCISES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import classroom  # noqa: E402

LESSONS = classroom.lessons()
GRADED = "07_inside_the_slots"  # the lesson that is handed in here: the quickest to run


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    notebook = nbformat.read(request.param, as_version=4)
    notebook.number = str(int(request.param.stem[:2]))
    return notebook


def about(notebook):
    return [cell.metadata.nbgrader for cell in notebook.cells if "nbgrader" in cell.metadata]


def test_every_exercise_has_a_cell_to_write_in_and_one_that_is_graded(lesson):
    numbers = [number for number in EXERCISES if number.split(".")[0] == lesson.number]
    ids = Counter(each.grade_id for each in about(lesson))
    assert all(count == 1 for count in ids.values())
    for number in numbers:
        dashed = number.replace(".", "-")
        assert ids[f"exercise-{dashed}"] == ids[f"check-{dashed}"] == 1
    written = [grade_id for grade_id in ids if grade_id.startswith("answer-")]
    assert len(ids) == 2 * len(numbers) + len(written)
    assert len(written) >= 1  # an open question
    assert len(numbers) + len(written) >= 3


def test_the_metadata_is_nbgraders(lesson):
    from nbgrader.nbgraderformat import SCHEMA_VERSION

    for cell in lesson.cells:
        if "nbgrader" not in cell.metadata:
            continue
        found = cell.metadata.nbgrader
        assert found.schema_version == SCHEMA_VERSION == 3
        kind = found.grade_id.split("-")[0]
        expected = {"exercise": (False, True, False), "check": (True, False, True), "answer": (True, True, False)}[kind]
        assert (found.grade, found.solution, found.locked) == expected
        if found.grade:
            assert found.points > 0
        if kind == "check":
            number = found.grade_id.removeprefix("check-").replace("-", ".")
            assert f'check("{number}", ' in cell.source
            assert found.points == EXERCISES[number].points


def test_every_exercise_says_what_it_is_for_how_hard_and_how_long(lesson):
    text = "\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    for number, exercise in EXERCISES.items():
        if number.split(".")[0] == lesson.number:
            heading = re.search(rf"^### {re.escape(number)} · .*$", text, re.MULTILINE).group(0)
            dots = "●" * exercise.difficulty + "○" * (3 - exercise.difficulty)
            assert f"({dots}, {exercise.minutes} minutes)" in heading
    (heading,) = re.findall(r"^### .*open\b.*$", text, re.MULTILINE)
    assert re.search(r" \(●●●, open, \d+ minutes\)$", heading)
    assert text.count("*What it is for") >= 3


def test_a_solved_copy_has_nothing_left_to_write(lesson):
    solved = classroom.solve(lesson)
    left = [cell for cell in solved.cells if classroom.number_of(cell) and classroom.PLACEHOLDER in cell.source]
    assert not left
    assert len(solved.cells) == len(lesson.cells)


@pytest.mark.parametrize(
    ("source", "solved"),
    [
        ('def f(a, b):\n    """What."""\n    return ...  # your code', '    return EXERCISES["1.1"].solution(a, b)'),
        ("mine = ...  # a number", 'mine = EXERCISES["1.1"].solution'),
    ],
)
def test_a_placeholder_becomes_ours(source, solved):
    new = classroom.solve_cell(source, "1.1")
    assert solved in new.splitlines()
    compile(new, "cell", "exec")


def test_the_plans_name_sections_that_there_are():
    text = (classroom.NOTEBOOKS / "TEACHING.md").read_text("utf-8")
    named = re.findall(r"\b(\d\d) to \*([^*]+)\*", text)
    assert {number for number, _ in named} == {f"{number:02}" for number in range(1, 16)}
    for number, section in named:
        (path,) = classroom.NOTEBOOKS.glob(f"{number}_*.ipynb")
        cells = nbformat.read(path, as_version=4).cells
        assert any(f"## {section}" in cell.source.splitlines() for cell in cells), f"{path.name} has no section {section}"


# ---- nbgrader itself ----


def wrong(notebook, number, lines):
    """A solved notebook with one exercise done otherwise: the function's body is `lines`."""
    for cell in notebook.cells:
        if classroom.number_of(cell) == number:
            head = next(line for line in cell.source.splitlines() if line.startswith("def "))
            cell.source = "\n".join([head, *(f"    {line}" for line in lines)])
    return notebook


def edited(notebook):
    """A student who solves nothing and rewrites the graded cells."""
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade") and cell.cell_type == "code":
            cell.source = "print('all right')"
    return notebook


FUNCTIONS = [number for number, exercise in EXERCISES.items() if number.startswith("7.") and exercise.cases is not None]
VALUES = [number for number, exercise in EXERCISES.items() if number.startswith("7.") and exercise.cases is None]
STUDENTS = {
    "untouched": lambda notebook: notebook,
    "solved": classroom.solve,
    "two_wrong": lambda notebook: wrong(wrong(classroom.solve(notebook), FUNCTIONS[0], ["return 0"]), FUNCTIONS[1], ["return 0"]),
    "raises": lambda notebook: wrong(classroom.solve(notebook), FUNCTIONS[0], ["raise RuntimeError('no idea')"]),
    "loops": lambda notebook: wrong(classroom.solve(notebook), FUNCTIONS[0], ["while True:", "    pass"]),
    "edited": edited,
}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    classroom.release(folder)
    return folder


def test_students_get_the_notebooks_as_they_are_without_outputs(course):
    notebooks = sorted(classroom.NOTEBOOKS.glob("*.ipynb"))
    released = sorted((course / "release").glob("*/*.ipynb"))
    assert [path.parts[-2:] for path in released] == [(path.stem, path.name) for path in notebooks]
    for ours, theirs in zip(notebooks, released):
        ours, theirs = nbformat.read(ours, as_version=4), nbformat.read(theirs, as_version=4)
        for mine, other in zip(ours.cells, theirs.cells, strict=True):
            assert without_links(mine.source) == without_links(other.source)
            assert mine.source == other.source or mine.cell_type == "markdown"
        assert not [cell for cell in theirs.cells if cell.get("outputs")]
        assert all("checksum" in found for found in about(theirs) if found.grade or found.solution)


def without_links(text):
    return re.sub(r"\[([^\[\]]+)\]\([^()\s]+\)", r"\1", text)


def test_what_a_released_notebook_links_to_is_released(course):
    links = Counter()
    for path in [*(course / "release").glob("*/*.ipynb"), *(course / "release").glob("*/*.md")]:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join(cell.source for cell in nbformat.reads(text, 4).cells if cell.cell_type == "markdown")
        for target in re.findall(r"\]\(([^()\s]+)\)|(?:src|href)=[\"']([^\"']+)", text):
            file = "".join(target).split("#")[0]
            if file and not file.startswith(("http", "data:")):
                assert (path.parent / file).is_file(), f"{path.name} links to {file}"
                links[Path(file).name] += 1
    assert links["GLOSSARY.md"] > 50
    assert links["00_start_here.ipynb"] > 5


@pytest.mark.parametrize(
    ("ours", "released"),
    [
        ("a [slot](GLOSSARY.md#slot)", "a [slot](GLOSSARY.md#slot)"),
        ("see [03 · Forward](03_forward.ipynb#a)", "see [03 · Forward](../03_forward/03_forward.ipynb#a)"),
        ("[the table](../benchmarks/notebooks.md), [home](../README.md#take-it-away)", "the table, home"),
        ("[a page](https://example.org/a.md), [here](#there)", "[a page](https://example.org/a.md), [here](#there)"),
    ],
)
def test_a_link_leads_from_one_assignment_to_another(ours, released):
    assert classroom.linked_as_released(ours) == released


def test_every_lesson_is_graded_by_itself(course):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        full = {assignment.name: assignment.max_score for assignment in book.assignments}
    points = {path.stem: sum(found.points for found in about(nbformat.read(path, 4)) if found.grade) for path in LESSONS}
    assert full == {"00_start_here": 0, **points}


def test_an_existing_release_is_not_overwritten(course):
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        classroom.release(course)


@pytest.fixture(scope="module")
def grades(course):
    """By student, the points of each graded cell."""
    from nbgrader.api import Gradebook

    source = course / "release" / GRADED / f"{GRADED}.ipynb"
    api = classroom.course(course)
    for student, does in STUDENTS.items():
        folder = course / "submitted" / student / GRADED
        folder.mkdir(parents=True)
        nbformat.write(does(nbformat.read(source, as_version=4)), folder / source.name)
        outcome = api.autograde(GRADED, student)
        assert outcome["success"], outcome["log"]
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        return {
            student: {
                grade.name: (grade.auto_score, grade.max_score)
                for notebook in book.find_submission(GRADED, student).notebooks
                for grade in notebook.grades
            }
            for student in STUDENTS
        }


def lost(grades):
    """The exercises that did not get all of their points, of those that are graded by running them."""
    return {
        name.removeprefix("check-").replace("-", ".") for name, (got, of) in grades.items() if name[:5] == "check" and got < of
    }


def test_nbgrader_gives_what_was_earned(grades):
    every = {number for number in EXERCISES if number.startswith("7.")}
    assert lost(grades["untouched"]) == every
    assert sum(got or 0 for got, _ in grades["untouched"].values()) == 0
    assert lost(grades["solved"]) == set()
    assert lost(grades["two_wrong"]) == set(FUNCTIONS[:2])
    assert lost(grades["raises"]) == {FUNCTIONS[0]}
    assert lost(grades["loops"]) == {FUNCTIONS[0]}
    assert lost(grades["edited"]) == every
    for found in grades.values():
        assert all(got in (0, of) for name, (got, of) in found.items() if name.startswith("check"))
