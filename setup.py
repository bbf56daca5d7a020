"""Puts cloud/ into the wheel as simulators/cloud/assets: one source of every file, found from a checkout and a wheel."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCloud(build_py):
    """The usual build and a copy of cloud/."""

    def run(self) -> None:
        """Build, then copy; an editable installation finds the folder beside the packages."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "simulators" / "cloud" / "assets"
        for path in sorted(Path("cloud").rglob("*")):
            if path.is_file() and path.suffix in (".yaml", ".py", ".txt", ".json", ".csv", ".sql"):
                self.mkpath(str((target / path.relative_to("cloud")).parent))
                copyfile(path, target / path.relative_to("cloud"))


setup(cmdclass={"build_py": BuildWithCloud})
