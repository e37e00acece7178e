"""ParaRNN's layer: its equations, its modes against the sequential one, its reports, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kernels_pallas import platforms
from paperlab.errors import ConfigError
from paperlab.layers.cell_modes import How, fastest
from paperlab.layers.recurrent_cell import recipe
from paperlab.mixers.pararnn import Mixer
from paperlab.recurrence import Solver

B, T, WIDTH, HEADS = 2, 11, 8, 2
QUICK = {"xla_backend_optimization_level": 0}
X = np.random.default_rng(0).normal(size=(B, T, WIDTH))
IDS = jnp.asarray([[0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])


def drawn(mixer, seed=1):
    """Large random parameters."""
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda a: 0.5 * draw(size=a.shape), shapes)


def test_the_block_is_its_equations():
    """Figure 9, one token after another in NumPy."""
    mixer = Mixer(WIDTH, HEADS, expand=1.5, conv_width=3, norm_eps=1e-5)
    p, d = drawn(mixer)["params"], 12
    assert mixer.channels() == d
    silu, sigmoid = (lambda v: v / (1 + np.exp(-v))), (lambda v: 1 / (1 + np.exp(-v)))
    u, w = X @ p["into"]["kernel"], p["conv"]["kernel"]
    padded = np.concatenate([np.zeros((B, 2, d)), u], 1)
    u = silu(sum(padded[:, 2 - j : 2 - j + T] * w[j] for j in range(3)))
    fed = np.stack([u[..., 6 * i : 6 * i + 6] @ p["input"]["kernel"][i].reshape(6, 18) for i in range(HEADS)], 2)
    fed = fed.reshape(B, T, HEADS, 3, 6).swapaxes(2, 3).reshape(B, T, 3, d) + p["input"]["bias"]
    h, states, (a_z, a_r, a_c) = np.zeros((B, d)), np.zeros((B, T, d)), p["cell"]["a"]
    for t in range(T):
        z, r = sigmoid(a_z * h + fed[:, t, 0]), sigmoid(a_r * h + fed[:, t, 1])
        h = (1 - z) * h + z * np.tanh(a_c * (h * r) + fed[:, t, 2])
        states[:, t] = h
    normed = states / np.sqrt((states**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    want = (normed * silu(X @ p["gate_in"]["kernel"])) @ p["out"]["kernel"]
    run = jax.jit(partial(mixer.apply, mutable=["intermediates"]), compiler_options=QUICK)
    (y, _), shown = run({"params": jax.tree.map(jnp.float32, p)}, jnp.float32(X))
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown["intermediates"]["core_out"][0], states, atol=1e-5)


MODES = {
    "parallel": {},
    "parallel chunked": {"reduction": "chunked", "chunk": 4},
    "parallel windows": {"window": 4},
    "parallel to a tolerance": {"tolerance": 1e-6, "iterations": 0},
    "parallel damped": {"damping": 0.7, "iterations": 40},
    "parallel quasi": {"method": "quasi"},
    "parallel picard": {"method": "picard"},
    "parallel elk": {"method": "elk", "trust": 0.1, "iterations": 40},
    "parallel quasi_elk": {"method": "quasi_elk", "trust": 0.1, "iterations": 40},
    "parallel_kernel": {"impl": "interpret"},
    "parallel_fused": {"impl": "interpret"},
    "parallel_fused plain": {},
}
CASES = [("gru", mode) for mode in MODES] + [("lstm", m) for m in ("parallel", "parallel_kernel", "parallel_fused")]
CASES += [(cell, m) for cell in ("elman", "heads", "linear") for m in ("parallel", "parallel to a tolerance")]


@pytest.mark.parametrize(("cell", "mode"), CASES)
def test_every_mode_has_the_values_and_gradients_of_the_sequential_one(cell, mode):
    """Packed documents, a state carried in and out, one set of parameters."""
    options = {"iterations": T, "mode": mode.split()[0], **MODES[mode]}
    plain, other = (Mixer(WIDTH, HEADS, cell=cell, **more) for more in ({"mode": "sequential"}, options))
    params = jax.tree.map(jnp.float32, drawn(plain))
    state = {**plain.zero_state(B), "segment": jnp.zeros(B, jnp.int32)}
    h = jnp.asarray(np.random.default_rng(2).normal(size=state["h"].shape), jnp.float32)

    def both(mixer):
        def loss(params, x, h):
            y, after = mixer.apply(params, x, state={**state, "h": h}, segment_ids=IDS)
            return (jnp.sin(y) * jnp.arange(1.0, T + 1)[:, None]).sum() + jnp.cos(after["h"]).sum(), (y, after["h"])

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True), compiler_options=QUICK)(params, jnp.float32(X), h)

    got, want = both(other), both(plain)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * max(1.0, float(jnp.abs(b).max())))


def loops(jaxpr):
    """(lengths of scans, Pallas calls) anywhere in a program."""
    scans, calls = [], 0
    for equation in jaxpr.eqns:
        scans += [equation.params["length"]] if equation.primitive.name == "scan" else []
        calls += equation.primitive.name == "pallas_call"
        if equation.primitive.name == "pallas_call":
            continue
        for inner in jaxprs_in_params(equation.params):
            found, more = loops(inner)
            scans, calls = scans + found, calls + more
    return scans, calls


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_every_mode_is_a_computation_of_its_own(cell):
    """Read off the program of a forward pass: who waits for whom over 64 steps."""

    def program(mode, **options):
        mixer = Mixer(WIDTH, HEADS, cell=cell, mode=mode, bare=True, **options)
        x = jnp.zeros((1, 64, WIDTH))
        params = jax.eval_shape(mixer.init, jax.random.key(0), x[:, :1])
        return loops(jax.make_jaxpr(mixer.apply)(params, x).jaxpr)

    assert program("sequential") == ([64], 0)
    scans, calls = program("parallel")
    assert (64 not in scans, calls) == (True, 0)
    assert 3 in scans, "the iterations"
    scans, calls = program("parallel", reduction="chunked", chunk=16)
    assert (64 not in scans, 4 in scans, calls) == (True, True, 0)
    scans, calls = program("parallel_kernel", impl="interpret")
    assert (64 not in scans, calls) == (True, 1)
    assert 3 in scans, "one kernel an iteration"
    scans, calls = program("parallel_fused", impl="interpret")
    assert (scans, calls) == ([], 1)


def test_a_call_reports_residual_and_iterations():
    def shown(**options):
        mixer = Mixer(WIDTH, HEADS, bare=True, mode="parallel", **options)
        params = jax.tree.map(jnp.float32, drawn(mixer))
        params["params"]["cell"]["a"] *= 6
        run = jax.jit(partial(mixer.apply, mutable=["intermediates"]), compiler_options=QUICK)
        (y, _), told = run(params, jnp.float32(X))
        return y, told["intermediates"]["residual"][0], told["intermediates"]["iterations"][0]

    _, far, counted = shown(iterations=1)
    assert far.shape == (B,)
    assert (far > 1e-2).all()
    np.testing.assert_array_equal(counted, 1)
    y, near, needed = shown(iterations=0, tolerance=1e-5)
    assert (near <= 1e-5).all()
    assert (needed > 1).all()
    assert jnp.isfinite(y).all()
    y, _, _ = shown(iterations=1, tolerance=1e-5)
    assert jnp.isnan(y).all(), "rows that miss the tolerance are never returned as if they were solved"


def test_decoding_is_the_step_alone():
    """Constant work a token: no loop, no solver."""
    mixer = Mixer(WIDTH, HEADS, mode="parallel")
    params = jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
    program = str(
        jax.make_jaxpr(partial(mixer.apply, method="step"))(params, jnp.zeros((B, WIDTH)), mixer.zero_state(B))
    )
    assert "scan" not in program
    assert "while" not in program


def test_auto_follows_the_device():
    gru, dense = recipe("gru", 128), recipe("elman", 128)
    assert fastest(gru, How(), 64) == "sequential"
    with platforms.assume("tpu"):
        kept = [fastest(made, How(solver=s), 64) for made in (gru, dense) for s in (Solver(), Solver(tolerance=1e-4))]
    assert kept == ["sequential"] * 4, "this machine is a CPU, whatever is traced for"


def on_tpu(monkeypatch):
    monkeypatch.setattr("paperlab.layers.cell_modes.choose", lambda *_: "associative")


def test_auto_takes_the_last_kernel_that_a_cell_has(monkeypatch):
    on_tpu(monkeypatch)
    gru, silu, dense = recipe("gru", 128), recipe("gru", 128, nonlinearity="silu"), recipe("elman", 128)
    with platforms.assume("tpu"):
        assert fastest(gru, How(), 64) == "parallel_fused"
        assert fastest(gru, How(solver=Solver(tolerance=1e-4)), 64) == "parallel_kernel"
        assert fastest(silu, How(), 64) == "parallel_kernel"
        assert fastest(dense, How(), 64) == "parallel"
    assert fastest(gru, How(), 64) == "parallel"


@pytest.mark.parametrize(("cell", "mode"), [("gru", "parallel_kernel"), ("lstm", "parallel_fused")])
def test_on_several_devices_each_runs_the_kernel_on_its_own_rows(cell, mode):
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, T, WIDTH)), jnp.float32)
    ids = jnp.asarray(np.arange(T) > 3, jnp.int32) * jnp.ones((8, 1), jnp.int32)
    plain, kernel = (
        Mixer(WIDTH, HEADS, cell=cell),
        Mixer(WIDTH, HEADS, cell=cell, mode=mode, impl="interpret", iterations=6),
    )
    params = jax.tree.map(jnp.float32, drawn(plain))

    def loss(params, mixer, x, ids):
        y, after = mixer.apply(params, x, state=mixer.zero_state(8), segment_ids=ids)
        return (jnp.cos(y) * y).sum() + after["h"].sum(), y

    def both(mixer, x, ids):
        slope = jax.value_and_grad(lambda p, x: loss(p, mixer, x, ids), has_aux=True)
        return jax.jit(slope, compiler_options=QUICK)(params, x)

    want = both(plain, x, ids)
    with jax.set_mesh(mesh):
        got = both(kernel, jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))), ids)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["auto", "parallel_kernel"])
def test_a_mesh_that_splits_rows_keeps_the_kernel_of_a_tpu(monkeypatch, mode):
    on_tpu(monkeypatch)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    mixer = Mixer(256, 2, mode=mode)
    params = jax.eval_shape(Mixer(256, 2, mode="sequential").init, jax.random.key(0), jnp.zeros((1, 1, 256)))
    with jax.set_mesh(mesh), platforms.assume("tpu"):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        x = jax.ShapeDtypeStruct((8, 128, 256), jnp.float32, sharding=rows)
        text = jax.jit(mixer.apply).trace(params, x).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "fast"}, "mode='fast': choose one of auto"),
        ({"method": "newtn"}, "method='newtn': did you mean 'newton'"),
        ({"iterations": 0}, r"iterations=0: say how many \(3\), or a tolerance"),
        ({"tolerance": -1.0}, "tolerance=-1.0: must be at least 0"),
        ({"damping": 0.0}, "damping=0.0: must be above 0"),
        ({"expand": 0.01}, "expand=0.01: leaves no channel"),
        ({"state_width": 9}, r"model.heads=2: .* 9 channels \(expand or state_width\) are no multiple of 2"),
        ({"cell": "elman", "mode": "parallel_kernel"}, "mode='parallel_kernel': there are kernels for diagonal"),
        ({"cell": "elman", "mode": "parallel_fused"}, "mode='parallel_fused': this cell has no kernel"),
        ({"nonlinearity": "silu", "mode": "parallel_fused"}, "mode='parallel_fused': this cell has no kernel"),
        ({"tolerance": 1e-5, "mode": "parallel_fused"}, "takes a fixed count of undamped Newton"),
        ({"method": "elk", "mode": "parallel_kernel"}, "method='elk' has no kernel"),
        ({"method": "elk", "mode": "parallel", "reduction": "chunked"}, "reduction='chunked': method='elk' has none"),
        ({"init_style": "papers"}, "init_style='papers': did you mean 'paper'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, told):
    with pytest.raises(ConfigError, match=f"config.*{told}"):
        Mixer(WIDTH, HEADS, **options).check()


def test_a_kernel_that_is_asked_for_where_there_is_none_is_refused():
    x = jnp.float32(X)
    for mode in ("parallel_kernel", "parallel_fused"):
        mixer = Mixer(WIDTH, HEADS, mode=mode, impl="pallas")
        with pytest.raises(ConfigError, match=r"config.mixers.pararnn.*there is no kernel for 'cpu'"):
            jax.eval_shape(mixer.init, jax.random.key(0), x)


def test_a_cell_that_mixes_what_it_says_it_does_not_is_refused(tmp_path):
    """A file of one's own always; a cell of the house where `verify` asks for it, which finds nothing."""
    file = tmp_path / "mixing.py"
    file.write_text(
        "import jax, jax.numpy as jnp\n"
        'STRUCTURE, INPUTS = "diagonal", 1\n'
        "def init(key, width):\n    return {'w': jax.random.normal(key, (width, width))}\n"
        "def step(params, x, h):\n    return jnp.tanh(h @ params['w'] + x[..., 0, :])\n"
    )
    with pytest.raises(ConfigError, match=r"cell=.*mixing.py': structure='diagonal' is not true of cell.step"):
        Mixer(WIDTH, HEADS, cell=str(file)).check()
    mixer = Mixer(WIDTH, HEADS, cell="linear", verify=True, bare=True)
    params = jax.tree.map(jnp.float32, drawn(mixer))
    np.testing.assert_array_equal(jnp.isfinite(mixer.apply(params, jnp.float32(X))[0]), True)
