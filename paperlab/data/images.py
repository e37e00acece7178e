"""Labelled images as index-addressable batches: batch i is a function of i alone.

    source -> example -> augmentation -> batch (-> mixture of pairs)          image_sources, augment, rand_augment

A batch holds images [B, X, Y, C] (uint8; float32 for grids of tokens), labels, partners and shares [B] (row b counts as its label
with `shares`, as that of its partner with the rest; without mixtures shares are 1) and weights [B], 0 for rows that only fill up
the last batch of a split. Training goes through the examples in a new order each epoch; with `repeats` every image of a batch is
there so often, each time augmented anew (arXiv 1901.09335).

`DEFAULTS` is the data section of tasks that say `DATA = "paperlab.data.images"`.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from paperlab.data import augment
from paperlab.data.image_sources import SEEDS, SOURCES, Folder, Generated
from paperlab.data.rand_augment import rand_augment
from paperlab.errors import ConfigError
from paperlab.limits import SEED, Limit, at_least, between, did_you_mean, one_of, share

if TYPE_CHECKING:
    import grain

DEFAULTS = {
    "source": "digits",  # digits | shapes | arrow | arrow_tokens | folder
    "path": "",  # of the folder
    "size": 0,  # pixels (cells) a side; 0: the source's own (8, 32, 192, 8, 224)
    "evaluation_size": 0,  # the same for the evaluated splits of a folder or of digits; 0: size
    "extrapolation_size": 0,  # of the larger canvases of generated sources; 0: twice the size
    "classes": 0,  # of the folder; 0: as it has; states them where the images are absent (dry run)
    "batch_size": 64,  # global: all processes together
    "seed": 0,  # of generated training images
    "shuffle_seed": 0,  # order and augmentation
    "train_examples": 0,  # of generated sources; 0: endless
    "evaluation_examples": 1024,  # of each evaluated split of a generated source
    "validation_share": 0.2,  # of digits, and of a folder without train and val
    "normalize": "half",  # none: [0, 1]; half: [-1, 1]; imagenet: its means and deviations
    "repeats": 1,
    "workers": 0,  # threads that decode and draw; 0: one a core
    "crop": "none",  # none: the middle | resized: random area and aspect | padded: DeiT III's simple crop
    "crop_area": 0.08,  # the least share of the area that a resized crop takes
    "evaluation_crop": 1.0,  # share of the shorter side that is evaluated, from the middle
    "flip": 0.0,  # probability
    "three_augment": False,
    "rand_augment": 0.0,  # magnitude of 10, two operations; 0: none
    "color_jitter": 0.0,
    "erasing": 0.0,  # probability
    "mixup": 0.0,  # parameter of the beta distribution; 0: none
    "cutmix": 0.0,
}
LIMITS = {
    "source": one_of(*SOURCES),
    "size": at_least(1, "0: the source's own", also=(0,)),
    "evaluation_size": at_least(1, "0: size", also=(0,)),
    "extrapolation_size": at_least(1, "0: twice the size", also=(0,)),
    "classes": at_least(2, "0: as the folder has", also=(0,)),
    "batch_size": at_least(1, "rows of all processes together"),
    "seed": between(0, min(SEEDS.values()) - 1, "larger seeds are those of the evaluated splits"),
    "shuffle_seed": SEED,
    "train_examples": at_least(0, "0: endless"),
    "evaluation_examples": at_least(1),
    "validation_share": share(below=True),
    "normalize": one_of("none", "half", "imagenet"),
    "repeats": at_least(1),
    "workers": at_least(0, "0: one a core"),
    "crop": one_of("none", "resized", "padded"),
    "crop_area": Limit(low=0, high=1, without_low=True),
    "evaluation_crop": Limit(low=0, high=1, without_low=True),
    "flip": share("probability"),
    "rand_augment": between(0, 10),
    "color_jitter": share("0: none"),
    "erasing": share("probability"),
    "mixup": at_least(0, "0: none"),
    "cutmix": at_least(0, "0: none"),
}
NORMALIZE = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
ORDER, ROW, MIX = 0, 1, 2  # what random numbers are for
PICTURE_OPTIONS = ("crop", "flip", "three_augment", "rand_augment", "color_jitter", "erasing")


def check(config: Any) -> None:
    """Raises ConfigError for options that do not go together, and for evaluators of a split that there is not."""
    data = config.data
    source = SOURCES[data.source]
    generated = issubclass(source, Generated)
    if issubclass(source, Folder) != bool(data.path):
        cure = "give the folder" if not data.path else "source='folder' alone reads one"
        raise ConfigError(f"config.data.path={data.path!r} with config.data.source={data.source!r}: {cure}")
    if data.classes and not issubclass(source, Folder):
        raise ConfigError(f"config.data.classes={data.classes}: {data.source} has {source.classes}; give 0")
    _check_sizes(data, source, generated)
    if data.source == "arrow_tokens":
        for name in PICTURE_OPTIONS:
            if data[name] and data[name] != "none":
                raise ConfigError(f"config.data.{name}={data[name]!r}: tokens are no picture; leave it off")
    if data.crop != "none" and generated:
        raise ConfigError(f"config.data.crop={data.crop!r}: {data.source} is drawn at its size; give 'none'")
    if source.channels == 1 and (data.three_augment or data.rand_augment or data.normalize == "imagenet"):
        raise ConfigError(
            f"config.data.source={data.source!r} is grey: three_augment, rand_augment and normalize='imagenet' take colour"
        )
    if (data.mixup or data.cutmix) and data.batch_size % 2:
        raise ConfigError(f"config.data.batch_size={data.batch_size}: mixtures are made of pairs; give an even number")
    if data.repeats > data.batch_size:
        raise ConfigError(f"config.data.repeats={data.repeats}: must be at most batch_size={data.batch_size}")
    known = splits_of(data)
    for name, evaluator in config.get("evaluators", {}).items():
        if evaluator.split not in known:
            hint = "it never ends" if evaluator.split == "train" else did_you_mean(evaluator.split, known)
            raise ConfigError(f"config.evaluators.{name}.split={evaluator.split!r}: {hint}")


def _check_sizes(data: Any, source: Any, generated: bool) -> None:
    other = "evaluation_size" if generated else "extrapolation_size"
    if data[other]:
        hint = "see extrapolation_size" if generated else "only generated sources have larger canvases"
        raise ConfigError(f"config.data.{other}={data[other]}: {data.source} does not have it; {hint}")
    for name in ("size", "extrapolation_size") if generated else ():
        if data[name] and data[name] < source.smallest:
            raise ConfigError(f"config.data.{name}={data[name]}: {data.source} takes at least {source.smallest}")


def splits_of(data: Any) -> tuple[str, ...]:
    """The splits that can be evaluated."""
    return tuple(SEEDS) if issubclass(SOURCES[data.source], Generated) else ("validation",)


def size_of(data: Any, split: str = "train") -> int:
    """Side of the images of a split."""
    size = data.size or SOURCES[data.source].native
    if split == "train":
        return size
    return (data.extrapolation_size or 2 * size) if "extrapolation" in split else (data.evaluation_size or size)


def spec(data: Any, split: str = "train") -> tuple[tuple[int, int, int, int], type]:
    """Shape and dtype of the images of a global batch, known without opening the source."""
    side = size_of(data, split)
    dtype = np.float32 if data.source == "arrow_tokens" else np.uint8
    return (data.batch_size, side, side, SOURCES[data.source].channels), dtype


def statistics(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of a channel in [0, 1], by which uint8 images are normalised: float32 [1 or C]."""
    mean, deviation = NORMALIZE[data.normalize]
    return np.array(mean, np.float32), np.array(deviation, np.float32)


