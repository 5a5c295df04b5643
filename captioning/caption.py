"""Caption photographs: `python -m captioning.caption image=dog.jpg picture=dog.png`.

A picture that cannot be read costs a line on standard error, and the rest is captioned. Afterwards the exit
status is 1, as of `cat` and `tar`, so that a script notices; with `on_error=skip` it is 0 if any was read.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "caption")  # before the imports that take seconds

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from captioning.errors import InputError
from captioning.evaluation import CaptionFile, close, picture_paths, save
from captioning.features import find_images
from captioning.predictor import Caption, Predictor, load
from captioning.vocabulary import printable

log = logging.getLogger(__name__)


@command("caption")
def main(config: DictConfig) -> None:
    """Print a line for each picture; exit status 1 if one could not be read, with on_error=skip if none."""
    if config.on_error not in ("fail", "skip"):
        raise InputError(f"on_error is {config.on_error!r}; it is fail or skip")
    options: Any = OmegaConf.to_container(config, resolve=True)
    torch.manual_seed(options["seed"])
    found = find_images(listed_names() if options["image"] == "-" else options["image"])
    if found.skipped:
        show(found.describe_skipped(), sys.stderr)
    pictures = picture_paths(options["picture"], found.paths) if options["picture"] else {}
    output = CaptionFile(options["output"], found.paths) if options["output"] else None
    try:
        with output or nullcontext():
            captioner = load(
                options["checkpoint"],
                # A portable file has a decoder of its own, which only the user's words replace.
                decoding=options["decoding"] if names_decoding() else None,
                weights=options["weights"],
                trust=options["trust"],
                model_options=options["model_options"],
            )
            num_read = caption_all(captioner, found.paths, options["batch_size"], output, pictures)
    except BrokenPipeError:  # the reader, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes standard output once more at its end
        raise SystemExit(141) from None
    if num_read < len(found.paths):
        show(f"{len(found.paths) - num_read} of {len(found.paths)} pictures could not be read", sys.stderr)
        if not num_read or options["on_error"] == "fail":
            raise SystemExit(1)


def caption_all(
    captioner: Predictor,
    paths: Sequence[Path],
    batch_size: int,
    output: CaptionFile | None,
    pictures: dict[Path, Path],
) -> int:
    """Caption all pictures that can be read, print and write the captions, and return their number."""
    num_read = 0

    def skip(path: Path, error: InputError) -> None:
        show(f"skipped {error}", sys.stderr)

    for path, caption in captioner.stream(paths, batch_size=batch_size, on_error=skip):
        num_read += 1
        if output:
            output.add(path, caption.text, caption.log_prob, caption.alternatives)
        if not (output and output.is_stdout):
            show(f"{path}: {caption.text}", sys.stdout)
            for text, _ in caption.alternatives:
                show(f"    {text}", sys.stdout)
        if pictures:
            save_picture(path, caption, pictures[path])
    return num_read


def names_decoding() -> bool:
    """Tell whether the command line has an option of the decoder."""
    return any(option.lstrip("+~").startswith("decoding") for option in HydraConfig.get().overrides.task)


def listed_names() -> list[str]:
    """Read file names from standard input: one a line, or ended by NUL as by `find -print0`.

    Raises:
        InputError: there is none.
    """
    content = sys.stdin.buffer.read()
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    # As file names come from the system, so that those that are not UTF-8 are found.
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise InputError("image=- found no file name on standard input; pipe in a list, one name a line")
    return names


def show(text: str, file: Any) -> None:
    """Print a line that may hold anything: file names of others, words of a stranger's checkpoint."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def save_picture(path: Path, caption: Caption, target: Path) -> None:
    """Write the attention picture of one photograph."""
    if caption.attention is None:
        log.warning("%s: this model has no attention over regions to draw", printable(path))
        return
    figure = caption.show()
    save(figure, target)
    close(figure)


if __name__ == "__main__":
    main()
