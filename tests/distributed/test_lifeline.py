"""The roll call and the lifeline, with processes that hold nothing else; what the relay makes of the runtime's pages."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from paperlab.distributed import relay
from paperlab.distributed.lifeline import answer_roll_call
from paperlab.errors import ConfigError
from tests.distributed.processes import PATIENCE, ROOT, free_port

MEMBER = """
import sys, time
from paperlab import distributed as d
from paperlab.distributed.lifeline import Lifeline, answer_roll_call
from paperlab.distributed.streams import divide
who, of, port, deed = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
peers = answer_roll_call(f"127.0.0.1:{port}", who, of, 60)
divide(who)
d._line = line = Lifeline(who, of, peers, d._end_for_another)
d.working_in(sys.argv[5])
print(line.gather({"from": who}), flush=True)
print(line.gather(None), flush=True)
print("together", file=sys.stderr, flush=True)
if deed == "leave":
    line.gather(0)
    line.leave()
    sys.exit(0)
if deed in (f"fail{who}", "all", "0 later"):
    time.sleep(0.8 if deed == "0 later" and who == 0 else 0)
    error = ValueError("it is so")
    if d.fail(error, "error: it is so", 3):
        print("error: it is so", file=sys.stderr)
    d.leave(3)
time.sleep(100)
"""


def members(count, deed, workdir):
    """Processes with a lifeline and nothing else, past their roll call."""
    port = free_port()
    commands = [[sys.executable, "-c", MEMBER, str(i), str(count), str(port), deed, str(workdir)] for i in range(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, cwd=ROOT, **pipes) for command in commands]
    for process in started:
        line = process.stderr.readline()
        assert "together" in line, line
    return started


def ends(started):
    """(status, stdout, the rest of stderr) of each."""
    found = [(*process.communicate(timeout=PATIENCE), process.returncode) for process in started]
    return [(status, out, err) for out, err, status in found]


def test_they_agree_and_leave_together(tmp_path):
    found = ends(members(4, "leave", tmp_path))
    assert [status for status, _, _ in found] == [0] * 4
    assert found[0][1] == f"{[{'from': i} for i in range(4)]}\n{[None] * 4}\n"
    assert [out for _, out, _ in found[1:]] == [""] * 3
    assert [err for _, _, err in found] == [""] * 4


@pytest.mark.parametrize("victim", [0, 2])
def test_one_that_is_killed_is_named_and_the_others_end(tmp_path, victim):
    for step in (10, 200, 30):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    started = members(3, "stay", tmp_path)
    begin = time.monotonic()
    started[victim].send_signal(signal.SIGKILL)
    found = ends(started)
    assert time.monotonic() - begin < 60
    told = f"error: process {victim} was lost; the same command goes on from step 200\n"
    others = [i for i in range(3) if i != victim]
    assert [found[i][0] for i in others] == [1, 1]
    said = [found[i][2] for i in others]
    assert said == ([told, ""] if victim else [f"[process 1] {told}", f"[process 2] {told}"])


@pytest.mark.parametrize(
    ("deed", "told"),
    [("fail0", "it is so"), ("fail2", "process 2: it is so"), ("all", "it is so"), ("0 later", "it is so")],
)
def test_a_failure_is_said_once_and_its_status_is_that_of_all(tmp_path, deed, told):
    found = ends(members(3, deed, tmp_path))
    assert [status for status, _, _ in found] == [3] * 3
    assert [err for _, _, err in found] == [f"error: {told}\n", "", ""]


def called(address, who, of, timeout=30.0):
    """The roll call in a thread: (thread, [what became of it])."""
    became = []

    def answer():
        try:
            became.append(answer_roll_call(address, who, of, timeout))
        except ConfigError as error:
            became.append(str(error))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return thread, became


def together(*calls):
    """What became of roll calls (who, of, timeout) that run at once on one port."""
    address = f"127.0.0.1:{free_port()}"
    begun = [called(address, *call) for call in calls]
    for thread, _ in begun:
        thread.join(PATIENCE)
    return [became[0] for _, became in begun]


def test_fewer_come_than_were_expected():
    first, second = together((0, 4, 1.0), (2, 4))
    assert "of 4 processes these did not come within 1 s: 1, 3" in first
    assert second == first


def test_they_disagree_about_how_many_they_are():
    first, second = together((0, 3), (1, 2))
    assert "process 1 was started as one of 2, process 0 as one of 3" in first
    assert second == first


def test_two_of_the_same_number():
    for text in together((0, 3), (1, 3), (1, 3)):
        assert "two processes say that they are number 1" in text


def test_nobody_answers():
    (text,) = together((1, 2, 0.5))
    assert "no coordinator at 127.0.0.1:" in text
    assert "within 0.5 s (Connection refused)" in text
    _, became = called("no.such.host.invalid:1", 1, 2, 0.5)
    time.sleep(2)
    assert "no coordinator at no.such.host.invalid:1" in became[0]


def test_the_port_is_taken():
    port = free_port()
    with socket.create_server(("", port)):
        thread, became = called(f"127.0.0.1:{port}", 0, 2, 5.0)
        thread.join(PATIENCE)
    assert f"process 0 cannot listen on port {port} (Address already in use)" in became[0]


def test_strangers_at_the_port_are_sent_away():
    address = f"127.0.0.1:{free_port()}"
    first, became = called(address, 0, 2)
    time.sleep(0.5)
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"hello": 1}\n', b"\xff\xfe\n"):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10) as stranger:
            stranger.sendall(text)
    second, other = called(address, 1, 2)
    for thread in (first, second):
        thread.join(PATIENCE)
    assert list(became[0]) == [1]
    assert list(other[0]) == [0]


COORDINATOR_GONE = """E1123 13:09:52.774478   25942 coordination_service_agent.cc:288] Polled an error from coordination service.
F1123 13:09:52.774532   25942 client.h:86] Terminating process because the JAX distributed service detected fatal errors.
Additional GRPC error information from remote target coordination_service:
:UNAVAILABLE:Stream removed (Socket closed)
*** Check failure stack trace: ***
    @     0x7f7793e6d7d4  absl::lts_20260526::log_internal::LogMessage::SendToLog()
