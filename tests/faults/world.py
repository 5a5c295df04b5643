"""A small world for the commands: drawn scenes, their features, and a training run of seconds."""

import shutil
from pathlib import Path

from tests.faults.children import Command
from tests.faults.tally import Outcome

SCENES = {"train": 24, "val": 8, "test": 8}
DATA = "data.reader.scenes={train: 24, val: 8, test: 8}"
EXTRACTOR = [  # 40 pictures a second or more
    "features=toy", "features.extractor.architecture=resnet18", "features.extractor.node=layer1",
    "features.extractor.image_size=[32,32]", "features.run.batch_size=4",
]  # fmt: skip
TRAINING = ["logger=csv", "trainer.precision=32", "data.batch_size=16", "data.bucket_pool=2"]
MODEL = [
    "model.encoder.output_dim=8",
    "model.attention_dim=8",
    "model.embedding_dim=8",
    "model.hidden_dim=16",
]


class World:
    """A data root, and the options with which commands use it.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "data"
        self.options = [f"data_root={self.root}", DATA, *EXTRACTOR]
        self._logs = 0

    def command(self, name: str, *options: str, before: object = None) -> Command:
        """Start a command in the world's folder, with a log of its own."""
        self._logs += 1
        log = self.folder / "logs" / f"{self._logs}-{name}.txt"
        log.parent.mkdir(exist_ok=True)
        return Command(name, *options, folder=self.folder, log=log, before=before)  # type: ignore[arg-type]

    def must(self, name: str, *options: str) -> None:
        """Run a command that has to succeed."""
        command = self.command(name, *options)
        outcome, message = command.judge()
        if outcome != Outcome.SURVIVED:
            raise RuntimeError(
                f"{name} {' '.join(options)} fails without any fault: {message}\n{command.text[-2000:]}"
            )

    def extract(self, *options: str) -> None:
        self.must(
            "extract", *self.options, f"hydra.run.dir={self.folder}/run-extract", "prepare=true", *options
        )

    def train(self, run: str, *options: str) -> Path:
        """Train, undisturbed; return the run folder."""
        self.must("train", *self.options, *TRAINING, *MODEL, f"hydra.run.dir={self.folder / run}", *options)
        return self.folder / run

    def clean(self, *names: str) -> None:
        """Remove files and folders of the world."""
        for name in names:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
