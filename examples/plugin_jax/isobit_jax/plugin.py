"""The entry point: registers the backend and imports no JAX."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.plugins import hookimpl
from isobit_jax.backend import JaxBackend

#: The contract of isobit that this package was written for; another one is refused with both versions named.
ISOBIT_CONTRACT = 1


@hookimpl
def isobit_backends() -> Sequence[JaxBackend]:
    """The JAX backend."""
    return [JaxBackend()]
