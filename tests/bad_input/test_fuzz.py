"""Whatever is written, it is understood or refused in one line: overrides, flags, experiments' names, configs, data files."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperlab.config import digest, from_json, load_experiment, mathematics, resolve, to_json
from paperlab.data.text import open_corpus
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.flags import expand, parse_flags
from paperlab.overrides import flatten, override, parse_value
from paperlab.workdir import default_path

GLA = str(Path(__file__).parents[2] / "experiments" / "gla.py")
VARIANTS = ["", ":attention", ":hybrid", ":mqar"]
FIELDS = sorted({path for variant in VARIANTS for path, _ in flatten(load_experiment(GLA + variant))})
WORDS = sorted(
    {str(value) for variant in VARIANTS for _, value in flatten(load_experiment(GLA + variant))}
    | {
        "bfloat16",
        "float64",
        "full",
        "scalar",
        "none",
        "gla,attention",
        "attention,gla,gla",
        "adam",
        "linear",
        "validation",
    }
    | {
        "rollback",
        "3:7",
        "embedding$",
        "(a|b)$,c{1,2}",
        '["a,b"]',
        "embedding$=fsdp,tensor",
        "kernel$=0.1",
        "papers.gla.claims",
    }
)
NUMBERS = st.one_of(
    st.integers().map(str),
    st.integers(-3, 70).map(str),
    st.floats().map(str),
    st.sampled_from(["1e400", "-0", "0x10", "1_000", "١٢", "1e3", "1e-400", "9" * 5000, "+5", "0.5", "1,2", "2,,4"]),
)
VALUES = st.one_of(st.sampled_from(WORDS), NUMBERS, st.text(max_size=12), st.text("()[]{}'\",\\=.:-_ab01", max_size=8))
PATHS = st.one_of(
    st.sampled_from(FIELDS), st.sampled_from(FIELDS).flatmap(lambda p: st.just(p[:-1])), st.text(max_size=12)
)


def understood(call: Callable[[], object]) -> bool:
    """Whether a call does what it says, or refuses in one line; every other exception passes through."""
    try:
        call()
    except ConfigError as error:
        text = str(error)
        return bool(text) and text.isprintable() and len(text) < 1100
    return True


CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "subprocess.Popen", "socket.connect")
_written: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if "__pycache__" not in str(arguments[0]):
            _written.append(f"{event} {arguments[0]}")
    elif event in CHANGING and "__pycache__" not in str(arguments):
        _written.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@contextmanager
def nothing_written():
    """Fails where something inside writes a file, makes a folder, starts a program or calls out."""
    global _watching
    _written.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert _written == []


@given(
    st.sampled_from(VARIANTS), st.dictionaries(PATHS, st.lists(VALUES, min_size=1, max_size=2), min_size=1, max_size=3)
)
@settings(max_examples=150)
def test_every_override_is_understood_or_refused(variant, overrides):
    points: list = []
    with nothing_written():
        assert understood(lambda: points.extend(expand(GLA + variant, overrides)))
        for config, _ in points:
            assert understood(lambda config=config: find("tasks", config.task.name).make(config))
            assert default_path(config).parent == Path("runs")
            assert digest(from_json(to_json(config))) == digest(config)


@given(st.sampled_from(FIELDS), VALUES)
@settings(max_examples=150)
def test_one_field_at_a_time(path, text):
    variant = next(v for v in VARIANTS if path in dict(flatten(load_experiment(GLA + v))))
    config = load_experiment(GLA + variant)
    kind = type(dict(flatten(config))[path])
    assert understood(lambda: override(config, path, text))
    assert type(dict(flatten(config))[path]) is kind
    assert understood(lambda: resolve(config))


@given(
    st.one_of(
        st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text()).map(tuple)
    )
)
@settings(max_examples=200)
def test_what_a_value_looks_like_reads_back_as_that_value(value):
    read = parse_value(value, str(value), "section.field")
    assert read == value
    assert type(read) is type(value)


@given(st.text())
def test_a_text_is_itself_and_none_is_none(text):
    assert parse_value("", text, "section.field") == text
    assert parse_value(None, "None", "section.field") is None


CHANGES = {
    "optim.lr": ["1e-3", "0.001", "2e-3", "1"],
    "optim.warmup": ["0", "-0", "0.0", "0.1"],
    "model.width": ["32", "64", "+64"],
    "model.mixer": ["gla", "attention"],
    "mixers.gla.gate": ["none", "scalar"],
    "mixers.gla.short_conv": ["true", "1", "False"],
    "optim.freeze": ["", "()", "embedding$", "['embedding$']", "a,b", '("a", "b")'],
    "data.path": ["", "a", "ä"],
    "seed": ["0", "1"],
    "train.steps": ["10", "20"],
    "checkpoint.keep": ["1", "2"],
    "mesh.fsdp": ["1", "2"],
}


@given(*[st.dictionaries(st.sampled_from(sorted(CHANGES)), st.integers(0, 5), max_size=3)] * 2)
@settings(max_examples=60)
def test_a_run_has_the_name_of_its_mathematics(first, second):
    configs = []
    for chosen in (first, second):
        config = load_experiment(GLA)
        for path, number in chosen.items():
            override(config, path, CHANGES[path][number % len(CHANGES[path])])
        configs.append(resolve(config))
    one, other = configs
    assert (digest(one) == digest(other)) is (mathematics(one) == mathematics(other))


@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(json.dumps),
    )
)
def test_every_config_json_is_read_or_refused(text):
    assert understood(lambda: dict(from_json(text)))


@given(st.one_of(st.text(), st.text().map(lambda t: f"{GLA}:{t}"), st.text().map(lambda t: GLA[:-3] + t)))
def test_every_experiment_is_found_or_refused(reference):
    assert understood(lambda: load_experiment(reference))


FLAGS = st.sampled_from(
    [
        "--config",
        "--workdir",
        "--show",
        "--dry_run",
        "--devices",
        "--eval_only",
        "--process",
        "--config.seed",
        "--config.",
        "--",
        "-",
        "-x",
    ]
)


@given(st.lists(st.one_of(st.text(max_size=8), FLAGS, st.tuples(FLAGS, VALUES).map("=".join)), max_size=5))
@settings(max_examples=150)
def test_every_command_line_is_read_or_refused(arguments):
    asks_for_help = any(argument.startswith("-h") or argument == "--help" for argument in arguments)
    if not asks_for_help:
        assert understood(lambda: parse_flags([f"--config={GLA}", *arguments]))


def _good_files(folder: Path) -> dict[str, bytes]:
    from tests.bad_input.cases import parquet, words_tokenizer
    from tests.data.conftest import write

    texts = [f"a text {i} ä" for i in range(4)]
    jsonl, packed = (Path(write(kind, folder / kind.replace(".", ""), texts)) for kind in ("jsonl", "jsonl.gz"))
    return {
        "a.txt": "\n".join(texts).encode(),
        "a.jsonl": jsonl.read_bytes(),
        "a.jsonl.gz": packed.read_bytes(),
        "a.parquet": parquet(folder, "text", texts).read_bytes(),
        "a.bin": bytes(range(64)),
        "a.json": b'{"dtype": "uint16", "vocab_size": 30000, "eos": 3}',
        "words.json": words_tokenizer(folder).read_bytes(),
    }


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, _good_files(folder)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.bin", "a.json", "words.json"])
@given(data=st.data())
@settings(max_examples=20)
def test_every_data_file_is_read_or_refused(good, name, data):
    folder, files = good
    whole = files[name]
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(start + 12, len(whole))))
    for other in ("a.bin", "a.json", "words.json"):
        (folder / other).write_bytes(files[other])
    (folder / name).write_bytes(whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:])
    options = {"path": str(folder / ("a.bin" if name == "a.json" else "a.txt" if name == "words.json" else name))}
    if name == "words.json":
        (folder / "a.txt").write_bytes(files["a.txt"])
        options["tokenizer"] = str(folder / name)
    assert understood(lambda: len(open_corpus({**options, "cache_dir": str(folder / "cache")}).train))
