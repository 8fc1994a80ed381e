"""Formats that a user gave for tensors inside what a target runs as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from isobit.errors import FormatError
from isobit.graph.graph import Node
from isobit.placement.fused_chains import Chain
from isobit.placement.quant_config import QuantConfig


def settle_inner_overrides(
    config: QuantConfig, chains: Sequence[Chain], inner: Mapping[str, Node], target: str
) -> QuantConfig:
    """The config with the formats of inner tensors on the ends of their chains, where these are the same tensor.

    That is so of a layer that only batch norms follow, which are folded into it. `inner` are tensors of factors that
    run with a curve, and the node they end in. Raises FormatError for a format of any other inner tensor.
    """
    overrides = dict(config.overrides or {})
    for name, last in inner.items():
        if overrides.get(name) is not None:
            raise _inside(name, last, target)
    for chain in chains:
        last = chain.nodes[-1]
        for index, node in enumerate(chain.nodes[:-1]):
            name = node.outputs[0]
            if overrides.get(name) is None:
                continue
            if any(follower.op != "BatchNormalization" for follower in chain.nodes[index + 1 :]):
                raise _inside(name, last, target)
            overrides[last.outputs[0]] = overrides[name]
    return replace(config, overrides=overrides) if overrides != (config.overrides or {}) else config


def _inside(name: str, last: Node, target: str) -> FormatError:
    return FormatError(
        f"override {name!r}: the tensor lies inside the chain that ends in {last.name!r}, which target {target!r} runs "
        f"as one: name {last.outputs[0]!r}"
    )
