"""What an experiment file and a command line may say, and what they are told when they may not."""

import json

import pytest

from paperlab import workdir as workdirs
from paperlab.config import (
    base_config,
    differences,
    digest,
    from_json,
    load_experiment,
    mathematics,
    resolve,
    to_json,
)
from paperlab.discovery import find, names
from paperlab.errors import ConfigError
from paperlab.overrides import flatten, override
from paperlab.run import expand, parse_flags

GLA = "experiments/gla.py"


def test_every_variant_resolves_and_survives_json():
    import experiments.gla as experiment

    for variant in experiment.VARIANTS:
        config = resolve(load_experiment(f"{GLA}:{variant}"))
        again = from_json(to_json(config))
        assert dict(flatten(again)) == dict(flatten(config))
        assert digest(again) == digest(config)


def test_unused_mixers_are_dropped():
    config = load_experiment(GLA)
    assert {"gla", "attention"} <= set(config.mixers)
    assert set(resolve(config).mixers) == {"gla"}
    assert set(resolve(load_experiment(f"{GLA}:hybrid")).mixers) == {"gla", "attention"}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("optim.lr", "1e-3", 1e-3),
        ("train.steps", "2e3", 2000),
        ("train.steps", "2_000", 2000),
        ("model.tie_embeddings", "false", False),
        ("model.mixer", "attention", "attention"),
        ("optim.freeze", "embedding,blocks/.*", ("embedding", "blocks/.*")),
        ("optim.freeze", "", ()),
        ("optim.freeze", "blocks/(q,k|v)/, a{1,2}$,", ("blocks/(q,k|v)/", "a{1,2}$")),
        ("mesh.rules", '["embedding$=tensor,fsdp"]', ("embedding$=tensor,fsdp",)),
        ("seed", "9007199254740993", 2**53 + 1),
        ("seed", "-1", -1),
    ],
)
def test_an_override_takes_the_type_of_its_field(path, text, value):
    config = base_config()
    override(config, path, text)
    found = dict(flatten(config))[path]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("optim.lrr", "1", "did you mean config.optim.lr"),
        ("lr", "1", "config.optim.lr"),
        ("optim", "1", "is a section"),
        ("optim.lr.x", "1", "no field"),
        ("train.steps", "1.5", "whole number"),
        ("train.steps", "inf", "whole number"),
        ("train.steps", "", "whole number"),
        ("optim.lr", "fast", "not a number"),
        ("optim.clip", "nan", "finite"),
        ("optim.lr", "1e400", "finite"),
        ("model.tie_embeddings", "maybe", "true or false"),
    ],
)
def test_a_wrong_override_names_the_field_and_the_mend(path, text, told):
    with pytest.raises(ConfigError, match=told):
        override(base_config(), path, text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("train.steps", "0"),
        ("train.steps", "-3"),
        ("train.micro_batches", "3"),
        ("train.ema_decay", "1"),
        ("train.checkpoint_every", "-1"),
        ("optim.warmup", "1.5"),
        ("optim.lr", "-1"),
        ("mesh.fsdp", "0"),
        ("mesh.data", "-2"),
        ("data.batch_size", "0"),
        ("evaluators.val.batches", "-1"),
        ("model.mixer", "glaa"),
        ("model.hybrid", "gla,atention"),
    ],
)
def test_values_that_no_run_can_use_are_refused(path, text):
    config = load_experiment(GLA)
    override(config, path, text)
    with pytest.raises(ConfigError, match=path.rsplit(".", 1)[-1] if "model" not in path else "did you mean"):
        resolve(config)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, "no file"),
        ("def get_config(:", "does not load"),
        ("x = 1", "no function get_config"),
        ("def get_config(variant):\n    raise KeyError('a')", "raised KeyError"),
        ("def get_config(variant):\n    return {}", "must return a ConfigDict"),
        ("VARIANTS = {'': 1, 'small': 2}\ndef get_config(variant):\n    return {}", "did you mean 'small'"),
    ],
)
def test_a_wrong_experiment_file_is_one_line(tmp_path, source, told):
    file = tmp_path / "experiment.py"
    if source is not None:
        file.write_text(source)
    with pytest.raises(ConfigError, match=told) as error:
        load_experiment(f"{file}:smal" if "VARIANTS" in (source or "") else str(file))
    assert "\n" not in str(error.value)


def test_only_what_changes_the_mathematics_names_the_run():
    one = resolve(load_experiment(GLA))
    for path, text, same in [
        ("train.steps", "7", True),
        ("train.log_every", "3", True),
        ("mesh.fsdp", "2", True),
        ("checkpoint.keep", "1", True),
        ("evaluators.val.every", "5", True),
        ("profile.steps", "3:4", True),
        ("optim.lr", "1e-4", False),
        ("seed", "1", False),
        ("model.width", "64", False),
        ("mixers.gla.gate", "none", False),
        ("data.sequence_length", "128", False),
    ]:
        config = load_experiment(GLA)
        override(config, path, text)
        other = resolve(config)
        assert (digest(other) == digest(one)) is same, path
        assert bool(differences(mathematics(one), mathematics(other))) is not same, path


def test_minus_zero_is_zero():
    one, other = load_experiment(GLA), load_experiment(GLA)
    one.optim.weight_decay, other.optim.weight_decay = 0.0, -0.0
    assert mathematics(resolve(one)) == mathematics(resolve(other))
    assert digest(resolve(one)) == digest(resolve(other))


def test_a_work_directory_refuses_another_mathematics_and_records_the_rest(tmp_path):
    config = resolve(load_experiment(GLA))
    path = tmp_path / "run"
    assert workdirs.prepare(path, config, {}) is False
    assert workdirs.prepare(path, config, {}) is True
    longer = load_experiment(GLA)
    longer.train.steps = 5
    workdirs.prepare(path, resolve(longer), {"train.steps": "5"})
    history = json.loads((path / "overrides.json").read_text())
    assert [entry["changed"] for entry in history] == [{}, {}, {"train.steps": [config.train.steps, 5]}]
    assert workdirs.read_config(path).train.steps == 5
    other = load_experiment(GLA)
    other.optim.lr = 1.0
    with pytest.raises(ConfigError, match=r"config\.optim\.lr"):
        workdirs.prepare(path, resolve(other), {})
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        workdirs.prepare(file, config, {})


def test_a_sweep_is_the_product_of_the_values_of_number_fields():
    flags, overrides = parse_flags(
        [
            f"--config={GLA}",
            "--config.optim.lr=1e-3,3e-3",
            "--config.seed",
            "0,1",
            "--config.model.hybrid=gla,attention",
        ]
    )
    points = expand(flags.config, overrides)
    assert [(c.optim.lr, c.seed) for c, _ in points] == [(1e-3, 0), (1e-3, 1), (3e-3, 0), (3e-3, 1)]
    assert all(c.model.hybrid == "gla,attention" for c, _ in points)
    flags, overrides = parse_flags(
        [f"--config={GLA}", "--config.mixers.gla.gate=none", "--config.mixers.gla.gate=fixed"]
    )
    assert [c.mixers.gla.gate for c, _ in expand(flags.config, overrides)] == ["none", "fixed"]


def test_rooms_are_found_by_file_name():
    assert {"gla", "attention"} <= set(names("mixers"))
    assert find("tasks", "tasks.language_modelling") is find("tasks", "language_modelling")
    with pytest.raises(ConfigError, match="did you mean 'gla'"):
        find("mixers", "glaa")
    with pytest.raises(ConfigError, match=r"no module paperlab\.papers\.none"):
        find("tasks", "papers.none.task")
