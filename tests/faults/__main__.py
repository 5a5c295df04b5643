"""Run the faults: `python -m tests.faults all`, or one of them; `--quick` for a minute."""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

FAULTS = {
    "pictures": "mutated pictures of many formats",
    "annotations": "malformed annotation files, for every reader",
    "caches": "flipped bits and truncations of the feature cache",
    "checkpoints": "malformed and hostile checkpoints",
    "extraction": "kills of the extraction",
    "training": "kills of the training, resumed inside epochs",
    "races": "every pair of commands at once",
}


def main() -> int:
    """Return 1 if anything was lost or crashed."""
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    listed = "; ".join(f"{name}: {text}" for name, text in FAULTS.items())
    parser.add_argument(
        "faults", nargs="+", choices=["all", *FAULTS], metavar="FAULT", help=f"all, or {listed}"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000, help="of every draw; printed")
    parser.add_argument("--quick", action="store_true", help="two in a hundred of the cases: a minute or two")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases to try")
    parser.add_argument("--only", type=int, help="repeat the case of this number")
    parser.add_argument(
        "--folder", type=Path, help="for what is written; kept. Else a temporary one, removed at the end"
    )
    chosen = parser.parse_args()
    names = list(FAULTS) if "all" in chosen.faults else chosen.faults
    print(f"seed {chosen.seed}: repeat with --seed {chosen.seed}", flush=True)

    import torch

    from captioning.cli import silence_known_warnings
    from tests.faults.settings import Settings
    from tests.faults.tally import table

    torch.set_num_threads(1)  # forks must not inherit a pool of threads
    silence_known_warnings()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    settings = Settings(chosen.seed, 0.02 if chosen.quick else chosen.share, folder.absolute(), chosen.only)
    tallies = []
    try:
        for name in names:
            tallies += importlib.import_module(f"tests.faults.{name}").run(settings)
    finally:
        print(f"\nseed {chosen.seed}, {' '.join(names)}\n\n{table(tallies)}", flush=True)
        if not chosen.folder:
            shutil.rmtree(folder, ignore_errors=True)
    return int(not all(tally.is_clean for tally in tallies))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
