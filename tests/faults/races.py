"""Every pair of commands started at once, in one folder, on one data root, with the same names for their outputs.

Each does what it does alone, or says which file another process is writing; nothing is half, and nothing is
another's. Cold: the feature file does not exist, so that whoever needs it may make it.
"""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import torch

from captioning.cli.main import COMMANDS
from captioning.errors import InputError
from captioning.features import FeatureCache, verify
from tests.faults.children import Command
from tests.faults.settings import Settings
from tests.faults.tally import Outcome, Result, Tally
from tests.faults.training import compare
from tests.faults.world import MODEL, TRAINING, World

REPEATS = 2  # of each pair, cold and warm


class Race:
    """A folder in which commands meet, and what each of them gives alone.

    Args:
        world: with data, features and a run.
        run: the folder of the run.
    """

    def __init__(self, world: World, run: Path) -> None:
        self.world, self.place = world, world.folder / "place"
        self.features = next((world.root / "features").glob("*.h5"))
        self.sound = world.folder / "sound.h5"
        shutil.copyfile(self.features, self.sound)
        image = sorted((world.root / "toy" / "images").iterdir())[0]
        train = [*world.options, *TRAINING, *MODEL, "max_epochs=1", "prepare=true"]
        self.jobs: dict[str, list[str]] = {
            "train": train,
            "extract": world.options,
            "evaluate": [f"checkpoint={run}", "save_document_frequencies=frequencies.json"],
            "caption": [f"checkpoint={run}", f"image={image}", "output=captions.jsonl"],
            "export": [f"checkpoint={run}", "output=dog.captioner"],
            "baseline": [*world.options, *TRAINING],
            "app": [f"checkpoint={run}", "port=0"],
            "demo": [*train, "data.reader.root=${data_root}/demo", "features.path=${data_root}/demo.h5"],
        }
        self.alone: dict[str, Any] = {}
        for name in list(self.jobs):
            self.reset(cold=False)
            outcome, message = judge(self.start(name))
            if outcome != Outcome.SURVIVED:
                if name != "app" or outcome != Outcome.REPORTED:
                    raise RuntimeError(f"{name} fails alone: {message}")
                print(f"  without app: {message}", flush=True)
                del self.jobs[name]
                continue
            self.alone[name] = self.results()[name]

    def reset(self, cold: bool) -> None:
        """Empty the place, and take the features away or put them back."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        for path in (self.world.root / "features").iterdir():
            path.unlink()
        for path in (self.world.root / "demo", self.world.root / "demo.h5"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if not cold:
            shutil.copyfile(self.sound, self.features)

    def start(self, name: str) -> Command:
        self.world._logs += 1
        log = self.world.folder / "logs" / f"{self.world._logs}-{name}.txt"
        return Command(name, *self.jobs[name], folder=self.place, log=log)

    def results(self) -> dict[str, list[Any]]:
        """Collect what all commands have left behind, in an order that does not depend on them."""
        place = self.place
        trained = [torch.load(path, weights_only=True) for path in sorted(place.glob("runs/**/last.ckpt"))]
        return {
            "train": [content["state_dict"] for content in trained],
            "demo": [content["state_dict"] for content in trained],
            "extract": [sorted(FeatureCache(self.features).image_ids)] if self.features.exists() else [],
            "evaluate": [_scores(path) for path in sorted(place.glob("runs/**/scores.json"))],
            "caption": [path.read_text() for path in place.glob("captions.jsonl")],
            "app": [""],  # leaves nothing
            "export": [
                torch.load(path, weights_only=True)["state_dict"] for path in place.glob("dog.captioner")
            ],
            "baseline": [path.read_text() for path in sorted(place.glob("runs/baseline/*/captions.json"))],
        }

    def leftovers(self) -> str:
        """Return what is wrong in the place, whoever did it."""
        found = [path for folder in (self.place, self.world.root) for path in folder.rglob("*.partial")]
        if found:
            return f"{found[0].name} stays behind"
        if not self.features.exists():
            return ""
        try:
            findings = verify(self.features)
        except InputError as error:
            return f"the feature file is broken: {error}"
        if findings.corrupt or findings.to_do:
            return (
                f"the feature file has {len(findings.corrupt)} corrupt rows and {len(findings.to_do)} to do"
            )
        return ""

    def meet(self, first: str, second: str, cold: bool, delay: float) -> tuple[Outcome, str]:
        """Start two commands and judge both, what they made and what they left."""
        self.reset(cold)
        running = [self.start(first)]
        time.sleep(delay)
        running.append(self.start(second))
        outcomes = [judge(command) for command in running]
        for outcome, message in outcomes:
            if outcome in (Outcome.CRASHED, Outcome.LOST):
                return outcome, message
        if left := self.leftovers():
            return Outcome.LOST, left
        results = self.results()
        for name in {first, second}:
            ended = [
                outcome for (outcome, _), job in zip(outcomes, (first, second), strict=True) if job == name
            ]
            if Outcome.SURVIVED in ended and (
                difference := self.differ(name, results[name], ended, (first, second))
            ):
                return Outcome.LOST, difference
        refused = [message for outcome, message in outcomes if outcome == Outcome.REPORTED]
        if len(refused) == 2 and not cold:
            return Outcome.LOST, f"neither ended well: {refused[0]}; {refused[1]}"
        return (Outcome.REPORTED, refused[0]) if refused else (Outcome.SURVIVED, "")

    def differ(self, name: str, found: list[Any], ended: list[Outcome], pair: tuple[str, str]) -> str:
        """Return how the results of one command differ from what it gives alone."""
        if not found:
            return f"{name} ended well and left nothing"
        if name in ("train", "demo", "baseline"):  # every run has a folder of its own
            writers = [job for job in pair if job == name or {job, name} == {"train", "demo"}]
            if len(found) < min(len(writers), ended.count(Outcome.SURVIVED)):
                return f"{len(writers)} runs left {len(found)} results: they shared a folder"
        expected = [
            *self.alone[name],
            *(self.alone["train"] + self.alone["demo"] if name in ("train", "demo") else []),
        ]
        for result in found:
            if all(compare(one, result) for one in expected):
                return f"{name} gives another result than alone: {str(result)[:100]}"
        return ""


def judge(command: Command) -> tuple[Outcome, str]:
    """Wait for a command; a page is told to stop once it is there."""
    while command.name == "app" and command.is_running:
        if "the page is at" in command.text:
            command.kill(signal.SIGTERM)
            outcome, message = command.judge()
            return (
                (Outcome.SURVIVED, "")
                if command.was_killed and outcome != Outcome.CRASHED
                else (outcome, message)
            )
        time.sleep(0.05)
    return command.judge()


def _scores(path: Path) -> Any:
    """Read scores without the time that they took and the place where they lie."""
    return json.loads(path.read_text(), object_hook=_without_place)


def _without_place(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in ("output_dir", "milliseconds_per_image")}


def run(settings: Settings) -> Iterator[Tally]:
    """Let every pair meet, warm and cold."""
    world = World(settings.room("races"))
    world.extract()
    race = Race(world, world.train("run", "max_epochs=1"))
    if missing := set(COMMANDS) - race.jobs.keys() - {"app"}:
        raise RuntimeError(f"a new command needs a line in Race.jobs: {', '.join(sorted(missing))}")
    pairs = list(combinations_with_replacement(race.jobs, 2))
    generator = settings.generator("races", 0)
    cases = [
        (*pair, cold, generator.choice((0.0, 0.0, 0.3, 1.0))) for pair in pairs for cold in (False, True)
    ] * REPEATS
    generator.shuffle(cases)

    def results() -> Iterator[Result]:
        for number in settings.cases(len(cases)):
            first, second, cold, delay = cases[number]
            name = f"{number} {first} and {second}, {'cold' if cold else 'warm'}, {delay} s apart"
            yield Result(name, *race.meet(first, second, cold, delay))

    yield Tally(f"races of {len(pairs)} pairs of commands").take(results())
