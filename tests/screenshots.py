"""A picture of every page of the site and of an explorer's file, wide and narrow, light and dark: `make screenshots`.

No test: pytest runs this file only where it is named, and lends it the site and the browser.
"""

from pathlib import Path

import pytest
import torch
from test_site import PAGES, ROOT, once, site, visit  # noqa: F401 (fixtures)

import memgpt_lite as ml

FOLDER = ROOT / "docs" / "_build" / "screenshots"


@pytest.fixture(scope="session")
def file(tmp_path_factory, worker_id):
    """The folder of an explorer's file."""

    def build(folder):
        ids, labels = ml.tasks.AssociativeRecall(num_segments=32).batch(1, torch.Generator().manual_seed(3))
        trace = ml.trace(ml.load_pretrained("recall"), ids[0], decode=ml.tasks.decode, labels=labels[0])
        folder.mkdir(parents=True)
        ml.MemoryExplorer(trace, title="Four facts, and 30 segments of noise").to_html(folder / "explorer.html")

    return once(tmp_path_factory, worker_id, "file", build)


@pytest.mark.parametrize("name", [*PAGES, "explorer.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_take(visit, site, file, name, scheme, width):  # noqa: F811 (fixtures)
    page = visit(file if name == "explorer.html" else site, name, width, color_scheme=scheme)
    path = FOLDER / f"{Path(name).with_suffix('').as_posix().replace('/', '-')}-{width}-{scheme}.png"
    page.screenshot(path=path, full_page=True)
