"""Where cloud/ is: beside the packages in a checkout, inside `simulators/cloud/assets` of an installed wheel.

setup.py copies the folder into the wheel; there is one source of every file.
"""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path

from edge_core.errors import OpenDCUError


class CloudError(OpenDCUError):
    """The local cloud cannot start or does not answer."""


@lru_cache(1)
def cloud_folder() -> Path:
    """The folder with template.yaml and functions/.

    Raises:
        CloudError: neither a checkout nor a complete installation.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "assets", here.parents[2] / "cloud"):
        if (folder / "template.yaml").is_file():
            return folder
    raise CloudError(
        "cloud/template.yaml is not there: install opendcu from its wheel or run it from a checkout"
    )


def template_text() -> str:
    """The template as it stands in the repository."""
    return (cloud_folder() / "template.yaml").read_text(encoding="utf-8")


def functions_zip() -> bytes:
    """The code of all functions as one artefact, without what the runtime brings: the local worker has it installed."""
    folder = cloud_folder() / "functions"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.py")):
            archive.write(path, path.relative_to(folder).as_posix())
    return out.getvalue()
