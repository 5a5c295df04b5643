"""The benchmarks, by name.

    python -m benchmarks                  lists them
    python -m benchmarks beam --images 8  runs one, with its options
    python -m benchmarks all [--full]     runs all, at their smallest sizes or at their own

`all` writes benchmarks/results/<date>.json: the machine, its load before each program, the commit and the
lines that each program printed. What ran at a load above the number of cores is marked.
"""

import argparse
import ast
import json
import os
import platform
import runpy
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SMALL = {  # options for a run of seconds; a program that is not here has none
    "beam": ["--images", "4", "--repeats", "2"],
    "cache": ["--rows", "64", "--repeats", "2"],
    "extraction": ["--images", "16", "--repeats", "1"],
    "families": ["--repeats", "1"],
    "gpu": ["--tiny"],
    "growth": ["--repeats", "1"],
    "metrics": ["--images", "500", "--repeats", "1"],
    "own_parts": ["--repeats", "3"],
    "self_critical": ["--repeats", "1", "--models", "gru_attention_flickr"],
    "training_step": ["--repeats", "2"],
}
ASKED_FOR = ("graphs",)  # need files that `captioning export` makes


def programs() -> dict[str, str]:
    """Return every program's name and the first line of its docstring."""
    found = {}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


def machine() -> dict[str, Any]:
    import torch

    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def run(name: str, options: list[str]) -> dict[str, Any]:
    """Run one program in a process of its own."""
    before, started = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options],
        cwd=FOLDER.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, end="", flush=True)
    result = {
        "options": options, "seconds": round(time.monotonic() - started, 1), "load_before": before,
        "under_load": before > (os.cpu_count() or 1), "status": done.returncode,
        # Without this machine's folders: the file goes into the repository.
        "printed": done.stdout.replace(f"{FOLDER.parent}{os.sep}", "").splitlines(),
    }  # fmt: skip
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        result["error"] = done.stderr[-2000:].replace(f"{FOLDER.parent}{os.sep}", "")
    return result


def run_all(full: bool) -> int:
    """Run all programs and write what they printed; the exit status is 1 if one failed."""
    from captioning.files import atomic_write

    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    report: dict[str, Any] = {"machine": machine(), "commit": git.stdout.strip() or None, "programs": {}}
    for name in programs():
        if name in ASKED_FOR:
            print(f"{name}: left out; it needs files, see its docstring")
            continue
        print(f"---- {name}", flush=True)
        report["programs"][name] = run(name, [] if full else SMALL.get(name, []))
    path = FOLDER / "results" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}.json"
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return int(any(result["status"] for result in report["programs"].values()))


def main() -> int:
    names = programs()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        for name, line in names.items():
            print(f"    {name:15s}{line}")
        return 0
    name = sys.argv.pop(1)
    if name == "all":
        parser = argparse.ArgumentParser(prog="python -m benchmarks all")
        parser.add_argument("--full", action="store_true", help="at the sizes of benchmarks/README.md")
        return run_all(parser.parse_args().full)
    if name not in names:
        print(f"there is no benchmark {name}; there are {', '.join(names)} and all", file=sys.stderr)
        return 2
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
