"""Commands on SLURM jobs."""

from lhtrain.commands.command import Command, argument
from lhtrain.commands.described.shared import CONFIG_DIR, DRY_RUN, RUN_DIR, STEPS

SLURM = Command(
    "slurm",
    "submit, resume and extend runs as SLURM jobs, and list runs",
    details="""\
A job saves a checkpoint before its time limit, requeues itself, and then continues.

Examples
  lhtrain slurm submit model=gpt_1b run.batch_tokens=2097152 cluster=gpu8 cluster.nodes=4 --dry-run
  lhtrain slurm submit cluster.partition=gpu cluster.gpus_per_node=1 cluster.time=4:00:00 run.dir=runs/mine
  lhtrain slurm resume runs/mine cluster.nodes=2
  lhtrain slurm extend runs/mine steps=+2000
  lhtrain slurm status runs

Settings that are changed most often
  cluster.nodes=2  cluster.gpus_per_node=8  cluster.cpus_per_task=64  cluster.memory=0
  cluster.partition=NAME  cluster.account=NAME  cluster.qos=NAME  cluster.exclusive=true
  cluster.time=24:00:00          time limit of a job; SLURM reads a plain number as minutes
  cluster.launch=torchrun        one task per node, which starts the ranks; srun: one task per rank
  cluster.signal_seconds=300     how many seconds before the time limit the job saves and requeues
  cluster.max_restarts=3         attempts that may crash or make no step before the job gives up
  'cluster.setup=["module load cuda"]'       lines of bash that run first; note the two kinds of quotes
  'cluster.extra_args=["--mail-type=FAIL"]'  further options of sbatch

lhtrain help cluster lists all of them, lhtrain help cluster.KEY explains one.""",
    docs=("slurm",),
)

SLURM_SUBMIT = Command(
    "slurm submit",
    "submit a run as a job",
    "lhtrain.commands.slurm:submit",
    (DRY_RUN, CONFIG_DIR),
    settings=True,
    details="""\
Takes the same settings as training, and cluster.*, which describe the job. The job script, all settings and
the version of the code are written to the folder slurm in run.dir; then sbatch is called. Settings that do
not fit the newest checkpoint in run.dir are refused now, not when the job starts.

Examples
  lhtrain slurm submit model=gpt_1b run.batch_tokens=2097152 cluster=gpu8 cluster.nodes=4 --dry-run
  lhtrain slurm submit cluster.partition=gpu cluster.gpus_per_node=1 run.dir=runs/mine""",
    docs=("slurm",),
)

SLURM_RESUME = Command(
    "slurm resume",
    "continue a run as a job, with its own settings",
    "lhtrain.commands.slurm:resume",
    (DRY_RUN, RUN_DIR),
    settings=True,
    details="""\
KEY=VALUE changes a setting of the run, or of the job: cluster.*.

Examples
  lhtrain slurm resume runs/mine cluster.nodes=2
  lhtrain slurm resume runs/mine --dry-run""",
    docs=("slurm",),
)

SLURM_EXTEND = Command(
    "slurm extend",
    "give a run more steps and continue it as a job",
    "lhtrain.commands.slurm:extend",
    (RUN_DIR,),
    (STEPS,),
    settings=True,
    details="""\
`lhtrain extend --help` explains what happens to the stages and the learning rate.

Examples
  lhtrain slurm extend runs/mine steps=+2000""",
    docs=("slurm",),
)

SLURM_STATUS = Command(
    "slurm status",
    "list the runs in folders, with their jobs and progress",
    "lhtrain.commands.slurm:status",
    (argument("FOLDER", nargs="*", default=["runs"], help="folders that contain runs; default: runs"),),
    details="""\
Examples
  lhtrain slurm status
  lhtrain slurm status runs /scratch/runs""",
    docs=("slurm",),
)

# Only job scripts call these two.
SLURM_BEGIN = Command(
    "slurm begin",
    "decide whether an attempt of a job starts or resumes the run",
    "lhtrain.commands.job:begin",
    (argument("DIR"), argument("MAX_RESTARTS", type=int), argument("RESUME", nargs="*")),
    hidden=True,
)
SLURM_END = Command(
    "slurm end",
    "decide what happens after an attempt of a job",
    "lhtrain.commands.job:end",
    (argument("DIR"), argument("STATUS", type=int), argument("BY"), argument("MAX_RESTARTS", type=int)),
    hidden=True,
)
