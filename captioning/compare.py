"""Put trainings side by side: `python -m captioning.compare runs/a runs/b multirun/toy/…`.

Every setting's mean over its seeds with its interval, every run, whether settings differ, learning curves.
The folders may hold runs at any depth, of any launcher, finished or not.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "compare")  # before the imports that take seconds

import logging

from omegaconf import DictConfig

from captioning.evaluation import print_table, write_study

log = logging.getLogger(__name__)


@command("compare")
def main(config: DictConfig) -> None:
    folders = [config.folders] if isinstance(config.folders, str) else list(config.folders)
    for table in write_study(folders, config.output_dir):
        print_table(table)
    log.info("tables, curves.png and comparison.html are in %s", config.output_dir)


if __name__ == "__main__":
    main()
