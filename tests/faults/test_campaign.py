"""A short campaign of faults against real runs; the long one is `python -m tests.faults --rounds=100`."""

import json
import shutil

import pytest

from tests.faults.campaign import Campaign
from tests.faults.ending import differences
from tests.faults.kinds import KINDS
from tests.faults.processes import EVERY, STEPS, Launcher

SHORT = ("killed_while_saving", "damaged_checkpoint_file", "asked_to_stop", "full_disk", "all_checkpoints_damaged")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    with Launcher(folder) as launcher:
        found = Campaign(folder, launcher, seed=3, kinds=SHORT)
        found.prepare()
        yield found


def test_runs_survive(campaign):
    rounds = [campaign.run(number) for number in range(6)]
    assert [one["what"] for one in rounds] == [""] * 6
    assert len({one["kind"] for one in rounds}) >= 3


def test_the_comparison_sees_what_is_wrong(campaign, tmp_path):
    assert differences(campaign.whole, campaign.whole) == []
    assert differences(campaign.half, campaign.whole) == [f"there is no checkpoint of step {STEPS}"]
    other = tmp_path / "other"
    shutil.copytree(campaign.whole, other)
    last = other / "checkpoints" / str(STEPS)
    shutil.rmtree(last)
    (other / "checkpoints" / str(STEPS - EVERY)).rename(last)
    metrics = other / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    (other / "summary.json").write_text("{}")
    (other / ".metrics.jsonl.part").touch()
    found = " | ".join(differences(other, campaign.whole))
    for words in ("leaves differ", "data_index in the", "metrics.jsonl differs", "summary.json differs", "left behind"):
        assert words in found


def test_faults_follow_from_the_seed(campaign):
    cycle = len(KINDS) + 6
    campaigns = [Campaign(campaign.folder, campaign.launcher, seed=seed) for seed in (1, 1, 2)]
    first, again, other = ([one.kind_of(number) for number in range(2 * cycle)] for one in campaigns)
    assert first == again != other
    assert set(first) >= set(KINDS) - {"full_disk"}
    assert json.dumps(first[:cycle]) != json.dumps(first[cycle:])
