"""The processor that figures were measured on, and those of its instruction sets that decide them."""

from __future__ import annotations

import platform
from pathlib import Path

#: As /proc/cpuinfo writes them, by the name that people know.
_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX",
    "asimd": "NEON",
    "asimddp": "dot products",
    "i8mm": "int8 matrix products",
}


def processor() -> str:
    """Name, family and model, and instruction sets: ``AMD EPYC (family 25, model 1): AVX2``."""
    fields = _first_processor()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:  # virtual machines often name no more than the brand
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return f"{name}: {', '.join(instruction_sets()) or 'no known instruction sets'}"


def instruction_sets() -> list[str]:
    """The instruction sets of this processor that kernels of integers and floats are written for."""
    fields = _first_processor()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    sets = [name for flag, name in _SETS.items() if flag in flags]
    if "AVX2" in sets and not {"AVX-VNNI", "AVX-512 VNNI"} & set(sets):
        sets.append("no VNNI")
    return sets


def _first_processor() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
