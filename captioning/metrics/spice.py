"""SPICE (Anderson et al., ECCV 2016) of a corpus and of each image, by its authors' Java program.

SPICE compares the scene graphs of captions. Its program needs Stanford CoreNLP 3.6.0 and its models (700 MB),
which the package ``pycocoevalcap`` downloads on first use; here nothing is downloaded, and an error says how
to get them. The program's cache of parses is off: it changes no number, and keeps state in the installed
package.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from captioning.metrics.score import MetricUnavailable, Score, check_paired
from captioning.metrics.toolkit import cannot_start, find_jar, find_java

_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_DOWNLOAD = "python -c 'from pycocoevalcap.spice import get_stanford_models as g; g.get_stanford_models()'"


def score_spice(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Score:
    """Compute SPICE of one candidate per image; nan where the program gives no value.

    Raises:
        MetricUnavailable: Java, the program, or its CoreNLP models are missing.
        ValueError: The two sequences do not pair up.
        RuntimeError: The program failed; the message ends with the end of its output.
    """
    check_paired(candidates, references)
    jar, java = find_jar("SPICE", "spice", "spice-1.0.jar"), find_java("SPICE")
    if missing := [name for name in _MODELS if not (jar.parent / "lib" / name).is_file()]:
        raise MetricUnavailable(
            f"SPICE needs {' and '.join(missing)} in {jar.parent / 'lib'}; where there is a network, "
            f"run {_DOWNLOAD}, or leave SPICE out of the metrics"
        )
    images = [
        {"image_id": number, "test": " ".join(tokens), "refs": [" ".join(caption) for caption in captions]}
        for number, (tokens, captions) in enumerate(zip(candidates, references, strict=True))
    ]
    output = _run(java, jar, images)
    try:
        values = {result["image_id"]: result["scores"]["All"]["f"] for result in json.loads(output)}
        per_image = [float("nan") if values[i] is None else float(values[i]) for i in range(len(images))]
    except (ValueError, TypeError, KeyError) as error:
        raise RuntimeError(
            f"SPICE wrote no scores for these {len(images)} images ({error!r}); it wrote: {output[:300]}"
        ) from error
    return Score(sum(per_image) / len(per_image), per_image)


def _run(java: str, jar: Path, images: Sequence[dict[str, object]]) -> str:
    """Return the JSON text that the program writes for these images."""
    with tempfile.TemporaryDirectory() as folder:
        captions, result = Path(folder, "captions.json"), Path(folder, "scores.json")
        captions.write_text(json.dumps(images))
        command = [java, "-jar", "-Xmx8G", jar.name, str(captions), "-out", str(result), "-subset", "-silent"]
        try:  # `run` waits for the program, and kills it on errors
            done = subprocess.run(command, cwd=jar.parent, capture_output=True, check=False)
        except OSError as error:
            raise cannot_start("SPICE", error) from error
        if done.returncode or not result.is_file():
            message = (done.stderr + done.stdout).decode(errors="replace").strip() or "no output"
            raise RuntimeError(
                f"SPICE failed with exit status {done.returncode}; its output ended: {message[-500:]}"
            )
        return result.read_text()
