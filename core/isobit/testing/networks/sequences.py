"""Sequences: attention and recurrent layers."""

from __future__ import annotations

from isobit.testing.networks.builder import Network, NetworkBuilder


def attention() -> Network:
    """One transformer block on three axes: layer norm, single-head attention, Gelu, residuals."""
    b = NetworkBuilder("attention", 6)
    x = b.input("tokens", 6, 16)
    h = b.layer_norm("norm1", x)
    q, k, v = (b.linear(name, h, 16) for name in ("query", "key", "value"))
    scores = b.op("MatMul", "scores", q, b.op("Transpose", "key_t", k, perm=(0, 2, 1)), scale=0.25)
    mixed = b.op("MatMul", "mixed", b.op("Softmax", "softmax", scores, axis=-1), v)
    x = b.op("Add", "add1", x, b.linear("out", mixed, 16))
    h = b.op("Gelu", "gelu", b.linear("up", b.layer_norm("norm2", x), 32), approximate="none")
    b.output("tokens_out", b.op("Add", "add2", x, b.linear("down", h, 16)))
    return b.build()


def multi_head() -> Network:
    """Attention with two heads, split off and joined again by reshapes."""
    b = NetworkBuilder("multi_head", 9)
    x = b.layer_norm("norm", b.input("tokens", 6, 16))
    heads = {}
    for name, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
        split = b.reshape(f"{name}_split", b.linear(name, x, 16), 6, 2, 8)
        heads[name] = b.op("Transpose", f"{name}_heads", split, perm=order)
    scores = b.op("MatMul", "scores", heads["query"], heads["key"], scale=0.35)
    mixed = b.op("MatMul", "mixed", b.op("Softmax", "softmax", scores, axis=-1), heads["value"])
    joined = b.reshape("joined", b.op("Transpose", "by_token", mixed, perm=(0, 2, 1, 3)), 6, 16)
    b.output("tokens_out", b.op("Add", "add", x, b.linear("out", joined, 16)))
    return b.build()


def recurrent() -> Network:
    """An LSTM, then a GRU, over a batch of sequences whose first axis is the batch."""
    b = NetworkBuilder("recurrent", 7)
    x = b.op("Transpose", "sequence_first", b.input("samples", 5, 6), perm=(1, 0, 2))
    x = b.recurrent("GRU", "gru", b.recurrent("LSTM", "lstm", x, 8), 7)
    x = b.op("Transpose", "batch_first", x, perm=(1, 0, 2))
    b.output("classes", b.linear("fc", x, 3))
    return b.build()
