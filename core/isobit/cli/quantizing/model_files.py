"""Model files as a runtime loads them: their size, the session that is measured, and a float one to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isobit.files import is_file

if TYPE_CHECKING:
    from isobit.backend.contract import BackendModel
    from isobit.backend.optional import Deployed, DeploysFiles


def deploy(path: Path, threads: int) -> Deployed | None:
    """A file in its runtime; None where no installed backend runs files of its ending. Raises ModelError."""
    deployer = _deployer(path)
    return None if deployer is None else deployer.deploy(path, threads)


def write_float(model: BackendModel, path: Path) -> bool:
    """Write the float network as isobit does; False where the backend of ONNX files cannot. Raises ModelError."""
    from isobit.backend.optional import QdqWriter
    from isobit.plugins import registry

    writer = registry().backend("onnx")
    if not isinstance(writer, QdqWriter):
        return False
    writer.write_float(model, path)
    return True


def file_size(path: Path) -> int | None:
    """Bytes of a model file with the files that belong to it; None where it is no file."""
    if not is_file(path):
        return None
    deployer = _deployer(path)
    files = [path] if deployer is None else deployer.files_of(path)
    return sum(file.stat().st_size for file in files)


def _deployer(path: Path) -> DeploysFiles | None:
    from isobit.backend.optional import DeploysFiles
    from isobit.plugins import registry

    for backend in registry().backends().values():
        if path.suffix.lower() in backend.suffixes and isinstance(backend, DeploysFiles):
            return backend
    return None
