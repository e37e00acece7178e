"""Every bad input there is a name for: one line on stderr that names the field or file and the mend, and nothing left behind."""

from pathlib import Path

import pytest

from paperlab import claims, generate
from paperlab.run import main
from tests.bad_input import data_cases, field_cases, flag_cases
from tests.bad_input.cases import Case, plain, with_defaults, write

RUN = {
    f"{room}: {name}": case
    for room, cases in (("flags", flag_cases.CASES), ("fields", field_cases.CASES), ("data", data_cases.CASES))
    for name, case in cases.items()
}


def check_one_line(shown: str, told: tuple[str, ...]) -> None:
    """The whole of stderr is one printable line that holds these words."""
    assert shown.endswith("\n"), shown
    line = shown[:-1]
    assert line.startswith("error: "), shown
    assert "\n" not in line
    assert line.isprintable(), ascii(line)
    assert "Traceback" not in line
    assert len(line) < 1100, len(line)
    for words in told:
        assert words in line, f"{words!r} is not in {line!r}"


def files(folder: Path) -> list[Path]:
    """All that lies in a folder, but for the locks of work directories that were there before."""
    return sorted(path for path in folder.rglob("*") if path.name != ".lock")


@pytest.mark.parametrize("name", RUN)
def test_a_run_that_cannot_be(name, tmp_path, capsys):
    case = RUN[name]
    arguments = case.arguments(tmp_path)
    workdir = tmp_path / "workdir"
    if not any(argument.startswith("--workdir") for argument in arguments) and "show" not in name:
        arguments.append(f"--workdir={workdir}")
    before = files(tmp_path)
    status = main(arguments)
    shown = capsys.readouterr()
    check_one_line(shown.err, case.told)
    assert status == case.status
    assert files(tmp_path) == before
    if name.startswith("data"):  # said before a model is made
        assert "params/" not in shown.out


def test_there_are_enough_of_them():
    assert len(RUN) >= 150


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run on text, and one on integers."""
    folder = tmp_path_factory.mktemp("runs")
    for i in range(4):
        write(folder, f"text/{i}.txt", f"document {i} " + "abc " * 50)
    assert main([*with_defaults([], folder / "text"), f"--workdir={folder / 'letters'}"]) == 0
    more = ["--config.data.sequence_length=32", "--config.task.num_pairs=2", f"--workdir={folder / 'integers'}"]
    assert main(with_defaults(more, folder / "text", ":mqar")) == 0
    return folder


GENERATE = {
    "nothing": plain(told="--workdir is missing"),
    "no run": plain("--workdir=/nowhere", told=("/nowhere is not the work directory of a run", "config.json")),
    "no name": plain("--workdir=", told=("--workdir", "name a file or a directory")),
    "a file": Case(lambda d: [f"--workdir={write(d, 'a', '')}"], ("is not the work directory of a run",)),
    "broken": Case(lambda d: [f"--workdir={write(d, 'config.json', '{').parent}"], ("config.json is damaged",)),
    "binary": Case(
        lambda d: [f"--workdir={write(d, 'config.json', bytes([255])).parent}"], ("config.json is damaged",)
    ),
    "a list": Case(lambda d: [f"--workdir={write(d, 'config.json', '[]').parent}"], ("config.json is damaged",)),
    "of nothing": Case(
        lambda d: [f"--workdir={write(d, 'config.json', '{}').parent}"], ("no field config.task", "config.json")
    ),
    "tokens": plain("--workdir=x", "--tokens=0", told="--tokens: 0 must be from 1"),
    "tokens in words": plain("--workdir=x", "--tokens=many", told="--tokens: 'many' is not a whole number"),
    "temperature": plain(
        "--workdir=x", "--temperature=-1", told="--temperature: -1 must be a finite number, at least 0"
    ),
    "temperature nan": plain("--workdir=x", "--temperature=nan", told="--temperature: nan must be"),
    "top_k": plain("--workdir=x", "--top_k=-1", told="--top_k: -1 must be from 0"),
    "seed": plain("--workdir=x", f"--seed={2**64}", told="--seed: 18446744073709551616 must be from 0 to 4294967295"),
    "misspelt": plain("--workdir=x", "--promt=a", told=("there is no flag --promt", "did you mean --prompt?")),
    "a word": plain("--workdir=x", "hello", told="'hello' is no flag"),
    "integers": Case(lambda d: [f"--workdir={d / 'integers'}"], ("tokens are integers", "integers")),
    "half a character": Case(lambda d: [f"--workdir={d / 'letters'}", "--prompt=a\ud800"], ("'\\ud800' is neither",)),
}


@pytest.mark.parametrize("name", GENERATE)
def test_a_text_that_cannot_be_continued(name, tmp_path, capsys, request):
    needs_runs = name in ("integers", "half a character")
    folder = request.getfixturevalue("runs") if needs_runs else tmp_path
    arguments = GENERATE[name].arguments(folder)
    capsys.readouterr()
    assert generate.main(arguments) == 2
    shown = capsys.readouterr()
    check_one_line(shown.err, GENERATE[name].told)
    assert shown.out == ""


def test_a_damaged_checkpoint_has_no_text(runs, capsys):
    (place,) = (runs / "letters" / "checkpoints").glob("1/metadata/metadata")
    whole = place.read_bytes()
    place.write_bytes(b"{")
    try:
        assert generate.main([f"--workdir={runs / 'letters'}"]) == 2
    finally:
        place.write_bytes(whole)
    check_one_line(capsys.readouterr().err, ("has no good checkpoint",))


CLAIMS = {
    "nothing": plain(told=("name a paper: gla", "--all")),
    "no such paper": plain("gle", told=("no paper 'gle'", "did you mean 'gla'?")),
    "no such claim": plain("gla", "--only=9.none", told=("gla has no claim '9.none'", "1.forms")),
    "all and one": plain("gla", "--all", told=("--all", "leave out gla")),
    "misspelt": plain("gla", "--onyl=1", told="did you mean --only?"),
    "no root": plain("gla", "--root=", told=("--root", "name a file or a directory")),
    "root is a file": Case(
        lambda d: ["gla", "--only=5.cache", f"--root={write(d, 'a', '')}"], ("--root=", "cannot write to")
    ),
    "damaged records": Case(
        lambda d: ["gla", "--only=5.cache", f"--root={write(d, 'gla.json', '{').parent}"],
        ("gla.json holds no records of claims", "mend it, or move it away"),
    ),
    "other records": Case(
        lambda d: ["gla", "--only=5.cache", f"--root={write(d, 'gla.json', '[]').parent}"],
        ("gla.json holds no records of claims",),
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_that_cannot_be_run(name, tmp_path, capsys):
    assert claims.main(CLAIMS[name].arguments(tmp_path)) == 2
    shown = capsys.readouterr()
    check_one_line(shown.err, CLAIMS[name].told)
    assert "root" in name or shown.out == ""  # no claim was run in vain
