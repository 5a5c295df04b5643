"""Write a captioner as one file: `python -m captioning.export checkpoint=runs/… output=dog.captioner`.

The file holds the model, its words, a decoding, the backbone's weights, and a card for whoever gets it. All
commands take it as `checkpoint=`. With `format=onnx` it is a folder of ONNX graphs.
"""

from captioning.cli import as_list, command, quick_help

quick_help(__name__, "export")  # before the imports that take seconds

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from captioning import __version__, checkpoint, graphs, portable
from captioning.errors import InputError
from captioning.features import check_provenance
from captioning.files import short_commit
from captioning.predictor import decoder
from captioning.vocabulary import printable


@command("export")
def main(config: DictConfig) -> None:
    options: Any = OmegaConf.to_container(config, resolve=True)
    output = Path(options["output"])
    check_form(options["format"], output, options["precision"])
    if not isinstance(options["checkpoint"], str):
        raise InputError(
            f"checkpoint={options['checkpoint']} must be one; an ensemble does not fit in a file"
        )
    path = checkpoint.locate(options["checkpoint"], first=checkpoint.BEST)
    content = checkpoint.read(path)
    metadata = content["captioning"]
    trust, scores = (as_list(config[name]) for name in ("trust", "scores"))
    vocabulary = checkpoint.build_vocabulary(metadata, path, trust=trust)
    decoder(options["decoding"], vocabulary)  # refuses words that the model lacks
    extractor = portable.build_extractor(metadata, weights=options["weights"], trust=trust)
    known = {key: value for key, value in extractor.provenance.items() if key in metadata["provenance"]}
    check_provenance(path, metadata["provenance"], known)
    card = {key: value for key, value in options["card"].items() if value is not None}
    if scores:
        card["scores"] = [read_scores(Path(name)) for name in scores]
    # A portable file that is written again keeps what is not given anew.
    card = {"version": __version__, "commit": short_commit(), **metadata.get("card", {}), **card}
    described = {"decoding": options["decoding"], "card": card}
    if options["format"] == "onnx":
        described |= {"vocabulary": vocabulary, "precision": options["precision"]}
        sizes = graphs.write(output, checkpoint.load(path, trust=trust).model, extractor, **described)
    else:
        portable.write(output, content, extractor, **described, half=options["half"], trust=trust)
        sizes = {"": output.stat().st_size}
    for line in card_lines(card):
        print(printable(line))
    for name, size in sizes.items():
        print(f"{output / name}: {size / 1e6:.1f} MB")


def check_form(form: str, output: Path, precision: str) -> None:
    """Refuse a format that there is not, and a name or precision that does not go with it.

    Raises:
        InputError: names what goes together.
    """
    if form not in ("captioner", "onnx"):
        raise InputError(f"format={form} must be captioner or onnx")
    if form == "captioner" and output.suffix != portable.SUFFIX:
        raise InputError(f"output={output} must end in {portable.SUFFIX}, such as dog{portable.SUFFIX}")
    if form == "onnx" and output.suffix == portable.SUFFIX:
        raise InputError(f"output={output} is a name for format=captioner; give a folder's, such as dog_onnx")
    if form == "captioner" and precision != "float32":
        raise InputError(f"precision={precision} goes with format=onnx; a {portable.SUFFIX} file is float16")


def read_scores(path: Path) -> dict[str, Any]:
    """Read what a card quotes of the `scores.json` that `captioning evaluate` writes.

    Raises:
        InputError: no such file, or another one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        [system] = content["systems"]
        # The commit that scored, and not the one that exports; older files do not say.
        commit = {"commit": content["commit"]} if content.get("commit") else {}
        return {
            "data": content["references"],
            "split": content["options"]["split"],
            "images": content["num_images"],
            "decoding": content["decoding"],
            "scores": {metric: dict(found) for metric, found in system["scores"].items()},
            **commit,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no scores.json of one model ({type(error).__name__}: {error}); give a file that "
            "captioning evaluate checkpoint=… has written"
        ) from error


def card_lines(card: Mapping[str, Any]) -> Iterator[str]:
    """Write a card as lines of text, whatever it holds."""
    for key, value in card.items():
        if key == "scores" and isinstance(value, list):
            for score in value:
                yield f"{key}: {json.dumps(score, ensure_ascii=False, default=str)}"
        elif value:
            yield f"{key}: {value}"


if __name__ == "__main__":
    main()
