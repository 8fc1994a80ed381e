"""A fingerprint identifies a model by the values of its weights."""

from __future__ import annotations

import hashlib

import numpy as np

from isobit.graph import Graph, WeightInfo
from isobit.graph.fingerprint import fingerprint


def of(array: np.ndarray) -> str:
    """The hash of one constant."""
    graph = Graph((), (), {}, {}, {"w": WeightInfo(array.shape, "float32")})
    return fingerprint(graph, lambda name: array)["w"]


def test_the_hash_is_of_shape_type_and_bytes_whatever_the_order_in_memory() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = hashlib.blake2b(b"(3, 4)float32" + array.tobytes(), digest_size=16).hexdigest()
    assert of(array) == of(np.asfortranarray(array)) == of(np.repeat(array, 2, axis=1)[:, ::2]) == expected
    assert len({of(array), of(array.reshape(4, 3)), of(array.astype(np.float64)), of(array + 1)}) == 4
    assert of(np.float32(1)[None][0:0]) != of(np.zeros((), np.float32))


def test_text_is_known_by_its_characters() -> None:
    words = [np.array(["a", "".join(["b", "c"])], dtype=object) for _ in range(2)]
    assert of(words[0]) == of(words[1]) != of(np.array(["a", "bd"], dtype=object))
