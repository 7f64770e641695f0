"""The web site: `make site` builds it from the README, the notebooks with the outputs they were committed with, and the benchmarks.

The repository's root is Sphinx's source folder, so that a link between two files of the repository is one between two pages; a link to
a file that is no page, such as a module, offers that file to download.
"""

import json
import shutil
from pathlib import Path

import nbformat
from docutils import nodes

project = html_title = "memgpt_lite"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
root_doc = "README"
include_patterns = ["README.md", "notebooks/*", "benchmarks/*", "memgpt_lite/**/README.md"]
exclude_patterns = [".*", "docs/_build"]

html_use_index = html_show_copyright = False
html_domain_indices = False

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# MathJax's menu would make every formula one more stop for the Tab key.
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}  # the source of a notebook's page has a link of its own, in page.html
pygments_dark_style = "a11y-dark"
html_sourcelink_suffix = ""
templates_path = ["_templates"]
html_static_path = ["_static", "../memgpt_lite/viz/explorer.js"]
html_favicon = "_static/icon.svg"
html_css_files = ["site.css"]
html_js_files = [("site.js", {"type": "module"})]

CONTENTS = """

```{toctree}
:hidden:
:glob:
:caption: The series
notebooks/*
```

```{toctree}
:hidden:
:glob:
:caption: Models and data
memgpt_lite/**/README
```

```{toctree}
:hidden:
:glob:
:caption: Benchmarks
benchmarks/*
```
"""

EXPLORER = "application/vnd.memgpt-lite.explorer+json"
suppress_warnings = ["mystnb.unknown_mime_type"]  # of that type, which `complete_outputs` takes care of


def add_contents(app, docname, source):
    """What the side bar lists. The README itself has tables of links instead, which GitHub shows."""
    if docname == root_doc:
        source[0] += CONTENTS


def complete_outputs(app, doctree):
    """Gives each picture of a notebook its alternative text, and each picture of an explorer what site.js shows in its place."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", []) if "data" in output]
    bundles = [node for node in doctree.findall(nodes.container) if node.get("nb_element") == "mime_bundle"]
    for output, bundle in zip(outputs, bundles, strict=True):
        for picture in bundle.findall(nodes.image):
            picture["alt"] = output.metadata["image/png"]["alt"]
        if EXPLORER in output.data:
            state = json.dumps(output.data[EXPLORER]).replace("<", "\\u003c")  # the one character that could end the element
            script = f'<script type="application/json" class="explorer">{state}</script>'
            next(node for node in bundle if node["mime_type"] == "image/png").append(nodes.raw("", script, format="html"))


def add_front_page(app, exception):
    """A server shows index.html where no page is named."""
    if exception is None:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("doctree-read", complete_outputs)
    app.connect("build-finished", add_front_page)
