"""The same as real programs: what a shell sees, and a reader who goes away."""

import os
import subprocess
import sys

import pytest

from tests.bad_input.cases import text_folder, with_defaults
from tests.bad_input.test_table import check_one_line


def start(*command: str, **options) -> subprocess.CompletedProcess:
    """Runs `python -m command` to its end."""
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, timeout=300, check=False, **options)


def test_a_refusal_is_one_line_and_status_2_and_debug_shows_where(tmp_path):
    arguments = [
        *with_defaults(["--config.optim.freeze=embeding"], text_folder(tmp_path)),
        f"--workdir={tmp_path / 'run'}",
    ]
    done = start("paperlab.run", *arguments)
    check_one_line(done.stderr.decode(), ("config.optim.freeze", "matches no parameter"))
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()
    debugged = start("paperlab.run", "--config=experiments/gla.py", "--config.optim.lr=x", "--debug")
    assert b"Traceback" in debugged.stderr
    assert b"config.optim.lr=x: not a number" in debugged.stderr
    assert debugged.returncode != 0


@pytest.mark.parametrize(
    ("program", "argument", "told"),
    [
        ("paperlab.run", os.fsencode("--config=caf\udce9.py"), "there is no file 'caf\\udce9.py'"),
        ("paperlab.generate", os.fsencode("--workdir=caf\udce9"), "is not the work directory of a run"),
        ("paperlab.claims", b"--all=1", "--all takes no value"),
    ],
)
def test_bytes_that_are_no_text_can_be_told(program, argument, told):
    done = subprocess.run([sys.executable, "-m", program, argument], capture_output=True, timeout=300, check=False)
    check_one_line(done.stderr.decode(), (told,))
    assert done.returncode == 2


def test_generation_takes_any_bytes_and_ends_quietly_when_nobody_reads(tmp_path):
    workdir = tmp_path / "run ä"
    flags = [*with_defaults([], text_folder(tmp_path)), f"--workdir={workdir}"]
    trained = start("paperlab.run", *flags, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert trained.returncode == 0, trained.stderr.decode()
    command = [f"--workdir={workdir}", "--tokens=3", os.fsdecode(b"--prompt=a \xff b \xc3\xa4")]
    done = start("paperlab.generate", *command)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"a \xff b \xc3\xa4")
    unread = start_unread("-m", "paperlab.generate", *command)
    assert unread.returncode == 141
    assert unread.stderr == b"nobody reads the output any more\n"


def start_unread(*arguments: str) -> subprocess.CompletedProcess:
    """Runs Python with these arguments and an output that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, *arguments], stdout=write, stderr=subprocess.PIPE, timeout=300, check=False
        )
    finally:
        os.close(write)


def test_what_is_printed_after_the_reader_went_away_does_no_harm():
    code = """
from paperlab.commandline import tell
try:
    print("something", flush=True)
except BrokenPipeError as error:
    status = tell(error)
print("more")
raise SystemExit(status)
"""
    done = start_unread("-c", code)
    assert (done.returncode, done.stderr) == (141, b"nobody reads the output any more\n")
