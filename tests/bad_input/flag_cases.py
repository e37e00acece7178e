"""Experiment files, flags, work directories and sweeps that cannot be meant."""

from tests.bad_input.cases import Case, experiment, made, plain, text_folder, tiny, write

GLA = "--config=experiments/gla.py"
BASE = "from paperlab.config import base_config\n"

CASES: dict[str, Case] = {
    # experiment files
    "nothing": plain(told="--config is missing"),
    "no such file": plain("--config=experiments/glaa.py", told=("--config", "did you mean 'experiments/gla.py'?")),
    "nothing like it": plain("--config=/nowhere/x.py", told=("'/nowhere/x.py'", "did you mean")),
    "empty file name": plain("--config=", told=("--config", "name a file")),
    "a name too long": plain(f"--config={'x' * 5000}.py", told=("--config", "name too long")),
    "config is a folder": plain("--config=experiments", told="there is no file 'experiments'"),
    "not Python": made(lambda d: write(d, "a.txt", ""), "--config={}", told=("a.txt", "is not a Python file (.py)")),
    "syntax error": experiment("def get_config(:", told=("experiment.py does not load: SyntaxError", "line 1")),
    "zero bytes in Python": experiment("x = '\0'", told=("experiment.py does not load", "null bytes")),
    "not UTF-8 Python": made(
        lambda d: write(d, "a.py", b"x = '\xff'"), "--config={}", told=("a.py does not load: SyntaxError",)
    ),
    "raises when loaded": experiment("\n1 / 0", told=("experiment.py does not load: ZeroDivisionError", "(line 2)")),
    "exits when loaded": experiment("raise SystemExit(3)", told="experiment.py does not load: SystemExit"),
    "no get_config": experiment("x = 1", told="experiment.py has no function get_config(variant)"),
    "get_config is no function": experiment("get_config = 1", told="has no function get_config(variant)"),
    "get_config raises": experiment(
        "def get_config(variant):\n    raise KeyError('a\\nb')", told=("get_config raised KeyError", "(line 2)")
    ),
    "get_config sets a wrong type": experiment(
        f"{BASE}def get_config(v):\n    c = base_config()\n    c.train.steps = 'many'\n    return c",
        told=("get_config raised TypeError", "steps", "(line 4)"),
    ),
    "get_config sets an unknown field": experiment(
        f"{BASE}def get_config(v):\n    c = base_config()\n    c.train.stepps = 1\n    return c",
        told=("get_config raised", "stepps", "(line 4)"),
    ),
    "get_config returns a dict": experiment("def get_config(v):\n    return {}", told="must return a ConfigDict"),
    "no sections": experiment(
        "from ml_collections import ConfigDict\ndef get_config(v):\n    return ConfigDict({'seed': 1})",
        told=("there is no field config.program", "base_config()"),
    ),
    "a section is a number": experiment(
        f"{BASE}def get_config(v):\n    c = base_config()\n    with c.unlocked(), c.ignore_type():\n"
        "        c.train = 3\n    return c",
        told=("config.train=3: must be a section",),
    ),
    "rules that are numbers": experiment(
        f"{BASE}def get_config(v):\n    c = base_config()\n    c.optim.freeze = (1,)\n    return c",
        told=("config.optim.freeze=(1,): must be a tuple of texts",),
    ),
    "a true width": experiment(
        f"{BASE}def get_config(v):\n    c = base_config()\n    with c.ignore_type():\n        c.model.width = True\n    return c",
        told=("config.model.width=True: must be a whole number",),
    ),
    "an endless learning rate": experiment(
        f"{BASE}def get_config(v):\n    c = base_config()\n    c.optim.lr = float('inf')\n    return c",
        told=("config.optim.lr=inf: must be a finite number",),
    ),
    "no such variant": plain(f"{GLA}:no_gat", told=("no variant 'no_gat'", "did you mean 'no_gate'?")),
    "no variants at all": experiment(
        "VARIANTS = {'': 1}\ndef get_config(v):\n    return 1", variant=":a", told="has no variant 'a': it has none"
    ),
    # flags
    "no flag": plain("experiments/gla.py", GLA, told="say --config=experiments/gla.py"),
    "a word": plain(GLA, "train", told="'train' is no flag"),
    "misspelt flag": plain(GLA, "--workdri=x", told=("there is no flag --workdri", "did you mean --workdir?")),
    "unknown flag": plain(GLA, "--zzz", told=("there is no flag --zzz", "--help")),
    "forgotten config.": plain(GLA, "--lr=1e-3", told="did you mean --config.optim.lr=1e-3?"),
    "forgotten config. and spaces": plain(GLA, "--optim.lr", "1", told="did you mean --config.optim.lr=VALUE?"),
    "a flag with a value": plain(GLA, "--show=true", told="--show takes no value"),
    "a flag without one": plain(GLA, "--workdir", told="--workdir needs a value: --workdir=VALUE"),
    "show and dry run": plain(GLA, "--show", "--dry_run", told="--dry_run: not allowed with argument --show"),
    "show and evaluate": plain(GLA, "--show", "--eval_only", told="--eval_only: not allowed with argument --show"),
    "devices of a real run": plain(GLA, "--devices=4", told=("--devices=4", "--dry_run")),
    "no devices": plain(GLA, "--dry_run", "--devices=0", told=("--devices: 0 must be from 1 to 4096",)),
    "minus one device": plain(GLA, "--dry_run", "--devices=-1", told="--devices: -1 must be from 1"),
    "four devices": plain(GLA, "--dry_run", "--devices=four", told="--devices: 'four' is not a whole number"),
    "too many devices": plain(GLA, "--dry_run", f"--devices={10**9}", told="must be from 1 to 4096"),
    "an odd timeout": plain(GLA, "--lost_timeout=nan", told="--lost_timeout: nan must be a finite number"),
    # fields
    "an override without a value": plain(GLA, "--config.seed", told="--config.seed needs a value: --config.seed=VALUE"),
    "an override before a flag": plain(GLA, "--config.seed", "--show", told="--config.seed needs a value"),
    "an override of nothing": plain(GLA, "--config.=3", told="there is no field config.;"),
    "an override of nothing at all": plain(GLA, "--config.", told="--config. names no field"),
    "misspelt field": plain(
        GLA, "--config.optim.lrr=1", told=("no field config.optim.lrr", "did you mean config.optim.lr?")
    ),
    "the field alone": plain(GLA, "--config.lr=1", told="did you mean config.optim.lr?"),
    "field of another section": plain(GLA, "--config.train.lr=1", told="did you mean config.optim.lr?"),
    "a section": plain(GLA, "--config.optim=1", told=("config.optim is a section", "config.optim.b1")),
    "below a field": plain(GLA, "--config.optim.lr.x=1", told="there is no field config.optim.lr.x"),
    "an odd field": plain(GLA, "--config.öptim.lŕ\u200b\n=1", told=("no field", "did you mean config.optim.lr?")),
    "a long field": plain(GLA, f"--config.{'a.' * 3000}b=1", told="there is no field config.a.a."),
    # work directories
    "no work directory": tiny("--workdir=", told=("--workdir", "name a file or a directory")),
    "a work directory of odd bytes": tiny("--workdir=run\udcff", told=("--workdir: 'run\\udcff'", "checkpoints")),
    "work directory is a file": made(
        lambda d: write(d, "file", ""), "--workdir={}", told=("--workdir", "file is a file; name a directory")
    ),
    "work directory below a file": made(
        lambda d: write(d, "file", "") / "run", "--workdir={}", told=("--workdir", "cannot write to", "Not a directory")
    ),
    "work directory is a device": tiny("--workdir=/dev/null", told="/dev/null is a file; name a directory"),
    "a long work directory": tiny(f"--workdir=/tmp/{'x' * 300}", told=("--workdir", "name too long")),
    "of another thing": made(
        lambda d: write(d, "run/config.json", "[1]").parent,
        "--workdir={}",
        told=("config.json", "not a config", "no object"),
    ),
    "of a broken run": made(
        lambda d: write(d, "run/config.json", '{"seed": ').parent, "--workdir={}", told=("config.json", "not a config")
    ),
    "of a deep run": made(
        lambda d: write(d, "run/config.json", "[" * 100_000).parent,
        "--workdir={}",
        told=("config.json", "not a config"),
    ),
    "evaluate nothing": tiny(
        "--eval_only", "--workdir=/nowhere/run", told=("--eval_only", "/nowhere/run", "--workdir")
    ),
    "evaluate without a checkpoint": made(
        lambda d: write(d, "run/config.json", "{}").parent, "--workdir={}", "--eval_only", told="another configuration"
    ),
    # sweeps
    "show a sweep": plain(
        GLA, "--config.optim.lr=1,2", "--show", told=("a sweep has no --show", "give each field one value")
    ),
    "dry run of a sweep": plain(GLA, "--config.seed=1,2", "--dry_run", told="a sweep has no --show or --dry_run"),
    "a bad value in a sweep": tiny("--config.optim.lr=1e-3,fast", told="config.optim.lr=fast: not a number"),
    "an impossible value in a sweep": tiny(
        "--config.model.heads=2,3", told=("config.model.heads=3", "multiples of heads=3")
    ),
    "an empty value in a sweep": tiny("--config.seed=1,,2", told="config.seed=: not a whole number"),
    "a sweep of steps": tiny("--config.train.steps=1,2", told=("train.steps=1 and train.steps=2", "--workdir")),
    "the same twice": tiny("--config.seed=1,1", told=("share one work directory", "the same values twice")),
    "an endless sweep": plain(
        GLA,
        f"--config.seed={','.join(map(str, range(100)))}",
        f"--config.data.shuffle_seed={','.join(map(str, range(100)))}",
        told=("a sweep of 10000 runs", "fewer values"),
    ),
    # other runs
    "weights from nowhere": tiny("--config.init_from=/nowhere", told=("config.init_from=/nowhere", "no config.json")),
    "weights from text": made(
        text_folder, "--config.init_from={}", told=("config.init_from=", "is not the work directory of a run")
    ),
}
