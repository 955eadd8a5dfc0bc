"""The rendezvous of the ranks: they find each other and exchange values before they compute together.

It uses a key-value store on the machine of rank 0 and not a process group: a wait has no fixed time limit,
the ranks may have different kinds of devices, and a failed rank can report its error to all others.
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

POLL = 0.1  # seconds between two checks of the store
UNRESOLVED = 20.0  # seconds to retry an unknown host name: the machine may still be starting
# Seconds that a rank still waits for the others after a signal: they may all reach the end together.
STOP = 5.0
LINGER = 10.0  # seconds that the rank with the store waits for the others to read its error
FAILED = "failed"

T = TypeVar("T")


class PeerFailed(RunError):
    """Another rank failed. That rank prints the reason."""


class Meeting:
    """Access of this rank to the store. Every rank must make the same exchanges in the same order."""

    def __init__(self, store: dist.Store, ranks: Ranks, is_host: bool):
        self.store, self.rank, self.size, self.is_host = store, ranks.rank, ranks.size, is_host
        self._count, self._who = 0, f"process {os.getpid()} on {platform.node()}"

    @classmethod
    def join(cls, ranks: Ranks, timeout: float) -> "Meeting":
        """Connect to the store, which rank 0 or torchrun opens; wait for at most `timeout` seconds.

        Raises RunError: MASTER_ADDR or MASTER_PORT does not work, or another process has the same rank.
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
            # In a thread with a time limit: PyTorch's client waits forever for a server that does not answer.
            store = in_background(open_store, "meeting").result(timeout + LINGER)
        except (RuntimeError, ValueError, TimeoutError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if is_host and not _is_local(address):
                here = f"rank 0 runs on {platform.node()}, which does not have this address"
                rule = f"{here}; MASTER_ADDR must be an address of that machine"
            elif is_host:
                rule = "rank 0 cannot listen at this port; MASTER_PORT must be a free port"
            else:
                rule = "the process that answers is not rank 0 of this run; MASTER_PORT must be a free port"
            raise RunError(f"{place}: {rule} ({reason})") from error
        # torchrun's store may serve several attempts.
        meeting = cls(dist.PrefixStore(f"lhtrain/{attempt()}", store), ranks, is_host)
        meeting._take_rank()
        return meeting

    def _take_rank(self) -> None:
        """Register this process under its rank. Raises RunError: another process has the same rank."""
        key = f"taken/{self.rank}"
        if self.store.add(key, 1) == 1:
            self.store.set(f"who/{self.rank}", self._who)
            return
        self.wait([f"who/{self.rank}"])
        who = self.store.get(f"who/{self.rank}").decode()
        message = f"RANK={self.rank}: already used by {who}; every process of a run needs a different RANK"
        self.fail(message)
        raise RunError(message)

    def exchange(self, value: Any, timeout: float | None = None) -> list[Any]:
        """Return the values of all ranks, by rank.

        Args:
            value: plain data that JSON can store.
            timeout: seconds; None for no limit.

        Raises:
            PeerFailed: another rank failed.
            RunError: a rank did not join within `timeout` seconds.
        """
        self._count += 1
        name = f"exchange/{self._count}"
        self.store.set(f"{name}/{self.rank}", json.dumps(value, default=str))
        if self.rank == 0:
            keys = [f"{name}/{rank}" for rank in range(self.size)]
            self.wait(keys, timeout)
            together = ",".join(self.store.get(key).decode() for key in keys)
            self.store.set(f"{name}/all", f"[{together}]")
        # Rank 0 detects which ranks are missing; allow it time to report them.
        self.wait([f"{name}/all"], None if timeout is None else timeout + LINGER)
        return json.loads(self.store.get(f"{name}/all"))

    def wait(self, keys: Sequence[str], timeout: float | None = None) -> None:
        """Wait until the store has all `keys`. Raises as `exchange` does."""
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
                late = f"{who} of {self.size} did not join within parallel.timeout={timeout:g} s"
                message = f"{late}; check that all ranks run"
                self.fail(message)
                raise RunError(message)
            time.sleep(POLL)

    def _stop(self) -> NoReturn:
        """End the process after a signal: no steps are lost, and the awaited rank may be gone."""
        received = early() or signal.SIGTERM
        message = f"{received.name}: stopped before the first step, while waiting for other ranks"
        if self.fail(message):
            print(f"lhtrain: {f'rank {self.rank}: ' if self.rank else ''}{message}", file=sys.stderr)
        sys.exit(128 + received)

    def next_turn(self, leader: int) -> str:
        """Return the key that `leader` sets when the turn of its machine is over."""
        self._count += 1
        return f"turn/{self._count}/{leader}"

    def check(self) -> None:
        """Raise PeerFailed if another rank has failed."""
        if self.store.check([FAILED]):
            rank, who, _ = json.loads(self.store.get(FAILED))
            if who != self._who:
                raise PeerFailed(f"rank {rank} ({who}) failed, so this rank ends too")

    def fail(self, message: str) -> bool:
        """Report to the other ranks that this one ends; return whether this rank must print `message`.

        It must not if rank 0 failed with the same message, because rank 0 prints it.
        """
        first = self.store.compare_set(FAILED, "", json.dumps([self.rank, self._who, message]))
        return not (self.rank > 0 and json.loads(first)[0] == 0 and json.loads(first)[2] == message)

    def leave(self) -> None:
        """Before this rank ends by an error: if it has the store, let the others read the error."""
        self.store.set(f"left/{self.rank}", "")
        ends = time.monotonic() + LINGER
        others = [f"left/{rank}" for rank in range(1, self.size)]
        while self.is_host and not self.store.check(others) and time.monotonic() < ends:
            time.sleep(POLL)


def _resolve(address: str, patience: float) -> None:
    """Resolve the host name. Raises RunError: it cannot be resolved within `patience` seconds."""
    ends = time.monotonic() + patience
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > ends:
                rule = f"the name cannot be resolved on this machine within {patience:g} s"
                raise RunError(f"MASTER_ADDR={address}: {rule} ({error})") from None
        time.sleep(POLL)


def _await_server(address: str, port: int, place: str, patience: float) -> None:
    """Wait until a server listens at the port. PyTorch's client would print many warnings while it waits."""
    ends = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((address, port), timeout=min(patience, 10.0)).close()
            return
        except OSError as error:
            if time.monotonic() > ends:
                rule = f"rank 0 does not answer within parallel.timeout={patience:g} s"
                raise RunError(
                    f"{place}: {rule}; check that it runs and that the port is open ({error})"
                ) from None
        time.sleep(POLL)


def _is_local(address: str) -> bool:
    """Return whether this machine has `address`."""
    for family, kind, protocol, _, place in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
                return True
        except OSError:
            continue
    return False


_met: list[Meeting] = []  # at most one in a process, like PyTorch's default group


def meet(ranks: Ranks, timeout: float) -> Meeting:
    """Return the meeting of this process; the first call joins it."""
    if not _met:
        _met.append(Meeting.join(ranks, timeout))
    return _met[0]


def if_met(what: Callable[[Meeting], T]) -> T | None:
    """Return what(meeting) if there is a meeting and its store answers soon, else None."""
    return within(LINGER + POLL, lambda: what(_met[0])) if _met else None
