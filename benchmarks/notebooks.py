"""How long does each notebook run, and how much memory does it need? `python benchmarks/notebooks.py` writes notebooks.md.

Each notebook runs by itself, from top to bottom, in a copy. Seconds are those of the processor (all that its kernel used), which another
program on the machine disturbs less than the clock; memory is the greatest that the kernel had in use. Linux and macOS.
"""

import json
import platform
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NOTEBOOKS = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
MEGABYTE = 1e6 / (1 if sys.platform == "darwin" else 1024)  # in units of ru_maxrss: bytes on macOS, kibibytes elsewhere


def measure(path: Path) -> dict[str, float]:
    """Run one notebook; this process has no other child than its kernel."""
    folder = {"metadata": {"path": path.parent}}
    NotebookClient(nbformat.read(path, as_version=4), timeout=600, kernel_name="python3", resources=folder).execute()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": used.ru_utime + used.ru_stime, "megabytes": used.ru_maxrss / MEGABYTE}


def main() -> None:
    lines = [
        "# What each notebook needs",
        "",
        f"Written by `python benchmarks/notebooks.py`: Python {platform.python_version()}, {platform.machine()}, one PyTorch thread.",
        "",
        "| notebook | processor time | greatest memory |",
        "| --- | --- | --- |",
    ]
    for path in NOTEBOOKS:
        run = subprocess.run([sys.executable, __file__, str(path)], check=True, capture_output=True, text=True)
        found = json.loads(run.stdout.splitlines()[-1])
        lines.append(f"| {path.stem} | {found['seconds']:.0f} s | {found['megabytes']:.0f} MB |")
        print(lines[-1])
    (HERE / "notebooks.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        main()
