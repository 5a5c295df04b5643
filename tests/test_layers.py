"""Who may import whom: the table of the design, held against the code itself by walking its syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "captioning"
COMMANDS = ("train", "extract", "evaluate", "compare", "caption", "app", "export", "baseline", "demo")
BASE = ("errors", "files", "processes", "tokenizers", "vocabulary")  # layer 0
ROOMS = ("features", "models", "metrics", "data", "decoding", "objectives")
LIBRARY = (*BASE, *ROOMS, "checkpoint", "portable", "graphs")
LAYERS: dict[str, tuple[str, ...]] = {  # module: what of ours it may import, besides its own room
    "errors": (),
    "files": (),
    "processes": ("errors",),
    "tokenizers": ("errors",),
    "vocabulary": ("errors", "tokenizers"),
    "features": BASE,
    "models": BASE,
    "metrics": BASE,
    "data": (*BASE, "features.cache"),
    "decoding": (*BASE, "models.base"),
    "objectives": (*BASE, "models.base", "data.dataset", "decoding", "metrics"),
    "checkpoint": (*BASE, "models.base"),
    "portable": (*BASE, "checkpoint"),
    "graphs": (*BASE, "models.base", "decoding", "features"),
    "predictor": (*LIBRARY, "evaluation.visualise", "evaluation.attention_html"),  # a caption draws itself
    "training": LIBRARY,
    "evaluation": LIBRARY,
    "page": (*BASE, "features", "predictor", "evaluation"),
    "cli": BASE,
    **dict.fromkeys(COMMANDS, (*LIBRARY, "predictor", "training", "evaluation", "page", "cli")),
}
BORDERS = {  # third-party package: where it may be imported
    "lightning": ("training", "data.datamodule", *COMMANDS),
    "hydra": ("cli", "checkpoint", "training.assembly", "training.sweep", *COMMANDS),
    "omegaconf": ("cli", "checkpoint", "training.assembly", "training.sweep", *COMMANDS),
    "h5py": ("features",),
    "torchvision": ("features",),
    "timm": ("features",),
    "matplotlib": ("evaluation.visualise", "evaluation.fonts", "evaluation.curves"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), ("graphs",)),
    **dict.fromkeys(("gradio", "fastapi", "starlette", "uvicorn"), ("app",)),
}
TORCHLESS = ("errors", "files", "tokenizers", "vocabulary", "metrics", "cli")


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in allowed)


@pytest.mark.parametrize(
    ("name", "tree"), [pytest.param(*m, id=m[0]) for m in modules() if m[0] != "__init__"]
)
def test_imports_go_up_only(name: str, tree: ast.Module) -> None:
    room = name.partition(".")[0]
    for imported in imports(tree):
        if imported.startswith("captioning."):
            ours = imported.removeprefix("captioning.")
            assert within(ours, (*LAYERS[room], room)) or ours == "__version__", f"{name} imports {ours}"


def test_every_module_stands_in_the_table_and_every_row_is_used() -> None:
    assert {name.partition(".")[0] for name, _ in modules()} - {"__init__"} == set(LAYERS)
    used = {imported.removeprefix("captioning.") for _, tree in modules() for imported in imports(tree)}
    for rights in LAYERS.values():
        for right in rights:
            assert any(within(name, (right,)) for name in used), f"nobody imports {right}"


@pytest.mark.parametrize(("name", "tree"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_third_party_borders(name: str, tree: ast.Module) -> None:
    for imported in imports(tree):
        package = imported.partition(".")[0]
        if package in BORDERS:
            assert within(name, BORDERS[package]), f"{name} may not import {package}"
        assert package != "torch" or not within(name, TORCHLESS), f"{name} may not import torch"


def test_configs_stop_at_the_door() -> None:
    """A config object is taken by the `main` of a command, by cli/, and by training/assembly and sweep."""
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                annotations = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs) if a.annotation]
                if any("DictConfig" in ast.unparse(annotation) for annotation in annotations):
                    command = name in COMMANDS and node.name == "main"
                    assert command or within(name, ("cli", "training.assembly", "training.sweep")), (
                        f"{name}.{node.name} takes a config"
                    )


def test_a_config_is_never_changed() -> None:
    for name, tree in modules():
        for node in ast.walk(tree):
            assigned = node.targets if isinstance(node, ast.Assign) else []
            for target in assigned:
                text = ast.unparse(target)
                assert not text.startswith(("config.", "config[")), f"{name}: {text} is assigned"
            if isinstance(node, ast.Name):
                assert node.id not in ("open_dict", "read_write"), f"{name} unlocks a config"


def test_nobody_asks_an_objective_what_it_is() -> None:
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "isinstance", "getattr"):
                assert "objective" not in ast.unparse(node.args[0]).lower(), f"{name}: {ast.unparse(node)}"


def test_families_never_import_each_other() -> None:
    shared = {"base", "attention", "dropout", "hard_attention", "encoder", "recurrent", "transformer_decoder"}
    shared.add("__init__")
    for name, tree in modules():
        if name.startswith("models.") and name.partition(".")[2] not in shared:
            for imported in imports(tree):
                if imported.startswith("captioning.models."):
                    assert imported.split(".")[2] in shared, f"{name} imports {imported}"


def test_importing_the_package_imports_nothing_of_it() -> None:
    top = ast.parse((PACKAGE / "__init__.py").read_text())
    statements = [node for node in top.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [name for node in statements for name in imports(node)] == ["typing.Any"]


def test_files_are_written_in_one_place() -> None:
    """Renaming into place is `files.atomic_write`'s; what grows over many runs renames itself at its end."""
    growing = {"features.writer", "features.preparation", "data.download", "evaluation.caption_file"}
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.replace", "os.rename"):
                assert name in {"files", *growing}, f"{name} renames files by itself"


def test_files_and_functions_stay_short() -> None:
    for name, tree in modules():
        path = PACKAGE.joinpath(*name.split("."))
        path = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        if name != "__init__":
            assert path.read_text().count("\n") <= 350, f"{name} is too long"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 50, f"{name}.{node.name} is too long"


def test_no_target_points_into_a_command() -> None:
    for path in (PACKAGE.parent / "conf").rglob("*.yaml"):
        for line in path.read_text().splitlines():
            target = line.partition("_target_:")[2].strip().strip("}").strip()
            assert not any(target.startswith(f"captioning.{name}.") for name in COMMANDS), f"{path}: {target}"
