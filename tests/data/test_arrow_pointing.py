"""The arrow-pointing generator: labels are what geometry says, at every size, and both forms are balanced and addressable."""

import numpy as np
import pytest

from paperlab.data.synthetic import arrow_pointing as arrows
from paperlab.data.synthetic.arrow_pointing import Canvas
from paperlab.errors import ConfigError


@pytest.mark.parametrize("size", [180, 192, 384])
def test_the_label_is_whether_the_ray_meets_the_circle(size):
    found = [arrows.place(7, i, Canvas(size)) for i in range(400)]
    labels = np.array([label for label, _ in found])
    assert [arrows.points_at(where) for _, where in found] == labels.tolist()
    assert 0.4 < labels.mean() < 0.6
    places = np.stack([where for _, where in found])
    assert (places[:, [0, 1, 3, 4]] >= 30).all()
    assert (places[:, [0, 1, 3, 4]] <= size - 30).all()
    radius = places[:, 5]
    for axis in (0, 1):
        apart = np.abs(places[:, axis] - places[:, axis + 3])
        assert (apart > 2 * radius - 1e-9).all()
        assert (apart < size - 60 - 2 * radius + 1e-9).all()


def test_larger_canvases_hold_the_same_arrows_and_circles():
    small, large = (np.stack([arrows.place(3, i, Canvas(size))[1] for i in range(300)]) for size in (192, 384))
    np.testing.assert_array_equal(small[:, [5, 6, 7]], large[:, [5, 6, 7]])
    assert set(small[:, 6]) == set(range(15, 30))
    assert set(small[:, 7]) == {2, 3}
    reach = [np.hypot(p[:, 3] - p[:, 0], p[:, 4] - p[:, 1]).max() for p in (small, large)]
    assert reach[1] > 1.5 * reach[0]


def test_what_is_drawn_is_the_circle_and_an_arrow_with_its_head_in_front():
    for i in range(40):
        image, label = arrows.image_example(5, i)
        _, (ax, ay, angle, cx, cy, r, length, _) = arrows.place(5, i)
        assert image.shape == (192, 192, 3)
        assert set(np.unique(image)) == {0, 255}
        assert label in (0, 1)
        ink = np.argwhere(image[:, :, 0] == 0)[:, ::-1].astype(float)
        in_circle = np.hypot(*(ink - [cx, cy]).T) <= r + 1.6
        assert abs(in_circle.sum() / (np.pi * r * r) - 1) < 0.08
        arrow = ink[~in_circle] - [ax, ay]
        assert np.hypot(*arrow.T).max() < length / 2 + 4
        along = arrow @ [np.cos(angle), np.sin(angle)]
        assert (along > 0).sum() > 1.2 * (along < 0).sum()


def test_an_example_depends_on_seed_and_index_alone():
    for make in (arrows.image_example, lambda seed, i: arrows.token_example(seed, i)[:2]):
        first, again, other = make(4, 9), make(4, 9), make(4, 10)
        np.testing.assert_array_equal(first[0], again[0])
        assert (first[0] != other[0]).any()
        assert (first[0] != make(5, 9)[0]).any()


@pytest.mark.parametrize("size", [8, 16])
def test_token_grids_say_by_the_ray_alone_which_label_they_have(size):
    found = [arrows.token_example(1, i, size) for i in range(600)]
    for grid, label, where in found:
        assert grid.shape == (size, size, 4)
        ax, ay, bx, by = where[:4].astype(int)
        np.testing.assert_allclose(grid[ax, ay], [1, np.cos(where[4]), np.sin(where[4]), 0], atol=1e-6)
        np.testing.assert_array_equal(grid[bx, by], [0, 0, 0, 1])
        assert np.count_nonzero(grid.any(-1)) == 2
        distance = arrows.token_distance(where)
        assert distance <= 0.7 + 1e-9 if label else distance > 1.2 - 1e-9
    labels = np.array([label for _, label, _ in found])
    assert 0.4 < labels.mean() < 0.6
    apart = np.array([np.hypot(*(where[2:4] - where[:2])) for _, _, where in found])
    assert abs(apart[labels == 1].mean() - apart[labels == 0].mean()) < 0.1 * apart.mean()


def test_a_canvas_without_room_is_refused():
    arrows.check(Canvas(180))
    with pytest.raises(ConfigError, match="size=179: arrows and circles take at least 180"):
        arrows.check(Canvas(179))
