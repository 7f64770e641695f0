"""For teachers: `python notebooks/slides.py FOLDER` makes a deck of slides of each of the notebooks 00 to 06, from the outputs that they have.

A slide has few words in large letters, so a deck is shorter than its notebook. It shows every question, picture, formula and table; of prose
and answers what fits, while the rest is in the speaker's notes (key S); and code if it fits on a slide. Exercises and the quiz are left out.
Whatever the decks load lies in FOLDER beside them: they need no network.
"""

import argparse
import math
import re
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parent
TEMPLATE = NOTEBOOKS.parent / "docs" / "_templates" / "slides.html.j2"
MARKDOWN = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin)

LEFT_OUT = ("Exercises", "Quiz")
GOALS = "You will be able to"
FOR_READERS = re.compile(r"\W*(Takes|Builds on|How to use these notebooks)\b")
QUESTION = re.compile(r"\*\*(Before you [^*:]*):?\*\*\s*")
ASIDE = re.compile(r"\*[^*].*[^*]\*|\(.*\)", re.DOTALL)  # a caption, or a paragraph in parentheses
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\([^)\s$]+\)")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"“(*`$]*[A-Z])")

# A slide has 1280 × 720 pixels. What stands on it is reckoned in pixels too, on the high side, for letters as in the template.
WIDTH, HEIGHT = 1184, 640
TITLE, LINE, GAP, TABLE_LINE, FORMULA, PICTURE = 72, 42, 18, 40, 140, 390
CODE, LEADING = range(20, 29), 1.35  # sizes of the letters of code, and its lines as a multiple of them
PROSE, ANSWER, ITEM = 60, 75, 40  # words of the prose between two pieces of something else, of an answer, of an item of a list
MOST_WORDS, MOST_PRINTED, MOST_SLIDES = 90, 14, 60


class Piece:
    """Something that stands on a slide: a cell, and the height that it takes."""

    def __init__(self, cell: NotebookNode, height: float = 0):
        self.cell, self.height = cell, height
        self.words = count_words(cell.source) if cell.cell_type == "markdown" and not cell.source.startswith("|") else 0

    def fits(self, room: float) -> bool:
        return self.height <= room


class Picture(Piece):
    """As large as it gets, but not smaller than can be seen."""

    def fits(self, room: float) -> bool:
        self.height = room
        return room >= PICTURE


class Listing(Piece):
    """Code and what it printed, in the largest letters at which no line need be broken."""

    def __init__(self, code: list[str], printed: list[str]):
        outputs = [new_output("stream", text="\n".join(printed))] if printed else []
        super().__init__(new_code_cell("\n".join(code), outputs=outputs))
        self.boxes = [lines for lines in (code, printed) if lines]

    def fits(self, room: float) -> bool:
        for largest in reversed(CODE):
            sizes = [min(largest, self.letters(lines)) for lines in self.boxes]
            self.height = sum(self.box(lines, size) for lines, size in zip(self.boxes, sizes))
            if self.height <= room:
                self.cell.metadata.update(size=sizes[0], printed_size=sizes[-1])
                return True
        return False

    def letters(self, lines: list[str]) -> int:
        """The largest size at which none of the lines is broken, or the smallest there is."""
        longest = max(width(line) for line in lines)
        return next((size for size in reversed(CODE) if longest <= columns(size)), CODE[0])

    def box(self, lines: list[str], size: int) -> float:
        """The height of the box that lines stand in."""
        return 40 + size * LEADING * sum(rows(line, columns(size)) for line in lines)


@dataclass
class Slide:
    kind: str  # "cover", "plain", "question" or "answer": the template shows them differently
    title: str  # HTML
    starts: str  # "slide" for a section of the notebook, "subslide" for what follows in it
    result: bool  # between a question and its answer
    pieces: list[Piece] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def room(self) -> float:
        return HEIGHT - TITLE * bool(self.title) - sum(piece.height for piece in self.pieces)

    @property
    def code(self) -> int:
        """Lines of code."""
        return sum(len(piece.cell.source.splitlines()) for piece in self.pieces if piece.cell.cell_type == "code")

    @property
    def shows(self) -> bool:
        """Something that code made."""
        return any(piece.cell.get("outputs") for piece in self.pieces)

    def takes(self, *pieces: Piece) -> bool:
        """Puts pieces on the slide if there is room for all of them."""
        *others, last = pieces
        words = sum(piece.words for piece in (*self.pieces, *pieces))
        if words > max(MOST_WORDS, last.words) or not last.fits(self.room - sum(piece.height for piece in others)):
            return False
        self.pieces += pieces
        return True

    def cells(self) -> list[NotebookNode]:
        """With the metadata by which nbconvert cuts a notebook into slides."""
        cells = [new_markdown_cell(self.title)]
        for piece in self.pieces:
            if piece.cell.cell_type == cells[-1].cell_type == "markdown":
                cells[-1].source += "\n\n" + piece.cell.source
            else:
                cells.append(piece.cell)
        for cell in cells:
            cell.metadata.slideshow = {"slide_type": "-"}
        cells[0].metadata.slideshow = {"slide_type": self.starts, "data": {"kind": self.kind}}
        if self.notes:
            cells.append(new_markdown_cell("\n\n".join(self.notes), metadata={"slideshow": {"slide_type": "notes"}}))
        return cells


class Deck:
    """The slides of a notebook."""

    def __init__(self, notebook: NotebookNode):
        self.slides: list[Slide] = []
        self.waiting: list[Piece] = []  # prose that is to stand with what follows it
        self.title = self.section = ""
        self.left_out = self.asked = False
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                self.add_markdown(LINK.sub(r"\1", cell.source))
            elif not self.left_out and "ml.setup(" not in cell.source:
                self.add_code(cell)
        self.start()
        self.slides.pop()
        self.shorten()

    @property
    def last(self) -> Slide:
        return self.slides[-1]

    def start(self, kind: str = "plain", title: str | None = None, starts: str = "subslide") -> None:
        """The next slide, under the section's heading if it has none of its own. It takes the place of one that is still empty."""
        self.settle()
        notes = []
        if self.slides and not self.last.pieces:
            empty = self.slides.pop()
            starts, notes = min(starts, empty.starts), empty.notes  # "slide" < "subslide"
        title = f"<h2>{MARKDOWN.renderInline(self.section)}</h2>" if title is None else title
        self.slides.append(Slide(kind, title, starts, self.asked, notes=notes))

    def settle(self) -> None:
        """Prose that nothing follows stands below what is there, if there is room; else it is the speaker's."""
        if self.waiting and not self.last.takes(*self.waiting):
            self.last.notes += [piece.cell.source for piece in self.waiting]
        self.waiting = []

    def add(self, piece: Piece) -> bool:
        """Put something on the slide or on the next, with the prose before it if there is room. False if no slide has room for it."""
        if self.last.takes(*self.waiting, piece):
            self.waiting = []
            return True
        if not piece.fits(HEIGHT - TITLE):
            return False
        if not self.last.pieces:
            self.settle()  # under a heading prose may stand alone
        before, (waiting, self.waiting) = self.last, (self.waiting, [])
        if before.kind in ("question", "answer"):
            self.start(before.kind, before.title)
        else:
            self.start(title="" if isinstance(piece, Picture) and not waiting else None)
        if not self.last.takes(*waiting, piece):
            self.last.takes(piece)
            if not before.takes(*waiting):
                self.last.notes += [prose.cell.source for prose in waiting]
        return True

    def add_text(self, text: str, height: float) -> None:
        if not self.add(Piece(new_markdown_cell(text), height)):
            self.last.notes.append(text)

    def add_prose(self, text: str) -> None:
        """A paragraph. The first is cut after a sentence if it has too many words; others are left to the speaker then."""
        room = (ANSWER if self.last.kind == "answer" else PROSE) - sum(piece.words for piece in self.waiting)
        shown, rest = cut(text, room) if not self.waiting else (text, "") if count_words(text) <= room else ("", text)
        if shown:
            self.waiting.append(Piece(new_markdown_cell(shown), rows(visible(shown), 74) * LINE + GAP))
        if rest:
            self.last.notes.append(rest)

    def add_markdown(self, source: str) -> None:
        parts = list(blocks(source))
        for at, (kind, text) in enumerate(parts):
            if kind == "heading":
                self.add_heading(*text.split(" ", 1))
            elif self.left_out or FOR_READERS.match(text):
                continue
            elif text.startswith("<details>"):
                self.settle()
                self.asked = False
                self.start("answer", "<h2>Answer</h2>")
            elif text == "</details>":
                self.start()
            elif question := QUESTION.match(text):
                choices = takewhile(lambda part: part[0] == "list_item", parts[at + 1 :])
                self.add_question(question[1], text[question.end() :], [choice for _, choice in choices])
            elif text.strip("*: ") == GOALS:
                self.start(title=f"<h2>{GOALS}</h2>")
            elif self.last.kind == "question" and kind == "list_item":
                continue  # it stands there already
            elif ASIDE.fullmatch(text) or self.last.kind == "question":
                self.last.notes.append(text)
            elif kind == "list_item":
                shown, rest = cut(text, ITEM)
                self.add_text(shown, rows(visible(shown), 70) * LINE + 12)
                self.last.notes += [rest] if rest else []
            elif kind == "table":
                self.add_text(text, sum(rows(line, 85) for line in text.splitlines()) * TABLE_LINE + 40)
            elif kind == "math_block":
                self.add_formula(text)
            elif kind == "paragraph":
                self.add_prose(text)
            else:
                self.last.notes.append(text)

    def add_formula(self, text: str) -> None:
        """Equations side by side stand one below the other if they are long."""
        formula = text.strip("$ \n")
        equations = formula.split(r"\qquad")
        if len(formula) < 120 or any(equation.count("{") != equation.count("}") for equation in equations):
            equations = [formula]
        self.add_text("\n\n".join(f"$${equation.strip()}$$" for equation in equations), FORMULA * len(equations))

    def add_heading(self, level: str, title: str) -> None:
        if level != "###":
            self.left_out = title in LEFT_OUT
        if self.left_out:
            return
        self.settle()
        self.section, self.asked = title, False
        if level == "#":
            self.title = title
            self.start("cover", f"<h1>{MARKDOWN.renderInline(title)}</h1>", "slide")
        else:
            self.start(starts="slide" if level == "##" else "subslide")

    def add_question(self, label: str, question: str, choices: list[str]) -> None:
        """On a slide of its own, with the prose before it if there is room."""
        text = "\n\n".join([f"<h3>{label}</h3>", question[:1].upper() + question[1:], *choices])
        height = 60 + rows(visible(question), 52) * 55 + sum(rows(visible(choice), 58) * 50 + 12 for choice in choices)
        pieces = [*self.waiting, Piece(new_markdown_cell(text), height)]
        larger = 0.4 * sum(prose.height for prose in self.waiting)  # the letters of prose, on such a slide
        if sum(piece.height for piece in pieces) + larger > HEIGHT - TITLE or sum(piece.words for piece in pieces) > MOST_WORDS:
            self.settle()
            pieces = pieces[-1:]
        self.waiting = []
        self.start("question")
        self.last.pieces = pieces
        self.asked = True

    def add_code(self, cell: NotebookNode) -> None:
        """Its source and what it printed, if there is room for both, else this alone; of a cell that draws, the picture."""
        if self.last.kind != "plain":
            self.start()
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        printed = "".join(output.get("text") or output.data["text/plain"] for output in cell.outputs if output not in pictures)
        lines = printed.rstrip().splitlines()
        lines[MOST_PRINTED:] = ["…"] * (len(lines) > MOST_PRINTED)
        code = [] if pictures else re.sub(r"\n{3,}", "\n\n", cell.source).splitlines()
        if lines:
            self.add(Listing(code, lines)) or self.add(Listing([], lines))
        elif any(line.startswith(("def ", "class ")) for line in code):
            self.add(Listing(code, []))
        for output in pictures:
            picture = new_output("display_data", {"image/png": output.data["image/png"]}, metadata=output.metadata)
            self.add(Picture(new_code_cell(outputs=[picture])))

    def shorten(self) -> None:
        """Leaves out the longest code, but nothing that a question asks for and no beginning of a section, until the deck is short enough."""
        while len(self.slides) > MOST_SLIDES:
            able = [
                slide for slide in self.slides if slide.code and slide.starts == "subslide" and not (slide.result and slide.shows)
            ]
            if not able:
                return
            longest = max(able, key=lambda slide: slide.code)
            before = self.slides[self.slides.index(longest) - 1]
            before.notes += [piece.cell.source for piece in longest.pieces if piece.words] + longest.notes
            self.slides.remove(longest)


def count_words(text: str) -> int:
    """A formula counts as one."""
    return len(re.sub(r"\$[^$]+\$", "x", text).split())


def visible(text: str) -> str:
    """Roughly what is seen of a text with formulas."""
    return re.sub(r"\\[a-zA-Z]+|[${}\\^]", "", text)


def cut(text: str, words: int) -> tuple[str, str]:
    """The first sentences of a text, as many as have so many words, but at least one; and the rest of it."""
    sentences = SENTENCE.split(text)
    for count in range(len(sentences), 0, -1):
        shown = " ".join(sentences[:count])
        if count == 1 or (count_words(shown) <= words and shown.count("(") == shown.count(")")):
            return shown, " ".join(sentences[count:])


def width(line: str) -> int:
    """In letters of the usual width; a Chinese character has twice that."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in line)


def columns(size: int) -> int:
    """How many letters of code stand in a line."""
    return int(WIDTH / (0.602 * size))


def rows(text: str, columns: int) -> int:
    """How many lines a paragraph takes, or a line of code."""
    return max(1, math.ceil(width(text) / columns))


def blocks(source: str) -> Iterator[tuple[str, str]]:
    """The blocks of a markdown text, and the items of its lists: their types and their sources."""
    lines = source.splitlines()
    for token in MARKDOWN.parse(source):
        block = token.level == 0 and token.type not in ("bullet_list_open", "ordered_list_open")
        if token.map and (block or (token.level == 1 and token.type == "list_item_open")):
            yield token.type.removesuffix("_open"), "\n".join(lines[slice(*token.map)]).strip()


def copy_libraries(folder: Path) -> None:
    """reveal.js, which shows the slides, and MathJax, as the installed packages bring them."""
    reveal, mathjax = (Path(find_spec(name).origin).parent for name in ("sphinx_revealjs", "sphinx-mathjax-offline"))
    reveal /= "_static/revealjs"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (reveal / "dist/reveal.js", reveal / "dist/reveal.css", reveal / "plugin/notes/notes.js"):
        shutil.copy(path, folder)
    shutil.copy(mathjax / "static/mathjax/tex-svg.js", folder / "mathjax.js")


def write_slides(folder: Path) -> None:
    """All decks, and a page with the list of them."""
    copy_libraries(folder / "libraries")
    config = Config()
    config.CSSHTMLHeaderPreprocessor.style = "a11y-high-contrast-light"
    exporter = SlidesExporter(config=config, template_file=str(TEMPLATE), reveal_url_prefix="libraries")
    links = []
    for path in sorted(NOTEBOOKS.glob("0[0-6]_*.ipynb")):
        deck = Deck(nbformat.read(path, as_version=4))
        cells = [cell for slide in deck.slides for cell in slide.cells()]
        slides = new_notebook(cells=cells, metadata={"title": deck.title, "language_info": {"name": "python"}})
        text, _ = exporter.from_notebook_node(slides, {"metadata": {"path": str(NOTEBOOKS)}})
        (folder / f"{path.stem}.slides.html").write_text(text, "utf-8")
        links.append(f'<li><a href="{path.stem}.slides.html">{deck.title}</a> ({len(deck.slides)} slides)</li>')
    (folder / "index.html").write_text(INDEX.format("\n".join(links)), "utf-8")


INDEX = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Slides · memgpt_lite</title>
<style>body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1.25rem/1.6 Arial, Helvetica, sans-serif; }}</style>
<h1>Slides</h1>
<ol start="0">
{}
</ol>
<p>Keys: <kbd>→</kbd> and <kbd>←</kbd> turn the slides, <kbd>Esc</kbd> shows all of them, <kbd>F</kbd> fills the screen,
<kbd>S</kbd> opens the speaker's notes.</p>
</html>
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Slides of the notebooks.")
    parser.add_argument("folder", type=Path)
    write_slides(parser.parse_args().folder)
