"""The command line of `paperlab.run`: flags, overrides of the config, and the runs of a sweep that they ask for."""

import argparse
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paperlab import distributed
from paperlab.commandline import Parser, number, path_text, whole
from paperlab.config import load_experiment, resolve
from paperlab.errors import ConfigError
from paperlab.overrides import field, nearest_field, override, parse_value
from paperlab.workdir import default_path

MOST_DEVICES = 4096  # fake ones, which take 10 s to make
MOST_RUNS = 1000

Overrides = dict[str, list[str]]


class RunParser(Parser):
    """Knows that people forget `--config.` before a field and `--config=` before a file."""

    def unknown(self, argument: str, flags: argparse.Namespace) -> str:
        if not argument.startswith("-") and ".py" in argument:
            return f"{argument!r} is no flag: say --config={argument}"
        name, _, value = argument.lstrip("-").partition("=")
        meant = nearest_field(load_experiment(flags.config), name) if argument.startswith("--") else ""
        if meant.rsplit(".", 1)[-1] != name.rsplit(".", 1)[-1]:
            return super().unknown(argument, flags)
        return f"there is no flag --{name}; did you mean --config.{meant}={value or 'VALUE'}?"


def workdir_path(text: str) -> Path:
    """Reads the name of a work directory; the library that writes checkpoints takes UTF-8 names only."""
    if not path_text(text).isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} holds bytes or characters that checkpoints cannot be written under")
    return Path(text)


def make_parser(description: str) -> Parser:
    """The flags of `paperlab.run`; overrides of the config are not among them."""
    parser = RunParser(
        prog="python -m paperlab.run",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", type=path_text)
    parser.add_argument("--workdir", type=workdir_path, metavar="DIR")
    instead = parser.add_mutually_exclusive_group()
    for flag in ("--show", "--dry_run", "--eval_only"):
        instead.add_argument(flag, action="store_true")
    parser.add_argument("--devices", type=whole(1, MOST_DEVICES), default=0, metavar="N")
    parser.add_argument("--distributed", action="store_const", const=True)
    parser.add_argument("--no_distributed", dest="distributed", action="store_const", const=False)
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT")
    parser.add_argument("--processes", type=int, metavar="N")
    parser.add_argument("--process", type=int, metavar="I")
    parser.add_argument("--start_timeout", type=number(0), default=distributed.START_TIMEOUT, metavar="SECONDS")
    parser.add_argument("--lost_timeout", type=number(0), default=distributed.LOST_TIMEOUT, metavar="SECONDS")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def parse_flags(argv: list[str], description: str = "") -> tuple[argparse.Namespace, Overrides]:
    """Splits the command line into flags and `{dotted path: [text, ...]}` of the `--config.` overrides.

    Raises:
      ConfigError: an unknown flag, one that cannot be read, or flags that exclude each other.
    """
    own, overrides = split_overrides(argv)
    flags = make_parser(description).read(own)
    if flags.devices and not flags.dry_run:
        raise ConfigError(
            f"--devices={flags.devices} makes fake devices for --dry_run; a run takes those that are there"
        )
    return flags, overrides


def split_overrides(argv: list[str]) -> tuple[list[str], Overrides]:
    """(the other arguments, overrides); `--config.a.b=1` and `--config.a.b 1` are the same."""
    own: list[str] = []
    overrides: Overrides = {}
    waiting = ""
    for argument in argv:
        if waiting and not argument.startswith("--"):
            overrides.setdefault(waiting, []).append(argument)
            waiting = ""
        elif waiting:
            break
        elif argument.startswith("--config."):
            path, given, text = argument.removeprefix("--config.").partition("=")
            if given:
                overrides.setdefault(path, []).append(text)
            elif path:
                waiting = path
            else:
                raise ConfigError("--config. names no field: say --config.section.field=VALUE")
        else:
            own.append(argument)
    if waiting:
        raise ConfigError(f"--config.{waiting} needs a value: --config.{waiting}=VALUE")
    return own, overrides


def expand(reference: str, overrides: Overrides) -> list[tuple[ConfigDict, dict[str, str]]]:
    """Every resolved config of a sweep with its own overrides; just one where each field has one value.

    Raises:
      ConfigError: no such experiment or field, a value that no run can use, or runs that would share a work directory.
    """
    base = load_experiment(reference)
    choices = []
    for path, texts in overrides.items():
        old = field(base, path)
        numeric = isinstance(old, int | float)
        values = [value for text in texts for value in (text.split(",") if numeric else [text])]
        for value in values:
            parse_value(old, value, path)
        choices.append([(path, value) for value in values])
    count = math.prod(map(len, choices))
    if count > MOST_RUNS:
        raise ConfigError(f"a sweep of {count} runs is more than {MOST_RUNS}: give the fields fewer values")
    points = []
    for combination in itertools.product(*choices):
        config = load_experiment(reference) if count > 1 else base
        for path, value in combination:
            override(config, path, value)
        points.append((resolve(config), dict(combination)))
        _check_training(points[-1][0])
    _refuse_unused_mixers([config for config, _ in points], overrides)
    _refuse_shared_directories(points)
    return points


def _check_training(config: ConfigDict) -> None:
    """What the trainer would refuse later, for every run of a sweep before the first starts."""
    from paperlab.training import mesh, optimizer, profiling

    mesh.parse_rules(config.mesh.rules)
    optimizer.check_names(config.optim)
    profiling.parse_range(config.profile.steps)


def _refuse_unused_mixers(configs: list[ConfigDict], overrides: Mapping[str, Any]) -> None:
    """An option of a mixer that no layer uses would be dropped without a word."""
    used = dict.fromkeys(name for config in configs for name in config.mixers)
    for path in overrides:
        section, _, rest = path.partition(".")
        name = rest.partition(".")[0]
        if section == "mixers" and name not in used:
            raise ConfigError(f"config.{path}: no layer of this model is {name!r} (there are {', '.join(used)})")


def _refuse_shared_directories(points: list[tuple[ConfigDict, dict[str, str]]]) -> None:
    """What may change when a run goes on does not name its directory, so the second run would continue the first."""
    seen: dict[Path, dict[str, str]] = {}
    for config, values in points:
        other = seen.setdefault(default_path(config), values)
        if other is not values:
            apart = [
                f"{path}={other[path]} and {path}={value}" for path, value in values.items() if other[path] != value
            ]
            raise ConfigError(
                f"two runs of this sweep would share one work directory ({', '.join(apart) or 'the same values twice'}): such "
                "fields may change when a run goes on; run them one by one, each with its own --workdir"
            )
