"""A thread that knows at once when a process of the run is gone, and ends the others.

Every process keeps one connection to process 0, over which they answer the roll call at the start, agree on small values,
and say goodbye. A connection that ends without a goodbye is a lost process: its kernel closes it, whatever killed it. Then
process 0 says which, in one line, and all end. A machine that falls silent (power, network) closes nothing; for that jax's
own heartbeats stand behind, with `--lost_timeout`.
"""

import json
import os
import queue
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from paperlab.errors import ConfigError

RETRY = 0.2  # seconds between two tries to reach process 0
ALIKE = 0.5  # seconds for which another process waits, so that process 0 says what befalls all alike
FAREWELL = 5.0  # seconds that process 0 waits for the others to have heard how the run ends


class Lines:
    """JSON objects, one a line, over a socket."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._read = b""
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message; a connection that is gone swallows it."""
        try:
            with self._sending:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come, at least waiting for some bytes; None at the end of the connection."""
        try:
            part = self.socket.recv(65536)
        except TimeoutError:
            raise
        except OSError:
            return None
        if not part:
            return None
        *whole, self._read = (self._read + part).split(b"\n")
        return [json.loads(line) for line in whole]

    def one(self) -> dict[str, Any] | None:
        """The next message of a connection on which one at a time is sent; None at its end, or where it is none."""
        messages: list[dict[str, Any]] | None = []
        try:
            while messages == []:
                messages = self.receive()
        except ValueError:
            return None
        return messages[0] if messages else None


class Lifeline:
    """The connections of this process, and the thread that listens to them.

    Args:
      process, processes: which this is, of how many.
      peers: {process: connection}; on process 0 all the others, on those process 0 alone.
      on_end: called in the thread when the run is over for a reason that lies elsewhere, with (status, process it lies
        with, what happened or "" for a lost one); must end the program.
    """

    def __init__(self, process: int, processes: int, peers: dict[int, Lines], on_end: Callable[[int, int, str], None]):
        self.process, self.processes, self.peers = process, processes, peers
        self._on_end = on_end
        self._round = 0
        self._gathered: dict[int, dict[int, Any]] = {}
        self._changed = threading.Condition()
        self._ending = threading.Lock()
        self._gone: set[int] = set()
        self._told, self._over = threading.Event(), threading.Event()
        self._said: dict[str, Any] = {}
        self._alike: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._leaving = False
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def gather(self, value: Any) -> list[Any]:
        """The JSON values that all processes give here, in their order; all must come by, in the same order of calls."""
        with self._changed:
            self._round += 1
            this = self._round
        if self.process:
            self.peers[0].send({"round": this, "values": {str(self.process): value}})
        else:
            self._take(this, {self.process: value})
        with self._changed:
            self._changed.wait_for(lambda: len(self._gathered.get(this, {})) == self.processes)
            values = self._gathered.pop(this)
        if self.process == 0:
            for peer in self.peers.values():
                peer.send({"round": this, "values": {str(who): given for who, given in values.items()}})
        return [values[who] for who in range(self.processes)]

    def _take(self, this: int, values: dict[int, Any]) -> None:
        with self._changed:
            self._gathered.setdefault(this, {}).update(values)
            self._changed.notify_all()

    def fail(self, status: int, text: str, *, patience: float = 0.0) -> bool:
        """Tells the others that this process ends, and why; returns whether this process is to say so itself.

        One line is enough for all: process 0 says what befell another, and alone says what befell all alike.

        Args:
          patience: seconds to wait first for word of another process, whose end may be the cause of this failure.
        """
        if self._over.wait(patience + (ALIKE if self.process else 0.0)):
            self._alike.put(text)
            time.sleep(4 * FAREWELL)  # another thread ends the program
        with self._ending:
            self._leaving = True
        if self.process == 0:
            self._broadcast_end(status, 0, text)
            return True
        self.peers[0].send({"failed": text, "status": status})
        self._told.wait(FAREWELL)
        return not self._said or (self._said["process"] != self.process and self._said["text"] != text)

    def leave(self) -> None:
        """After the last thing that this process does with the others."""
        with self._ending:
            self._leaving = True
        for peer in self.peers.values():
            peer.send({"bye": True})

    def _listen(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for who, peer in self.peers.items():
                waiting.register(peer.socket, selectors.EVENT_READ, who)
            while waiting.get_map():
                for key, _ in waiting.select():
                    messages = self.peers[key.data].receive()
                    for message in messages or ():
                        self._heard(key.data, message)
                    if messages is None:
                        waiting.unregister(key.fileobj)
                        self._ended(key.data)

    def _heard(self, who: int, message: dict[str, Any]) -> None:
        if "round" in message:
            self._take(message["round"], {int(name): value for name, value in message["values"].items()})
        elif "bye" in message:
            self._note_gone(who)
        elif "failed" in message:
            self._end(message["status"], who, message["failed"])
        elif "end" in message:
            self._said = message
            self._told.set()
            self._end(message["end"], message["process"], message["text"])

    def _ended(self, who: int) -> None:
        known = who in self._gone
        self._note_gone(who)
        self._told.set()
        if not known:
            self._end(1, who, "")

    def _note_gone(self, who: int) -> None:
        with self._changed:
            self._gone.add(who)
            self._changed.notify_all()

    def _end(self, status: int, who: int, text: str) -> None:
        """Ends this process for what happened to another, unless it is ending already."""
        with self._ending:
            if self._leaving:
                return
            self._leaving = True
        self._over.set()
        threading.Thread(target=self._finish, args=(status, who, text), daemon=True).start()

    def _finish(self, status: int, who: int, text: str) -> None:
        """In a thread of its own: the listening one must go on, to hear that the others are gone."""
        self._note_gone(who)
        if self.process == 0:
            self._broadcast_end(status, who, text)
            who = 0 if text and self._befalls_0_too(text) else who
        self._on_end(status, who, text)

    def _befalls_0_too(self, text: str) -> bool:
        try:
            return self._alike.get(timeout=2 * ALIKE) == text
        except queue.Empty:
            return False

    def _broadcast_end(self, status: int, who: int, text: str) -> None:
        for peer in self.peers.values():
            peer.send({"end": status, "process": who, "text": text})
        with self._changed:
            self._changed.wait_for(lambda: self._gone >= set(self.peers), FAREWELL)


def answer_roll_call(address: str, process: int, processes: int, timeout: float) -> dict[int, Lines]:
    """Waits until all processes have found each other at process 0; returns this one's connections.

    Raises:
      ConfigError: within `timeout` seconds process 0 did not answer, or not all came; or they disagree about who they are.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    until = time.monotonic() + timeout
    if process == 0:
        peers = _call(address, int(port), processes, until, timeout)
    else:
        peers = {0: _answer(host, int(port), process, processes, until, timeout)}
    for peer in peers.values():
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return peers


