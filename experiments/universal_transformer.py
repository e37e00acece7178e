"""Universal Transformer (Dehghani et al. 2019, arXiv 1807.03819).

    python -m paperlab.run --config=experiments/universal_transformer.py            2 CPU cores, minutes: reverse rows of digits
    python -m paperlab.run --config=experiments/universal_transformer.py:pointers   follow pointers, as many steps as hops
    python -m paperlab.run --config=experiments/universal_transformer.py:ponder     the same, every position decides how long
    python -m paperlab.run --config=experiments/universal_transformer.py:agreement  subject and verb, with ponder times
    python -m paperlab.run --config=experiments/universal_transformer.py:text       a language model on text that every machine has
    python -m paperlab.run --config=experiments/universal_transformer.py:full_algorithmic --dry_run --devices=64

Variants full_*: the authors' sets (base, small, big, tiny, teeny, tall, adaptive_tall) on rows of digits; full_lambada and
full_lambada_act on text files. Arms of the claims: copy_*, reverse_*, hops_*, ponder_*.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from paperlab.config import base_config

ROOM = "papers.universal_transformer"
SETS: dict[str, dict[str, Any]] = {
    "base": {"width": 1024, "hidden": 4096, "heads": 16, "steps": 6, "dropout": 0.3},
    "small": {"width": 512, "hidden": 2048, "heads": 8, "steps": 6, "dropout": 0.1},
    "big": {"width": 2048, "hidden": 8192, "heads": 16, "steps": 6, "dropout": 0.3},
    "tiny": {"width": 128, "hidden": 512, "heads": 4, "steps": 8, "dropout": 0.1},
    "teeny": {"width": 128, "hidden": 128, "heads": 2, "steps": 10, "dropout": 0.1},
    "tall": {"width": 512, "hidden": 2048, "heads": 8, "steps": 16, "dropout": 0.1},
}
TRANSFORMER = {"tied": False, "signal_at": "input"}
ARMS: dict[str, dict[str, Any]] = {
    "ut": {"position_start": "random"},
    "transformer": TRANSFORMER,
    "transformer_random": {**TRANSFORMER, "position_start": "random"},
    "transformer_equal": {**TRANSFORMER, "width": 14, "hidden": 19, "heads": 2},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config of one variant."""
    return VARIANTS[variant]()


def _pairs(problem: str, **model: Any) -> ConfigDict:
    config = base_config(task="sequence_to_sequence", model=f"{ROOM}.seq2seq")
    config.checkpoint.update(best_metric="val_accuracy", best_mode="max")
    config.task.problem = problem
    config.model.update(model)
    config.evaluators.val.batches = 0
    return config


def _longer(config: ConfigDict, *lengths: int) -> ConfigDict:
    return _also(config, *(f"length_{n}" for n in lengths))


def _also(config: ConfigDict, *splits: str) -> ConfigDict:
    """With these splits evaluated at the end, under their own names."""
    with config.unlocked():
        for split in splits:
            config.evaluators[split] = {"split": split, "every": 0, "batches": 0}
    return config


def default() -> ConfigDict:
    """Rows of up to 8 digits are reversed, then rows of 12 and 16; six steps in encoder and decoder."""
    return _longer(arm("reverse", "ut", steps=1500), 12, 16)


def arm(problem: str, name: str, steps: int = 1000) -> ConfigDict:
    """An arm of the claims on lengths: width 32, six steps or layers, rows of up to 8 digits."""
    config = _pairs(problem, **{"width": 32, "hidden": 64, "heads": 4, "steps": 6, **ARMS[name]})
    config.task.update(longest=8, validation_examples=256)
    config.data.batch_size = 64
    config.train.update(steps=steps, checkpoint_every=500)
    config.optim.update(lr=3e-3, weight_decay=0.0, b2=0.98, warmup=0.1, clip=1.0)
    config.evaluators.val.every = 500
    return config


def pointers(beyond: tuple[int, ...] = (5, 6, 8), **changes: Any) -> ConfigDict:
    """Permutations of 16 nodes, 1 to 4 hops with a step more than hops; then 5, 6 and 8 hops."""
    config = base_config(task="pointer_chasing", model=f"{ROOM}.encoder")
    config.checkpoint.update(best_metric="val_accuracy", best_mode="max")
    model = {"width": 64, "hidden": 128, "heads": 4, "steps": 9, "words": 2, "norm": "post"}
    config.model.update({**model, "position_signal": False, "step_signal": "none", **changes})
    config.data.batch_size = 64
    config.train.update(steps=4000, checkpoint_every=1000)
    config.optim.update(lr=2e-3, weight_decay=0.0, b2=0.98, warmup=0.2, clip=1.0)
    config.evaluators.val.update(every=500, batches=0)
    return _also(config, *(f"hops_{k}" for k in beyond))


