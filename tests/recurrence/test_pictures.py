"""The pictures are fresh, and their depths are those of the algorithms."""

from math import ceil, log2

import pytest

from paperlab.recurrence import pictures


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_pictures_are_fresh(name):
    stored = (pictures.HERE / name).read_text(encoding="utf-8")
    assert stored == pictures.PICTURES[name](), "run: python -m paperlab.recurrence.pictures"


@pytest.mark.parametrize("T", [1, 2, 5, 16, 64])
def test_depths(T):
    assert pictures.depth(pictures.sequential, T) == T - 1
    assert pictures.depth(pictures.tree_fold, T) == (ceil(log2(T)) if T > 1 else 0)
    assert pictures.depth(pictures.associative, T) <= 2 * ceil(log2(T)) if T > 1 else True