"""
SILENT = """E1123 13:10:53.418062   28421 coordination_service.cc:1518] [153] Use error polling to propagate: UNAVAILABLE: \
The following tasks are unhealthy (stopped sending heartbeats):
1
The tasks have crashed. Check the task logs for an earlier error.
F1123 13:10:53.419050   28432 client.h:86] Terminating process because the JAX distributed service detected fatal errors.
"""
OTHER = """[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1
W1123 13:10:53.418062   28421 cuda_executor.cc:99] a warning
F1123 13:10:53.418062   28421 cuda_dnn.cc:99] Check failed: something else
"""


@pytest.mark.parametrize(
    ("process", "text", "told"),
    [
        (
            2,
            COORDINATOR_GONE,
            "[process 2] error: process 0 was lost (is gone, or its machine is); the same command goes on",
        ),
        (0, SILENT, "error: process 1 was lost (sent no heartbeats); the same command goes on from step 7\n"),
        (2, SILENT, ""),
        (0, OTHER, "".join(OTHER.splitlines(keepends=True)[1:])),
        (1, "relay\n" + COORDINATOR_GONE.replace("relay", ""), "relay\n[process 1] error: process 0 was lost"),
    ],
)
def test_the_relay_says_the_one_line_that_matters(tmp_path, process, text, told):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    for done in (False, True):
        out = io.StringIO()
        sieve = relay.Relay(process, out)
        sieve.line(f"{relay.MARK}workdir={tmp_path}")
        for line in text.splitlines():
            sieve.line(line)
        if done:
            sieve.line(f"{relay.MARK}done=")
        sieve.end()
        assert out.getvalue().startswith(
            told if text == OTHER or not done else told.partition("[process")[0].partition("error")[0]
        )
        assert "absl::" not in out.getvalue()
        assert out.getvalue().count("was lost") == (0 if done else told.count("was lost"))


def test_the_relay_is_a_program_that_needs_nothing(tmp_path):
    command = [sys.executable, "-I", "-S", relay.__file__, "3"]
    ended = subprocess.run(
        command, input=COORDINATOR_GONE, capture_output=True, text=True, cwd=tmp_path, env={**os.environ}
    )
    assert ended.returncode == 0
    assert ended.stderr == (
        "[process 3] error: process 0 was lost (is gone, or its machine is); nothing was saved yet: run the same command again\n"
    )
    assert json.dumps(ended.stdout) == '""'
