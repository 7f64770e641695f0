"""How long does a step of `MemoryExplorer` take in a browser, and how long does a long text take to open?

    python benchmarks/explorer_speed.py            # needs Chromium: apt-get install -y chromium, or playwright install chromium

A step is scripting and layout: from the click on "next segment" until the layout that the page then asks for is done
(`performance.now` on both sides of `button.click()` and `offsetHeight`). Painting comes after it.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

import memgpt_lite as ml

STEPS = """() => {
  const [back, next] = ["One segment back", "Next segment"].map((label) => document.querySelector(`button[aria-label^="${label}"]`));
  const times = [];
  for (const button of [next, back]) for (let i = 1; i < SEGMENTS; i++) {
    const start = performance.now();
    button.click();
    document.querySelector(".mgx").offsetHeight;
    times.push(performance.now() - start);
  }
  return times;
}"""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browser", default="/usr/bin/chromium", help="the browser's executable")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox", "--disable-gpu"])
        print(f"Chromium {browser.version}")
        for segments, length, slots in ((32, 64, 16), (4096, 16, 16)):
            path = Path(folder) / "explorer.html"
            size = export(path, segments, length, slots)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.add_init_script(OPENED)
            page.goto(path.as_uri())
            page.wait_for_function("window.opened")
            opened = page.evaluate("window.opened")
            times = page.evaluate(STEPS.replace("SEGMENTS", str(min(segments, 200))))
            slowest = sorted(times)[int(0.95 * len(times))]
            print(f"{segments} segments × {slots} slots × {length} tokens: {size:,.0f} kB, open after {opened:.0f} ms, "
                  f"{len(times)} steps, median {statistics.median(times):.1f} ms, 95% under {slowest:.1f} ms")  # fmt: skip
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
