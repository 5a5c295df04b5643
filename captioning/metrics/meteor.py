"""METEOR 1.5 (Denkowski and Lavie, 2014) of a corpus and of each image, by its authors' Java program.

The program gets what the COCO caption toolkit gives it (English, ``-norm``, PTB tokens) and returns the
toolkit's numbers. It runs once per call, over pipes, and is killed and waited for however the call ends.
Starting it takes some seconds and up to 2 GB, as it reads its paraphrase table. There is no METEOR in Python
here: another implementation would give other numbers.
"""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from captioning.metrics.score import Score, check_paired
from captioning.metrics.toolkit import cannot_start, find_jar, find_java

_OPTIONS = ["-", "-", "-stdio", "-l", "en", "-norm"]
_SEPARATOR = " ||| "
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75  # the program's parameters for English
_KINDS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def score_meteor(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Score:
    """Compute METEOR of one candidate per image against that image's references, all PTB tokens.

    Raises:
        MetricUnavailable: Java or the program is missing.
        ValueError: The two sequences do not pair up.
        RuntimeError: The program stopped; the message ends with the end of its output.
    """
    check_paired(candidates, references)
    with _program() as program:
        statistics = [
            program.ask(_SEPARATOR.join(["SCORE", *map(_line, captions), _line(tokens)]))
            for tokens, captions in zip(candidates, references, strict=True)
        ]
        # It answers EVAL with one line an image and one for the corpus.
        first = program.ask(_SEPARATOR.join(["EVAL", *statistics]))
        answers = [first, *(program.read() for _ in candidates)]
    *per_image, corpus = map(float, answers)
    return Score(corpus, per_image, [_poolable(line) for line in statistics])


def _poolable(line: str) -> list[float]:
    """Parse the 23 statistics of an image, as they count in a sum over images."""
    values = [float(value) for value in line.split()]
    # The program counts a perfect caption as one chunk alone, but as none where it pools several images.
    chunks, *matched = values[20:]
    if chunks == 1 and matched == values[:2]:
        values[20] = 0.0
    return values


def meteor_of_statistics(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute METEOR from statistics of images or sums of them (…, 23), as the program does for English.

    Words matched exactly, by stem, synonym and paraphrase weigh 1, 0.6, 0.8 and 0.6, content words delta and
    function words 1 - delta; the harmonic mean of precision and recall is lowered by how many chunks the
    matches fall into (Denkowski and Lavie 2014, equations 1 to 4).
    """
    lengths, functions = sums[..., 0:2], sums[..., 2:4]  # (…, candidate and reference)
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # (…, kind, content or function, side)
    by_side = np.einsum("...kcs,k,c->...s", matches, _KINDS, np.array([_DELTA, 1 - _DELTA]))
    weighted = _DELTA * (lengths - functions) + (1 - _DELTA) * functions
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(by_side / weighted, -1, 0)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragments = sums[..., 20] / (sums[..., 21:].sum(-1) / 2)
        return np.nan_to_num(mean * (1 - _GAMMA * fragments**_BETA))


class _Program:
    """A running METEOR, which answers lines with lines."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().decode().strip()
        if not answer:
            self._fail()
        return answer

    def _fail(self) -> None:
        self._errors.seek(0)
        output = self._errors.read() + (self.process.stdout.read() if self.process.stdout else b"")
        message = output.decode(errors="replace").strip() or "no output"
        raise RuntimeError(f"METEOR stopped before it answered; its output ended: {message[-500:]}")


@contextmanager
def _program() -> Iterator[_Program]:
    jar = find_jar("METEOR", "meteor", "meteor-1.5.jar")
    command = [find_java("METEOR"), "-jar", "-Xmx2G", jar.name, *_OPTIONS]
    with tempfile.TemporaryFile() as errors:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        try:
            process = subprocess.Popen(command, cwd=jar.parent, **pipes)
        except OSError as error:
            raise cannot_start("METEOR", error) from error
        try:
            yield _Program(process, errors)
        finally:
            process.kill()
            process.communicate()


def _line(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace("|||", "").replace("  ", " ")  # the toolkit does so too
