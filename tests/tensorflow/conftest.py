"""What is beside this file, and what all frameworks share, can be imported; the CPU is two devices, for strategies."""

from __future__ import annotations

import sys
from pathlib import Path

import tensorflow as tf

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "agreement")]

(_cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
