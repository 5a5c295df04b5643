"""Fill the feature cache: `python -m captioning.extract experiment=coco30k` or `data=… features=…`.

Run it again after a kill and it continues. With `verify=true` it rereads the file and lists what is missing
or corrupt. `num_shards=16 shard=3` makes one of sixteen files that are read as one; under torchrun each
process makes its own.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "extract")  # before the imports that take seconds

import logging
from collections.abc import Iterable
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from captioning.cli.progress import DownloadProgress, extraction_progress
from captioning.data.download import download_coco
from captioning.errors import InputError
from captioning.features import Shard, check_names, choose_shards, extract, files_of, verify
from captioning.files import partial_path
from captioning.processes import first_process_first, is_first, this_process
from captioning.training.assembly import read_images

log = logging.getLogger(__name__)


@command("extract")
def main(config: DictConfig) -> None:
    """Extract or verify; exit status 1 when images could not be read and on_error is not skip."""
    if config.on_error not in ("fail", "skip"):
        raise InputError(f"on_error is {config.on_error!r}; it is fail or skip")
    path = Path(config.features.path)
    rank, processes = this_process()
    shards = choose_shards(config.num_shards, config.shard, rank=rank, processes=processes)
    if config.verify:
        check(file for shard in shards for file in files_of(shard.path(path)))
        return
    with first_process_first("data"):
        if config.download:
            if not str(config.data.name).startswith("coco"):
                raise InputError(
                    f"download=true fetches COCO 2014 (19 GB), but the data are {config.data.name}; leave it "
                    "out, and put the files of other data sets where conf/data says"
                )
            folders = download_coco(Path(config.data_root) / "coco", on_progress=DownloadProgress())
            log.info("COCO 2014 is in %s", ", ".join(map(str, folders)))
        images = read_images(config)
    extractor = instantiate(config.features.extractor)
    check_names(extractor, images)
    progress = {"progress": extraction_progress} if is_first() else {}
    unreadable = 0
    for shard in shards:
        report = extract(
            extractor,
            shard.share(images, config.features.run.batch_size),
            shard.path(path),
            **{**config.features.run, **progress},
            repair=config.repair,
            copy_from=config.copy_from,
            gpu=shard.number,
        )
        report.log(shard.path(path))
        unreadable += len(report.unreadable)
    if unreadable and config.on_error == "fail":
        raise SystemExit(1)


def check(paths: Iterable[Path]) -> None:
    """Report on every row of a cache's files; exit status 1 unless all are there and whole."""
    are_whole = [is_whole(path) for path in paths]
    if not all(are_whole):
        raise SystemExit(1)


def is_whole(path: Path) -> bool:
    """Report on every row of a file, or that a shard is missing."""
    if not path.exists() and partial_path(path).exists():
        path = partial_path(path)
    if not path.exists() and (shard := Shard.of(path)):
        log.warning("%s is missing: run the same command with %s instead of verify=true", path, shard.options)
        return False
    findings = verify(path)
    log.info(
        "%s: %d rows whole, %d to do, %d of unreadable images, %d corrupt",
        path,
        *(len(part) for part in findings),
    )
    for image_id, problem in findings.corrupt:
        log.warning("  corrupt: image %s (%s)", image_id, problem)
    options = f"{shard.options} " if (shard := Shard.of(path)) else ""
    if findings.corrupt:
        log.warning(
            "run the same command with %srepair=true instead of verify=true to extract the corrupt rows "
            "again",
            options,
        )
    if findings.to_do:
        log.warning(
            "to do: %s%s; run the same command %swithout verify=true",
            ", ".join(findings.to_do[:5]),
            " …" * (len(findings.to_do) > 5),
            f"with {options}" if options else "",
        )
    return not (findings.corrupt or findings.to_do)


if __name__ == "__main__":
    main()
