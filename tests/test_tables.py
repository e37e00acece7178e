"""The generated tables say what the tree says, failed claims included."""

import json

import pytest

from paperlab import tables


@pytest.fixture
def house(tmp_path):
    """A house with one paper, two recorded claims, one mixer, and pages that want every table."""
    files = {
        "paperlab/papers/__init__.py": '"""Papers."""',
        "paperlab/papers/toy/__init__.py": '"""Toys | all of them (A. Author, arXiv 1234.56789).\n\nMore."""',
        "paperlab/mixers/__init__.py": '"""Mixers."""',
        "paperlab/mixers/sum.py": '"""h_t = h_{t-1} + x_t."""\nclass Mixer: ...',
        "paperlab/mixers/helper.py": '"""No mixer."""',
        "experiments/toy.py": 'VARIANTS = {"": None, "small": None, "full": None}',
        "paperlab/papers/toy/README.md": "<!-- table:claims_toy -->\n<!-- /table:claims_toy -->\n",
        "README.md": "before\n<!-- table:papers -->\nold\n<!-- /table:papers -->\nafter\n",
        "WORKSPACE.md": "".join(f"<!-- table:{name} -->\n<!-- /table:{name} -->\n" for name in ("claims", "parts")),
    }
    claim = {
        "id": "1",
        "statement": "a < b",
        "value": 0.123456,
        "baseline": None,
        "threshold": "<= 0.1",
        "passed": False,
    }
    files["results/claims/toy.json"] = json.dumps(
        {"slug": "toy", "claims": [claim, {**claim, "id": "2", "passed": True}]}
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_writes_what_the_tree_says_and_leaves_the_rest(house):
    assert tables.main(["--check"], house) == 1
    assert tables.main([], house) == 0
    assert tables.main(["--check"], house) == 0
    readme, workspace = (house / "README.md").read_text(), (house / "WORKSPACE.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("-->\nafter\n")
    row = r"| [Toys \| all of them (A. Author)](paperlab/papers/toy/README.md) | 1234.56789 | `experiments/toy.py` |"
    assert f"{row} `small` `full` | 1 of 2 hold |" in readme
    assert "| toy | 1 | a < b | 0.1235 | - | <= 0.1 | **fails** |" in workspace
    assert "| toy | 2 | a < b | 0.1235 | - | <= 0.1 | holds |" in workspace
    assert "| mixer | `sum` | h_t = h_{t-1} + x_t |" in workspace
    assert "helper" not in workspace
    assert "| 1 | a < b | 0.1235 | - | <= 0.1 | **fails** |" in (house / "paperlab/papers/toy/README.md").read_text()


def test_a_new_claim_makes_the_tables_stale(house):
    tables.main([], house)
    (house / "results/claims/toy.json").unlink()
    assert tables.main(["--check"], house) == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("results/claims/toy.json", "{", "toy.json is no claims record"),
        ("paperlab/mixers/sum.py", "class Mixer: ...", "sum.py has no docstring"),
        ("paperlab/mixers/sum.py", "def", "sum.py cannot be read"),
        ("README.md", "<!-- table:prices -->\n<!-- /table:prices -->", "no table 'prices'"),
    ],
)
def test_names_the_file_that_it_cannot_use(house, capsys, file, text, message):
    (house / file).write_text(text)
    assert tables.main([], house) == 2
    assert message in capsys.readouterr().err
