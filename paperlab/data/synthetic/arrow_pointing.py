"""Arrow pointing: does the arrow point at the circle? (pLSTM, arXiv 2506.11997, section 5.1 and its published generator)

An image holds one arrow and one filled circle, anywhere and at any distance; the label is 1 where the ray from the arrow's
centre along its direction meets the circle. Larger canvases of the same generator, with strokes as wide and circles as large
as before, are the extrapolation set: nothing is resized.

    g = default_rng(seed).integers(2^62),   example i is drawn from default_rng(g + i)

The order of the draws is that of the published data set, so that labels and places are the same bit for bit. `token_example`
says the same in a small grid of tokens, for a CPU: one cell holds an arrow, another the target.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from paperlab.errors import ConfigError

PLACE = ("arrow_x", "arrow_y", "angle", "circle_x", "circle_y", "radius", "arrow_length", "arrow_width")
CHANNELS = ("arrow present", "cos of its angle", "sin of its angle", "target present")


class Canvas(NamedTuple):
    """What may be drawn, in pixels; as in the paper's experiments.

    size: of the square image. arrow_length, arrow_width: drawn from [low, high) and cut to whole pixels. radius: of the circle.
    padding: no centre lies nearer to a border. distance_factor: centres are at least so many radii apart in x and in y, on a
    torus. intersection_factor: the ray passes within radius / factor, or outside radius * factor.
    """

    size: int = 192
    arrow_length: tuple[float, float] = (15, 30)
    arrow_width: tuple[float, float] = (2, 4)
    radius: tuple[float, float] = (15, 30)
    padding: float = 30
    distance_factor: float = 2.0
    intersection_factor: float = 1.2


def smallest_size(canvas: Canvas) -> int:
    """The smallest image in which every draw finds room: the largest circle keeps its distance on both sides of the arrow."""
    return math.ceil(2 * canvas.padding + 2 * canvas.distance_factor * canvas.radius[1])


def check(canvas: Canvas, field: str = "config.data.size") -> None:
    """Raises ConfigError for an image without room for arrow and circle."""
    least = smallest_size(canvas)
    if canvas.size < least:
        raise ConfigError(f"{field}={canvas.size}: arrows and circles take at least {least} pixels")


def place(seed: int, index: int, canvas: Canvas = Canvas()) -> tuple[bool, np.ndarray]:
    """Label and place of example `index`: float64 [8], see PLACE; pixels and radians, y points down."""
    rng = np.random.default_rng(_start(seed) + index)
    label = rng.uniform(0, 1) < 0.5
    length, width = int(rng.uniform(*canvas.arrow_length)), int(rng.uniform(*canvas.arrow_width))
    side = canvas.size - 2 * canvas.padding
    ax, ay = side * rng.random(), side * rng.random()
    radius = rng.uniform(*canvas.radius)
    near = canvas.distance_factor * radius
    room = side - 2 * near
    cx = ax + near + room * rng.random()
    cy = ay + near + room * rng.random()
    cx, cy = cx - side * (cx > side), cy - side * (cy > side)
    dx, dy = cx - ax, cy - ay
    squared = dx * dx + dy * dy
    tangent = radius / canvas.intersection_factor if label else radius * canvas.intersection_factor
    half = math.acos(math.sqrt(abs((squared - tangent * tangent) / squared)))
    towards, u = math.atan2(dy, dx), rng.random()
    angle = towards - half + u * 2 * half if label else towards + half + u * (2 * math.pi - 2 * half)
    pad = canvas.padding
    return bool(label), np.array([ax + pad, ay + pad, angle, cx + pad, cy + pad, radius, length, width])


@lru_cache(maxsize=64)
def _start(seed: int) -> int:
    return int(np.random.default_rng(seed).integers(2**62))


def draw(place_8: np.ndarray, size: int) -> np.ndarray:
    """The image of a place: uint8 [size, size], black (0) on white (255), rows are y."""
    from PIL import Image, ImageDraw

    ax, ay, angle, cx, cy, r, length, width = (float(value) for value in place_8)
    length, width = int(length), int(width)
    image = Image.new("L", (size, size), 255)
    pen = ImageDraw.Draw(image)
    x, y = length // 2 * math.cos(angle), length // 2 * math.sin(angle)
    tip = (ax + x, ay + y)
    pen.line([(ax - x, ay - y), tip], fill=0, width=width)
    for turn in (angle - 0.5, angle + 0.5):
        barb = length // 2.5
        pen.line([(tip[0] - barb * math.cos(turn), tip[1] - barb * math.sin(turn)), tip], fill=0, width=width)
    pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=0)
    return np.asarray(image)


def image_example(seed: int, index: int, canvas: Canvas = Canvas()) -> tuple[np.ndarray, int]:
    """(uint8 [size, size, 3] with equal channels, label)."""
    label, where = place(seed, index, canvas)
    return np.repeat(draw(where, canvas.size)[:, :, None], 3, axis=2), int(label)


def points_at(place_8: np.ndarray) -> bool:
    """Does the ray meet the circle? The definition of the label, by geometry alone."""
    ax, ay, angle, cx, cy, r = place_8[:6]
    return _ray_distance(cx - ax, cy - ay, angle) <= r


def token_example(
    seed: int, index: int, size: int = 8, near: float = 0.7, far: float = 1.2
) -> tuple[np.ndarray, int, np.ndarray]:
    """Arrow pointing in a grid of tokens.

    Both labels have the same distribution of cells; the angle is even among those that give the label.

    Args:
      seed, index: one seed is one endless set of examples.
      size: cells a side.
      near: with label 1 the ray passes the centre of the target's cell within `near` cells.
      far: with label 0 it stays more than `far` away; the two cells are then further apart than that.

    Returns:
      float32 [size, size, 4] (see CHANNELS; first axis x), the label, and float64 [5]: both cells and the angle.
    """
    rng = np.random.default_rng(_start(seed) + index)
    label = int(rng.random() < 0.5)
    while True:
        ax, ay, bx, by = rng.integers(size, size=4).tolist()
        distance = math.hypot(bx - ax, by - ay)
        if distance > far:
            break
    u, towards = rng.random(), math.atan2(by - ay, bx - ax)
    if label:
        half = math.asin(min(near / distance, 1.0))
        angle = towards + half * (2 * u - 1)
    else:
        half = math.asin(far / distance)
        angle = towards + half + u * (2 * math.pi - 2 * half)
    grid = np.zeros((size, size, 4), np.float32)
    grid[ax, ay, :3] = 1, math.cos(angle), math.sin(angle)
    grid[bx, by, 3] = 1
    return grid, label, np.array([ax, ay, bx, by, angle])


def token_distance(where_5: np.ndarray) -> float:
    """How near the ray comes to the centre of the target's cell."""
    ax, ay, bx, by, angle = where_5
    return _ray_distance(bx - ax, by - ay, angle)


