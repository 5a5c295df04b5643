"""METEOR 1.5 (Denkowski and Lavie, 2014) of a corpus and of each image, by its authors' Java program.

The program gets what the COCO caption toolkit gives it (English, ``-norm``, PTB tokens) and returns the
toolkit's numbers. It runs once per call, over pipes, and is closed and waited for however the call ends.
Starting it takes some seconds and up to 2 GB, as it reads its paraphrase table. There is no METEOR in Python
here: another one would give other numbers.
"""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from captioning.metrics.score import Score, check_paired
from captioning.metrics.toolkit import find_jar, find_java

_OPTIONS = ["-", "-", "-stdio", "-l", "en", "-norm"]
_SEPARATOR = " ||| "


def meteor(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Score:
    """METEOR of one candidate per image against that image's references, all PTB tokens.

    Raises:
        MetricUnavailable: Java or the program is missing.
        ValueError: The two sequences do not pair up.
        RuntimeError: The program stopped; the message ends with its last words.
    """
    check_paired(candidates, references)
    with _program() as program:
        statistics = [
            program.ask(_SEPARATOR.join(["SCORE", *map(_line, captions), _line(tokens)]))
            for tokens, captions in zip(candidates, references, strict=True)
        ]
        first = program.ask(_SEPARATOR.join(["EVAL", *statistics]))
        answers = [first, *(program.read() for _ in candidates)]
    *per_image, corpus = map(float, answers)
    return Score(corpus, per_image)


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
            self._complain()
        return self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().decode().strip()
        if not answer:
            self._complain()
        return answer

    def _complain(self) -> None:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip() or "it said nothing"
        raise RuntimeError(f"METEOR stopped before it answered; its last words: {words[-500:]}")


@contextmanager
def _program() -> Iterator[_Program]:
    jar = find_jar("METEOR", "meteor", "meteor-1.5.jar")
    command = [find_java("METEOR"), "-jar", "-Xmx2G", jar.name, *_OPTIONS]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            yield _Program(process, errors)
        finally:
            process.kill()
            process.communicate()


def _line(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace("|||", "").replace("  ", " ")  # as the toolkit clears its separator
