"""The harness of `make faults` itself: what a child does to itself is a result, and no case gets lost."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.annotations import Case, dump, json_cases, sources, text_cases
from tests.faults.children import Trap, in_children
from tests.faults.pictures import MUTATIONS, exif_block, formats, mutate
from tests.faults.settings import Settings
from tests.faults.tally import Outcome, Tally, table
from tests.faults.training import compare


def misbehave(case: str) -> tuple[Outcome, str]:
    if case == "raises":
        raise KeyError("gone")
    if case == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "hangs":
        time.sleep(60)
    if case == "floods":
        bytearray(1 << 40)
    return Outcome.SURVIVED, case


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.slow
def test_a_child_that_dies_hangs_or_floods_costs_one_case(fresh: bool) -> None:
    cases = ["good", "raises", "dies", "good", "hangs", "floods", "good", "dies"]
    results = list(in_children(cases, misbehave, seconds=0.5, fresh=fresh))
    assert [result.case for result in results] == cases
    for result in results:
        assert result.outcome == (Outcome.SURVIVED if result.case == "good" else Outcome.CRASHED), result
    messages = {result.case: result.message for result in results}
    assert messages["raises"].startswith("KeyError: 'gone' (") and "SIGKILL" in messages["dies"]
    assert messages["hangs"] == "took more than 0 s" and messages["floods"].startswith("MemoryError")


def test_the_table_counts_every_outcome_and_names_each_kind_of_failure() -> None:
    tally = Tally("pictures").take(
        in_children(["good", "raises", "raises", "dies"], misbehave),
    )
    lines = table([tally]).splitlines()
    assert lines[2].startswith("| pictures | 4 | 1 | 0 | 0 | 3 |") and not tally.is_clean
    assert sum("such as raises: KeyError" in line for line in lines) == 1 and "crashed 2 ×" in lines[4]


@pytest.mark.parametrize("after", [False, True])
def test_a_trap_kills_before_or_after_the_call_that_it_names(tmp_path: Path, after: bool) -> None:
    def check(number: int) -> tuple[Outcome, str]:
        Trap(number, after)()
        for step in range(4):
            os.mkdir(tmp_path / f"{after}{number}{step}")
        return Outcome.SURVIVED, ""

    outcomes = [result.outcome for result in in_children(range(5), check, fresh=True)]
    assert outcomes == [Outcome.CRASHED] * 4 + [Outcome.SURVIVED]
    for number in range(4):
        assert len(list(tmp_path.glob(f"{after}{number}*"))) == number + after


def test_a_case_is_drawn_again_from_its_seed_and_number() -> None:
    settings = Settings(5, 1.0, Path())
    draws = [mutate(n, settings.generator("pictures", n)) for n in range(60) for _ in range(2)]
    assert draws[::2] == draws[1::2] and draws[0] != mutate(
        0, Settings(6, 1.0, Path()).generator("pictures", 0)
    )
    assert {mutation for _, mutation, _ in draws} == set(MUTATIONS)


def test_quick_runs_scale_and_a_single_case_can_be_repeated() -> None:
    assert len(Settings(0, 0.02, Path()).cases(20_500)) == 410
    assert len(Settings(0, 0.02, Path()).cases(10)) == 2
    assert Settings(0, 1.0, Path(), only=7).cases(100) == [7]


def test_exif_blocks_are_found_in_every_format_that_has_one() -> None:
    for name, content in formats().items():
        start, end = exif_block(content)
        assert (end > start) == ("exif" in name and "tiff" not in name), name
        assert content[start : start + 2] in (b"II", b"MM") or end == start


def test_every_reader_is_attacked_with_dozens_of_files_that_differ(tmp_path: Path) -> None:
    for source in sources(tmp_path):
        is_json = not isinstance(source.content, str)
        sound = dump(source.content, source) if is_json else source.content.encode()
        source.file.write_bytes(sound)
        assert source.read(), source.name
        generator = Settings(0, 1.0, tmp_path).generator(source.name, 0)
        cases: list[Case] = [*(json_cases(source) if is_json else ()), *text_cases(source, sound, generator)]
        assert len({case.content for case in cases} - {sound}) > 60, source.name


def test_states_differ_by_a_single_bit() -> None:
    import torch

    ones, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.0000001])
    assert compare({"a": [ones]}, {"a": [ones.clone()]}) == ""
    assert compare({"a": [ones]}, {"a": [other]}) == "a differ from an undisturbed run"
    assert compare({"a": 1}, {"b": 1}) and compare([1], [1, 2])
