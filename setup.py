"""What pyproject.toml cannot say: `conf/` stands at the top of the repository but travels in the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies `conf/` to `captioning/conf/` in what is built; an editable install reads it where it stands."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "captioning" / "conf"
            shutil.rmtree(target, ignore_errors=True)  # options that are gone since the last build
            shutil.copytree(Path(__file__).parent / "conf", target)


setup(cmdclass={"build_py": BuildWithConfigs})
