"""Claims that need no training: what steps cost in parameters, and that stopping early is real (claims 4 and 5)."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.evidence import Laboratory, Outcome
from paperlab.papers.universal_transformer import encoder

SIZE = {
    "width": 128,
    "hidden": 512,
    "heads": 4,
    "steps": 16,
    "norm": "post",
    "recurrence": "act",
    "halting": "accumulated",
}
ROWS, LENGTH, ROUNDS = 8, 64, 25
STARTS = (-4.0, -2.0, 0.0, 2.0, 8.0)  # what the halting bias starts at: from all steps down to two


def steps_cost_nothing(lab: Laboratory) -> Outcome:
    """Parameters of six tied steps less those of one layer, signals of steps apart."""
    del lab

    def count(steps: int, tied: bool) -> int:
        options = {"width": 64, "hidden": 128, "heads": 4, "steps": steps, "tied": tied, "step_signal": "sinusoid"}
        model = encoder.make({"model": options}, 16, 16)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        return sum(a.size for a in jax.tree.leaves(shapes["params"]["encoder"]))

    six, one = count(6, tied=True), count(1, tied=False)
    return Outcome(float(six - one), None, [], {"six steps": six, "one layer": one, "six layers": count(6, tied=False)})


def _stopping() -> dict[str, Any]:
    """Of every start: steps run, the most that a position took, the largest deviation, seconds of both forms in turn."""
    tokens = jax.random.randint(jax.random.key(0), (ROWS, LENGTH), 2, 16)
    found: dict[str, Any] = {}
    for start in STARTS:
        model = encoder.make({"model": {**SIZE, "halting_bias_init": start}}, 16, 16)
        params = model.init(jax.random.key(1), tokens)
        forms = {train: jax.jit(lambda p, m=model, t=train: m.apply(p, tokens, train=t)) for train in (False, True)}
        (early, notes), (whole, _) = (jax.block_until_ready(forms[train](params)) for train in (False, True))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(ROUNDS):
            for train in (False, True) if turn % 2 else (True, False):
                begun = time.perf_counter()
                jax.block_until_ready(forms[train](params))
                seconds[train].append(time.perf_counter() - begun)
        n = notes["ponder"]["encoder"]
        found[f"bias {start}"] = {
            "steps run": int(notes["steps"]["encoder"]),
            "most steps of a position": int(n.max()),
            "mean steps": float(n.mean()),
            "deviation": float(jnp.abs(early - whole).max()),
            "time over that of all steps": float(np.median(seconds[False]) / np.median(seconds[True])),
        }
    return found


def stops_when_all_have(lab: Laboratory) -> Outcome:
    """Steps run less the most that any position took, the largest over the starts."""
    found = lab.once("universal_transformer stopping", _stopping)
    off = [one["steps run"] - one["most steps of a position"] for one in found.values()]
    return Outcome(float(max(map(abs, off))), None, [], found)


def stops_with_the_same(lab: Laboratory) -> Outcome:
    """The largest deviation of the form that stops from the one that takes all steps."""
    found = lab.once("universal_transformer stopping", _stopping)
    return Outcome(max(one["deviation"] for one in found.values()), None, [], found)


def stopping_saves_time(lab: Laboratory) -> Outcome:
    """Rank correlation of time and mean steps over the starts, in one interleaved run."""
    found = lab.once("universal_transformer stopping", _stopping)
    from scipy.stats import spearmanr

    steps, times = ([one[name] for one in found.values()] for name in ("mean steps", "time over that of all steps"))
    return Outcome(round(float(spearmanr(steps, times).statistic), 9), None, [], found)
