"""The lines that the page of the kernels shows are lines that run."""

import re
from pathlib import Path

import pytest

from kernels_pallas.registry import MODULES

PAGE = Path(__file__).parents[2] / "kernels_pallas" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names():
    found = {}
    exec(BLOCKS[0], found)
    return found


@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_the_lines_of_the_page_run(names, number):
    before = set(names)
    exec(BLOCKS[number], names)
    assert set(names) > before


def test_the_page_shows_every_operation(names):
    shown = "\n".join(BLOCKS)
    assert [name for name in MODULES if f"{name}(" not in shown] == ["gla"]
    assert "jax.jit(gla)(" in shown
    assert names["gradient"].shape == (2, 100, 64)
