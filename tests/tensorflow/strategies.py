"""Strategies over devices, one for all tests of a process."""

from __future__ import annotations

from functools import cache

import tensorflow as tf


@cache
def mirrored(*devices: str) -> tf.distribute.MirroredStrategy:
    """Two strategies over the same devices number their collectives alike, and TensorFlow takes one for the other."""
    return tf.distribute.MirroredStrategy(list(devices))
