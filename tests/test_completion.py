"""What the TAB key offers: commands, groups and their options, keys; in bash itself as well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from captioning.cli.completion import BASH, complete
from captioning.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("captioning tra", ["train"]),
        ("captioning --v", ["--version"]),
        ("captioning train exp", ["experiment="]),
        ("captioning train experiment=coco30k_", ["experiment=coco30k_as_posted"]),
        ("captioning train optimi", ["optimizer.", "optimizer="]),
        ("captioning train optimizer.l", ["optimizer.lr="]),
        ("captioning train prepare=", ["prepare=false", "prepare=true"]),
        ("captioning train model=adaptive model.atten", ["model.attention_dim="]),
        ("captioning train -m scheduler=none,st", ["scheduler=none,step_decay"]),
        ("captioning caption decoding=gre", ["decoding=greedy"]),
        ("captioning export card=fl", ["card=flickr8k"]),
        ("captioning caption image=do", []),  # bash then completes names of files
        ("captioning caption model=", []),
        ("captioning nonsense ", []),
    ],
)
def test_the_last_word_is_completed(line: str, offered: list[str]) -> None:
    assert complete(line, COMMANDS) == offered


@pytest.mark.parametrize("line", ["", "captioning "])
def test_without_a_word_the_commands_are_offered(line: str) -> None:
    assert set(COMMANDS) <= set(complete(line, COMMANDS))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_offers_its_groups_and_keys(command: str) -> None:
    offered = complete(f"captioning {command} ", COMMANDS)
    assert "--help" in offered and any(name.endswith("=") for name in offered)


def test_the_script_prints_itself_and_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["captioning", "completion"])
    main()
    assert capsys.readouterr().out.strip() == BASH
    monkeypatch.setattr(sys, "argv", ["captioning", "completion", "captioning cap"])
    main()
    assert capsys.readouterr().out == "caption\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "breaks", "reply"),
    [
        ("captioning evalu", "=:", "evaluate"),
        ("captioning train experiment=coco30k_", "=:", "coco30k_as_posted"),  # bash replaces what follows "="
        ("captioning train experiment=coco30k_", ":", "experiment=coco30k_as_posted"),
    ],
)
def test_bash_replaces_what_it_takes_for_a_word(line: str, breaks: str, reply: str, tmp_path: Path) -> None:
    script = tmp_path / "captioning"  # as pip installs it
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom captioning.cli.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    bash = f'eval "$(captioning completion)"; COMP_LINE=$1 COMP_POINT=${{#1}} COMP_WORDBREAKS={breaks!r}; '
    bash += '_captioning; printf "%s\\n" "${COMPREPLY[@]}"'
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": root}
    done = subprocess.run(
        ["bash", "-c", bash, "bash", line], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == f"{reply}\n", done.stderr
