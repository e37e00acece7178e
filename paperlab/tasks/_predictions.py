"""A page of images with what a classifier says of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 10


def draw(
    splits: Mapping[str, tuple[Any, Any, Any, Any]],
    names: tuple[str, ...],
    file: Path,
    picture: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Draws two rows of images a split: the first of those that are right, the first of those that are wrong.

    Args:
      splits: {name: (images [B, X, Y, C], labels [B], probabilities [B, K], weights [B])}.
      names: of the classes.
      file: where the page goes.
      picture: what is shown of one image [X, Y, C].
    """
    import matplotlib.pyplot as plt

    from paperlab.figures import GREY, INK, STYLE, VERMILION

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2 * len(splits), COLUMNS, figsize=(COLUMNS, 2.7 * len(splits)), squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for number, (split, (images, labels, probabilities, weights)) in enumerate(splits.items()):
            right = probabilities.argmax(-1) == labels
            for row, (chosen, word) in enumerate(((right, "right"), (~right, "wrong"))):
                shown = np.flatnonzero(chosen & (weights > 0))[:COLUMNS]
                line = axes[2 * number + row]
                text = f"{split}: {word}" + ("" if len(shown) else ", none")
                line[0].text(0, 1.32, text, transform=line[0].transAxes, color=INK, fontsize=9, in_layout=False)
                for axis, i in zip(line, shown, strict=False):
                    axis.imshow(picture(images[i]), cmap="gray", interpolation="nearest")
                    axis.patch.set(edgecolor=GREY, linewidth=0.4)
                    axis.set(frame_on=True)
                    said = probabilities[i].argmax()
                    note = _short(names, said) + ("" if right[i] else f", not {_short(names, labels[i])}")
                    colour = GREY if right[i] else VERMILION
                    axis.set_title(note, fontsize=6, color=colour, loc="center", pad=2)
        figure.savefig(file, dpi=130, bbox_inches="tight")
        plt.close(figure)


def _short(names: tuple[str, ...], label: int) -> str:
    name = names[label] if label < len(names) else str(label)
    return name if len(name) <= 14 else f"{name[:12]}.."