def token_picture(grid_XxYx4: np.ndarray, cell: int = 16) -> np.ndarray:
    """A grid of tokens as it would be seen: uint8 [cell Y, cell X, 3], an arrow in its cell and a disc in the target's."""
    from PIL import Image, ImageDraw

    X, Y, _ = grid_XxYx4.shape
    image = Image.new("RGB", (cell * X, cell * Y), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for x, y in np.argwhere(grid_XxYx4.any(-1)).tolist():
        present, cos, sin, target = grid_XxYx4[x, y].tolist()
        cx, cy = cell * (x + 0.5), cell * (y + 0.5)
        if target:
            pen.ellipse([cx - 0.4 * cell, cy - 0.4 * cell, cx + 0.4 * cell, cy + 0.4 * cell], fill=(0, 114, 178))
        if present:
            tip = (cx + 0.8 * cell * cos, cy + 0.8 * cell * sin)
            pen.line([(cx - 0.8 * cell * cos, cy - 0.8 * cell * sin), tip], fill=(34, 34, 34), width=cell // 6)
            pen.ellipse([tip[0] - 3, tip[1] - 3, tip[0] + 3, tip[1] + 3], fill=(213, 94, 0))
    return np.asarray(image)


def _ray_distance(dx: float, dy: float, angle: float) -> float:
    """From the point (dx, dy) to the ray that leaves the origin at this angle."""
    along = dx * math.cos(angle) + dy * math.sin(angle)
    return abs(dy * math.cos(angle) - dx * math.sin(angle)) if along > 0 else math.hypot(dx, dy)