class Images:
    """The images of a data section; nothing is read before it is needed."""

    def __init__(self, data: Any):
        self.data = data
        self.source = SOURCES[data.source](data)

    @property
    def classes(self) -> int:
        return self.source.classes

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.data.workers or os.cpu_count() or 1, "images")

    def batches(self, split: str, process_index: int = 0, process_count: int = 1) -> "grain.MapDataset":
        """Endless training batches, or one pass through an evaluated split.

        Raises:
          ConfigError: a split that there is not, rows that the processes cannot share, images that cannot be read.
        """
        import grain

        data = self.data
        if split not in ("train", *splits_of(data)):
            raise ConfigError(f"split {split!r}: {did_you_mean(split, ['train', *splits_of(data)])}")
        share = data.batch_size // process_count
        mixed = bool(data.mixup or data.cutmix)
        if data.batch_size % process_count or (mixed and share % 2):
            many = f"{2 * process_count if mixed else process_count}"
            raise ConfigError(f"config.data.batch_size={data.batch_size}: give a positive multiple of {many}")
        rows = process_index * share + np.arange(share)
        count = self.source.count(split)
        make = self.train_batch if split == "train" else self.evaluation_batch
        length = sys.maxsize if split == "train" else -(-count // data.batch_size)
        return grain.MapDataset.range(length).map(lambda i: make(int(i), rows, split))

    def train_batch(self, number: int, rows: np.ndarray, split: str = "train") -> dict[str, np.ndarray]:
        """Some rows of training batch `number`."""
        data = self.data
        unique = -(-data.batch_size // data.repeats)
        count, size = self.source.count("train"), size_of(data)

        def one(row: int) -> tuple[np.ndarray, int]:
            index = shuffled(number * unique + row % unique, count, data.shuffle_seed)
            image, label = self.source.example("train", index, size)
            return self._augmented(number, row, image, size), label

        images, labels = self._gathered(one, rows)
        rng = np.random.default_rng((data.shuffle_seed, MIX, number))
        images, partners, shares = augment.mix_pairs(rng, images, labels, data.mixup, data.cutmix)
        return _batch(images, labels, partners, shares, np.ones(len(rows), np.float32))

    def evaluation_batch(self, number: int, rows: np.ndarray, split: str) -> dict[str, np.ndarray]:
        """Some rows of batch `number` of an evaluated split; rows after its end have no weight."""
        count, size = self.source.count(split), size_of(self.data, split)
        indices = number * self.data.batch_size + rows

        def one(row: int) -> tuple[np.ndarray, int]:
            index = min(number * self.data.batch_size + row, count - 1)
            image, label = self.source.example(split, index, size)
            return self._middle(image, size), label

        images, labels = self._gathered(one, rows)
        weights = (indices < count).astype(np.float32)
        return _batch(images, labels, labels, np.ones(len(rows), np.float32), weights)

    def _gathered(self, one: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        apply = self._pool.map if self.source.slow or self._pictures() else map
        images, labels = zip(*apply(one, rows.tolist()), strict=True)
        return np.stack(images), np.array(labels, np.int32)

    def _pictures(self) -> bool:
        """Whether training images are augmented."""
        return any(self.data[name] and self.data[name] != "none" for name in PICTURE_OPTIONS)

    def _middle(self, image: Any, size: int) -> np.ndarray:
        """An array of the right size, not augmented."""
        if isinstance(image, np.ndarray) and image.shape[0] == size:
            return image
        image = augment.to_image(image) if isinstance(image, np.ndarray) else image
        return augment.to_array(augment.centre_crop(image, size, self.data.evaluation_crop))

    def _augmented(self, number: int, row: int, image: Any, size: int) -> np.ndarray:
        data = self.data
        if not self._pictures():
            return self._middle(image, size)
        rng = np.random.default_rng((data.shuffle_seed, ROW, number, row))
        if data.crop == "none":
            image = self._middle(image, size)
        image = augment.to_image(image) if isinstance(image, np.ndarray) else image
        if data.crop == "resized":
            image = augment.random_resized_crop(rng, image, size, data.crop_area)
        elif data.crop == "padded":
            image = augment.padded_crop(rng, image, size)
        image = augment.flip(rng, image, data.flip) if data.flip else image
        image = augment.three_augment(rng, image) if data.three_augment else image
        image = rand_augment(rng, image, data.rand_augment) if data.rand_augment else image
        image = augment.colour_jitter(rng, image, data.color_jitter) if data.color_jitter else image
        array = augment.to_array(image)
        return augment.random_erasing(rng, array, data.erasing) if data.erasing else array


def shuffled(position: int, count: int, seed: int) -> int:
    """The example at a place of the endless training stream: every epoch is a permutation of its own."""
    if count >= 2**32:
        return position
    epoch, place = divmod(position, count)
    return int(_permutation(count, seed, epoch)[place])


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, ORDER, epoch)).permutation(count)


def _batch(images: Any, labels: Any, partners: Any, shares: Any, weights: Any) -> dict[str, np.ndarray]:
    return {"images": images, "labels": labels, "partners": partners, "shares": shares, "weights": weights}