def layers() -> ConfigDict:
    """Five layers of their own, to which the row says the hops: what can't grow with them."""
    config = pointers(**{**TRANSFORMER, "steps": 5, "norm": "pre", "position_signal": False})
    config.task.update(steps_follow=False, say_hops=True)
    return config


def ponder(weight: float = 0.01) -> ConfigDict:
    """1 to 3 hops, which the row says; every position decides how many of at most 8 steps it takes."""
    options = {"recurrence": "act", "halting": "accumulated", "halting_weight": weight, "steps": 8, "norm": "pre"}
    config = pointers(beyond=(1, 2, 3), **options, step_signal="learned")
    config.task.update(steps_follow=False, say_hops=True, most=3)
    config.train.steps = 2000
    return config


def text() -> ConfigDict:
    """The decoder alone as a language model of bytes."""
    config = base_config(task="language_modelling", model=f"{ROOM}.decoder")
    config.model.update(width=96, hidden=384, heads=4, steps=4)
    config.train.update(steps=1000)
    config.optim.update(lr=2e-3, warmup=0.1)
    return config


def agreement() -> ConfigDict:
    """The decoder with ACT on drawn sentences: which form of the verb, past nouns of the other number; draws its ponder times."""
    config = base_config(task="agreement", model=f"{ROOM}.decoder")
    config.checkpoint.update(best_metric="val_verb_accuracy", best_mode="max")
    config.model.update(width=48, hidden=96, heads=4, steps=6)
    config.model.update(recurrence="act", halting="accumulated", halting_bias_init=-1.0)
    config.data.update(sequence_length=34, batch_size=64)
    config.train.update(steps=1500, checkpoint_every=500)
    config.optim.update(lr=2e-3, weight_decay=0.0, warmup=0.1)
    config.evaluators.val.update(every=250, batches=0)
    return _also(config, *(f"attractors_{k}" for k in range(6)))


def _noam(config: ConfigDict, steps: int) -> ConfigDict:
    """The authors' optimiser: Adam, 8000 steps of warm-up, then 2 / sqrt(d step)."""
    config.train.update(steps=steps, checkpoint_every=2000)
    config.evaluators.val.every = 5000
    peak = 2.0 * config.model.width**-0.5 * 8000**-0.5
    config.optim.update(lr=peak, schedule="rsqrt", warmup=8000 / steps, final_lr=0.0, weight_decay=0.0, clip=0.0)
    config.optim.update(b2=0.997, eps=1e-9)
    config.mesh.fsdp = 8
    return config


def full(size: str, problem: str = "copy", **changes: Any) -> ConfigDict:
    """Rows of 1 to 40 digits, then of 400 (the paper's section 3.2); one of the authors' sets, 64 devices."""
    config = _pairs(problem, **{**SETS[size], "attention_dropout": 0.1, "relu_dropout": 0.1, **changes})
    config.model.update(position_start="random", dtype="bfloat16")
    config.task.update(longest=40, validation_examples=10_000, label_smoothing=0.1)
    config.data.batch_size = 2048
    return _longer(_noam(config, 100_000), 400)


def lambada(**changes: Any) -> ConfigDict:
    """The base set as a language model of a file of text (`--config.data.path`), six steps or ACT."""
    config = base_config(task="language_modelling", model=f"{ROOM}.decoder")
    config.model.update({**SETS["base"], "attention_dropout": 0.1, "relu_dropout": 0.1, "dtype": "bfloat16", **changes})
    config.model.remat = "full"
    config.data.update(sequence_length=256, batch_size=512)
    return _noam(config, 100_000)


ACT = {"recurrence": "act", "steps": 12}
VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "": default,
    "pointers": pointers,
    "ponder": ponder,
    "text": text,
    "agreement": agreement,
    **{f"{problem}_{name}": partial(arm, problem, name) for problem in ("copy", "reverse") for name in ARMS},
    "hops_ut": pointers,
    "hops_layers": layers,
    "ponder_free": partial(ponder, 0.0),
    **{f"full_{size}": partial(full, size) for size in SETS},
    "full_adaptive_tall": partial(full, "tall", recurrence="act", steps=24),
    "full_algorithmic": partial(full, "tiny"),
    "full_reverse": partial(full, "tiny", "reverse"),
    "full_addition": partial(full, "tiny", "addition"),
    "full_lambada": lambada,
    "full_lambada_act": partial(lambada, **ACT),
}
