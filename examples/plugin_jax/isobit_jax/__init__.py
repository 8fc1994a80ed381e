"""The JAX backend of isobit: a plug-in in a distribution of its own."""

from isobit_jax.native import JaxModel

__all__ = ["JaxModel"]
