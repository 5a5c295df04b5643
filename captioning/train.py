"""Train a captioner: `python -m captioning.train experiment=coco30k`; without arguments, the toy one."""

from captioning.cli import command, quick_help

quick_help(__name__, "train")  # before the imports that take seconds

import logging

from omegaconf import DictConfig

from captioning.cli.progress import extraction_progress
from captioning.processes import is_first
from captioning.training import assemble


@command("train")
def main(config: DictConfig) -> float | None:
    """Train, and return the monitored value of the best epoch to a sweep."""
    if not is_first():  # what all processes would report is reported once
        logging.getLogger("captioning").setLevel(logging.ERROR)
    return assemble(config, progress=extraction_progress).fit()


if __name__ == "__main__":
    main()
