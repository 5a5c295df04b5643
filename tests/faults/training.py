"""Kills of the training at any moment: what is resumed ends with the weights of an undisturbed run, bit for bit."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.faults.children import Trap
from tests.faults.settings import Settings
from tests.faults.tally import Outcome, Result, Tally
from tests.faults.world import MODEL, TRAINING, World

EPOCHS, KILLS_IN_A_ROW = 3, 4
WAYS = {  # what is trained
    "plain": MODEL,
    "hard attention": [
        "model=show_attend_tell_hard", "objective=reinforce", "model.embedding_dim=8", "model.hidden_dim=16",
        "model.attention.attention_dim=8",
    ],
    "scheduled sampling": [*MODEL, "objective=scheduled_sampling"],
    "workers": [*MODEL, "data.num_workers=1"],
}  # fmt: skip
SIGNALS = (signal.SIGKILL,) * 3 + (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Training:
    """A training that is repeated with kills, and what it ends with undisturbed.

    Args:
        world: with the features.
        name: one of `WAYS`.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        started = time.perf_counter()
        world.must("train", *self.options("undisturbed"))
        self.seconds = time.perf_counter() - started
        self.expected = final_state(world.folder / f"undisturbed-{name}".replace(" ", "_"))

    def options(self, run: str, *more: str) -> list[str]:
        folder = self.world.folder / f"{run}-{self.name}".replace(" ", "_")
        return [
            *self.world.options, *TRAINING, *WAYS[self.name], f"max_epochs={EPOCHS}", f"hydra.run.dir={folder}",
            "checkpoint_every=3steps", "resume=auto", "scheduler=warmup_cosine", *more,
        ]  # fmt: skip


class AtStep:
    """Kills the process in the middle of a training step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self) -> None:
        from captioning.training import CaptioningModule

        original, done = CaptioningModule.training_step, 0

        def training_step(module: Any, batch: Any, batch_idx: int) -> Any:
            nonlocal done
            done += 1
            if done > self.step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(module, batch, batch_idx)

        CaptioningModule.training_step = training_step  # type: ignore[method-assign]


def run(settings: Settings) -> Iterator[Tally]:
    """Kill trainings, also several times in a row, and compare what they end with."""
    world = World(settings.room("training"))
    world.extract()
    chains = settings.cases(40)
    ways = {name: Training(world, name) for name in list(WAYS)[: len(chains)]}
    print(
        f"  undisturbed: {', '.join(f'{way.name} {way.seconds:.1f} s' for way in ways.values())}", flush=True
    )

    def results() -> Iterator[Result]:
        for number in chains:
            way = ways[list(ways)[number % len(ways)]]
            yield from chain(number, way, settings.generator("training", number))

    yield Tally("kills of the training").take(results())


def chain(number: int, way: Training, generator: random.Random) -> Iterator[Result]:
    """Kill a training several times, then let it finish."""
    name, run = f"{number} {way.name}", f"killed{number}"
    folder = way.world.folder / f"{run}-{way.name}".replace(" ", "_")
    killed = []
    for _ in range(generator.randrange(1, KILLS_IN_A_ROW + 1)):
        place, before, seconds = draw_place(generator, way.seconds)
        command = way.world.command("train", *way.options(run), before=before)
        if seconds is not None:
            time.sleep(seconds)
            chosen = generator.choice(SIGNALS)
            place = f"{chosen.name} {place}"
            command.kill(chosen)
        outcome, message = command.judge()
        if command.was_killed and "Traceback" not in command.text:
            killed.append(place)
        elif outcome == Outcome.REPORTED and "has trained" in message:
            break  # it had already ended
        elif outcome != Outcome.SURVIVED:
            yield Result(f"{name}, {place}", outcome, message)
    command = way.world.command("train", *way.options(run))
    outcome, message = command.judge()
    if outcome == Outcome.REPORTED:
        outcome, message = Outcome.LOST, f"does not go on: {message}"
    if outcome == Outcome.SURVIVED:
        difference = compare(way.expected, final_state(folder))
        outcome, message = (Outcome.LOST, difference) if difference else (outcome, "")
    for place in killed:
        yield Result(f"{name}, {place}", outcome, message)
    if outcome == Outcome.SURVIVED:
        way.world.clean(folder.name)


def draw_place(
    generator: random.Random, seconds: float
) -> tuple[str, Callable[[], None] | None, float | None]:
    """Draw where a process dies: in a step, at a call that changes the disk, or after some time."""
    kind = generator.random()
    if kind < 0.4:
        step = generator.randrange(24)
        return f"in step {step}", AtStep(step), None
    if kind < 0.7:
        number, after = generator.randrange(80), generator.random() < 0.5
        return f"{'after' if after else 'before'} call {number}", Trap(number, after), None
    after_seconds = generator.uniform(0, seconds)
    return f"after {after_seconds:.2f} s", None, after_seconds


def final_state(folder: Path) -> dict[str, Any]:
    """Read everything that a training ends with."""
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return {
        "weights": content["state_dict"],
        "optimizer": content["optimizer_states"],
        "schedule": content["lr_schedulers"],
        "position": [content["epoch"], content["global_step"]],
        "best weights": best["state_dict"],
        "summary": json.loads((folder / "summary.json").read_text()),
        "files": sorted(path.name for path in (folder / "checkpoints").iterdir()),
    }


def compare(expected: Any, found: Any, name: str = "") -> str:
    """Return where two trees of tensors and plain values differ, or nothing."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(found, torch.Tensor) and expected.equal(found)
        return "" if same else f"{name} differ from an undisturbed run"
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return next(
            filter(None, (compare(v, found[k], f"{name} {k}".strip()) for k, v in expected.items())), ""
        )
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return next(filter(None, (compare(v, f, name) for v, f in zip(expected, found, strict=True))), "")
    return "" if expected == found else f"{name} differ: {expected!s:.100} and {found!s:.100}"
