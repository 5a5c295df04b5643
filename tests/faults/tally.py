"""What became of every case of a fault, and the table of all faults."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple


class Outcome(StrEnum):
    """What a fault led to; the last two are faults of the program."""

    SURVIVED = "survived"  # the result is the one without the fault
    REPORTED = "reported"  # a clear error, and what was there is still there
    LOST = "lost"  # work or data are gone, or a result is wrong and nothing says so
    CRASHED = "crashed"  # a traceback, a signal, a hang, or more memory than the bound


class Result(NamedTuple):
    """The outcome of one case; the message says what was seen."""

    case: str
    outcome: Outcome
    message: str = ""


class Tally:
    """The results of one kind of fault."""

    def __init__(self, fault: str) -> None:
        self.fault, self.results, self.seconds = fault, list[Result](), 0.0

    def take(self, results: Iterable[Result]) -> "Tally":
        """Add results as they come."""
        started = time.perf_counter()
        for result in results:
            self.results.append(result)
            if result.outcome in (Outcome.LOST, Outcome.CRASHED):
                print(f"  {result.outcome.upper()} {self.fault}: {result.case}: {result.message}", flush=True)
        self.seconds += time.perf_counter() - started
        print(f"{self.fault}: {len(self.results)} tried, {self.seconds:.0f} s", flush=True)
        return self

    def count(self, outcome: Outcome) -> int:
        return sum(result.outcome == outcome for result in self.results)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost and nothing crashed."""
        return not (self.count(Outcome.LOST) or self.count(Outcome.CRASHED))


def table(tallies: Sequence[Tally]) -> str:
    """Write a Markdown table of all faults, and below it each way of failing with its number and an example."""
    lines = ["| fault | tried | survived | reported | lost | crashed | seconds |", "|---|" + "--:|" * 6]
    for tally in tallies:
        counts = " | ".join(str(tally.count(outcome)) for outcome in Outcome)
        lines.append(f"| {tally.fault} | {len(tally.results)} | {counts} | {tally.seconds:.0f} |")
    for tally in tallies:
        failures = [result for result in tally.results if result.outcome in (Outcome.LOST, Outcome.CRASHED)]
        kinds = Counter((result.outcome, _kind(result.message)) for result in failures)
        for (outcome, kind), number in kinds.most_common():
            example = next(r for r in failures if (r.outcome, _kind(r.message)) == (outcome, kind))
            lines += ["", f"{outcome} {number} × {tally.fault}, such as {example.case}: {example.message}"]
    return "\n".join(lines)


def _kind(message: str) -> str:
    """Reduce a message to what is the same in all cases of a kind: type and place of an exception, or the start."""
    name, _, place = message.partition(": ")[0], *message.rpartition(" (")[1:]
    if name.isidentifier() and place.endswith(")"):
        return f"{name} {place}"
    return "".join("#" if letter.isdigit() else letter for letter in message)[:40]
