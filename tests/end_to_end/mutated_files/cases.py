"""A case: a kind of file and a number, from which its damage follows."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from mutated_files.damage_arrays import damage_npy, damage_zip
from mutated_files.damage_bytes import damage
from mutated_files.damage_onnx import damage_onnx
from mutated_files.damage_text import damage_json, damage_toml

#: How many of 4,000 files are of a kind.
SHARES: Mapping[str, int] = {
    "onnx": 1300,
    "qdq": 400,
    "encodings": 700,
    "simulators": 500,
    "statistics": 500,
    "targets": 200,
    "recipes": 200,
    "data": 200,
}


class Case(NamedTuple):
    """One mutated file."""

    kind: str
    number: int


def cases(total: int, start: int = 0) -> list[Case]:
    """About `total` cases of all kinds by their shares; `start` is the number of the first of each kind."""
    whole = sum(SHARES.values())
    counts = {kind: max(1, round(share * total / whole)) for kind, share in SHARES.items()}
    return [Case(kind, number) for kind, count in counts.items() for number in range(start, start + count)]


def write_case(case: Case, seeds: Mapping[str, Sequence[Path]], folder: Path) -> Path:
    """Write the mutated file of a case into `folder`, which is emptied, and give its path."""
    random = Random(f"{case.kind} {case.number}")
    seed = random.choice(seeds[case.kind])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / f"mutated{seed.suffix}"
    path.write_bytes(_damaged(seed, random))
    weights = seed.parent / "weights.bin"
    if case.kind == "onnx":
        content = weights.read_bytes()
        (folder / weights.name).write_bytes(damage(content, random) if random.random() < 0.1 else content)
    return path


def _damaged(seed: Path, random: Random) -> bytes:
    content = seed.read_bytes()
    if random.random() < 0.1:
        return damage(content, random)
    if seed.suffix == ".onnx":
        return damage_onnx(content, random)
    if seed.suffix == ".json":
        return damage_json(content.decode(), random).encode("utf-8", "surrogatepass")
    if seed.suffix == ".toml":
        return damage_toml(content.decode(), random).encode("utf-8", "surrogatepass")
    if seed.suffix in (".npz", ".isobit"):
        return damage_zip(content, random)
    return damage_npy(content, random) if seed.suffix == ".npy" else damage(content, random)
