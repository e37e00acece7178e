"""SReT: Sliced Recursive Transformer (Shen et al. 2022, arXiv 2111.05297).

    python -m paperlab.run --config=experiments/sret.py                      2 CPU cores, minutes: handwritten digits
    python -m paperlab.run --config=experiments/sret.py:shapes               generated shapes, 32 x 32
    python -m paperlab.run --config=experiments/sret.py:text                 the recursion around gated linear attention, on text
    python -m paperlab.run --config=experiments/sret.py:distilled --config.task.teacher=DIR    from a finished run on digits
    python -m paperlab.run --config=experiments/sret.py:full_t --config.data.path=ImageNet     image folders, 64 devices
    python -m paperlab.run --config=experiments/sret.py:finetune_t_384 --config.data.path=ImageNet --config.init_from=DIR

Variants full_*: the published sizes T, LT, LT' and S, with `_wo_slice` for full attention; `_distilled` learn from
`--config.task.teacher=DIR`. Arms of the claims: recursive, one_pass, naive, full_attention, deep, deep_plain.

The default is right on 98.9 % of the held-out digits (logistic regression: 96.7, nearest neighbour: 99.2; 2026-11-24, one seed, two
CPU cores, 2.5 minutes).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from paperlab.config import base_config

MODEL = "papers.sret.network"
IMAGENET = 1_281_167
NO_DECAY = (r"(bias|scale|table|residual)$",)
UNSLICED = {"groups": ("1,1,1",)}
SIZES: dict[str, dict[str, Any]] = {
    "t": {},
    "lt": {"ffn_ratio": 4.0},
    "lt_prime": {"ffn_ratio": 4.0, "groups": ("16,14,1", "1,1,1")},
    "s": {"dims": "126,252,504", "heads": "3,6,12", "ffn_ratio": 3.0, "nll_ratio": 2.0},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config of one variant."""
    return VARIANTS[variant]()


def _images(task: str = "classification") -> ConfigDict:
    config = base_config(task=task, model=MODEL)
    config.checkpoint.update(best_metric="val_accuracy", best_mode="max")
    config.optim.decay_exclude = NO_DECAY
    config.evaluators.val.batches = 0
    return config


def default(task: str = "classification") -> ConfigDict:
    """Handwritten digits of 8 x 8: two stages, each block twice, the first stage in 4 groups of 16 tokens, then in 2 of 32."""
    config = _images(task)
    config.model.update(
        dims="32,64", heads="2,4", depth="4,4", unique="2,2", groups=("4,1", "2,1"), stride=1, ffn_ratio=2.0
    )
    config.data.update(source="digits", batch_size=64)
    config.train.update(steps=600, checkpoint_every=200)
    config.optim.update(lr=3e-3, weight_decay=0.05)
    config.evaluators.val.every = 200
    return config


def shapes() -> ConfigDict:
    """Generated shapes of 32 x 32; a stem of stride 2, then 256, 64 and 16 tokens."""
    config = default()
    config.model.update(dims="32,64,128", heads="2,4,8", depth="4,4,4", unique="2,2,2", stride=2)
    config.model.groups = ("8,4,1", "2,1,1")
    config.data.update(source="shapes", size=32)
    return config


def text(mixer: str = "gla", **changes: Any) -> ConfigDict:
    """A language model of two layers, each twice in succession, with NLL and LRC around any mixer (`--config.model.mixer`)."""
    config = base_config(task="language_modelling", model="lm")
    sizes = {"width": 96, "depth": 4, "heads": 2, "init_std": 0.08, "program": "sequence:2"}
    config.model.update({"mixer": mixer, **sizes, "interleaved": 1.0, "residual_coefficients": True, **changes})
    config.mixers.gla.update(short_conv=True, init_std=0.08)
    config.mixers.attention.init_std = 0.08
    config.data.update(source="stdlib", sequence_length=256, batch_size=8)
    config.train.update(steps=1200, checkpoint_every=600)
    config.optim.update(lr=3e-3, warmup=0.05, weight_decay=0.1)
    config.evaluators.val.update(every=600, batches=32)
    return config


