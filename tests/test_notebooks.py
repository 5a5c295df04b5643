"""The notebooks run in their fast form, and their two files of each say the same."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbmake.nb_run import NotebookRun

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LESSONS = ("1_the_post", "2_attention", "3_your_own")


@pytest.mark.slow
@pytest.mark.parametrize("name", LESSONS)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONING_NOTEBOOKS", "fast")
    monkeypatch.setenv("CAPTIONING_NOTEBOOK_RUNS", str(tmp_path))
    result = NotebookRun(NOTEBOOKS / f"{name}.ipynb", default_timeout=600).execute()
    assert result.error is None, f"cell {result.error.failing_cell_index}: {result.error.summary}"


@pytest.mark.parametrize("name", LESSONS)
def test_both_files_of_a_notebook_say_the_same(name: str) -> None:
    script = jupytext.read(NOTEBOOKS / f"{name}.py")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert [(cell.cell_type, cell.source) for cell in script.cells] == [
        (cell.cell_type, cell.source) for cell in notebook.cells
    ], f"run: jupytext --sync notebooks/{name}.py"
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"


@pytest.mark.parametrize("flaw", range(1, 15))
def test_every_flaw_of_the_post_stands_in_the_first_notebook(flaw: int) -> None:
    assert f"**S{flaw}" in (NOTEBOOKS / "1_the_post.py").read_text()
