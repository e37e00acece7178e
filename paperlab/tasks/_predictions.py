"""A page of images with what a classifier says of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 10


def draw(splits: Mapping[str, tuple[Any, Any, Any, Any]], names: tuple[str, ...], file: Path) -> None:
    """Draws two rows of images a split: the first of those that are right, the first of those that are wrong.

    Args:
      splits: {name: (images [B, X, Y, C], labels [B], probabilities [B, K], weights [B])}.
      names: of the classes.
      file: where the picture goes.
    """
    import matplotlib.pyplot as plt

    from paperlab.figures import GREY, INK, STYLE, VERMILION

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2 * len(splits), COLUMNS, figsize=(COLUMNS, 2.7 * len(splits)), squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for number, (split, (images, labels, probabilities, weights)) in enumerate(splits.items()):
            right = probabilities.argmax(-1) == labels
            for row, (chosen, word) in enumerate(((right, "right"), (~right, "wrong"))):
                shown = np.flatnonzero(chosen & (weights > 0))[:COLUMNS]
                line = axes[2 * number + row]
                text = f"{split}: {word}" + ("" if len(shown) else ", none")
                line[0].text(0, 1.32, text, transform=line[0].transAxes, color=INK, fontsize=9)
                for axis, i in zip(line, shown, strict=False):
                    picture = visible(images[i])
                    axis.imshow(picture, cmap="gray", interpolation="nearest")
                    said = probabilities[i].argmax()
                    note = _short(names, said) + ("" if right[i] else f", not {_short(names, labels[i])}")
                    colour = GREY if right[i] else VERMILION
                    axis.set_title(note, fontsize=6, color=colour, loc="center", pad=2)
        figure.savefig(file, dpi=130)
        plt.close(figure)


def visible(image: np.ndarray) -> np.ndarray:
    """What can be shown of one image [X, Y, C]: grey, colour, or the first and last channel of other grids as red and blue."""
    if image.shape[-1] == 1:
        return image[:, :, 0]
    if image.shape[-1] == 3:
        return image
    wide = np.ones((*image.shape[:2], 3), np.float32)
    wide[..., 1:] -= np.clip(image[..., :1], 0, 1)
    wide[..., :2] -= np.clip(image[..., -1:], 0, 1)
    return wide.clip(0, 1).swapaxes(0, 1)


def _short(names: tuple[str, ...], label: int) -> str:
    name = names[label] if label < len(names) else str(label)
    return name if len(name) <= 14 else f"{name[:12]}.."
