"""What holds for every committed notebook; that they run is tested with nbmake."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SERIES = [f"{i:02}" for i in range(16)]


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def links(text: str) -> list[str]:
    return [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target and target[0] != "#"]


def test_the_series_is_complete():
    assert [path.name[:2] for path in NOTEBOOKS] == SERIES


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    notebook = nbformat.read(request.param, as_version=4)
    notebook.path = request.param
    return notebook


def test_is_valid_small_and_for_any_python_3(notebook):
    nbformat.validate({k: v for k, v in notebook.items() if k != "path"})
    assert notebook.path.stat().st_size < 1_000_000
    assert notebook.metadata.kernelspec.name == "python3"


def test_was_run_from_top_to_bottom_without_an_error(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output for output in outputs(notebook) if "Warning" in output.get("text", "")]


def test_every_picture_has_alternative_text(notebook):
    pictures = [output for output in outputs(notebook) if any(kind.startswith("image/") for kind in output.get("data", {}))]
    for output in pictures:
        kind = next(kind for kind in output.data if kind.startswith("image/"))
        assert len(output.metadata.get(kind, {}).get("alt", "")) > 20
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"!\[\s*\]", cell.source)
            assert all(re.search(r'\balt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", cell.source))


def test_names_no_path_of_a_machine_and_no_package_registry(notebook):
    text = notebook.path.read_text("utf-8")
    assert not re.search(r"/(home|root|work|tmp|Users)/|[A-Z]:\\\\Users|pypi|files\.pythonhosted|download\.pytorch", text)


def test_cells_are_short_enough_to_read(notebook):
    lengths = [len(cell.source.splitlines()) for cell in notebook.cells if cell.cell_type == "code"]
    assert max(lengths) <= 25
    assert sum(lengths) / len(lengths) < 12


def test_links_lead_somewhere(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for link in links(cell.source):
                assert (notebook.path.parent / link).exists(), link


def test_the_glossary_has_every_term_that_is_linked_and_every_term_is_linked():
    text = (ROOT / "notebooks" / "GLOSSARY.md").read_text("utf-8")
    terms = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", text, re.MULTILINE)}
    linked = re.findall(r"GLOSSARY\.md#([\w-]+)\)", "".join(path.read_text("utf-8") for path in NOTEBOOKS))
    assert sorted(linked) == sorted(terms)  # once each, where it is introduced
    for entry in text.split("\n## ")[1:]:
        assert re.search(r"[\u4e00-\u9fff]", entry)  # in Chinese too


def test_has_the_form_of_a_lesson(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert text.startswith("# ")
    for part in ("You will be able to", "minutes", "Before you run it", "<details>", "What to remember", "Where to go next"):
        assert part in text
    if notebook.path.name[:2] != "00":
        quiz = text.split("## Quiz")[1].split("## What to remember")[0]
        assert re.findall(r"^\*\*(\d)\.\*\*", quiz, re.MULTILINE) == list("1234")
        assert quiz.count("<details>") == 4
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "ml.setup(" in code


@pytest.mark.parametrize("name", ["GLOSSARY.md", "TEACHING.md"])
def test_the_links_of_a_page_lead_somewhere(name):
    for link in links((ROOT / "notebooks" / name).read_text("utf-8")):
        assert (ROOT / "notebooks" / link).exists(), link


def test_the_readme_links_lead_somewhere_and_name_every_notebook():
    readme = (ROOT / "README.md").read_text("utf-8")
    for link in links(readme):
        assert (ROOT / link).exists(), link
    for path in NOTEBOOKS:
        assert f"notebooks/{path.name}" in readme


def test_requirements_are_pinned_and_need_no_cuda():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "-e ."
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^ +]+", line) for line in lines[:-1])
    assert "torch==2.13.0" in lines
    assert not [line for line in lines if re.match(r"nvidia|cuda|triton", line)]
    names = {re.split(r"[=<>]", line)[0].replace("_", "-").lower() for line in lines}
    direct = (ROOT / "requirements.in").read_text().splitlines()
    assert {re.split(r"[=<>]", line)[0] for line in direct if line and not line.startswith("#")} <= names


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "memgpt_lite").rglob("__init__.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders}
