"""How many cases are tried, from which seed, and where."""

import os
import random
from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """What the command line chose.

    seed: of every draw.
    share: of the full number of cases that is tried.
    folder: for everything that is written.
    only: the number of the single case to repeat, if any.
    """

    seed: int
    share: float
    folder: Path
    only: int | None = None

    def cases(self, number: int) -> list[int]:
        """Return the numbers of the cases of a fault that is tried `number` times in full."""
        if self.only is not None:
            return [self.only]
        return list(range(max(2, round(number * self.share))))

    def generator(self, fault: str, case: int) -> random.Random:
        """Return the generator of one case."""
        return random.Random(f"{self.seed} {fault} {case}")

    def room(self, name: str) -> Path:
        """Make a folder of this process."""
        folder = self.folder / f"{name}-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
