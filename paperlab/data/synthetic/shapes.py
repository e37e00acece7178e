"""Generated shapes: one shape on a noisy ground, anywhere, turned, in two colours; the label is its kind.

Shapes are as large on a large canvas as on a small one, so larger canvases ask whether a network that has seen small images
finds the same things further away. Example i is a function of (seed, i).
"""

import numpy as np

CLASSES = ("disc", "ring", "square", "frame", "triangle", "cross", "bar", "half disc")
RADIUS = (5.0, 8.0)  # pixels, of the circle around the shape
NOISE = 12.0  # standard deviation of a pixel, of 255
CONTRAST = 70.0  # least difference of the mean of the two colours
SMALLEST = 20  # pixels a side


def example(seed: int, index: int, size: int = 32) -> tuple[np.ndarray, int]:
    """uint8 [size, size, 3] (first axis x) and the label, a place in CLASSES."""
    rng = np.random.default_rng((seed, index))
    label = int(rng.integers(len(CLASSES)))
    radius = rng.uniform(*RADIUS)
    cx, cy = rng.uniform(radius, size - radius, 2)
    angle = rng.uniform(0, 2 * np.pi)
    ground = rng.uniform(0, 255, 3)
    ink = rng.uniform(0, 255, 3)
    while abs(ink.mean() - ground.mean()) < CONTRAST:
        ground, ink = rng.uniform(0, 255, (2, 3))
    x, y = np.arange(size)[:, None] + 0.5 - cx, np.arange(size)[None, :] + 0.5 - cy
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    inside = _inside(label, cos * x + sin * y, cos * y - sin * x)
    image = np.where(inside[:, :, None], ink, ground) + NOISE * rng.standard_normal((size, size, 1))
    return image.clip(0, 255).astype(np.uint8), label


def _inside(label: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points belong to the shape, in units of its radius and turned with it."""
    far, side = np.hypot(x, y), np.maximum(abs(x), abs(y))
    kind = CLASSES[label]
    if kind == "disc":
        return far < 0.85
    if kind == "ring":
        return (far < 1) & (far > 0.6)
    if kind == "square":
        return side < 0.7
    if kind == "frame":
        return (side < 0.8) & (side > 0.45)
    if kind == "triangle":
        return (x > -0.5) & (abs(y) < (1 - x) / np.sqrt(3))
    if kind == "cross":
        return (side < 0.9) & (np.minimum(abs(x), abs(y)) < 0.25)
    if kind == "bar":
        return (abs(x) < 0.95) & (abs(y) < 0.3)
    return (far < 1) & (x > 0)
