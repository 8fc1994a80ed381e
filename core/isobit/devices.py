"""Where models compute: what a backend can say of it, and whether this machine has an NVIDIA driver."""

from __future__ import annotations

from ctypes import CDLL
from typing import Protocol, runtime_checkable


@runtime_checkable
class ReportsDevice(Protocol):
    """Optional, asked for by ``isinstance``: what `isobit backends` shows of a backend's framework."""

    def device(self) -> str:
        """``CPU``, or ``CUDA`` where the installed build has it and a driver is there; found without an import."""
        ...


def has_cuda_driver() -> bool:
    """Whether NVIDIA's driver library can be loaded: CUDA builds compute on the CPU without it."""
    try:
        CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def device_of(cuda_build: bool) -> str:
    """The device of a framework, by its build."""
    if not cuda_build:
        return "CPU"
    return "CUDA" if has_cuda_driver() else "CPU (CUDA build, no driver)"
