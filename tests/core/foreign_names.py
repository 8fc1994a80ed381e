"""Names of a model as an encodings file has them: activations, and constants in every layout of ONNX models."""

from __future__ import annotations

import numpy as np

from isobit.encodings import Encoding, QuantSpec, encode_weight
from isobit.formats import Names, Place
from isobit.graph import Graph, Tensor, Weight, conv_transpose_layout
from isobit.graph.layout import TRANSPOSED, output_shape

_LAYOUTS = {
    "conv.w": ((8, 4, 3, 3), ()),
    "matmul.w": ((4, 6), TRANSPOSED),
    "up.w": ((4, 6, 2, 2), conv_transpose_layout((4, 6, 2, 2), 1)),
    "grouped.w": ((4, 3, 2, 2), conv_transpose_layout((4, 3, 2, 2), 2)),
}


def place_of(name: str) -> Place:
    native, layout = _LAYOUTS[name]
    return Place(name, Weight(name), output_shape(native, layout), native, layout, 0, 1)


WEIGHTS = {name: place_of(name) for name in _LAYOUTS}
BIAS = Place("conv.b", Weight("conv.b"), (8,), (8,), (), 0, None)
PLACES = [Place("x", Tensor("x")), Place("relu_out", Tensor("relu")), BIAS, *WEIGHTS.values()]
NAMES = Names(
    Graph((), (), {}, {}, {}), {place.name: (place,) for place in PLACES}, {place.site: place for place in PLACES}
)


def weight_encoding(name: str, text: str, seed: int = 0) -> Encoding:
    """The min-max encoding of random values, with the block axis of the place."""
    place = WEIGHTS[name]
    values = np.random.default_rng(seed).standard_normal(place.canonical).astype(np.float32)
    return encode_weight(values, QuantSpec.parse(text), channel_axis=0, block_axis=1)
