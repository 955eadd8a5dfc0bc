"""Where the ranks of a run meet and exchange values before they compute together.

A key-value store on rank 0's machine, not a process group: waiting in it has no time limit of its own, works
between ranks on different kinds of devices, and a rank that fails can say so to all others.
"""

import json
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

from lhtrain.distributed.ranks import Ranks, attempt, meeting_place
from lhtrain.errors import RunError
from lhtrain.process.stop import early
from lhtrain.process.threads import in_background, within

POLL = 0.1  # seconds between two looks into the store
UNRESOLVED = 20.0  # seconds that the name of a machine, perhaps still starting, may be unknown
STOP = (
    5.0  # seconds after a signal that a rank still waits for the others: they may come to their end together
)
LINGER = 10.0  # seconds that the rank with the store stays for the others to read why it ends
FAILED = "failed"

T = TypeVar("T")


class PeerFailed(RunError):
    """Another rank has failed and has reported why itself."""


class Meeting:
    """This rank's access to the store. Every rank must make the same exchanges in the same order."""

    def __init__(self, store: dist.Store, ranks: Ranks, is_host: bool):
        self.store, self.rank, self.size, self.is_host = store, ranks.rank, ranks.size, is_host
        self._count, self._who = 0, f"process {os.getpid()} on {platform.node()}"

    @classmethod
    def join(cls, ranks: Ranks, timeout: float) -> "Meeting":
        """Reach the store, which rank 0 (or torchrun) opens; wait for it for at most `timeout` seconds.

        Raises RunError: MASTER_ADDR or MASTER_PORT does not work; another process has the same rank.
        """
        address, port = meeting_place()
        place = f"MASTER_ADDR={address} MASTER_PORT={port}"
        _resolve(address, min(timeout, UNRESOLVED))
        is_host = ranks.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
        if not is_host:
            _await_server(address, port, place, timeout)
        limit = timedelta(seconds=timeout)

        def open_store() -> dist.Store:
            return dist.TCPStore(
                address, port, ranks.size, is_host, limit, wait_for_workers=False, multi_tenant=True
            )

        try:
            # With a limit of its own: PyTorch's client waits forever for a server that does not answer.
            store = in_background(open_store, "meeting").result(timeout + LINGER)
        except (RuntimeError, ValueError, TimeoutError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if is_host and not _is_local(address):
                rule = f"rank 0 runs on {platform.node()}, which does not have this address"
            elif is_host:
                rule = "rank 0 cannot listen there; MASTER_PORT must be a port that no other process uses"
            else:
                rule = "what answers there is not rank 0 of this run; MASTER_PORT must be a free port"
            raise RunError(f"{place}: {rule} ({reason})") from error
        # A store of torchrun's may serve several attempts.
        meeting = cls(dist.PrefixStore(f"lhtrain/{attempt()}", store), ranks, is_host)
        meeting._take_rank()
        return meeting

    def _take_rank(self) -> None:
        """Raises RunError: another process is this rank already."""
        key = f"taken/{self.rank}"
        if self.store.add(key, 1) == 1:
            self.store.set(f"who/{self.rank}", self._who)
            return
        self.wait([f"who/{self.rank}"])
        who = self.store.get(f"who/{self.rank}").decode()
        message = f"RANK={self.rank} is {who} already; every process of a run needs a RANK of its own"
        self.fail(message)
        raise RunError(message)

    def exchange(self, value: Any, timeout: float | None = None) -> list[Any]:
        """Every rank's value, by rank. Values are plain data, as JSON has them. timeout: None: no limit.

        Raises:
            PeerFailed: another rank has failed meanwhile.
            RunError: a rank has not come within `timeout` seconds.
        """
        self._count += 1
        name = f"exchange/{self._count}"
        self.store.set(f"{name}/{self.rank}", json.dumps(value, default=str))
        if self.rank == 0:
            keys = [f"{name}/{rank}" for rank in range(self.size)]
            self.wait(keys, timeout)
            together = ",".join(self.store.get(key).decode() for key in keys)
            self.store.set(f"{name}/all", f"[{together}]")
        # Rank 0 finds out who is missing: it gets the time to say so.
        self.wait([f"{name}/all"], None if timeout is None else timeout + LINGER)
        return json.loads(self.store.get(f"{name}/all"))

    def wait(self, keys: Sequence[str], timeout: float | None = None) -> None:
        """Until all `keys` are there; raises as `exchange` does."""
        ends = None if timeout is None else time.monotonic() + timeout
        asked = None  # when this rank first noticed a request to stop
        while not self.store.check(list(keys)):
            self.check()
            if early() is not None:
                asked = asked or time.monotonic()
                if time.monotonic() > asked + STOP:
                    self._stop()
            if ends is not None and time.monotonic() > ends:
                missing = [key.rpartition("/")[2] for key in keys if not self.store.check([key])]
                who = f"ranks {', '.join(missing)}" if len(keys) > 1 else "rank 0"
                message = f"{who} of {self.size} did not come within parallel.timeout={timeout:g} s"
                self.fail(message)
                raise RunError(message)
            time.sleep(POLL)

    def _stop(self) -> NoReturn:
        """End the process after a signal: nothing is lost, and the rank that it waits for may be gone."""
        received = early() or signal.SIGTERM
        message = f"{received.name}: stopped before the first step, while it waited for other ranks"
        if self.fail(message):
            print(f"lhtrain: {f'rank {self.rank}: ' if self.rank else ''}{message}", file=sys.stderr)
        sys.exit(128 + received)

    def next_turn(self, leader: int) -> str:
        """The key under which `leader` says that its machine's turn is over."""
        self._count += 1
        return f"turn/{self._count}/{leader}"

    def check(self) -> None:
        """Raises PeerFailed if another rank has failed."""
        if self.store.check([FAILED]):
            rank, who, _ = json.loads(self.store.get(FAILED))
            if who != self._who:
                raise PeerFailed(f"rank {rank}, {who}, has failed, and with it this run")

    def fail(self, message: str) -> bool:
        """Tell the other ranks, which may wait for this one, that it ends; returns whether to print why.

        It is not printed where rank 0 fails of the same and prints it.
        """
        first = self.store.compare_set(FAILED, "", json.dumps([self.rank, self._who, message]))
        return not (self.rank > 0 and json.loads(first)[0] == 0 and json.loads(first)[2] == message)

    def leave(self) -> None:
        """Before an end by an error: the rank that has the store waits a little, for the others to read."""
        self.store.set(f"left/{self.rank}", "")
        ends = time.monotonic() + LINGER
        others = [f"left/{rank}" for rank in range(1, self.size)]
        while self.is_host and not self.store.check(others) and time.monotonic() < ends:
            time.sleep(POLL)


def _resolve(address: str, patience: float) -> None:
    """Raises RunError: nothing is known under the name `address`, for `patience` seconds."""
    ends = time.monotonic() + patience
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > ends:
                rule = f"no machine of this name is known here, after {patience:g} s"
                raise RunError(f"MASTER_ADDR={address}: {rule} ({error})") from None
        time.sleep(POLL)


def _await_server(address: str, port: int, place: str, patience: float) -> None:
    """Until something listens at the port. PyTorch's own client prints pages while it waits."""
    ends = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((address, port), timeout=min(patience, 10.0)).close()
            return
        except OSError as error:
            if time.monotonic() > ends:
                rule = f"rank 0 does not answer there within parallel.timeout={patience:g} s"
                raise RunError(f"{place}: {rule}; is it running, and is the port open? ({error})") from None
        time.sleep(POLL)


def _is_local(address: str) -> bool:
    """Whether this machine has `address`."""
    for family, kind, protocol, _, place in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
                return True
        except OSError:
            continue
    return False


_met: list[Meeting] = []  # at most one a process, as PyTorch's default group


def meet(ranks: Ranks, timeout: float) -> Meeting:
    """The meeting of this process's ranks, joined at the first call."""
    if not _met:
        _met.append(Meeting.join(ranks, timeout))
    return _met[0]


def if_met(what: Callable[[Meeting], T]) -> T | None:
    """what(meeting), if there is one whose store answers soon; else None."""
    return within(LINGER + POLL, lambda: what(_met[0])) if _met else None
