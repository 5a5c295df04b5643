"""Gather the scores of trained runs into one small file that the results notebook reads.

    python notebooks/collect.py runs/table > notebooks/results.json

Each folder below the given one is a run: `summary.json` and `.hydra/overrides.yaml` from training, and a `scores.json`
of `python -m captioning.evaluate` in a folder named after its decoding, such as `beam5`; or it is a comparison, with the
`scores.json` of `captioning.evaluate compare=[a,b]`. `COMMIT` holds the commit; `TIME`, if there is one, what `time` printed for
the training command: threads, seconds on the clock, user and system seconds.
"""

import json
import sys
from pathlib import Path

SHOWN = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "meteor")


def read_run(folder: Path) -> dict:
    row: dict = {"run": folder.name, "commit": (folder / "COMMIT").read_text().strip()}
    if (folder / "summary.json").is_file():
        summary = json.loads((folder / "summary.json").read_text())
        row |= {key: summary[key] for key in ("name", "parameters", "best")}
        row["epochs"] = len(summary["epochs"])
        row["nll_by_epoch"] = [round(epoch["nll"], 3) for epoch in summary["epochs"]]
        row["cider_by_epoch"] = [round(epoch["cider_d"], 1) for epoch in summary["epochs"]]
    if (folder / "TIME").is_file():
        threads, clock, *seconds = map(float, (folder / "TIME").read_text().split())
        row |= {"threads": int(threads), "minutes": round(clock / 60, 1)}
        row["processor_minutes"] = round(sum(seconds) / 60, 1)
    if (folder / "scores.json").is_file():  # a comparison of two
        scores = json.loads((folder / "scores.json").read_text())
        return row | {"systems": [system["name"] for system in scores["systems"]], "paired": scores["paired"]}
    for path in sorted(folder.glob("*/scores.json")):
        (system,) = json.loads(path.read_text())["systems"]
        row[path.parent.name] = {name: system["scores"][name] for name in SHOWN if name in system["scores"]}
        row[path.parent.name]["diversity"] = system["diversity"]
    return row


runs = [read_run(folder) for folder in sorted(Path(sys.argv[1]).iterdir()) if (folder / "COMMIT").is_file()]
print(json.dumps(runs, indent=1))
