"""Fill the feature cache: `python -m captioning.extract experiment=coco30k` or `data=… features=…`.

Run it again after a kill and it goes on; with `verify=true` it rereads the file and says what is missing or
corrupt.
"""

import logging
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from captioning.data.download import download_coco
from captioning.entry import command
from captioning.errors import InputError
from captioning.features import extract, verify
from captioning.progress import SayBytes, track

log = logging.getLogger(__name__)


@command("extract")
def main(config: DictConfig) -> None:
    """Run the command; exit status 1 when images could not be read and on_error is not skip."""
    if config.on_error not in ("fail", "skip"):
        raise InputError(f"on_error is {config.on_error!r}; it is fail or skip")
    path = Path(config.features.path)
    if config.download:
        found = download_coco(Path(config.data_root) / "coco", on_progress=SayBytes())
        log.info("COCO 2014 is in %s", ", ".join(map(str, found)))
    if config.verify:
        check(path)
        return
    images = {record.image_id: record.path for record in instantiate(config.data.reader)()}
    extractor = instantiate(config.features.extractor)
    if extractor.missing_weights:
        log.info(
            "the weights lack layers beyond the node, which it does not need: %s",
            ", ".join(extractor.missing_weights),
        )
    report = extract(extractor, images, path, repair=config.repair, progress=track, **config.features.run)
    rate = report.done_now / max(report.seconds, 1e-9)
    log.info(
        "%s: %d images, %d already there, %d made in %.0f s (%.1f a second)",
        path,
        *report[:3],
        report.seconds,
        rate,
    )
    if report.unreadable:
        listed = "\n".join(f"  {image_id}: {text}" for image_id, text in report.unreadable)
        log.warning("%d images could not be read and are left out:\n%s", len(report.unreadable), listed)
        if config.on_error == "fail":
            raise SystemExit(1)


def check(path: Path) -> None:
    """Report on every row of a file; exit status 1 unless all are whole."""
    partial = Path(f"{path}.partial")
    findings = verify(path if path.exists() or not partial.exists() else partial)
    log.info(
        "%s: %d rows whole, %d to do, %d of unreadable images, %d corrupt",
        path,
        *(len(part) for part in findings),
    )
    for image_id, problem in findings.corrupt:
        log.warning("  corrupt: image %s (%s)", image_id, problem)
    if findings.corrupt:
        log.warning(
            "run the same command with repair=true instead of verify=true to make the corrupt rows again"
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
