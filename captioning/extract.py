"""Fill the feature cache: `python -m captioning.extract experiment=coco30k` or `data=… features=…`.

Run it again after a kill and it continues. With `verify=true` it rereads the file and lists what is missing
or corrupt.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "extract")  # before the imports that take seconds

import logging
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from captioning.cli.progress import DownloadProgress, extraction_progress
from captioning.data.download import download_coco
from captioning.errors import InputError
from captioning.features import extract, verify
from captioning.files import partial_path
from captioning.training.assembly import read_images

log = logging.getLogger(__name__)


@command("extract")
def main(config: DictConfig) -> None:
    """Extract or verify; exit status 1 when images could not be read and on_error is not skip."""
    if config.on_error not in ("fail", "skip"):
        raise InputError(f"on_error is {config.on_error!r}; it is fail or skip")
    path = Path(config.features.path)
    if config.download:
        folders = download_coco(Path(config.data_root) / "coco", on_progress=DownloadProgress())
        log.info("COCO 2014 is in %s", ", ".join(map(str, folders)))
    if config.verify:
        check(path)
        return
    images = read_images(config)
    report = extract(
        instantiate(config.features.extractor),
        images,
        path,
        repair=config.repair,
        progress=extraction_progress,
        **config.features.run,
    )
    report.log(path)
    if report.unreadable and config.on_error == "fail":
        raise SystemExit(1)


def check(path: Path) -> None:
    """Report on every row of a file; exit status 1 unless all are whole."""
    findings = verify(path if path.exists() or not partial_path(path).exists() else partial_path(path))
    log.info(
        "%s: %d rows whole, %d to do, %d of unreadable images, %d corrupt",
        path,
        *(len(part) for part in findings),
    )
    for image_id, problem in findings.corrupt:
        log.warning("  corrupt: image %s (%s)", image_id, problem)
    if findings.corrupt:
        log.warning(
            "run the same command with repair=true instead of verify=true to extract the corrupt rows again"
        )
    if findings.to_do:
        log.warning(
            "to do: %s%s; run the same command without verify=true",
            ", ".join(findings.to_do[:5]),
            " …" * (len(findings.to_do) > 5),
        )
    if findings.corrupt or findings.to_do:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