def _call(address: str, port: int, processes: int, until: float, timeout: float) -> dict[int, Lines]:
    """Process 0: accepts the others until all have come."""
    if processes == 1:
        return {}
    try:
        server = _listening(port)
    except OSError as error:
        raise ConfigError(
            f"--coordinator={address}: process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}); another run "
            "may use it: choose another port"
        ) from error
    present: dict[int, Lines] = {}
    wrong = ""
    with server:
        while len(present) < processes - 1 and not wrong:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                lines = Lines(server.accept()[0])
                lines.socket.settimeout(10)
                hello = lines.one()
            except TimeoutError:
                if time.monotonic() < until:
                    continue
                missing = ", ".join(str(i) for i in range(1, processes) if i not in present)
                wrong = (
                    f"of {processes} processes these did not come within {timeout:g} s: {missing}; see why they did not "
                    "start, or give more time with --start_timeout"
                )
                break
            wrong = _admit(hello, lines, present, processes)
    for lines in present.values():
        lines.socket.settimeout(None)
        lines.send({"refused": wrong} if wrong else {"go": True})
    if wrong:
        raise ConfigError(wrong)
    return present


def _admit(hello: dict[str, Any] | None, lines: Lines, present: dict[int, Lines], processes: int) -> str:
    """Takes one that came; returns what is wrong with it, and strangers are sent away."""
    who, of = (hello.get("process"), hello.get("processes")) if isinstance(hello, dict) else (None, None)
    if not isinstance(who, int) or not isinstance(of, int):
        lines.socket.close()
        return ""
    present.setdefault(who, lines)
    if of != processes:
        wrong = (
            f"process {who} was started as one of {of}, process 0 as one of {processes}: start all with the same number"
        )
    elif present[who] is not lines or who == 0:
        wrong = f"two processes say that they are number {who}: give each its own"
    else:
        return ""
    lines.send({"refused": wrong})
    return wrong


def _listening(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", port), backlog=4096)


def _answer(host: str, port: int, process: int, processes: int, until: float, timeout: float) -> Lines:
    """The others: reach process 0, which may come later than they."""
    reason = "no answer"
    while (left := until - time.monotonic()) > 0:
        try:
            lines = Lines(socket.create_connection((host, port), timeout=left))
        except OSError as error:
            reason = error.strerror or str(error) or "no answer"
            time.sleep(min(RETRY, max(left, 0.001)))
            continue
        lines.send({"process": process, "processes": processes})
        try:
            said = lines.one()
        except TimeoutError:
            reason = "it listens, but does not answer"
            break
        if said is not None and "go" in said:
            lines.socket.settimeout(None)
            return lines
        if said is not None and "refused" in said:
            raise ConfigError(said["refused"])
        reason = "it listens, but does not answer"
        time.sleep(RETRY)
    raise ConfigError(
        f"no coordinator at {host}:{port} within {timeout:g} s ({reason}): is process 0 running there, and is the port open? "
        "--start_timeout gives it more time"
    )


def end_now(status: int) -> None:
    """Ends the program from any thread, without waiting for devices, saves or other processes."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)
