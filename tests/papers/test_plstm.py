"""The room of pLSTM: its claims in small, its pictures, and oracles of the grid that no other file holds."""

from itertools import pairwise, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from paperlab.errors import ConfigError
from paperlab.evidence import Laboratory
from paperlab.papers.plstm import beams, claims, numerics, pictures
from paperlab.recurrence.grid import Gates, gating, grid_memory, merged_whole
from tests.recurrence.laws import QUICK


@pytest.mark.parametrize("missing", [(), ("dl",), ("ru",)], ids=str)
def test_g_is_the_sum_over_all_paths(missing):
    """Written out: every order of steps to the right and down is a path, each of its nodes turns the state."""
    X, Y = 4, 3
    gates = numerics.random_grid(X, Y, numerics.PLAIN, 0, missing)[3]
    g = {name: None if gate is None else np.asarray(gate).reshape(X, Y) for name, gate in gates._asdict().items()}
    G = np.asarray(jax.jit(gating, compiler_options=QUICK)(gates))[..., 0, 0, 0, 0]
    turn = {("r", "r"): "rl", ("d", "r"): "ru", ("r", "d"): "dl", ("d", "d"): "du"}
    for a, b, x, y in np.ndindex(X, Y, X, Y):
        total = 0.0
        for path in {*permutations("r" * (x - a) + "d" * (y - b))} if x >= a and y >= b and (x, y) != (a, b) else ():
            at, weight = (a, b), g["source_r" if path[0] == "r" else "source_d"][a, b]
            for now, then in pairwise(path):
                at = (at[0] + (now == "r"), at[1] + (now == "d"))
                gate = g[turn[now, then]]
                weight = weight * (0 if gate is None else gate[at])
            total += weight * g["mark_l" if path[-1] == "r" else "mark_u"][x, y]
        np.testing.assert_allclose(G[x, y, a, b], total, rtol=1e-4, atol=1e-6)


def test_gradients_by_finite_differences():
    with jax.enable_x64(True):
        *inputs, _ = numerics.random_grid(3, 4, numerics.TRACKING, 1)
        flat, back = ravel_pytree(tuple(inputs))

        @jax.jit
        def value(flat):
            return jnp.sin(grid_memory(*back(flat), impl="hierarchical")[0]).sum()

        direction = np.random.default_rng(0).normal(size=flat.shape)
        step = 1e-5
        slope = (value(flat + step * direction) - value(flat - step * direction)) / (2 * step)
        np.testing.assert_allclose(jax.grad(value)(flat) @ direction, slope, rtol=1e-6)


def test_gates_in_half_precision_keep_states_in_float32():
    q, k, v, gates, direct, entering = jax.tree.map(
        lambda x: x.astype(jnp.float32), numerics.random_grid(8, 8, numerics.PLAIN, 2)
    )
    run = jax.jit(lambda *a: grid_memory(*a, entering=entering, impl="wavefront", chunk=4), compiler_options=QUICK)
    want, states = run(q, k, v, gates, direct)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), gates)
    got, leaving = run(q, k, v, half, direct)
    assert {x.dtype for x in leaving} == {jnp.dtype("float32")}
    np.testing.assert_allclose(got, want, atol=1e-2 * float(jnp.abs(want).max()))
    for a, b in zip(leaving, states, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-2 * float(jnp.abs(b).max()))


def test_zeros_behind_a_grid_change_nothing():
    q, k, v, gates, direct, _ = numerics.random_grid(3, 5, numerics.TRACKING, 0)
    run = jax.jit(grid_memory, static_argnames=("impl", "chunk"), compiler_options=QUICK)
    want, _ = run(q, k, v, gates, direct)
    padded = jax.tree.map(lambda x: jnp.pad(x, [(0, 1), (0, 3), *[(0, 0)] * (x.ndim - 2)]), (q, k, v, gates, direct))
    got, _ = run(*padded, impl="wavefront", chunk=4)
    np.testing.assert_allclose(got[:3, :5], want, atol=1e-5)


