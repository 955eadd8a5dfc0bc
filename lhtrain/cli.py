"""The program `lhtrain`: runs the command that is named, or training. Commands raise errors; only this file
prints them and exits."""

import os
import sys
from typing import NoReturn

import lhtrain
from lhtrain.commands.help import help_of, overview
from lhtrain.commands.table import COMMANDS, find, members
from lhtrain.distributed.torchrun import record
from lhtrain.errors import DISK_ERRORS, LOST_CONTACT, Ended, ExplainedError, of_interrupt
from lhtrain.health import signals
from lhtrain.process.streams import never_fail


def main(words: list[str] | None = None) -> None:
    """Run the command of `words`, or of `sys.argv`. Raises SystemExit unless the status is 0."""
    try:
        if status := _run(sys.argv[1:] if words is None else words):
            sys.exit(status)
    except ExplainedError as error:
        fail(str(error), error.status)
    except Ended as end:
        fail(end.message, int(end.code or 0), end.of_all)
    except KeyboardInterrupt as error:
        fail(*of_interrupt(error))
    except BrokenPipeError:  # lhtrain … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
        sys.exit(1)
    except OSError as error:  # a full disk behind stdout, a file that cannot be read
        if error.errno not in DISK_ERRORS:
            raise
        where = (
            ""
            if error.filename is not None
            else "; probably where the output is written: choose another place"
        )
        fail(f"{error}{where}", status=1)


def _run(words: list[str]) -> int | None:
    """Run the command that `words` name; return the exit status. Raises ExplainedError, Ended."""
    if words == ["--version"]:
        print(f"lhtrain {lhtrain.__version__}")
        return 0
    if words[:1] == ["-sc"]:  # called by the completion scripts, which Hydra wrote
        return COMMANDS["completion"].run(words[1:])
    command, rest = find(words)
    if {"-h", "--help"} & set(rest) or (members(command.name) and not rest):
        print(overview() if rest == words else help_of(command))
        return 0
    if command.trains:  # before the imports of training, which take seconds
        begin_training()
        return command.run(rest)
    with signals.interrupting():
        return command.run(rest)


def begin_training() -> None:
    """Remember signals of a scheduler from now on, and never fail because of printing."""
    signals.watch()
    never_fail()


def fail(message: str, status: int = 2, of_all: bool | None = None) -> NoReturn:
    """End the program with `message` on stderr. Status 2 means that the arguments are wrong.

    of_all: whether all ranks end with this message, so that only the first one prints it; by default if the
    status is 2.
    """
    of_slurm = os.environ if "SLURM_STEP_ID" in os.environ else {}
    rank = os.environ.get("RANK") or of_slurm.get("SLURM_PROCID", "0")
    size = os.environ.get("WORLD_SIZE") or of_slurm.get("SLURM_NTASKS", "1")
    # If the variables of a launcher are incomplete or unreadable, there may be no first rank.
    is_first = rank == "0" or not rank.isdecimal() or not size.isdecimal() or int(rank) >= int(size)
    of_all = status == 2 if of_all is None else of_all
    if message != LOST_CONTACT:  # another rank is the cause
        record(message, of_all)
    if is_first or not of_all:
        print(f"lhtrain: {f'rank {rank}: ' if rank != '0' else ''}{message}", file=sys.stderr)
    sys.exit(status)
