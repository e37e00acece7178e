"""Known answers: the shipped ones, and those of the folder $PAPERLAB_GOLDEN for papers that have an adapter."""

import os
from pathlib import Path

import pytest

from tests.golden.cases import LICENCES, SHIPPED, read, slugs
from tests.golden.compare import adapter, check


def answers() -> dict:
    """Case by id."""
    roots = {"shipped": SHIPPED}
    if os.environ.get("PAPERLAB_GOLDEN"):
        roots["more"] = Path(os.environ["PAPERLAB_GOLDEN"])
    found = [(name, slug) for name, root in roots.items() for slug in slugs(root) if adapter(slug)]
    return {f"{name}:{slug}/{case.name}": case for name, slug in found for case in read(roots[name], slug)}


CASES = answers()


@pytest.mark.parametrize("name", CASES)
def test_known_answer(name):
    case = CASES[name]
    assert check(case, adapter(case.slug)) == []


@pytest.mark.parametrize("slug", slugs(SHIPPED))
def test_shipped_answers_have_an_adapter_and_a_free_licence(slug):
    assert adapter(slug) is not None
    for case in read(SHIPPED, slug):
        assert all(part.strip().startswith(LICENCES) for part in case.licence.split(";")), case.name
