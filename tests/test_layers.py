"""Who may import whom, held against the code itself; and the limits on files and functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "captioning"
ENTRY = ("extract", "train", "evaluate", "caption", "baseline", "demo", "entry", "progress")
LAYERS: dict[str, tuple[str, ...]] = {  # module: what of ours it may import
    "errors": (),
    "vocabulary": ("errors",),
    "schedules": (),
    "files": (),
    "visualise": (),
    "attention_statistics": (),
    "metrics": ("metrics",),
    "features": ("vocabulary", "errors", "features"),
    "models": ("vocabulary", "errors", "models"),
    "data": ("vocabulary", "errors", "data", "features.cache"),
    "decoding": ("vocabulary", "errors", "models.base", "metrics", "decoding"),
    "objectives": (
        "vocabulary",
        "errors",
        "models.base",
        "models.hard_attention",
        "data.dataset",
        "data.topics",
        "decoding",
        "metrics",
        "objectives",
    ),
    "checkpoint": ("vocabulary", "errors", "models.base"),
    "module": (
        "attention_statistics",
        "vocabulary",
        "errors",
        "models",
        "data",
        "decoding",
        "metrics",
        "objectives",
        "schedules",
        "checkpoint",
    ),
    "predictor": ("vocabulary", "errors", "checkpoint", "features", "decoding", "models"),
    "retrieval": ("errors", "vocabulary", "data", "metrics"),
    "results": ("errors", "vocabulary", "metrics"),
    "references": ("errors", "checkpoint", "data.annotations", "metrics"),
    "comparison": ("vocabulary", "metrics", "results"),
    "sweep": ("files", "results"),
    "assembly": (
        "errors",
        "checkpoint",
        "data",
        "features.cache",
        "features.weights",
        "models",
        "module",
        "objectives",
        "entry",
    ),
    "training": ("errors", "module", "data", "features", "visualise"),
}
BORDERS = {  # third-party package: where it may be imported
    "lightning": ("module", "training", "data.datamodule", *ENTRY),
    "hydra": ("checkpoint", "sweep", "assembly", "references", *ENTRY),
    "omegaconf": ("checkpoint", "sweep", "assembly", "references", *ENTRY),
    "h5py": ("features",),
    "torchvision": ("features",),
    "matplotlib": ("visualise",),
    "torch": tuple(
        name
        for name in (*LAYERS, *ENTRY)
        if name not in ("metrics", "visualise", "errors", "vocabulary", "retrieval")
    ),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
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
    part = name.partition(".")[0]
    for imported in imports(tree):
        if imported.startswith("captioning."):
            own = imported.removeprefix("captioning.")
            if part in ENTRY:
                assert own.partition(".")[0] not in ("extract", "evaluate", "caption", "demo"), (
                    f"{name} imports {own}"
                )
            else:
                assert within(own, LAYERS[part]), f"{name} may not import {own}"


@pytest.mark.parametrize(("name", "tree"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_third_party_borders(name: str, tree: ast.Module) -> None:
    for imported in imports(tree):
        package = imported.partition(".")[0]
        if package in BORDERS:
            assert within(name, BORDERS[package]), f"{name} may not import {package}"


def test_families_never_import_each_other() -> None:
    shared = {"base", "attention", "dropout", "hard_attention", "encoder", "recurrent", "transformer_decoder"}
    shared.add("__init__")
    for name, tree in modules():
        if name.startswith("models.") and name.partition(".")[2] not in shared:
            for imported in imports(tree):
                if imported.startswith("captioning.models."):
                    assert imported.split(".")[2] in shared, f"{name} imports {imported}"


def test_importing_the_package_imports_nothing() -> None:
    assert not list(imports(ast.parse((PACKAGE / "__init__.py").read_text())))


def test_files_and_functions_stay_short() -> None:
    for name, tree in modules():
        path = PACKAGE.joinpath(*name.split("."))
        text = (
            (
                path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
            ).read_text()
            if name != "__init__"
            else ""
        )
        assert text.count("\n") <= 300, f"{name} has {text.count(chr(10))} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 50, f"{name}.{node.name} is too long"


def test_no_target_points_into_an_entry_point() -> None:
    for path in (PACKAGE.parent / "conf").rglob("*.yaml"):
        for line in path.read_text().splitlines():
            target = line.partition("_target_:")[2].strip().strip("}").strip()
            assert not any(target.startswith(f"captioning.{entry}.") for entry in ENTRY), f"{path}: {target}"
