"""Augmentation of images: a random function of one image, and mixtures of two.

    crops     random resized crop (area and aspect), padded crop (shorter side to size, 4 pixels of mirror, any window)
    colour    colour jitter; 3-Augment: one of grey, solarised, blurred (DeiT III, arXiv 2204.07118, section 3)
    erasing   a rectangle of noise (arXiv 1708.04896)
    mixtures  MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899)

RandAugment stands in `rand_augment`. Everything takes a numpy generator and is a function of it; images are PIL images or uint8
arrays [X, Y, C], whose axes are the rows and columns of the picture.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from paperlab.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

Generator = np.random.Generator
MIRROR = 4  # pixels of mirrored border before a padded crop


def pillow() -> Any:
    """The package PIL. Raises ConfigError where it is not installed."""
    try:
        import PIL.Image
        import PIL.ImageEnhance
        import PIL.ImageFilter
        import PIL.ImageOps
    except ImportError:
        raise ConfigError("images need the package pillow: pip install 'paperlab[vision]'") from None
    return PIL


def to_image(array: np.ndarray) -> "Image.Image":
    """uint8 [X, Y, 1 or 3] -> a PIL image."""
    return pillow().Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array)


def to_array(image: "Image.Image") -> np.ndarray:
    """A PIL image -> uint8 [X, Y, 1 or 3]."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def resize_shorter(image: "Image.Image", size: int) -> "Image.Image":
    """The shorter side becomes `size`, bicubically."""
    width, height = image.size
    scale = size / min(width, height)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    return image if shape == image.size else image.resize(shape, pillow().Image.Resampling.BICUBIC)


def centre_crop(image: "Image.Image", size: int, share: float = 1.0) -> "Image.Image":
    """The square in the middle: `share` of the shorter side, as `size` pixels."""
    image = resize_shorter(image, max(size, round(size / share)))
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(rng: Generator, image: "Image.Image", size: int, smallest: float) -> "Image.Image":
    """A window of `smallest` to 1 of the area and aspect 3/4 to 4/3, as `size` pixels (Szegedy et al., arXiv 1409.4842)."""
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(smallest, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = (left, top, left + w, top + h)
            return image.resize((size, size), pillow().Image.Resampling.BICUBIC, box=box)
    return centre_crop(image, size)


def padded_crop(rng: Generator, image: "Image.Image", size: int) -> "Image.Image":
    """DeiT III's simple crop: the shorter side becomes `size`, borders are mirrored by MIRROR pixels, any window is taken."""
    array = to_array(resize_shorter(image, size))
    array = np.pad(array, ((MIRROR, MIRROR), (MIRROR, MIRROR), (0, 0)), "reflect")
    top, left = (int(rng.integers(side - size + 1)) for side in array.shape[:2])
    return to_image(np.ascontiguousarray(array[top : top + size, left : left + size]))


def flip(rng: Generator, image: "Image.Image", probability: float = 0.5) -> "Image.Image":
    """Left becomes right with this probability."""
    return pillow().ImageOps.mirror(image) if rng.random() < probability else image


def three_augment(rng: Generator, image: "Image.Image") -> "Image.Image":
    """One of grey, solarised, blurred, each as likely."""
    PIL = pillow()
    choice = rng.integers(3)
    if choice == 0:
        return image.convert("L").convert(image.mode)
    if choice == 1:
        return PIL.ImageOps.solarize(image)
    return image.filter(PIL.ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))


def colour_jitter(rng: Generator, image: "Image.Image", strength: float) -> "Image.Image":
    """Brightness, contrast and saturation times U(1 - strength, 1 + strength), in any order."""
    enhance = pillow().ImageEnhance
    kinds = (enhance.Brightness, enhance.Contrast, enhance.Color)
    for i in rng.permutation(3):
        image = kinds[i](image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def random_erasing(
    rng: Generator, array: np.ndarray, probability: float, area: tuple[float, float] = (0.02, 1 / 3)
) -> np.ndarray:
    """With this probability a rectangle of normal noise, aspect 0.3 to 1/0.3: uint8 [X, Y, C]."""
    if rng.random() >= probability:
        return array
    X, Y, C = array.shape
    for _ in range(10):
        size = X * Y * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        x, y = round(math.sqrt(size * aspect)), round(math.sqrt(size / aspect))
        if 0 < x < X and 0 < y < Y:
            left, top = int(rng.integers(X - x + 1)), int(rng.integers(Y - y + 1))
            erased = array.copy()
            noise = 127.5 + 58 * rng.standard_normal((x, y, C))
            erased[left : left + x, top : top + y] = noise.clip(0, 255)
            return erased
    return array


def mix_pairs(
    rng: Generator, images_B: np.ndarray, labels_B: np.ndarray, mixup: float, cutmix: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixes rows 0 and 1, 2 and 3, ... by one draw for all of them.

    MixUp:   x_a <- s x_a + (1 - s) x_b           s ~ Beta(mixup, mixup)
    CutMix:  a box of x_a becomes that of x_b     box of 1 - s of the area, s ~ Beta(cutmix, cutmix); s is then counted exactly

    Where both are given, either is as likely.

    Args:
      rng: numpy generator.
      images_B: uint8 or float [B, X, Y, C], B even.
      labels_B: int [B].
      mixup, cutmix: 0 switches one off.

    Returns:
      images, the labels of the partners [B], and the share of the own label, float32 [B].
    """
    partners = np.arange(len(images_B)) ^ 1
    share = np.ones(len(images_B), np.float32)
    if not mixup and not cutmix:
        return images_B, labels_B, share
    cut = bool(cutmix) and (not mixup or rng.random() < 0.5)
    s = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    if cut:
        (x0, x1), (y0, y1) = (_window(rng, side, math.sqrt(1 - s)) for side in images_B.shape[1:3])
        mixed = images_B.copy()
        mixed[:, x0:x1, y0:y1] = images_B[partners, x0:x1, y0:y1]
        s = 1 - (x1 - x0) * (y1 - y0) / (images_B.shape[1] * images_B.shape[2])
    else:
        wide = s * images_B.astype(np.float32) + (1 - s) * images_B[partners].astype(np.float32)
        mixed = (np.rint(wide) if images_B.dtype == np.uint8 else wide).astype(images_B.dtype)
    return mixed, labels_B[partners], share * np.float32(s)


def _window(rng: Generator, side: int, share: float) -> tuple[int, int]:
    """An interval of this share of a side around any point of it, cut at the borders."""
    centre, half = int(rng.integers(side)), int(side * share) // 2
    return max(centre - half, 0), min(centre + half, side)
