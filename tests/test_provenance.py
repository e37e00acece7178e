"""Where a number comes from: what the programs write themselves does not make a tree differ from its commit."""

import runpy
import shutil
import subprocess

import pytest

from paperlab import provenance


@pytest.fixture
def tree(tmp_path):
    for name in ("paperlab/provenance.py", "results/claims/a.json", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    shutil.copy(provenance.__file__, tmp_path / "paperlab/provenance.py")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def version(tree):
    return runpy.run_path(str(tree / "paperlab/provenance.py"))["git_version"]()


def test_results_are_not_counted_and_everything_else_is(tree):
    commit, dirty = version(tree)
    assert len(commit) == 40
    assert not dirty
    (tree / "results/claims/a.json").write_text("[]")
    assert version(tree) == (commit, False)
    (tree / "README.md").write_text("changed")
    assert version(tree) == (commit, True)
