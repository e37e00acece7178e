"""RandAugment (arXiv 1909.13719): a few operations, drawn evenly from a list, all of one strength.

The strength m of 10 is drawn for each operation from N(magnitude, 0.5); each drawn operation is applied with probability 1/2,
and every operation is the stronger the larger m is. This is the form in which vision transformers are trained ("m9-mstd0.5-inc1").
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from paperlab.data.augment import pillow

if TYPE_CHECKING:
    from PIL import Image

STRONGEST, DEVIATION, PROBABILITY = 10.0, 0.5, 0.5
FILL = (128, 128, 128)


def rand_augment(
    rng: np.random.Generator, image: "Image.Image", magnitude: float = 9.0, count: int = 2
) -> "Image.Image":
    """The image after up to `count` operations of about this magnitude, 0 to 10."""
    for name in rng.choice(list(OPERATIONS), count):
        if rng.random() < PROBABILITY:
            strength = float(np.clip(rng.normal(magnitude, DEVIATION), 0, STRONGEST)) / STRONGEST
            sign = 1 if rng.random() < 0.5 else -1
            image = OPERATIONS[name](pillow(), image, strength, sign)
    return image


def _enhance(kind: str) -> Callable[..., Any]:
    return lambda PIL, image, s, sign: getattr(PIL.ImageEnhance, kind)(image).enhance(1 + sign * 0.9 * s)


def _affine(PIL: Any, image: "Image.Image", matrix: tuple[float, ...]) -> "Image.Image":
    fill = FILL if image.mode == "RGB" else FILL[0]
    kind, how = PIL.Image.Transform.AFFINE, PIL.Image.Resampling.BICUBIC
    return image.transform(image.size, kind, matrix, how, fillcolor=fill)


def _rotate(PIL: Any, image: "Image.Image", s: float, sign: int) -> "Image.Image":
    fill = FILL if image.mode == "RGB" else FILL[0]
    return image.rotate(sign * 30 * s, PIL.Image.Resampling.BICUBIC, fillcolor=fill)


def _add_below_half(PIL: Any, image: "Image.Image", s: float, sign: int) -> "Image.Image":
    table = [min(255, i + int(110 * s)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "autocontrast": lambda PIL, image, s, sign: PIL.ImageOps.autocontrast(image),
    "equalize": lambda PIL, image, s, sign: PIL.ImageOps.equalize(image),
    "invert": lambda PIL, image, s, sign: PIL.ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": lambda PIL, image, s, sign: PIL.ImageOps.posterize(image, max(1, 4 - int(4 * s))),
    "solarize": lambda PIL, image, s, sign: PIL.ImageOps.solarize(image, 256 - int(256 * s)),
    "solarize_add": _add_below_half,
    "color": _enhance("Color"),
    "contrast": _enhance("Contrast"),
    "brightness": _enhance("Brightness"),
    "sharpness": _enhance("Sharpness"),
    "shear_x": lambda PIL, image, s, sign: _affine(PIL, image, (1, sign * 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda PIL, image, s, sign: _affine(PIL, image, (1, 0, 0, sign * 0.3 * s, 1, 0)),
    "translate_x": lambda PIL, image, s, sign: _affine(PIL, image, (1, 0, sign * 0.45 * s * image.size[0], 0, 1, 0)),
    "translate_y": lambda PIL, image, s, sign: _affine(PIL, image, (1, 0, 0, 0, 1, sign * 0.45 * s * image.size[1])),
}
