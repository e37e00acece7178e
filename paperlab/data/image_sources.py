"""Where images come from. A source says its classes and splits, and makes example i of a split from i alone.

digits         1797 handwritten digits of 8 x 8 (scikit-learn; UCI, Alpaydin and Kaynak 1998)
shapes         generated, any size                             synthetic/shapes.py
arrow          arrow pointing in images                        synthetic/arrow_pointing.py
arrow_tokens   the same in a grid of tokens                    synthetic/arrow_pointing.py
folder         path/train/<class>/*.jpg and path/val/<class>/*.jpg (the layout of ImageNet-1k), or path/<class>/*.jpg
"""

import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paperlab.data.augment import pillow
from paperlab.data.files import expanded
from paperlab.data.synthetic import arrow_pointing, shapes
from paperlab.errors import ConfigError

# Seeds of the generated evaluation splits; those of training are smaller (the paper's experiments on arrow pointing).
SEEDS = {"validation": 100_042, "extrapolation": 100_043, "test": 200_042, "test_extrapolation": 200_043}
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
ENDLESS = 2**62


class Digits:
    """Handwritten digits. The validation split is drawn once and for all, whatever the seeds."""

    classes, channels, native, slow = 10, 1, 8, False
    class_names = tuple("0123456789")

    def __init__(self, data: Any):
        self.share = data.validation_share

    @cached_property
    def _splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ConfigError(
                "config.data.source='digits' needs the package scikit-learn: pip install 'paperlab[vision]'"
            ) from None
        images, labels = load_digits(return_X_y=True)
        images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        order = np.random.default_rng(0).permutation(len(labels))
        held = max(1, round(self.share * len(labels)))
        parts = {"validation": order[:held], "train": order[held:]}
        return {name: (images[part], labels[part].astype(np.int32)) for name, part in parts.items()}

    def count(self, split: str) -> int:
        """Number of examples of a split."""
        return len(self._splits[split][1])

    def example(self, split: str, index: int, size: int) -> tuple[np.ndarray, int]:
        """(uint8 [8, 8, 1], label)."""
        images, labels = self._splits[split]
        return images[index], int(labels[index])

    def baselines(self) -> dict[str, float]:
        """Accuracy on the validation split of guessing, of logistic regression and of the nearest neighbour."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier

        (x, y), (u, v) = (self._splits[name] for name in ("train", "validation"))
        x, u = (images.reshape(len(images), -1) / 255.0 for images in (x, u))
        models = {"logistic": LogisticRegression(max_iter=1000), "neighbour": KNeighborsClassifier(1)}
        scores = {f"{name}_accuracy": float(model.fit(x, y).score(u, v)) for name, model in models.items()}
        return {"chance_accuracy": 1 / self.classes, **scores}


class Generated:
    """Examples made from a seed and a number: `make(seed, index, size) -> (image, label)`."""

    class_names: tuple[str, ...]
    make: Callable[..., tuple[np.ndarray, int]]

    def __init__(self, data: Any):
        self.seed, self.train, self.held = data.seed, data.train_examples, data.evaluation_examples

    def count(self, split: str) -> int:
        """Number of examples of a split; training is endless unless `train_examples` says otherwise."""
        return (self.train or ENDLESS) if split == "train" else self.held

    def example(self, split: str, index: int, size: int) -> tuple[np.ndarray, int]:
        """([size, size, C], label)."""
        return self.make(SEEDS.get(split, self.seed), index, size)

    def baselines(self) -> dict[str, float]:
        """Guessing."""
        return {"chance_accuracy": 1 / len(self.class_names)}


class Shapes(Generated):
    classes, channels, native, smallest, slow = len(shapes.CLASSES), 3, 32, shapes.SMALLEST, False
    class_names = shapes.CLASSES
    make = staticmethod(shapes.example)


class Arrow(Generated):
    classes, channels, native, slow = 2, 3, 192, True
    smallest = arrow_pointing.smallest_size(arrow_pointing.Canvas())
    class_names = ("misses", "hits")

    @staticmethod
    def make(seed: int, index: int, size: int) -> tuple[np.ndarray, int]:
        """(uint8 [size, size, 3], label)."""
        return arrow_pointing.image_example(seed, index, arrow_pointing.Canvas(size))


class ArrowTokens(Generated):
    classes, channels, native, smallest, slow = 2, len(arrow_pointing.CHANNELS), 8, 4, False
    class_names = Arrow.class_names

    @staticmethod
    def make(seed: int, index: int, size: int) -> tuple[np.ndarray, int]:
        """(float32 [size, size, 4], label)."""
        return arrow_pointing.token_example(seed, index, size)[:2]

    @staticmethod
    def picture(grid: np.ndarray) -> np.ndarray:
        """What a grid of tokens looks like."""
        return arrow_pointing.token_picture(grid)


class Folder:
    """Image files in one folder a class; classes are numbered by their sorted names.

    Splits are the folders train and val (or validation); where there are none, `validation_share` of the files, chosen by hash of
    their names.
    """

    channels, native, slow = 3, 224, True

    def __init__(self, data: Any):
        self.path, self.share, self.stated = data.path, data.validation_share, data.classes

    @cached_property
    def _root(self) -> Path:
        root = expanded(self.path, "config.data.path")
        if not root.is_dir():
            raise ConfigError(
                f"config.data.path={self.path!r} is no folder: give one with train/<class>/ and val/<class>/ in it"
            )
        return root

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Sorted names of the folders of classes."""
        root = self._root / "train" if (self._root / "train").is_dir() else self._root
        names = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."))
        if len(names) < 2:
            raise ConfigError(f"config.data.path: {root} holds {len(names)} folders of classes: give two or more")
        if self.stated and self.stated != len(names):
            raise ConfigError(f"config.data.classes={self.stated}: {root} holds {len(names)}; give that, or 0")
        return names

    @property
    def classes(self) -> int:
        """As `config.data.classes` states them, so that a dry run needs no images; else as the folder has them."""
        return self.stated or len(self.class_names)

    @cached_property
    def _splits(self) -> dict[str, tuple[list[str], np.ndarray]]:
        train, held = self._root / "train", [self._root / name for name in ("val", "validation")]
        held = [folder for folder in held if folder.is_dir()]
        if train.is_dir() and not held:
            raise ConfigError(f"config.data.path: {self._root} has a folder train but none called val")
        if train.is_dir():
            return {"train": self._files(train), "validation": self._files(held[0])}
        files, labels = self._files(self._root)
        chosen = np.array([_unit(os.path.relpath(name, self._root)) < self.share for name in files])
        if chosen.all() or not chosen.any():
            raise ConfigError(
                f"config.data.validation_share={self.share} leaves one split of {len(files)} images empty: "
                "change it, or make folders train and val"
            )
        parts = {"train": ~chosen, "validation": chosen}
        return {name: ([files[i] for i in np.flatnonzero(part)], labels[part]) for name, part in parts.items()}

    def _files(self, folder: Path) -> tuple[list[str], np.ndarray]:
        """(names, labels) of all images below the folders of the classes."""
        names: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            place = folder / name
            found = sorted(_images(place)) if place.is_dir() else []
            names += found
            labels += [label] * len(found)
        if not names:
            raise ConfigError(f"config.data.path: no images in {folder}: .jpg, .png ... in one folder a class")
        return names, np.array(labels, np.int32)

    def count(self, split: str) -> int:
        """Number of images of a split."""
        return len(self._splits[split][0])

    def example(self, split: str, index: int, size: int) -> tuple[Any, int]:
        """(PIL image in RGB, label). JPEGs much larger than `size` are decoded at a half, a quarter or an eighth."""
        files, labels = self._splits[split]
        try:
            with pillow().Image.open(files[index]) as image:
                image.draft("RGB", (2 * size, 2 * size))
                return image.convert("RGB"), int(labels[index])
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise ConfigError(f"cannot read the image {files[index]}: {error}; remove or mend it") from None

    def baselines(self) -> dict[str, float]:
        """Guessing."""
        return {"chance_accuracy": 1 / self.classes}


def _images(folder: Path) -> list[str]:
    return [
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and name[0] != "."
    ]


def _unit(name: str) -> float:
    """A number in [0, 1) by hash of a name."""
    digest = hashlib.sha256(name.replace(os.sep, "/").encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


SOURCES: dict[str, Any] = {
    "digits": Digits,
    "shapes": Shapes,
    "arrow": Arrow,
    "arrow_tokens": ArrowTokens,
    "folder": Folder,
}
