"""pLSTM: linear recurrent networks on grids, sequences and graphs (Poeppel et al. 2025, arXiv 2506.11997).

    python -m paperlab.run --config=experiments/plstm.py                     2 CPU cores, minutes: handwritten digits
    python -m paperlab.run --config=experiments/plstm.py:arrow_tokens        arrow pointing in a grid of tokens, 8 x 8 -> 16 x 16
    python -m paperlab.run --config=experiments/plstm.py:lm                  the byte-level language model
    python -m paperlab.run --config=experiments/plstm.py:tracking            words of a group, by transitions that turn a state
    python -m paperlab.run --config=experiments/plstm.py:graph               graphs whose label stands at the end of a path
    python -m paperlab.run --config=experiments/plstm.py:full_arrow          section 5.1, 192 -> 384 pixels, one GPU
    python -m paperlab.run --config=experiments/plstm.py:full_imagenet_t --config.data.path=ImageNet    image folders, 64 devices
    python -m paperlab.run --config=experiments/plstm.py:finetune_t --config.data.path=ImageNet --config.init_from=DIR

The default is right on 99.4 % of the held-out digits (logistic regression: 96.7, nearest neighbour: 99.2; 2026-11-23, one seed, two
CPU cores, 2 minutes). Claims and what became of them: paperlab/papers/plstm/README.md.
"""

from collections.abc import Callable
from functools import partial

from ml_collections import ConfigDict

from paperlab.config import base_config
from paperlab.papers.plstm import graph_recipes

VISION = "papers.plstm.vision"
SIZES = {"t": (192, 3), "s": (384, 6), "b": (768, 12)}  # width and heads; 12 layers
IMAGENET = 1_281_167
NO_DECAY = (r"(bias|scale|table|class_token)$",)
NO_TABLE = {"position": "none"}
ARMS = {  # of the paper's ablations, arrow pointing and ImageNet alike
    "no_position": NO_TABLE,
    "p_only": {"layers": "P"},
    "d_only": {"layers": "D"},
    "gates_bias_only": {"gate_inputs": ""},
}


def get_config(variant: str = "") -> ConfigDict:
    """The config of one variant."""
    return VARIANTS[variant]()


def _images(model: str = VISION) -> ConfigDict:
    config = base_config(task="classification", model=model)
    config.checkpoint.update(best_metric="val_accuracy", best_mode="max")
    config.optim.decay_exclude = NO_DECAY
    config.evaluators.val.batches = 0
    return config


def _evaluate(config: ConfigDict, every: int, **splits: str) -> None:
    """Further evaluators, by name and split; all run every so many steps."""
    config.evaluators.val.every = every
    with config.unlocked():
        for name, split in splits.items():
            config.evaluators[name] = ConfigDict({"split": split, "every": every, "batches": 0})


def default(model: str = VISION) -> ConfigDict:
    """Handwritten digits of 8 x 8 in patches of 2 x 2: two P and two D layers, read in four directions."""
    config = _images(model)
    config.model.update(patch=2, width=64, depth=4, heads=4, init_std=0.1)
    config.data.update(source="digits", batch_size=64)
    config.train.update(steps=600, checkpoint_every=200)
    config.optim.update(lr=3e-3, weight_decay=0.05)
    config.evaluators.val.every = 200
    return config


def arrow_tokens(model: str = VISION) -> ConfigDict:
    """Claim 6 at the size of a CPU: an arrow and a target in an 8 x 8 grid of tokens, tried on 16 x 16."""
    config = _images(model)
    config.model.update(patch=1, width=32, depth=2, heads=4, init_std=0.1, position="none")
    config.data.update(source="arrow_tokens", batch_size=32)
    config.train.update(steps=1200, checkpoint_every=400)
    config.optim.update(lr=5e-3, weight_decay=0.05)
    _evaluate(config, 400, extrapolation="extrapolation")
    return config


def arrow_tokens_vit() -> ConfigDict:
    """The vision transformer on the same grids, its table of positions resized for the larger."""
    config = arrow_tokens("vit")
    config.model.update(position="learned", layer_scale=1.0, pooling="cls")
    return config


