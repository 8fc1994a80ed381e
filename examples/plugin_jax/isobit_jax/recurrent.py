"""Recurrent layers that are read as one: ``jax.lax.scan`` over ONNX's equations, sequence first, states from zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax


def product(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """A linear layer; its weight is (out, in)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def lstm(
    x: Array, w: Array, r: Array, wb: Array | None = None, rb: Array | None = None, *, reverse: bool = False
) -> Array:
    """(sequence, batch, hidden) from (sequence, batch, features); gates in the order i, o, f, c; two biases or none."""

    def step(state: tuple[Array, Array], now: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = state
        i, o, f, g = jnp.split(product(now, w, wb) + product(h, r, rb), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], r.shape[1]))
    return lax.scan(step, (zeros, zeros), x, reverse=reverse)[1]


def gru(
    x: Array, w: Array, r: Array, wb: Array | None = None, rb: Array | None = None, *, reverse: bool = False
) -> Array:
    """The same with gates in the order z, r, h; the reset gate acts after the product (``linear_before_reset``)."""

    def step(h: Array, now: Array) -> tuple[Array, Array]:
        zx, rx, hx = jnp.split(product(now, w, wb), 3, axis=-1)
        zh, rh, hh = jnp.split(product(h, r, rb), 3, axis=-1)
        z = jax.nn.sigmoid(zx + zh)
        h = (1 - z) * jnp.tanh(hx + jax.nn.sigmoid(rx + rh) * hh) + z * h
        return h, h

    zeros = jnp.zeros((x.shape[1], r.shape[1]))
    return lax.scan(step, zeros, x, reverse=reverse)[1]
