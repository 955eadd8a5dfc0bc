"""Renders the sbatch script of a run. Values are quoted for bash, and in #SBATCH lines for sbatch."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lhtrain.conf.schema import ClusterConfig, Launch
from lhtrain.quote import override
from lhtrain.slurm import quote


@dataclass(frozen=True)
class Job:
    """The settings of a run and of its SLURM job."""

    name: str
    run_dir: Path  # absolute
    work_dir: Path  # absolute; relative paths in the overrides start here
    cluster: ClusterConfig
    overrides: list[str]  # settings of the run, without run.dir and resume
    python: str
    version: str  # version of the code, for a comment in the script
    resume: str = "auto"  # until one attempt has started with it; then auto
    own: bool = False  # resume with the config.yaml of the run directory, changed by the overrides


def render(job: Job) -> str:
    """Return the script: #SBATCH lines, the command, and the decision after the command has ended."""
    cluster = job.cluster
    ranks = max(cluster.gpus_per_node, 1)
    parts = [
        _head(job),
        *(f"#SBATCH {option}" for option in _options(job, ranks)),
        "",
        f"run_dir={_sh(job.run_dir)}",
        f"python={_sh(job.python)}",
        f"max_restarts={cluster.max_restarts}",
        f"cd -- {_sh(job.work_dir)} || exit 1",
        TERM,
        *_setup(cluster.setup),
        BEGIN if job.resume == "auto" else BEGIN_WITH.replace("@RESUME@", job.resume),
        "overrides=(",
        *(f"  {_sh(argument)}" for argument in _arguments(job)),
        "  resume=auto  # continue from the newest checkpoint; start a new run if there is none"
        if job.resume == "auto"
        else '  "resume=$resume"',
        ")",
        _launch(cluster, ranks),
        END,
    ]
    return "\n".join(parts)


def _arguments(job: Job) -> list[str]:
    """Return the arguments of each rank without `resume=`: settings, or `resume DIR` and changed settings."""
    if job.own:
        return ["resume", str(job.run_dir), *job.overrides]
    return [*job.overrides, f"run.dir={override(str(job.run_dir))}"]


def _sh(text: object) -> str:
    return shlex.quote(str(text))


def _head(job: Job) -> str:
    return (
        "#!/bin/bash\n"
        f"# Written by lhtrain slurm submit. Code version: {job.version!a}.\n"
        "# Files in this folder: config.yaml, the full configuration; version.json, the code version;\n"
        "# attempts.json, the attempts of the job; JOB.out, the output of job number JOB.\n"
        "# To submit this script by hand, run in this folder: sbatch job.sh"
    )


def _options(job: Job, ranks: int) -> Iterator[str]:
    cluster = job.cluster
    yield f"--job-name={quote.job_name(job.name)}"
    yield f"--nodes={cluster.nodes}"
    yield f"--ntasks-per-node={ranks if cluster.launch is Launch.srun else 1}"
    yield f"--cpus-per-task={cluster.cpus_per_task}"
    if cluster.gpus_per_node:
        yield f"--gres=gpu:{cluster.gpus_per_node}"
    for option, value in {
        "mem": cluster.memory,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
    }.items():
        if value is not None:
            yield f"--{option}={quote.directive(value)}"
    if cluster.exclusive:
        yield "--exclusive"
    yield f"--signal=USR1@{cluster.signal_seconds}  # to the ranks, this many seconds before the time limit"
    yield "--requeue"
    yield "--output=%j.out"
    yield "--open-mode=append  # one file for all attempts"
    yield from (quote.directive(option) for option in cluster.extra_args)


def _setup(lines: list[str]) -> list[str]:
    return ["", "# cluster.setup", *lines] if lines else []


