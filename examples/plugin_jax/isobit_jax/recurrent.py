"""Recurrent layers that are read as one: ``jax.lax.scan`` over ONNX's equations, sequence first, states from zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def lstm(x: jax.Array, w: jax.Array, r: jax.Array, *, reverse: bool = False) -> jax.Array:
    """(sequence, batch, hidden) from (sequence, batch, features); gates in the order i, o, f, c."""

    def step(state: tuple[jax.Array, jax.Array], now: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        i, o, f, g = jnp.split(now @ w.T + h @ r.T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], r.shape[1]))
    return lax.scan(step, (zeros, zeros), x, reverse=reverse)[1]


def gru(x: jax.Array, w: jax.Array, r: jax.Array, *, reverse: bool = False) -> jax.Array:
    """The same with gates in the order z, r, h; the reset gate acts after the product (``linear_before_reset``)."""

    def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        zx, rx, hx = jnp.split(now @ w.T, 3, axis=-1)
        zh, rh, hh = jnp.split(h @ r.T, 3, axis=-1)
        z = jax.nn.sigmoid(zx + zh)
        h = (1 - z) * jnp.tanh(hx + jax.nn.sigmoid(rx + rh) * hh) + z * h
        return h, h

    zeros = jnp.zeros((x.shape[1], r.shape[1]))
    return lax.scan(step, zeros, x, reverse=reverse)[1]
