"""Which share of the output's error each quantizer makes: noise followed back from the outputs through local gains.

Every tensor's noise is measured, so that at each node it is only split: among the inputs and the weights, by the gains
that the op tells, scaled so that the parts add up to what was measured. A float and a simulated pass are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from isobit.analysis.local_gains import LocalGain, local_gain
from isobit.analysis.tensor_noise import Floats, MeasuredNoise, TensorNoise
from isobit.analysis.weight_noise import WeightNoise
from isobit.backend.checked_model import CheckedModel
from isobit.graph.graph import Node
from isobit.graph.sites import Input, Site, Tensor


@dataclass(frozen=True, eq=False)
class Worth:
    """What noise is worth at the output, in shares of its whole error, for each unit of it in a channel."""

    sites: Mapping[Site, Floats]  # of an activation's own noise
    weights: Mapping[tuple[str, int], Floats]  # of noise that a weight makes at its node's output
    fallback: Mapping[tuple[str, int], float] = field(default_factory=dict)  # share where the power is not known


def follow_back(model: CheckedModel, noise: MeasuredNoise, weights: Mapping[tuple[str, int], WeightNoise]) -> Worth:
    """Follow noise from the outputs, which count alike, to every quantizer."""
    graph = model.graph
    worth: dict[str, Floats] = {}
    shares = []
    for name in dict.fromkeys(graph.outputs.values()):
        measured = noise.tensors.get(name)
        if measured is not None and measured.signal.sum() > 0 and measured.after.sum() > 0:
            shares.append((name, 1.0 / float(measured.signal.sum()), float(measured.after.sum())))
    total = sum(scale * power for _, scale, power in shares)
    for name, scale, _ in shares:
        worth[name] = np.full(noise.tensors[name].channels, scale / total)
    of_sites: dict[Site, Floats] = {}
    of_weights: dict[tuple[str, int], Floats] = {}
    fallback: dict[tuple[str, int], float] = {}
    for node in reversed(graph.nodes):
        for output in node.outputs:
            measured = noise.tensors.get(output)
            if output not in worth or measured is None:
                continue
            before = worth[output] * measured.kept
            of_sites[Tensor(output)] = before
            _split(model, node, measured, before, noise, weights, worth, of_sites, of_weights, fallback)
    for name in graph.inputs:
        if name in worth and name in noise.tensors:
            of_sites[Tensor(name)] = worth[name] * noise.tensors[name].kept
    return Worth(of_sites, of_weights, fallback)


def _split(
    model: CheckedModel,
    node: Node,
    result: TensorNoise,
    importance: Floats,
    noise: MeasuredNoise,
    weights: Mapping[tuple[str, int], WeightNoise],
    worth: dict[str, Floats],
    of_sites: dict[Site, Floats],
    of_weights: dict[tuple[str, int], Floats],
    fallback: dict[tuple[str, int], float],
) -> None:
    """Hand what the noise of a node's output is worth on to its inputs and its weights."""
    read: dict[int, TensorNoise] = {}
    for index, name in enumerate(node.inputs):
        measured = noise.read_by(node.name, index, name) if name is not None and name in model.graph.tensors else None
        if measured is not None:
            read[index] = measured
    gains = {index: local_gain(model.graph, node, index, read, result, model.weight) for index in read}
    made = {key: _made(weights[key], result) for key in weights if key[0] == node.name}
    zero = np.zeros(result.channels)
    expected = sum((gain.forward(read[index].after) for index, gain in gains.items()), zero) + sum(made.values(), zero)
    scaled = importance * np.divide(result.before, expected, out=np.zeros_like(expected), where=expected > 0)
    for key in made:
        if weights[key].power is None or made[key].size != result.channels:
            fallback[key] = fallback.get(key, 0.0) + float((scaled * made[key]).sum())
        else:
            of_weights[key] = of_weights.get(key, 0.0) + scaled
    for index, gain in gains.items():
        _hand_on(node, index, gain, scaled, read[index], noise, worth, of_sites)


def _hand_on(
    node: Node,
    index: int,
    gain: LocalGain,
    scaled: Floats,
    read: TensorNoise,
    noise: MeasuredNoise,
    worth: dict[str, Floats],
    of_sites: dict[Site, Floats],
) -> None:
    arriving, name = gain.backward(scaled), node.inputs[index] or ""
    site = Input(node.name, index)
    if site in noise.inputs:
        arriving = arriving * read.kept
        of_sites[site] = arriving
    if name in worth and worth[name].size == arriving.size:
        worth[name] = worth[name] + arriving
    else:
        worth.setdefault(name, arriving)


def _made(weight: WeightNoise, result: TensorNoise) -> Floats:
    """The noise that a weight makes at the output."""
    if weight.power is None:
        return weight.relative * result.signal
    if weight.power.size == result.channels:
        return weight.power
    return np.full(result.channels, float(weight.power.mean()))
