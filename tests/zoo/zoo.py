"""All networks of the zoo."""

from __future__ import annotations

from trained import (
    basic_pitch,
    ddddocr,
    efficientnet_lite,
    fer,
    fracast,
    magika,
    piper_voice,
    silero_vad,
    torchcrepe,
)
from zoo_network import ZooNetwork

MODULES = (basic_pitch, silero_vad, magika, fer, torchcrepe, efficientnet_lite, ddddocr, piper_voice, fracast)
NETWORKS: tuple[ZooNetwork, ...] = tuple(network for module in MODULES for network in module.NETWORKS)
