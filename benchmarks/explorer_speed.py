"""How long does a step of `MemoryExplorer` take in a browser, and how long does a long text take to open?

    python benchmarks/explorer_speed.py            # needs Chromium: apt-get install -y chromium, or playwright install chromium

A step is scripting and layout, styles included: from the click on "next segment" until the layout that the page then asks for is done,
as Chromium's own counters have it, in processor time of the page's thread, so that other processes on the machine do not count.
Painting comes after it, before the next step. Every round opens the page anew; what is printed are the medians over the rounds.
"""

import argparse
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

import memgpt_lite as ml

STEP = """async (label) => {
  await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
  document.querySelector(`button[aria-label^="${label}"]`).click();
  document.querySelector(".mgx").offsetHeight;
}"""
COUNTED = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
OPENED = """new MutationObserver((_, observer) => {
  if (!document.querySelector(".mgx-slot")) return;
  observer.disconnect();
  requestAnimationFrame(() => { window.opened = performance.now(); });
}).observe(document, { childList: true, subtree: true });"""


def export(path: Path, segments: int, length: int, slots: int) -> float:
    """Write the explorer of a random model that reads random text; returns the file's size in kB."""
    torch.manual_seed(0)
    model = ml.MemGPT(
        ml.MemGPTConfig(vocab_size=66, segment_length=length, n_embd=64, n_layer=2, n_head=2, num_memory_slots=slots)
    )
    trace = ml.trace(model, torch.randint(66, (segments * length,)), decode=ml.tasks.decode)
    return ml.MemoryExplorer(trace).to_html(path).stat().st_size / 1000


def step_times(page, steps: int) -> list[float]:
    """Goes so many steps forwards, then back; returns the milliseconds of each."""
    counters = page.context.new_cdp_session(page)
    counters.send("Performance.enable", {"timeDomain": "threadTicks"})
    totals = []
    for label in [None, *["Next segment"] * steps, *["One segment back"] * steps]:
        if label:
            page.evaluate(STEP, label)
        metrics = counters.send("Performance.getMetrics")["metrics"]
        totals.append(1000 * sum(metric["value"] for metric in metrics if metric["name"] in COUNTED))
    return [after - before for before, after in pairwise(totals)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browser", default="/usr/bin/chromium", help="the browser's executable")
    parser.add_argument("--rounds", type=int, default=5, help="how often each page is opened and stepped through")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox", "--disable-gpu"])
        print(f"Chromium {browser.version}")
        for segments, length, slots in ((32, 64, 16), (4096, 16, 16)):
            path = Path(folder) / "explorer.html"
            size = export(path, segments, length, slots)
            opened, medians, slowest = [], [], []
            for _ in range(options.rounds):
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.add_init_script(OPENED)
                page.goto(path.as_uri())
                page.wait_for_selector(".mgx-slot")
                opened.append(page.evaluate("new Promise((done) => requestAnimationFrame(() => done(window.opened)))"))
                times = step_times(page, min(segments - 1, 100))
                medians.append(statistics.median(times))
                slowest.append(statistics.quantiles(times, n=20)[-1])
                page.close()
            opened, median, slow = map(statistics.median, (opened, medians, slowest))
            print(f"{segments} segments × {slots} slots × {length} tokens: {size:,.0f} kB, open after {opened:.0f} ms, "
                  f"{len(times)} steps, median {median:.1f} ms, 95% under {slow:.1f} ms")  # fmt: skip
        browser.close()


if __name__ == "__main__":
    main()
