"""Known answers of the Universal Transformer: halting, signals, steps of an encoder, the transition of convolutions."""

import jax
import jax.numpy as jnp

from paperlab.depth.halting import act
from paperlab.layers.norms import LayerNorm
from paperlab.papers.universal_transformer.attention import Sight, sight_of
from paperlab.papers.universal_transformer.block import Layer
from paperlab.papers.universal_transformer.timing import signal
from paperlab.papers.universal_transformer.transition import Transition


def _halted(inputs: dict, kind: str, options: dict, steps: int):
    p, states = jnp.asarray(inputs["p"]), jnp.asarray(inputs["states"])
    return act(
        lambda t, s: (states[t], p[t]),
        jnp.zeros_like(states[0]),
        max_steps=steps,
        kind=kind,
        eps=options["eps"],
        keep_weights=True,
    )


def halting(options: dict, inputs: dict, params: dict) -> dict:
    """The loop of the authors' code."""
    steps = min(options["max_steps"], options.get("max_iterations", options["max_steps"]))
    found = _halted(inputs, options["halting"], options, steps)
    return {
        "out": found.output,
        "n_updates": found.updates,
        "remainders": found.remainder,
        "halting_probability": found.probability,
        "steps_run": found.steps,
        "ponder_loss_mean": found.ponder.mean(),
    }


def graves(options: dict, inputs: dict, params: dict) -> dict:
    """Classical ACT."""
    steps = options["max_steps"]
    found = _halted(inputs, "graves", options, steps)
    S = inputs["p"].shape[0]
    weights = jnp.pad(found.weights, ((0, max(S - steps, 0)), (0, 0), (0, 0)))
    names = ("graves_out", "graves_N", "graves_R", "graves_W")
    return dict(zip(names, (found.output, found.updates, found.remainder, weights), strict=True))


def timing_signal(options: dict, inputs: dict, params: dict) -> dict:
    """Positions alone, or positions and steps."""
    layout = {"paper_interleaved": "interleaved", "t2t_concat": "concatenated"}[options["layout"]]
    kind = {"layout": layout, "max_timescale": options["max_timescale"], "dtype": jnp.result_type(float)}
    places = signal(options["first_position"] + jnp.arange(options["length"]), options["channels"], **kind)
    if not options["steps"]:
        return {"signal": places}
    return {"signal": places + signal(jnp.asarray(options["steps"]), options["channels"], **kind)[:, None]}


def encoder_steps(options: dict, inputs: dict, params: dict) -> dict:
    """The states after every step of one layer with the paper's signals, and after the last norm."""
    a = _named(params)
    x = jnp.asarray(inputs["x"])
    T, D = x.shape
    layer = Layer(
        D,
        a["W1"].shape[1],
        options["heads"],
        options["norm"],
        causal=options["causal"],
        norm_eps=options["ln_eps"],
        dtype=x.dtype,
    )
    kernels = {name: {"kernel": a[f"W{key}"]} for name, key in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))}
    own = {
        "attention": kernels,
        "attention_norm": _norm(a, "1"),
        "transition_norm": _norm(a, "2"),
        "ffn": {"up": {"kernel": a["W1"], "bias": a["b1"]}, "down": {"kernel": a["W2"], "bias": a["b2"]}},
    }
    sight = sight_of(T, causal=options["causal"])
    kind = {"layout": "interleaved", "dtype": x.dtype}
    places = signal(1 + jnp.arange(T), D, **kind)

    def step(h, t):
        h, _ = layer.apply({"params": own}, h + places + signal(t, D, **kind), sight)
        return h, h[0]

    last, states = jax.lax.scan(step, x[None], 1 + jnp.arange(options["num_steps"]))
    found = {"states": states}
    if options["final_norm"]:
        found["final"] = LayerNorm(options["ln_eps"]).apply({"params": _norm(a, "f")}, last)[0]
    return found


def sepconv_transition(options: dict, inputs: dict, params: dict) -> dict:
    """Both convolutions, looking both ways or back."""
    a, x = _named(params), jnp.asarray(inputs["x"])
    taps = tuple(options["kernel_sizes"])
    causal = options["padding"] == "LEFT"
    module = Transition(x.shape[-1], a["pw1"].shape[1], "sepconv", causal, dtype=x.dtype, taps=taps)
    own = {
        "first": {"kernel": a["dw1"]},
        "up": {"kernel": a["pw1"], "bias": a["pb1"]},
        "second": {"kernel": a["dw2"]},
        "down": {"kernel": a["pw2"], "bias": a["pb2"]},
    }
    return {"out": module.apply({"params": own}, x[None], Sight())[0][0]}


def _named(params: dict) -> dict:
    return {name.split("/")[-1]: jnp.asarray(x) for name, x in params.items()}


def _norm(a: dict, which: str) -> dict:
    return {"scale": a[f"g{which}"], "bias": a[f"be{which}"]}


KINDS = {
    "act_halting": halting,
    "act_graves": graves,
    "timing_signal": timing_signal,
    "encoder_steps": encoder_steps,
    "sepconv_transition": sepconv_transition,
}


def run(kind: str, options: dict, inputs: dict, params: dict) -> dict:
    """Every array that a case of the Universal Transformer may ask for."""
    if kind not in KINDS:
        raise ValueError(f"universal_transformer: unknown kind {kind!r}")
    return KINDS[kind](options, inputs, params)