def _arrow(model: str, width: int, depth: int, heads: int, images: int, epochs: int) -> ConfigDict:
    """Section 5.1, appendix D.2: AdamW, weight decay 0.05, one epoch of warm-up from 0, cosine to a thousandth, clip 1."""
    config = _images(model)
    config.model.update(patch=16, width=width, depth=depth, heads=heads, dtype="bfloat16")
    config.data.update(source="arrow", size=192, extrapolation_size=384, batch_size=128)
    config.data.update(train_examples=images, evaluation_examples=5120)
    steps = round(epochs * images / 128)
    config.train.update(steps=steps, checkpoint_every=steps // 10)
    config.optim.update(lr=1e-3, warmup=1 / epochs, final_lr=0.001, weight_decay=0.05, b2=0.999)
    splits = {name: name for name in ("extrapolation", "test", "test_extrapolation")}
    _evaluate(config, steps // 10, **splits)
    for name in ("test", "test_extrapolation"):
        config.evaluators[name].every = 0
    return config


def arrow(width: int = 96, depth: int = 8, images: int = 20_000, epochs: int = 20) -> ConfigDict:
    """Arrow pointing, scaled down: minutes of one GPU."""
    return _arrow(VISION, width, depth, 6, images, epochs)


def full_arrow(**changes: str) -> ConfigDict:
    """The paper's run: pLSTM-T with 6 heads, 100k images, 50 epochs; gate maps start at 0. About an hour of one H100."""
    config = _arrow(VISION, 192, 12, 6, 100_000, 50)
    config.model.update(gate_blocks=24, gate_init="zeros", **changes)
    return config


def arrow_vit(width: int = 96, depth: int = 8, images: int = 20_000, epochs: int = 20) -> ConfigDict:
    """The vision transformer of the same size; LayerScale starts at 1, with 1e-4 it does not learn this task."""
    config = _arrow("vit", width, depth, 6, images, epochs)
    config.model.update(layer_scale=1.0)
    return config


def _imagenet(size: str, side: int, epochs: int, batch: int, model: str = VISION) -> ConfigDict:
    """Image folders, bfloat16, 64 devices; steps count every repeat as an image."""
    config = _images(model)
    width, heads = SIZES[size]
    config.model.update(patch=16, width=width, depth=12, heads=heads, dtype="bfloat16")
    if model == VISION:
        config.model.update(gate_blocks=4 * heads, gate_init="normal", remat="full")
    config.data.update(
        source="folder", path="ImageNet", classes=1000, size=side, batch_size=batch, normalize="imagenet"
    )
    config.data.update(crop="resized", flip=0.5)
    steps = round(epochs * IMAGENET / batch)
    config.train.update(steps=steps, checkpoint_every=5000)
    config.evaluators.val.every = 10_000
    config.optim.update(warmup=5 / epochs, final_lr=0.001, b2=0.999, clip=1.0)
    config.mesh.fsdp = 8
    return config


def full_imagenet(size: str, epochs: int, lr: float, drop_path: float) -> ConfigDict:
    """DeiT III's pretraining at 192 (appendix D.1): LAMB, binary loss, MixUp, CutMix, 3-Augment, three repeats."""
    config = _imagenet(size, 192, epochs, 2048)
    config.task.loss = "binary"
    config.data.update(mixup=0.8, cutmix=1.0, three_augment=True, color_jitter=0.3, repeats=3)
    config.model.drop_path = drop_path
    config.optim.update(name="lamb", lr=lr, weight_decay=0.2)
    return config


def finetune(size: str, drop_path: float) -> ConfigDict:
    """20 epochs at 224 on the weights of `--config.init_from`; their position table is resized."""
    config = _imagenet(size, 224, 20, 512)
    config.task.update(init_size=192, label_smoothing=0.1)
    config.data.rand_augment = 9.0
    config.model.drop_path = drop_path
    config.optim.update(lr=1e-5, weight_decay=0.1)
    return config


def ablation(**changes: str) -> ConfigDict:
    """Table 3's runs: size T at 224, 400 epochs, AdamW, random erasing and RandAugment."""
    config = _imagenet("t", 224, 400, 2048)
    _ablation(config)
    config.model.update(**changes)
    return config


def ablation_vit() -> ConfigDict:
    """The vision transformer in the same recipe."""
    config = _imagenet("t", 224, 400, 2048, "vit")
    _ablation(config)
    config.model.layer_scale = 1e-4
    return config


def _ablation(config: ConfigDict) -> None:
    config.data.update(rand_augment=9.0, erasing=0.25)
    config.optim.update(lr=1e-3, weight_decay=0.05)


def lm() -> ConfigDict:
    """The 1-D layer in the byte-level language model, on the interpreter's own sources."""
    config = base_config(task="language_modelling", model="lm")
    config.model.update(mixer="plstm", width=96, depth=4, heads=4, unroll=4, init_std=0.08)
    config.mixers.plstm.short_conv = True
    config.data.update(source="stdlib", sequence_length=256, batch_size=8)
    config.train.update(steps=2000, checkpoint_every=500)
    config.optim.update(lr=3e-3, weight_decay=0.1)
    config.evaluators.val.update(every=500, batches=32)
    return config


def full_lm() -> ConfigDict:
    """The same model at the width, depth and data of the 340M recipe of gated linear attention: 15B tokens in batches of 0.5M."""
    config = lm()
    config.model.update(
        width=1024, depth=24, heads=8, unroll=1, dtype="bfloat16", remat="full", ffn_multiple=256, init_std=0.02
    )
    config.data.update(source="files", path="slimpajama/*.bin", vocab_size=32_000, sequence_length=2048, batch_size=256)
    config.train.update(steps=30_000, checkpoint_every=1000)
    config.optim.update(lr=3e-4, warmup=0.5 / 15, start_lr=0.1, weight_decay=0.01)
    config.evaluators.val.update(every=1000, batches=64)
    config.checkpoint.best_metric = "val_loss"
    config.mesh.fsdp = 8
    return config


def tracking(group: str = "Z2", turning: bool = True) -> ConfigDict:
    """Claim 7: running products of a group by one layer whose transitions turn a state, or are numbers between 0 and 1.

    Gates start half open and transitions away from the identity: the paper's start only keeps what there is. Words are made of
    generators of the group, the identity among them.
    """
    config = base_config(task="state_tracking", model="lm")
    config.task.update(group=group, alphabet="generators")
    config.model.update(mixer="plstm", width=32, depth=1, heads=8)
    abelian = group.startswith("Z")
    config.mixers.plstm.update(
        JT=2 if abelian else 4, JV=1, JO=2, DV=4, short_conv=False, gate_weights="normal", spread=0.5
    )
    config.mixers.plstm.orthogonal = "householder"
    config.mixers.plstm.update(source_bias=0.0, mark_bias=0.0, direct_bias=0.0, transition_bias=0.0)
    if not turning:
        config.mixers.plstm.update(JT=1, eigenvalues="logsigmoid", transition_bias=4.0)
    config.data.update(sequence_length=32, batch_size=32)
    config.train.update(steps=600 if abelian else 2500, checkpoint_every=500)
    config.optim.update(lr=1e-2, weight_decay=0.01, warmup=0.05)
    config.evaluators.val.update(every=150, batches=0)
    config.checkpoint.update(best_metric="val_last_accuracy", best_mode="max")
    return config


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "": default,
    "vit": partial(default, "vit"),
    "arrow_tokens": arrow_tokens,
    "arrow_tokens_vit": arrow_tokens_vit,
    "arrow": arrow,
    "arrow_vit": arrow_vit,
    "lm": lm,
    "tracking": tracking,
    "tracking_s3": partial(tracking, "S3"),
    "tracking_positive": partial(tracking, turning=False),
    "tracking_s3_positive": partial(tracking, "S3", turning=False),
    "graph": graph_recipes.graph,
    "graph_gin": partial(graph_recipes.graph_network, "gin"),
    "graph_gcn": partial(graph_recipes.graph_network, "gcn"),
    "graph_gat": partial(graph_recipes.graph_network, "gat"),
    "graph_mpnn": partial(graph_recipes.graph_network, "mpnn"),
    "graph_lstm": partial(graph_recipes.graph_network, "lstm"),
    "full_arrow": full_arrow,
    "full_arrow_no_position": partial(full_arrow, **ARMS["no_position"]),
    "full_arrow_p_only": partial(full_arrow, **ARMS["p_only"]),
    "full_arrow_d_only": partial(full_arrow, **ARMS["d_only"]),
    "full_arrow_gates_bias_only": partial(full_arrow, **ARMS["gates_bias_only"]),
    "full_arrow_vit": partial(arrow_vit, 192, 12, 100_000, 50),
    "full_imagenet_t": partial(full_imagenet, "t", 800, 4e-3, 0.0),
    "full_imagenet_s": partial(full_imagenet, "s", 400, 4e-3, 0.05),
    "full_imagenet_b": partial(full_imagenet, "b", 400, 3e-3, 0.1),
    "finetune_t": partial(finetune, "t", 0.0),
    "finetune_s": partial(finetune, "s", 0.05),
    "finetune_b": partial(finetune, "b", 0.1),
    "ablation": ablation,
    "ablation_no_position": partial(ablation, **ARMS["no_position"]),
    "ablation_p_only": partial(ablation, **ARMS["p_only"]),
    "ablation_d_only": partial(ablation, **ARMS["d_only"]),
    "ablation_gates_bias_only": partial(ablation, **ARMS["gates_bias_only"]),
    "ablation_vit": ablation_vit,
    "full_lm": full_lm,
    "full_tu": graph_recipes.full_tu,
    "full_tu_folds": graph_recipes.full_tu_folds,
    "full_tu_gin": partial(graph_recipes.full_tu_network, "gin"),
    "full_tu_gcn": partial(graph_recipes.full_tu_network, "gcn"),
    "full_tu_gat": partial(graph_recipes.full_tu_network, "gat"),
    "full_tu_mpnn": partial(graph_recipes.full_tu_network, "mpnn"),
    "full_tu_lstm": partial(graph_recipes.full_tu_network, "lstm"),
}
