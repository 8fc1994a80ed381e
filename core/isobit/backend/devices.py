"""Where models compute: what a backend can say of it, and whether this machine has an NVIDIA driver."""

from __future__ import annotations

from ctypes import CDLL


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
