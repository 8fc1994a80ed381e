"""The benchmark networks opened by each backend, and the FP32 run of their plain native models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from isobit.backend import Backend, BackendModel
from isobit.plugins import registry
from isobit.testing.networks import Network
from networks import NETWORKS

Batches = list[dict[str, Any]]


def open_network(backend: str, name: str, size: int) -> tuple[BackendModel, Callable[[dict[str, Any]], Any]]:
    """A benchmark network opened by a backend, and the FP32 run of its plain native model."""
    return OPENERS[backend](NETWORKS[name](size), registry().backend(backend))


def open_onnx(network: Network, opener: Backend) -> tuple[BackendModel, Callable[[dict[str, Any]], Any]]:
    """An ONNX file in onnxruntime."""
    import onnxruntime

    from isobit_onnx.reference_networks import build_onnx

    native = build_onnx(network)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["BENCHMARK_THREADS"])
    session = onnxruntime.InferenceSession(native.SerializeToString(), options)
    return opener.open(native), lambda batch: session.run(None, batch)


def open_torch(network: Network, opener: Backend) -> tuple[BackendModel, Callable[[dict[str, Any]], Any]]:
    """A module in eager mode, as people run it."""
    import torch

    from isobit_torch.reference_networks import build_torch

    torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
    module = build_torch(network)

    def run(batch: dict[str, Any]) -> Any:
        with torch.no_grad():
            return module(**{name: torch.from_numpy(array) for name, array in batch.items()})

    return opener.open(module, network.batch(2)), run


def open_tensorflow(network: Network, opener: Backend) -> tuple[BackendModel, Callable[[dict[str, Any]], Any]]:
    """A Keras model in a tf.function."""
    import tensorflow as tf

    from isobit_tensorflow.reference_networks import build_keras

    threads = int(os.environ["BENCHMARK_THREADS"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    native = build_keras(network)
    function = tf.function(lambda inputs: native(inputs, training=False), reduce_retracing=True)

    def run(batch: dict[str, Any]) -> Any:
        inputs = {name: tf.convert_to_tensor(array) for name, array in batch.items()}
        return {name: output.numpy() for name, output in function(inputs).items()}

    return opener.open(native), run


OPENERS = {"onnx": open_onnx, "torch": open_torch, "tensorflow": open_tensorflow}


def stream_batches(name: str, size: int, batch: int, count: int) -> Iterator[dict[str, Any]]:
    """Standard normal images, made one batch at a time."""
    network = NETWORKS[name](size)
    for seed in range(count):
        yield network.batch(batch, seed=seed)
