"""The GLA layer against its equations, written out in float64 NumPy, for every kind of gate, norm and head sharing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kernels_pallas import platforms
from paperlab.mixers.gla import Mixer, retnet_log_decay

B, T, WIDTH, HEADS = 2, 9, 16, 4
X = np.random.default_rng(0).normal(size=(B, T, WIDTH))
ROWS = [
    {},
    {"kv_heads": 2, "norm_per_head": True, "output_gate_bias": True, "gate_temperature": 2.0, "gate_clamp": -0.4},
    {"gate": "scalar", "kv_heads": 1, "norm": "layer", "output_gate_activation": "sigmoid"},
    {"gate": "fixed", "norm": "layer", "norm_affine": False, "feature_map": "relu"},
    {"gate": "none", "norm": "none", "use_output_gate": False, "expand_k": 1.0, "expand_v": 0.5},
    {"gate_beta": True, "gate_low_rank": 3, "gate_temperature": 1.0},
    {"gate_low_rank": 0, "gate_temperature": 1.0, "weight_init": "xavier"},
]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def layer_in_numpy(m, p, x):
    """Section 3.6 of the specification, one token after another."""
    G, K, V = m.head_sizes()
    linear = {n: (lambda z, q=q: z @ q["kernel"] + q.get("bias", 0.0)) for n, q in p.items() if "kernel" in q}
    heads = lambda z, n: z.reshape(B, T, n, -1)  # noqa: E731
    share = lambda z: np.repeat(z, HEADS // G, axis=2)  # noqa: E731
    phi = (lambda z: np.maximum(z, 0)) if m.feature_map == "relu" else (lambda z: z)
    q, k, v = heads(phi(linear["q"](x)), HEADS), share(heads(phi(linear["k"](x)), G)), share(heads(linear["v"](x), G))

    def gate(down, up):
        low = linear[down](x) if down in linear else x
        log_gate = np.log(sigmoid(linear[up](low))) / m.gate_temperature
        return share(heads(np.maximum(log_gate, m.gate_clamp) if m.gate_clamp else log_gate, G))

    if m.gate in ("channel", "scalar"):
        log_alpha = np.broadcast_to(gate("gate_down", "gate_up"), (B, T, HEADS, K))
    else:
        constant = np.log(1 - 2.0 ** (-5 - np.arange(HEADS))) if m.gate == "fixed" else np.zeros(HEADS)
        log_alpha = np.broadcast_to(constant[:, None], (B, T, HEADS, K))
    log_beta = gate("beta_down", "beta_up") if m.gate_beta else np.zeros((B, T, HEADS, V))
    S, o = np.zeros((B, HEADS, K, V)), np.zeros((B, T, HEADS, V))
    for t in range(T):
        decay = np.exp(log_alpha[:, t, :, :, None] + log_beta[:, t, :, None, :])
        S = decay * S + k[:, t, :, :, None] * v[:, t, :, None, :]
        o[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t] * K**-0.5, S)
    y = o
    if m.norm == "layer":
        y = y - y.mean(-1, keepdims=True)
    if m.norm != "none":
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + m.norm_eps)
        y = y * p.get("out_norm", {}).get("scale", 1.0) + p.get("out_norm", {}).get("bias", 0.0)
    y = y.reshape(B, T, -1)
    if m.use_output_gate:
        r = linear["output_gate"](x)
        y = y * sigmoid(r) * (1 if m.output_gate_activation == "sigmoid" else r)
    return linear["out"](y), log_alpha, o, S


@pytest.mark.parametrize("row", ROWS, ids=["-".join(map(str, row)) or "default" for row in ROWS])
def test_equals_its_equations(row):
    mixer = Mixer(WIDTH, HEADS, jnp.float32, **row)
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), jnp.asarray(X, jnp.float32))["params"]
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda a: 0.4 * draw(size=a.shape), shapes)
    want, log_alpha, o, S = layer_in_numpy(mixer, params, X)

    @jax.jit
    def run(params, x):
        return mixer.apply({"params": params}, x, state=mixer.zero_state(B), mutable=["intermediates"])

    (y, state), shown = run(*jax.tree.map(jnp.float32, (params, X)))
    shown = shown["intermediates"]
    for got, known in ((y, want), (shown["core_out"][0], o), (state["S"], S)):
        np.testing.assert_allclose(got, known, rtol=1e-4, atol=1e-4)
    G = mixer.head_sizes()[0]
    np.testing.assert_allclose(shown["log_alpha"][0], log_alpha[:, :, :: HEADS // G][:, :, :G], rtol=1e-4, atol=1e-5)


def test_parameters_of_the_papers_layer():
    """4 d^2 and the two thin gate matrices."""
    d = 64
    shapes = jax.eval_shape(Mixer(d, 4).init, jax.random.key(0), jnp.zeros((1, 1, d)))
    gates = d * 16 + 16 * d // 2 + d // 2
    assert sum(a.size for a in jax.tree.leaves(shapes)) == 4 * d * d + gates + d // 4


def test_gates_start_open():
    """alpha = sigmoid(0)^(1/16) = 0.958 at zero initialisation."""
    mixer = Mixer(WIDTH, HEADS, init_std=0.0)
    params = jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
    _, shown = jax.jit(lambda p, x: mixer.apply(p, x, mutable=["intermediates"]))(params, jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(jnp.exp(shown["intermediates"]["log_alpha"][0]), 0.5 ** (1 / 16), rtol=1e-6)


def test_decays_of_retnet():
    np.testing.assert_allclose(np.exp(retnet_log_decay(4))[:, 0], [31 / 32, 63 / 64, 127 / 128, 255 / 256], rtol=1e-6)


def test_xavier_initialisation_reaches_queries_keys_and_gates_only():
    params = jax.jit(Mixer(64, 4, weight_init="xavier").init)(jax.random.key(0), jnp.zeros((1, 1, 64)))["params"]
    for name, (rows, columns) in {"q": (64, 32), "gate_down": (64, 16), "gate_up": (16, 32)}.items():
        bound = 2**-2.5 * (6 / (rows + columns)) ** 0.5
        largest = jnp.abs(params[name]["kernel"]).max()
        assert 0.95 * bound < largest <= bound
    assert jnp.std(params["v"]["kernel"]) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("gate", ["channel", "fixed"])
def test_on_several_devices_each_runs_the_kernel_on_its_own_rows(gate):
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, T, WIDTH)), jnp.float32)
    ids = jnp.asarray(np.arange(T) > 3, jnp.int32) * jnp.ones((8, 1), jnp.int32)
    plain, kernel = (Mixer(WIDTH, HEADS, gate=gate, impl=impl) for impl in ("recurrent", "interpret"))
    params = plain.init(jax.random.key(0), x)

    def loss(params, mixer, x, ids):
        y, after = mixer.apply(params, x, state=mixer.zero_state(8), segment_ids=ids)
        return (jnp.cos(y) * y).sum() + after["S"].sum(), y

    def both(mixer, x, ids):
        return jax.jit(jax.value_and_grad(lambda p, x: loss(p, mixer, x, ids), has_aux=True))(params, x)

    want = both(plain, x, ids)
    with jax.set_mesh(mesh):
        got = both(kernel, jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))), ids)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_mesh_that_splits_rows_keeps_the_kernel_of_a_tpu():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    shape = jax.ShapeDtypeStruct((8, 128, 256), jnp.float32)
    mixer = Mixer(256, 2)
    params = jax.eval_shape(mixer.init, jax.random.key(0), shape)
    with jax.set_mesh(mesh), platforms.assume("tpu"):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        x = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows)
        text = jax.jit(mixer.apply).trace(params, x).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