TERM = """
# This shell gets TERM if SLURM ends the job, but not if somebody signals only the ranks. It writes ended_by
# for the next attempt, because SLURM may kill it before the end of this script.
by=ranks
by_slurm() {
  [ "$by" = ranks ] || return  # TERM arrives twice
  by=slurm
  [ "$(squeue -h -j "$SLURM_JOB_ID" -o %r)" = TimeLimit ] && by=limit
  rm -f -- "$run_dir/slurm/ended_by"
  (set -C && printf '%s\\n' "$by" >"$run_dir/slurm/ended_by")  # noclobber: never write through a link
  [ "$by" = limit ] && scontrol requeue "$SLURM_JOB_ID"  # now: SLURM may kill the job during the save
}
trap by_slurm TERM"""

BEGIN = """
# Ask the run directory whether to run. A finished run has nothing to do.
case $("$python" -m lhtrain slurm begin "$run_dir" "$max_restarts") in
run) ;;
finished) exit 0 ;;
*) exit 1 ;;
esac
[ "$by" = ranks ] || exit 1
"""
BEGIN_WITH = """
# Ask the run directory whether to run. A finished run has nothing to do. Attempts use the submitted value of
# resume until one of them has started with it; later attempts continue from the newest checkpoint.
resume=@RESUME@
case $("$python" -m lhtrain slurm begin "$run_dir" "$max_restarts" "$resume") in
run) ;;
continue) resume=auto ;;
finished) exit 0 ;;
*) exit 1 ;;
esac
[ "$by" = ranks ] || exit 1
"""

RANK_BY_RANK = """
export MASTER_ADDR MASTER_PORT
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
run=("$python" -m @MODULE@ "${overrides[@]}")
"""
BY_TORCHRUN = """
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
# torchrun must not handle TERM: the ranks do, and save first. Newer versions read the second variable. If
# torchrun still forwards a signal, it must wait for a step and a save, which may exceed its default of 30 s.
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-3600}
run=("$python" -m torch.distributed.run --nnodes=@NODES@ --nproc-per-node=@RANKS@ --max-restarts=0
  --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
  -m @MODULE@ "${overrides[@]}")
"""
ALONE = """
run=("$python" -m @MODULE@ "${overrides[@]}")
"""

STEP = """
# SLURM sends USR1 and TERM to every process of the step. Both signals are blocked at first: they stay pending
# until a rank has installed its handlers, and they do not kill torchrun. After a signal the ranks exit with
# statuses other than 0 and not at the same time; --wait gives the last ones time to save.
hold='import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGTERM))
for number in signal.SIGUSR1, signal.SIGTERM: signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])'
step() {
  exec srun --ntasks=@TASKS@ --ntasks-per-node=@TASKS_PER_NODE@ --cpus-per-task=@CPUS@ \\
    --kill-on-bad-exit=0 --wait=120@SRUN_ARGS@ \\
    bash -c 'trap "" USR1 TERM; exec "$@"' rank "$python" -S -c "$hold" "${run[@]}"
}"""


def _launch(cluster: ClusterConfig, ranks: int) -> str:
    by_rank = cluster.launch is Launch.srun
    by_torchrun = ALONE if cluster.nodes * ranks == 1 else BY_TORCHRUN
    how = RANK_BY_RANK if by_rank else by_torchrun
    per_node = ranks if by_rank else 1
    values = {
        "MODULE": cluster.module,
        "NODES": cluster.nodes,
        "RANKS": ranks,
        "TASKS": cluster.nodes * per_node,
        "TASKS_PER_NODE": per_node,
        "CPUS": cluster.cpus_per_task,
        "SRUN_ARGS": "".join(f" {_sh(argument)}" for argument in cluster.srun_args),
    }
    text = how + STEP
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


END = """
# bash runs a trap only between commands, so the step runs in the background and this shell waits.
step &
step=$!
trap 'kill -s USR1 "$step"' USR1
while wait "$step"; status=$?; kill -0 "$step" 2>/dev/null; do :; done

case $("$python" -m lhtrain slurm end "$run_dir" "$status" "$by" "$max_restarts") in
finished) exit 0 ;;
requeue) scontrol requeue "$SLURM_JOB_ID" && exit 0 ;;
esac
exit "$((status ? status : 1))"
"""
