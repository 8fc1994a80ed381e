"""What the benchmarks of quantization-aware training share: steps of both frameworks, and the rows of their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import isobit

Array = NDArray[Any]
#: Trains on inputs and targets with the rates at this point, between 1 and 0, as a factor; returns the loss.
Step = Callable[[Array, Array, float], float]


class Rates(NamedTuple):
    """Learning rates of Adam."""

    weights: float
    grids: float


class Result(NamedTuple):
    """A figure in float, calibrated, and trained; the loss of each step."""

    plain: float
    before: float
    after: float
    losses: list[float]


def torch_step(model: torch.nn.Module, grids: list[Any], measure: Callable[[Any, Any], Any], rates: Rates) -> Step:
    """A step of PyTorch; `measure` is the loss of outputs and targets."""
    own = {id(parameter) for parameter in grids}
    parts = [([p for p in model.parameters() if id(p) not in own], rates.weights), (grids, rates.grids)]
    parts = [part for part in parts if part[0]]
    optimizer = torch.optim.Adam([{"params": parameters, "lr": rate} for parameters, rate in parts])
    model.train()

    def step(inputs: Array, targets: Array, factor: float) -> float:
        for group, (_, rate) in zip(optimizer.param_groups, parts, strict=True):
            group["lr"] = rate * factor
        outputs = model(torch.from_numpy(inputs))
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs
        loss = measure(outputs, torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def keras_step(model: Any, grids: list[Any], measure: Callable[[Any, Any], Any], rates: Rates) -> Step:
    """A step of Keras, with one optimizer for weights and one for grids; `measure` as of `torch_step`."""
    import keras
    import tensorflow as tf

    own = {id(variable) for variable in grids}
    parts = [([v for v in model.trainable_variables if id(v) not in own], rates.weights), (grids, rates.grids)]
    parts = [(variables, rate, keras.optimizers.Adam(rate)) for variables, rate in parts if variables]
    for variables, _, optimizer in parts:
        optimizer.build(variables)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def train(inputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            (outputs,) = keras.tree.flatten(model(inputs, training=True))
            loss = measure(outputs, targets)
        gradients = tape.gradient(loss, [v.value for variables, _, _ in parts for v in variables])
        start = 0
        for variables, _, optimizer in parts:
            optimizer.apply(gradients[start : start + len(variables)], variables)
            start += len(variables)
        return loss

    def step(inputs: Array, targets: Array, factor: float) -> float:
        for _, rate, optimizer in parts:
            optimizer.learning_rate.assign(rate * factor)
        return float(train(tf.constant(inputs), tf.constant(targets)))

    return step


def trained(
    sim: isobit.QuantSim,
    figure: Callable[[Callable[[Any], Any]], float],
    make_step: Callable[[Any, list[Any]], Step],
    batches: Iterable[tuple[Array, Array, float]],
) -> Result:
    """Train a calibrated simulator; `figure` judges what runs a batch."""
    plain, before = figure(sim.run_float), figure(sim.run)
    step = make_step(sim.trainable(), sim.quantizer_parameters())
    losses = [step(*batch) for batch in batches]
    return Result(plain, before, figure(sim.run), losses)


def row(*parts: str, result: Result, more: Iterable[str] = ()) -> str:
    """A row of a table: names, the three figures, the highest loss and the mean of the last ten, and `more`."""
    figures = [f"{part:.1f}" for part in (result.plain, result.before, result.after)]
    losses = [f"{max(result.losses):.2f}", f"{float(np.mean(result.losses[-10:])):.2f}"]
    return "| " + " | ".join([*parts, *figures, *losses, *more]) + " |"
