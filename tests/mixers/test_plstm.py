"""The pLSTM layer against its equations in float64 NumPy; every form of its recurrence with gradients; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import expit

from paperlab.errors import ConfigError
from paperlab.mixers.plstm import Mixer
from paperlab.recurrence import kernels
from paperlab.recurrence.line import IMPLEMENTATIONS

B, T, WIDTH, HEADS = 2, 9, 16, 2
X = np.random.default_rng(0).normal(size=(B, T, WIDTH))
QUICK = {"xla_backend_optimization_level": 0}
PLAIN = {"JT": 1, "JV": 1, "JO": 1}
ROWS = [
    PLAIN,
    {"JT": 2, "JK": 2, "JV": 2, "JQ": 2, "JO": 4, "orthogonal": "householder", "blocks": 1},
    {**PLAIN, "tie_query_key": True, "gate_inputs": "TM", "conv_inputs": "QKV", "norm": False, "bias": False},
    {"JT": 3, "JV": 1, "JO": 1, "DK": 3, "DV": 5, "short_conv": False, "passthrough": False, "orthogonal": "qr"},
]


def drawn(mixer, dtype=np.float64):
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), jnp.asarray(X, jnp.float32))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: dtype(0.4 * rng.normal(size=a.shape)), shapes)


def layer_in_numpy(m, p, x):
    """Section 3.2 of the specification, one token after another."""
    H, (DK, DV) = m.heads, m.channels()
    kernel = p["conv"]["kernel"] if m.short_conv else None
    past = [np.pad(x, ((0, 0), (j, 0), (0, 0)))[:, :T] for j in range(m.conv_width)]
    c = x if kernel is None else sum(tap * past[j] for j, tap in enumerate(kernel))
    read = lambda letter: c if m.short_conv and letter in m.conv_inputs else x  # noqa: E731

    def logits(p, letter):
        W = p["map"]["kernel"][0] if letter in m.gate_inputs else np.zeros((WIDTH, p["bias"].size))
        return p["bias"] + (read(letter) @ W).reshape(B, T, *p["bias"].shape)

    def linear(name, letter, shape):
        W, u = p[name]["kernel"], read(letter)
        y = np.einsum("btnd,ndf->btnf", u.reshape(B, T, len(W), -1), W).reshape(B, T, -1)
        return (y + p[name].get("bias", 0)).reshape(B, T, H, *shape)

    def orthogonal(mat):
        if m.orthogonal == "householder":
            Q = -np.broadcast_to(np.eye(m.JT), mat.shape)
            for i in range(m.JT):
                u = mat[..., i, :] / (np.linalg.norm(mat[..., i, :], axis=-1, keepdims=True) + 1e-5)
                Q = Q @ (np.eye(m.JT) - 2 * u[..., :, None] * u[..., None, :])
            return Q
        Q, R = np.linalg.qr(mat)
        return Q * np.sign(np.diagonal(R, axis1=-2, axis2=-1))[..., None, :]

    S, M, D = (expit(logits(p[n], n[0].upper())) for n in ("source", "mark", "direct"))
    A = np.tanh(5 * logits(p["transition"]["lambdas"], "T"))[..., None]
    if m.JT > 1:
        inward, outward = (orthogonal(logits(p["transition"][n], "T")) for n in ("inward", "outward"))
        A = outward @ (A * inward)
    q, v = linear("q", "Q", (DK, m.JQ)), linear("v", "V", (DV, m.JV))
    k = q if m.tie_query_key else linear("k", "K", (DK, m.JK))
    C, o = np.zeros((B, H, DK, DV, m.JT)), np.zeros((B, T, H, DV, m.JO))
    for t in range(T):
        own = np.einsum("bhoqkl,bhdq,bhdk,bhvl->bhvo", D[:, t], q[:, t], k[:, t], v[:, t])
        o[:, t] = DK**-0.5 * (np.einsum("bhoqi,bhdq,bhdvi->bhvo", M[:, t], q[:, t], C) + own)
        C = np.einsum("bhij,bhdvj->bhdvi", A[:, t], C)
        C = C + np.einsum("bhikl,bhdk,bhvl->bhdvi", S[:, t], k[:, t], v[:, t])
    o = o.reshape(B, T, H, -1)
    if m.norm:
        o = o / np.sqrt((o**2).mean(-1, keepdims=True) + m.norm_eps) * p["out_norm"]["scale"]
    y = o.reshape(B, T, -1) @ p["out"]["kernel"][0]
    return y + p["through"] * read("P") if m.passthrough else y, C


@pytest.mark.parametrize("row", ROWS, ids=["-".join(map(str, row.values())) for row in ROWS])
def test_equals_its_equations(row):
    with jax.enable_x64(True):
        mixer = Mixer(WIDTH, HEADS, jnp.float64, levels=2, **row)
        params = drawn(mixer)
        want, C = layer_in_numpy(mixer, params, X)
        run = jax.jit(lambda p, x: mixer.apply({"params": p}, x, state=mixer.zero_state(B)), compiler_options=QUICK)
        y, state = run(params, X)
        np.testing.assert_allclose(y, want, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(state["C"], C, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("impl", [name for name in IMPLEMENTATIONS if name not in ("auto", "sequential")])
def test_gradients_of_every_implementation_equal_the_sequential_ones(impl, monkeypatch):
    monkeypatch.setattr(kernels, "IMPL", "interpret")
    row = PLAIN if impl == "pallas" else {"JT": 2, "JV": 1, "JO": 1}
    mixer = Mixer(WIDTH, HEADS, levels=2, **row)
    params, x = drawn(mixer, np.float32), jnp.asarray(X, jnp.float32)
    ids = jnp.stack([jnp.arange(T) // 5, jnp.arange(T) // 7])
    start = jax.tree.map(lambda a: a + 1, mixer.zero_state(B))  # C = 1, segment = 0: the first document goes on

    def gradients(impl):
        def loss(params, x, C):
            y, state = mixer.clone(impl=impl).apply({"params": params}, x, state={**start, "C": C}, segment_ids=ids)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state["C"]))

        return jax.jit(jax.grad(loss, (0, 1, 2)), compiler_options=QUICK)(params, x, start["C"])

    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)  # noqa: E731
    jax.tree.map(compare, gradients(impl), gradients("sequential"))
    assert impl in IMPLEMENTATIONS


def test_starts_as_the_paper_s_table_says():
    mixer = Mixer(WIDTH, HEADS)
    params = mixer.init(jax.random.key(0), jnp.asarray(X, jnp.float32))
    (y, _), shown = mixer.apply(params, jnp.asarray(X, jnp.float32), mutable=["intermediates"])
    (gates,) = shown["intermediates"]["gates"]
    np.testing.assert_allclose(gates.source, expit(-4), rtol=1e-5)
    np.testing.assert_allclose(gates.mark, expit(-4), rtol=1e-5)
    np.testing.assert_allclose(gates.transition, np.broadcast_to(np.tanh(5) * np.eye(4), (B, T, 2, 4, 4)), atol=1e-6)
    np.testing.assert_allclose(params["params"]["direct"]["bias"], -6)
    np.testing.assert_array_equal(params["params"]["through"], 1)
    assert jnp.std(params["params"]["q"]["kernel"]) == pytest.approx((2 / (5 * 8)) ** 0.5, rel=0.2)
    assert y.shape == X.shape


def test_on_several_devices_each_runs_the_kernel_on_its_own_rows(monkeypatch):
    monkeypatch.setattr(kernels, "IMPL", "interpret")
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    mixer = Mixer(WIDTH, HEADS, **PLAIN)
    params, x = drawn(mixer, np.float32), jnp.asarray(np.random.default_rng(2).normal(size=(8, T, WIDTH)), jnp.float32)

    def run(impl, x):
        apply = jax.jit(mixer.clone(impl=impl).apply, compiler_options=QUICK)
        return apply({"params": params}, x, state=mixer.zero_state(8))

    want = run("sequential", x)
    with jax.set_mesh(mesh):
        got = run("pallas", jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))))
    np.testing.assert_allclose(got[0], want[0], atol=5e-5)
    np.testing.assert_allclose(got[1]["C"], want[1]["C"], atol=5e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"JT": 0}, "JT=0"),
        ({"JO": 3}, "JO=3: times config.model.heads=2 must divide width=16"),
        ({"gate_inputs": "SX"}, "gate_inputs='SX'"),
        ({"conv_inputs": "QQ"}, "conv_inputs='QQ'"),
        ({"tie_query_key": True, "JK": 2}, "tie_query_key=True"),
        ({"blocks": 3}, "blocks=3"),
        ({"gate_blocks": 16, **PLAIN}, "gate_blocks=16"),
        ({"orthogonal": "cayley"}, "orthogonal='cayley'"),
        ({"impl": "pallas"}, "config.mixers.plstm.impl='pallas'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Mixer(WIDTH, HEADS, **options).init(jax.random.key(0), jnp.zeros((1, 4, WIDTH)))
    assert "\n" not in str(caught.value)