def test_a_row_with_scalar_gates_is_gated_linear_attention():
    """C = f C + i k v, read o q C after the write: T = f, S = i, mark o f, direct o i."""
    from kernels_pallas import gla

    rng = np.random.default_rng(0)
    T, D = 12, 4
    q, k, v = (jnp.asarray(rng.normal(size=(1, T, 1, D)), jnp.float32) for _ in range(3))
    f, i, o = (jnp.asarray(rng.uniform(0.2, 1, size=(T, 1)), jnp.float32) for _ in range(3))
    want, _ = gla(q, k * i[None, ..., None], v, jnp.log(f)[None, ..., None], impl="recurrent")
    gates = Gates(
        i[..., None, None, None], None, f[..., None, None], None, None, None, (o * f)[..., None, None, None], None
    )
    row = [x[0, :, :, :, None] for x in (q, k, v)]
    got, _ = grid_memory(*row, gates, (o * i)[..., None, None, None, None], impl="hierarchical")
    np.testing.assert_allclose(got[..., 0], o[..., None] * want[0], rtol=1e-4, atol=1e-5)


def test_the_explosion_is_the_number_of_paths():
    found = {mode: numerics.edge_norms(mode, side=9) for mode in ("P", "D", "none")}
    steps = np.arange(9)
    np.testing.assert_allclose(found["none"]["l1"], 2.0**steps, rtol=1e-5)
    np.testing.assert_allclose(found["D"]["l1"], (steps + 2) / 2, rtol=1e-5)
    np.testing.assert_allclose(found["P"]["l1"], 1, rtol=1e-5)


def test_cotangents_of_p_mode_stay_below_one():
    assert numerics._largest_cotangent("P", 0, side=8) <= 1 + 1e-6
    assert numerics._largest_cotangent("none", 0, side=8) > 2


def test_a_logit_finds_the_angle():
    path = beams.learn_angle((2, 6), steps=120, rate=0.05)
    assert path[0] == 0.5
    np.testing.assert_allclose(path[-1], 0.25, atol=0.01)


def test_beams_agree_with_the_formula():
    lines = np.asarray(beams._diagonals(jnp.asarray(0.3)))
    want = beams.closed_form(12, 0.3, 1.0)
    for d in range(1, 12):
        np.testing.assert_allclose(lines[d - 1, : d + 1], [want[x, d - x] for x in range(d + 1)], rtol=1e-5)


def test_claims_have_names_of_their_own():
    ids = [claim.id for claim in claims.CLAIMS]
    assert len(set(ids)) == len(ids)
    assert {name.split(".")[0] for name in ids} >= set("12345")


def test_pictures_are_drawn(tmp_path):
    norms = {mode: np.linspace(1, 5, 6) for mode in ("P", "D", "none")}
    field = np.random.default_rng(0).uniform(size=(6, 6))
    figures = [
        pictures.receptive_fields({"one": field, "two": field}),
        pictures.four_directions([field] * 4, field, source=(2, 3)),
        pictures.beams({0.3: np.ones((20, 21))}, at=(4, 16)),
        pictures.growth(norms),
        pictures.angles({(3, 4): np.linspace(0.5, 0.4, 9)}),
    ]
    for i, figure in enumerate(figures):
        pictures.save(figure, tmp_path / f"{i}.png")
    assert len(list(tmp_path.iterdir())) == 5


def test_where_grids_are_merged_whole():
    assert merged_whole(16, 16, 8)
    assert not merged_whole(64, 64, 512)


def test_depth_is_read_off_the_program():
    outcome = numerics.depth(Laboratory(None))
    assert (outcome.value, outcome.baseline) == (4, 31)
    assert outcome.details["scans"] == {"wavefront": 1, "hierarchical": 0}


def test_a_checkout_that_is_none_is_refused(tmp_path):
    from paperlab.bench import grid

    assert grid.peer("") is None
    with pytest.raises(ConfigError, match="PAPERLAB_PLSTM="):
        grid.peer(str(tmp_path))
