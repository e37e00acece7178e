"""Nonlinear cells to solve: one a Jacobian structure, with parameters in the layout of ParaRNN's known answers."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.recurrence.newton_cell import Cell

NONLINEARITIES = {"tanh": jnp.tanh, "silu": jax.nn.silu}


def gates(params, x):
    """B x + b [..., 3, S]; B [heads, in / heads, 3, S / heads] is block-diagonal over the heads."""
    H, width = params["B"].shape[:2]
    fed = jnp.einsum("...hi,higj->...ghj", x.reshape(*x.shape[:-1], H, width), params["B"])
    return fed.reshape(*x.shape[:-1], 3, -1) + params["b"]


@cache
def gru(S, nonlinearity="tanh", explicit=False):
    """ParaGRU: gates z, r, c; the recurrent weights A [3, S] are vectors."""
    phi = NONLINEARITIES[nonlinearity]

    def parts(params, x, h):
        fed, (a_z, a_r, a_c) = gates(params, x), params["A"]
        z, r = jax.nn.sigmoid(a_z * h + fed[..., 0, :]), jax.nn.sigmoid(a_r * h + fed[..., 1, :])
        return z, r, a_c * h * r + fed[..., 2, :]

    def step(params, x, h):
        z, _, before = parts(params, x, h)
        return (1 - z) * h + z * phi(before)

    def jacobian(params, x, h):
        (a_z, a_r, a_c), (z, r, before) = params["A"], parts(params, x, h)
        c = jnp.tanh(before)
        return (1 - z) + (c - h) * z * (1 - z) * a_z + z * (1 - c * c) * a_c * (r + h * r * (1 - r) * a_r)

    return Cell(step, (S,), "diagonal", jacobian=jacobian if explicit else None)


@cache
def lstm(S, explicit=False):
    """ParaLSTM: gates f, o, c; state (c, h); peepholes C [2, S], that of the output gate on the new c."""

    def parts(params, x, h):
        fed, (a_f, _, a_c), (p_f, _) = gates(params, x), params["A"], params["C"]
        f = jax.nn.sigmoid(a_f * h[..., 1, :] + fed[..., 0, :] + p_f * h[..., 0, :])
        return fed, f, jnp.tanh(a_c * h[..., 1, :] + fed[..., 2, :])

    def step(params, x, h):
        fed, f, candidate = parts(params, x, h)
        c = f * h[..., 0, :] + (1 - f) * candidate
        o = jax.nn.sigmoid(params["A"][1] * h[..., 1, :] + fed[..., 1, :] + params["C"][1] * c)
        return jnp.stack([c, o * jnp.tanh(c)], -2)

    def jacobian(params, x, h):
        (a_f, a_o, a_c), (p_f, p_o) = params["A"], params["C"]
        fed, f, z = parts(params, x, h)
        c = f * h[..., 0, :] + (1 - f) * z
        o = jax.nn.sigmoid(a_o * h[..., 1, :] + fed[..., 1, :] + p_o * c)
        df, dz = (h[..., 0, :] - z) * f * (1 - f), (1 - f) * (1 - z * z)
        u, s = jnp.tanh(c) * o * (1 - o), o * (1 - jnp.tanh(c) ** 2)
        cc, ch = f + df * p_f, df * a_f + dz * a_c
        hc, hh = (u * p_o + s) * cc, u * (a_o + p_o * ch) + s * ch
        return jnp.stack([jnp.stack([cc, ch], -2), jnp.stack([hc, hh], -2)], -3)

    return Cell(
        step, (2, S), "blocks", jacobian=jacobian if explicit else None, output=lambda states: states[..., 1, :]
    )


@cache
def elman(S, structure="dense", zero_guess=False):
    """h' = tanh(W h + U x + c), with W dense or, for "heads", one matrix [H, d, d] a head."""

    def step(params, x, h):
        fed = x @ params["U"].T + params["c"]
        if structure == "heads":
            return jnp.tanh(jnp.einsum("hij,...hj->...hi", params["W"], h) + fed.reshape(h.shape))
        return jnp.tanh(h @ params["W"].T + fed)

    def diagonal(params, x, h):
        return (1 - step(params, x, h) ** 2) * jnp.diagonal(params["W"])

    state = (2, S // 2) if structure == "heads" else (S,)
    own = diagonal if structure == "dense" else None
    return Cell(step, state, structure, guess=(lambda params, x: 0.0) if zero_guess else None, diagonal=own)


def gru_params(S, din, heads=1, seed=0, a=None):
    """ParaRNN's library initialisation: A ~ N(0, 4 / (5 d)), B Xavier-uniform, first bias -linspace(0, 1). `a`: A ~ U(-a, a)."""
    draw = np.random.default_rng(seed)
    A = draw.standard_normal((3, S)) * 2 / np.sqrt(5 * S) if a is None else draw.uniform(-a, a, (3, S))
    bound = np.sqrt(6 / (din / heads + S))
    B = draw.uniform(-bound, bound, (heads, din // heads, 3, S // heads))
    b = np.zeros((3, S))
    b[0] = -np.linspace(0, 1, S)
    return {"A": A, "B": B, "b": b}


def lstm_params(S, din, heads=1, seed=0):
    draw = np.random.default_rng(seed + 1)
    return {**gru_params(S, din, heads, seed), "C": draw.standard_normal((2, S)) * 2 / np.sqrt(5 * S)}


def elman_params(S, din, gain=0.9, seed=0):
    draw = np.random.default_rng(seed)
    W, U = draw.standard_normal((S, S)) * gain / np.sqrt(S), draw.standard_normal((S, din)) / np.sqrt(din)
    return {"W": W, "U": U, "c": np.zeros(S)}
