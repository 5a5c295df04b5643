"""Kills of the extraction at any moment: the finished file is the one of an undisturbed run, byte for byte."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from captioning.features import FeatureCache
from captioning.files import partial_path
from tests.faults.children import Trap
from tests.faults.settings import Settings
from tests.faults.tally import Outcome, Result, Tally
from tests.faults.world import EXTRACTOR, World

KILLS_IN_A_ROW = 4
SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM, signal.SIGINT)


class Extraction:
    """What one chain of kills does: a new file, more pictures for one that is finished, or rows to mend.

    Args:
        world: with all pictures drawn.
        name: of the way.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.path = world.folder / f"{name}.h5"
        self.start: bytes | None = None
        self.table = world.folder / "all.csv"
        self.workers = "1" if name == "workers" else "0"
        self.store = "int8" if name == "int8 rows" else "float16"
        if name == "added pictures":
            self.table = world.folder / "some.csv"
            self.run()
            self.start, self.table = self.path.read_bytes(), world.folder / "all.csv"
        started = time.perf_counter()
        self.run()
        self.seconds = time.perf_counter() - started
        self.expected, self.rows = self.path.read_bytes(), rows(self.path)

    def options(self, *more: str) -> list[str]:
        return [
            *self.world.options[:1], *EXTRACTOR, "experiment=toy", "data=pairs",
            f"data.reader.file={self.table}", f"data.reader.images={self.world.root}/toy/images",
            f"features.path={self.path}", f"features.run.num_workers={self.workers}",
            f"features.run.store={self.store}", f"hydra.run.dir={self.world.folder}/run", *more,
        ]  # fmt: skip

    def run(self, *more: str) -> None:
        self.world.must("extract", *self.options(*more))

    def reset(self) -> None:
        for path in (self.path, partial_path(self.path)):
            path.unlink(missing_ok=True)
        if self.start is not None:
            self.path.write_bytes(self.start)


def run(settings: Settings) -> Iterator[Tally]:
    """Kill extractions, also several times in a row, and compare what they finish with."""
    world = World(settings.room("extraction"))
    prepare(world)
    ways = [Extraction(world, name) for name in ("new", "workers", "added pictures", "int8 rows")]
    chains = settings.cases(80)
    print(f"  undisturbed: {', '.join(f'{way.name} {way.seconds:.1f} s' for way in ways)}", flush=True)

    def results() -> Iterator[Result]:
        for number in chains:
            way = ways[number % len(ways)]
            generator = settings.generator("extraction", number)
            yield from chain(f"{number} {way.name}", way, generator)

    yield Tally("kills of the extraction").take(results())
    meetings = (
        Result(f"{number}", *meet(ways[0], settings.generator("meetings", number)))
        for number in settings.cases(40)
    )
    yield Tally("extractions of a part and of all at once").take(meetings)


def prepare(world: World) -> None:
    """Draw the scenes, and make a table of them and of a part of them."""
    world.extract()
    names = sorted(path.name for path in (world.root / "toy" / "images").iterdir())
    for file, chosen in (("all.csv", names), ("some.csv", names[::3])):
        (world.folder / file).write_text("image,caption\n" + "".join(f"{name},a scene\n" for name in chosen))


def chain(name: str, way: Extraction, generator: random.Random) -> Iterator[Result]:
    """Kill an extraction several times, then let it finish."""
    way.reset()
    killed = []
    for _ in range(generator.randrange(1, KILLS_IN_A_ROW + 1)):
        place, before, seconds = draw_place(generator, way.seconds)
        command = way.world.command("extract", *way.options(), before=before)
        if seconds is not None:
            time.sleep(seconds)
            number = generator.choice(SIGNALS)
            place = f"{number.name} {place}"
            command.kill(number)
        outcome, message = command.judge()
        if command.was_killed and "Traceback" not in command.text:
            killed.append(place)
        elif outcome != Outcome.SURVIVED:
            yield Result(f"{name}, {place}", outcome, message)
    command = way.world.command("extract", *way.options())
    outcome, message = command.judge()
    if outcome == Outcome.SURVIVED and way.path.read_bytes() != way.expected:
        outcome, message = Outcome.LOST, "the finished file differs from that of an undisturbed run"
    elif outcome == Outcome.REPORTED:
        outcome, message = Outcome.LOST, f"does not go on: {message}"
    if outcome == Outcome.SURVIVED and partial_path(way.path).exists():
        outcome, message = Outcome.LOST, "a partial file stays beside the finished one"
    for place in killed:
        yield Result(f"{name}, {place}", outcome, message)


def meet(way: Extraction, generator: random.Random) -> tuple[Outcome, str]:
    """Start two extractions into one file, of the same pictures or of a part of them; then complete it."""
    way.reset()
    tables = [way.world.folder / generator.choice(("all.csv", "some.csv")) for _ in range(2)]
    running = []
    for table in tables:
        # The later of two options with the same name counts.
        running.append(way.world.command("extract", *way.options(f"data.reader.file={table}")))
        time.sleep(generator.choice((0.0, 0.0, 0.1, 0.5, 1.0)))
    outcomes = [command.judge() for command in running]
    for outcome, message in outcomes:
        if outcome in (Outcome.LOST, Outcome.CRASHED):
            return outcome, message
    refused = [message for outcome, message in outcomes if outcome == Outcome.REPORTED]
    if len(refused) == 2:
        return Outcome.LOST, f"neither ended well: {refused}"
    outcome, message = way.world.command("extract", *way.options()).judge()
    if outcome != Outcome.SURVIVED:
        return Outcome.LOST, f"cannot be completed: {message}"
    if partial_path(way.path).exists() or rows(way.path) != way.rows:
        return Outcome.LOST, "the completed file differs from that of an undisturbed run"
    return (Outcome.REPORTED, refused[0]) if refused else (Outcome.SURVIVED, "")


def rows(path: Path) -> dict[str, bytes]:
    """Read the features of every picture, wherever its row stands."""
    cache = FeatureCache(path)
    return {image_id: cache.read([image_id]).tobytes() for image_id in cache.image_ids}


def draw_place(
    generator: random.Random, seconds: float
) -> tuple[str, Callable[[], None] | None, float | None]:
    """Draw where a process dies: at a call that changes the disk, or after some time."""
    if generator.random() < 0.5:
        number, after = generator.randrange(60), generator.random() < 0.5
        return f"{'after' if after else 'before'} call {number}", Trap(number, after), None
    after_seconds = generator.uniform(0, seconds)
    return f"after {after_seconds:.2f} s", None, after_seconds
