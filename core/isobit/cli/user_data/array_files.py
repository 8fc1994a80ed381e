"""Arrays from .npz and .npy files, and from folders of them. Pickled objects are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.cli.user_data.data_files import DataFiles
from isobit.cli.user_data.file_batches import Arrays, FileBatches, full_batches
from isobit.errors import DataError, did_you_mean
from isobit.graph.graph import Graph

LABELS = ("label", "labels")


def load_array_file(path: Path, graph: Graph, samples: int | None) -> DataFiles:
    """A whole set in one file: a .npz with an array an input, or a .npy for a model of one input.

    A .npz may have labels: ``label`` of the first output, ``label_NAME`` of any.
    """
    arrays, labels, notes = _read(path, graph)
    count = max((len(array) for array in arrays.values() if array.ndim), default=0)
    for output, array in labels.items():
        if array.ndim == 0 or len(array) != count:
            of = "the labels" if len(labels) == 1 else f"the labels of {output!r}"
            raise DataError(f"{path}: {of} have shape {array.shape}, and there are {count} samples")
    if samples is not None and samples < count:
        notes.append(f"the first {samples} of {count} samples are used")
        arrays = {name: array[:samples] if array.ndim else array for name, array in arrays.items()}
        labels = {output: array[:samples] for output, array in labels.items()}
    return DataFiles(path, arrays, labels, notes)


def load_array_folder(
    path: Path, files: Sequence[Path], graph: Graph, batch_size: int, samples: int | None
) -> DataFiles:
    """A folder of .npy or .npz files, in order of their names.

    The first file decides: arrays of the inputs' rank are batches, a file each; arrays of one axis less are single
    samples, which are stacked.
    """
    arrays, _, notes = _read(files[0], graph)
    are_batches = _is_batch(files[0], arrays, graph)
    del arrays

    def read(file: Path) -> Arrays:
        return _read(file, graph)[0]

    if are_batches:
        limit = f", at most {samples} samples of them" if samples is not None else ""
        notes.insert(0, f"{path}: {len(files)} file(s), each one batch{limit}")
        batches = FileBatches(files, read, batch_size, whole=True, samples=samples)
    else:
        used, size, left_out = full_batches(files[:samples], batch_size, graph)
        notes = [f"{path}: {len(used)} file(s), each one sample, in batches of {size}", *notes, *left_out]
        batches = FileBatches(used, read, size)
    return DataFiles(path, batches, notes=notes, where=batches.where)


def _is_batch(path: Path, arrays: Arrays, graph: Graph) -> bool:
    """Whether a file of the folder holds a batch (True) or one sample (False)."""
    kinds = set()
    for name, array in arrays.items():
        rank = graph.tensors[name].rank
        if rank is not None and array.ndim not in (rank, rank - 1):
            raise DataError(
                f"{path}: the array for input {name!r} has shape {array.shape}; the model's input has {rank} axes, "
                f"so a file of a folder holds one batch ({rank} axes) or one sample ({rank - 1})"
            )
        kinds.add(rank is None or array.ndim == rank)
    if len(kinds) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{path}: some arrays are a batch and some one sample ({shapes}): store all the same way")
    return kinds.pop()


def _read(path: Path, graph: Graph) -> tuple[Arrays, Arrays, list[str]]:
    """The arrays of a file by input, its labels, and notes; only what the model reads is loaded."""
    try:
        if path.suffix.lower() == ".npy":
            return _read_npy(path, graph), {}, []
        return _read_npz(path, graph)
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path}: its arrays do not fit into memory: split the file into a folder of batches"
        ) from error
    except Exception as error:  # damaged files fail in many ways
        if _is_object_array(error):
            raise DataError(
                f"{path}: holds pickled Python objects, which are refused because loading them can run code: "
                "save plain numeric arrays with numpy.save or numpy.savez"
            ) from error
        raise DataError(
            f"{path}: not a readable {path.suffix.lower()} file: {error or type(error).__name__}"
        ) from error


def _read_npy(path: Path, graph: Graph) -> Arrays:
    names = list(graph.inputs)
    if len(names) != 1:
        raise DataError(
            f"{path}: a .npy file holds one array, and the model has {len(names)} inputs ({', '.join(names)}): "
            "use a .npz file with arrays of those names"
        )
    _check_beginning(path, b"\x93NUMPY")
    if _element_type(path).itemsize == 0:  # mapping it divides by its size, and the process ends
        raise DataError(f"{path}: its elements have no bytes: save a plain numeric array with numpy.save")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty array, or one that cannot be mapped
        array = np.load(path, allow_pickle=False)
    return {names[0]: array}


def _element_type(path: Path) -> np.dtype[Any]:
    """What the header of a .npy file says; version 3 differs from version 2 in names of fields alone."""
    with path.open("rb") as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        return read_header(file)[2]


def _read_npz(path: Path, graph: Graph) -> tuple[Arrays, Arrays, list[str]]:
    _check_beginning(path, b"PK")
    # NumPy leaves a damaged archive open when it opens the file itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        label_of = _label_names(archive.files, graph)
        keys, notes = _keys(path, [name for name in archive.files if name not in label_of.values()], graph)
        arrays = {}
        for name, key in keys.items():
            arrays[name] = _member(path, archive, key)
        labels = {output: _member(path, archive, name) for output, name in label_of.items()}
    return arrays, labels, notes


def _label_names(names: Sequence[str], graph: Graph) -> dict[str, str]:
    """The array with the labels of each output that has some: ``label_NAME`` for any, ``label`` for the first."""
    found = {}
    for number, output in enumerate(graph.outputs or [""]):
        wanted = [f"{label}_{output}" for label in LABELS] + (list(LABELS) if number == 0 else [])
        there = next((name for name in wanted if name in names and name not in graph.inputs), None)
        if there is not None:
            found[output] = there
    return found


def _check_beginning(path: Path, magic: bytes) -> None:
    """Refuse a file of another kind, a pickle among them, which NumPy would name misleadingly."""
    with path.open("rb") as file:
        start = file.read(len(magic))
    if start != magic:
        raise DataError(
            f"{path}: not a {path.suffix.lower()} file: it does not begin as one; write it with numpy.save or "
            "numpy.savez (pickles are refused, because loading one can run code)"
        )


def _member(path: Path, archive: Any, key: str) -> NDArray[Any]:
    try:
        return np.asarray(archive[key])
    except MemoryError:
        raise
    except Exception as error:
        if _is_object_array(error):
            raise
        raise DataError(f"{path}: array {key!r} cannot be read: {error or type(error).__name__}") from error


def _is_object_array(error: Exception) -> bool:
    """Whether NumPy refused an array of Python objects."""
    return "Object arrays" in str(error) or "Python objects" in str(error)


def _keys(path: Path, names: Sequence[str], graph: Graph) -> tuple[dict[str, str], list[str]]:
    """Which array is which input's; a lone array is the lone input's, whatever its name."""
    inputs = list(graph.inputs)
    missing = [name for name in inputs if name not in names]
    if not missing:
        extra = [name for name in names if name not in inputs]
        notes = [f"{path} also holds {', '.join(extra)}, which the model does not read"] if extra else []
        if any(name.startswith(tuple(f"{label}_" for label in LABELS)) for name in extra):
            notes[0] += f"; labels of an output are called label_ and its name: {', '.join(graph.outputs)}"
        return {name: name for name in inputs}, notes
    if len(inputs) == len(names) == 1:
        return {inputs[0]: names[0]}, [f"{path}: array {names[0]!r}, the only one, is taken for input {inputs[0]!r}"]
    names_held = ", ".join(names) or "no arrays"
    raise DataError(
        f"{path}: no array for input {missing[0]!r}{did_you_mean(missing[0], names)}; the file holds: {names_held}"
    )