def arm(**changes: Any) -> ConfigDict:
    """An arm of the claims: one stage of 64 tokens, width 32, two unique blocks, on digits."""
    config = default()
    sizes = {
        "dims": "32",
        "heads": "4",
        "depth": "4",
        "unique": "2",
        "groups": ("4", "2"),
        "stride": 1,
        "convolution": "patches",
    }
    config.model.update({**sizes, "ffn_ratio": 2.0, **changes})
    config.train.update(steps=300, checkpoint_every=300)
    config.optim.update(lr=3e-3, warmup=0.1)
    return config


def deep(loops: int = 10, **changes: Any) -> ConfigDict:
    """Ten unique blocks, each `loops` times, on the 16 tokens of a digit."""
    config = arm(unique="10", depth=f"{10 * loops}", groups=("4", "2"), stride=2, remat="full", **changes)
    config.data.batch_size = 32
    config.train.update(steps=200, checkpoint_every=200)
    config.optim.update(lr=1e-3, clip=1.0)
    return config


def full(size: str, task: str = "classification", **changes: Any) -> ConfigDict:
    """ImageNet-1k at 224: 300 epochs at batch 1024 (section 4 and the authors' recipe); bfloat16, 64 devices."""
    config = _images(task)
    config.model.update({**SIZES[size], "dtype": "bfloat16", "drop_path": 0.2 if size == "s" else 0.1, **changes})
    config.data.update(source="folder", path="ImageNet", classes=1000, size=224, batch_size=1024, normalize="imagenet")
    config.data.update(crop="resized", flip=0.5, mixup=0.8, cutmix=1.0)
    config.train.update(steps=300 * IMAGENET // 1024, checkpoint_every=5000)
    config.evaluators.val.every = 10_000
    config.optim.update(lr=2e-3, weight_decay=0.05, b2=0.999, clip=0.0, warmup=30 / 300, final_lr=0.005)
    config.mesh.fsdp = 8
    if task == "classification":
        config.task.label_smoothing = 0.1
        config.data.update(rand_augment=9.0, erasing=0.25, repeats=3)
    return config


def finetune(size: str, side: int) -> ConfigDict:
    """30 epochs at a larger size on the weights of `--config.init_from`; the map of positions is resized."""
    config = full(size, **UNSLICED)
    config.data.update(size=side, batch_size=512, mixup=0.0, cutmix=0.0, repeats=1)
    config.task.init_size = 224
    config.train.steps = 30 * IMAGENET // 512
    config.optim.update(lr=1e-5, weight_decay=1e-8, warmup=5 / 30)
    return config


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "": default,
    "shapes": shapes,
    "distilled": partial(default, "distillation"),
    "text": text,
    "text_attention": partial(text, "attention"),
    "text_naive": partial(text, interleaved=0.0, residual_coefficients=False),
    "text_once": partial(text, depth=2, program=""),
    "recursive": arm,
    "one_pass": partial(arm, once=True),
    "naive": partial(arm, nll=False, lrc=False),
    "full_attention": partial(arm, groups=("1",)),
    "deep": deep,
    "deep_plain": partial(deep, nll=False, lrc=False),
    **{f"full_{size}": partial(full, size) for size in SIZES},
    **{f"full_{size}_wo_slice": partial(full, size, **UNSLICED) for size in ("t", "lt", "s")},
    "full_t_untied": partial(full, "t", unique="4,10,6"),
    **{f"full_{size}_distilled": partial(full, size, "distillation") for size in SIZES},
    "finetune_t_384": partial(finetune, "t", 384),
    "finetune_s_384": partial(finetune, "s", 384),
    "finetune_s_512": partial(finetune, "s", 512),
}
