"""Find Java and the COCO caption toolkit's jars, or say what to install.

METEOR and SPICE exist as Java programs only. They come with the package ``pycocoevalcap`` (the extra
``metrics``), of which only the jars are used: its Python wrappers leave processes and files behind when
interrupted.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

from captioning.metrics.score import MetricUnavailable

_PACKAGE = "pycocoevalcap"


def find_java(metric: str) -> str:
    """Return the path of the `java` command.

    Raises:
        MetricUnavailable: There is none.
    """
    java = shutil.which("java")
    if java is None:
        raise MetricUnavailable(
            f"{metric} needs Java, but there is no command `java`; install a Java runtime (8 or newer) "
            f"or leave {metric} out of the metrics"
        )
    return java


def cannot_start(metric: str, error: OSError) -> MetricUnavailable:
    """Return the error for a `java` command that exists but does not start."""
    return MetricUnavailable(
        f"{metric} needs Java, but the command `java` does not start ({error}); install a Java runtime (8 or "
        f"newer) or leave {metric} out of the metrics"
    )


def find_jar(metric: str, *parts: str) -> Path:
    """Return the path of a jar inside the toolkit, such as ("meteor", "meteor-1.5.jar").

    Raises:
        MetricUnavailable: The package, or the jar in it, is missing.
    """
    package = find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise MetricUnavailable(
            f"{metric} needs the package {_PACKAGE}, which is missing; run pip install 'captioning[metrics]' "
            f"or leave {metric} out of the metrics"
        )
    jar = Path(package.submodule_search_locations[0]).joinpath(*parts)
    if not jar.is_file():
        raise MetricUnavailable(
            f"{metric} needs {jar.name} in {jar.parent}, which is not there; reinstall {_PACKAGE} "
            f"or leave {metric} out of the metrics"
        )
    return jar
