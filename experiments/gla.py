"""Gated linear attention as a byte-level language model (Yang et al. 2024, arXiv 2312.06635).

    python -m paperlab.run --config=experiments/gla.py                 2 CPU cores, about 5 minutes
    python -m paperlab.run --config=experiments/gla.py:no_gate         one arm of Table 4
    python -m paperlab.run --config=experiments/gla.py:full_340m       the paper's 340M recipe, 64 devices, token files

The default trains on the interpreter's own standard-library sources, cut into documents, the state reset at their borders. Expect
1.53 bits a validation byte (gzip -9: 1.97, xz -9: 1.55; 2026-11-23, two CPU cores, 5 minutes of training, Python 3.12.1).
Claims and what became of them: paperlab/papers/gla/README.md.
"""

from ml_collections import ConfigDict

from paperlab.config import base_config


def get_config(variant: str = "") -> ConfigDict:
    """The default run with the changes of `variant`."""
    config = base_config(task="language_modelling", model="lm")
    config.model.update(mixer="gla", width=96, depth=4, heads=2, unroll=4, init_std=0.08)
    config.mixers.gla.update(short_conv=True, init_std=0.08)
    config.mixers.attention.init_std = 0.08
    config.data.update(source="stdlib", sequence_length=256, batch_size=8)
    config.train.update(steps=2700, checkpoint_every=675)
    config.optim.update(lr=3e-3, warmup=0.05, weight_decay=0.1)
    config.evaluators.val.update(every=675, batches=32)
    VARIANTS[variant](config)
    return config


def default(config: ConfigDict) -> None:
    """Per-channel data-dependent gates: the model of the paper."""


def no_gate(config: ConfigDict) -> None:
    """Table 4: linear attention, nothing is forgotten."""
    config.mixers.gla.gate = "none"


def fixed_decay(config: ConfigDict) -> None:
    """Table 4: one decay a head that no datum changes (RetNet without its rotary part)."""
    config.mixers.gla.gate = "fixed"


def scalar_gate(config: ConfigDict) -> None:
    """Table 4: one data-dependent gate a head (Mamba-2's and gated RetNet's)."""
    config.mixers.gla.gate = "scalar"


def channel_gate(config: ConfigDict) -> None:
    """Table 4: one data-dependent gate a key channel, which is the default, by its name in the table."""
    config.mixers.gla.gate = "channel"


def attention(config: ConfigDict) -> None:
    """The softmax Transformer of the same size, with rotary positions."""
    config.model.mixer = "attention"


def hybrid(config: ConfigDict) -> None:
    """Every fourth layer is sliding-window softmax attention."""
    config.model.hybrid = "gla,gla,gla,attention"
    config.mixers.attention.window = 128


def tbptt(config: ConfigDict) -> None:
    """Section 5.1's long-context training: the state enters the next batch, gradients stay inside a segment."""
    config.task.carry_state = True
    config.data.order = "contiguous"


def mqar(config: ConfigDict) -> None:
    """Multi-query associative recall (Figure 4), small."""
    task = base_config(task="recall").task
    with config.unlocked():
        config.task = task
    config.task.update(num_pairs=4, vocab_size=64)
    config.model.update(width=64, depth=2, heads=2)
    config.data.update(sequence_length=64, batch_size=32)
    config.train.update(steps=1000, checkpoint_every=250)
    config.optim.update(lr=3e-3, weight_decay=0.01)
    config.checkpoint.update(best_metric="val_accuracy", best_mode="max")


def _paper(config: ConfigDict) -> None:
    """Section 5.1: SlimPajama in token files of the Mistral tokenizer, AdamW, cosine from and to 3e-5, clip 1."""
    config.model.update(dtype="bfloat16", remat="full", ffn_multiple=256, unroll=1, init_std=0.02)
    config.mixers.gla.update(short_conv=False, init_std=0.02)
    config.data.update(source="files", path="slimpajama/*.bin", vocab_size=32_000, sequence_length=2048)
    config.optim.update(lr=3e-4, start_lr=0.1, final_lr=0.1, weight_decay=0.01, clip=1.0)
    config.train.checkpoint_every = 1000
    config.evaluators.val.update(every=1000, batches=64)
    config.checkpoint.best_metric = "val_loss"


def full_340m(config: ConfigDict) -> None:
    """340M parameters, 15B tokens in batches of 0.5M, warm-up over 0.5B tokens; embeddings tied."""
    _paper(config)
    config.model.update(width=1024, depth=24, heads=4, tie_embeddings=True)
    config.data.batch_size = 256
    config.train.steps = 30_000
    config.optim.warmup = 0.5 / 15
    config.mesh.update(fsdp=8)


def full_1b3(config: ConfigDict) -> None:
    """1.3B parameters, 100B tokens in batches of 2M, warm-up over 1B tokens; embeddings untied."""
    _paper(config)
    config.model.update(width=2048, depth=24, heads=4, tie_embeddings=False)
    config.data.batch_size = 1024
    config.train.update(steps=50_000, micro_batches=4)
    config.optim.warmup = 1 / 100
    config.mesh.update(fsdp=8)


VARIANTS = {
    "": default,
    "no_gate": no_gate,
    "fixed_decay": fixed_decay,
    "scalar_gate": scalar_gate,
    "channel_gate": channel_gate,
    "attention": attention,
    "hybrid": hybrid,
    "tbptt": tbptt,
    "mqar": mqar,
    "full_340m": full_340m,
    "full_1b3": full_1b3,
}
