"""Every command of the program, with its words, options and help.

Dispatch, help, "did you mean" and shell completion are made of this table alone. A command's module is
imported when it runs: `lhtrain --help` imports neither Hydra nor PyTorch.
"""

import os
from argparse import ArgumentTypeError

from lhtrain.commands.command import Command, Key, argument, nearest
from lhtrain.errors import UsageError


def _folder(text: str) -> str:
    if not text.strip():
        raise ArgumentTypeError("is empty; give a folder, . for the current one")
    return os.path.expanduser(text)


CONFIG_DIR = argument(
    *("--config-dir", "-cd"),
    metavar="DIR",
    action="append",
    default=[],
    type=_folder,
    help="a folder with groups of files of your own; may be given several times",
)
DRY_RUN = argument("--dry-run", action="store_true", help="print the job's script; write and submit nothing")
RUN_DIR = argument("DIR", type=_folder, help="directory of a run; DIR/config.yaml has its settings")
STEPS = Key("steps", "+N|N", "so many more steps, or so many in all")

TRAIN = Command(
    "train",
    "train a model; without a command's name this is what runs",
    "lhtrain.commands.train:train",
    (
        argument(
            "-m",
            "--multirun",
            action="store_true",
            help="a run for every combination of the values between commas",
        ),
        CONFIG_DIR,
        argument("-cn", "--config-name", metavar="NAME", help="another file than config.yaml"),
        argument("-cp", "--config-path", metavar="DIR", help="another folder than lhtrain's own"),
        argument(
            "-c",
            "--cfg",
            choices=("job", "hydra", "all"),
            help="print the configuration, do not train",
        ),
        argument("--resolve", action="store_true", help="with --cfg: follow interpolations"),
        argument("-p", "--package", metavar="KEY", help="with --cfg: this part alone"),
        argument(
            "-i",
            "--info",
            nargs="?",
            const="all",
            metavar="WHAT",
            help="what Hydra knows: config, plugins, searchpath …",
        ),
        argument("--hydra-help", action="store_true", help="Hydra's own help"),
    ),
    settings=True,
    trains=True,
    details="""\
Examples
  lhtrain                                              both stages, on this machine's own text
  lhtrain stage=two_stage data=text data.path=books/   your own files
  lhtrain -m optim.lr=1e-3,2e-3                        one run for each value
  lhtrain --cfg job                                    every key and its value, without running
  torchrun --nproc-per-node=8 -m lhtrain run.batch_tokens=32768   eight ranks, FSDP; parallel.cp=2 and others

Keys most often set (lhtrain help KEY explains any; lhtrain help run lists a group's)
  run.steps=400              optimizer steps, over all stages
  run.batch_tokens=65536     tokens of a step, over all ranks
  model.seq_len=8192         context length; stages.recovery.seq_len=… for one stage alone
  stages.lighthouse.steps=300   or stages.lighthouse.fraction=0.75 of run.steps
  lighthouse.budget=1536     k, from which the number of rows that a Lighthouse layer selects follows
  run.dir=runs/mine          where everything goes

Text is kept as it is typed. A list is [A,B], null is none; quotes keep commas and brackets together.""",
)

RESUME = Command(
    "resume",
    "continue a run from its newest sound checkpoint",
    "lhtrain.commands.resume:resume",
    (RUN_DIR,),
    settings=True,
    trains=True,
    details="""\
The run continues with its own configuration. KEY=VALUE replaces one of its values. Settings that change what
is learnt need resume=force too, whether they are given here or were edited in config.yaml.

Examples
  lhtrain resume runs/mine
  lhtrain resume runs/mine checkpoint.every=50
  lhtrain resume runs/mine optim.lr=1e-4 resume=force
  torchrun --nproc-per-node=8 -m lhtrain resume runs/mine""",
)

EXTEND = Command(
    "extend",
    "lengthen a run, finished or not, and continue it",
    "lhtrain.commands.resume:extend",
    (RUN_DIR,),
    (STEPS,),
    settings=True,
    trains=True,
    details="""\
The steps are added to the run's last stage. The learning rates that follow are printed before training
starts: with the default schedule the rate rises to its constant value again and decays over the last fifth of
the longer run. steps=N, so many in all, may be repeated: it changes nothing the second time. KEY=VALUE is as
for `lhtrain resume`.

Examples
  lhtrain extend runs/mine steps=+2000
  lhtrain extend runs/mine steps=12000""",
)

DATA = Command(
    "data",
    "prepare texts as token shards, verify and inspect them",
    details="""\
Examples
  lhtrain data prepare data=text data.path=books/ data.out=/data/books
  lhtrain data verify /data/books
  lhtrain data inspect /data/books --document 3
  lhtrain data=prepared data.path=/data/books                  train on what was prepared
  lhtrain data=mix 'data.mix={web: {path: /data/edu, weight: 3}, code: {path: /data/code, weight: 1}}'""",
)

DATA_PREPARE = Command(
    "data prepare",
    "turn texts into token shards, once, for training to read",
    "lhtrain.commands.data:prepare",
    (CONFIG_DIR,),
    settings=True,
    details="""\
Takes the settings of training, of which it reads data.* alone.

Sources
  data=stdlib  this Python's standard library       data=text   files and folders, a document each
  data=code    folders, each one document           data=files  JSON lines (.gz, .xz, .zst), parquet, arrow
  data=hf      a dataset of the Hugging Face hub

Keys most often set
  data.out=FOLDER        where the shards go; else a folder of the cache, whose name is printed
  data.tokenizer=bytes   or gpt2, r50k_base, p50k_base, cl100k_base, o200k_base, or a tokenizer.json;
                         data.eos=TOKEN names its end-of-text token, if it has none of a known name
  data.max_tokens=N      and data.max_documents=N: stop there;  data.workers=N processes
  data.column=text       where the text is;  data.filters: ["COLUMN >= VALUE", "chars > 200"]

Examples
  lhtrain data prepare data=text data.path=books/ data.out=/data/books
  lhtrain data prepare data=code 'data.path=repos/*' data.out=/data/code data.tokenizer=cl100k_base
  lhtrain data prepare data=files data.path=dump/ data.column=content 'data.filters=["score >= 3"]'
  lhtrain data prepare data=hf data.name=HuggingFaceFW/fineweb-edu data.subset=sample-10BT \\
      data.max_tokens=1000000000 data.tokenizer=gpt2 data.out=/data/edu

After any stop the same command continues after the last finished shard; the result does not depend on the
number of workers. lhtrain help data.KEY explains a key.""",
)

_FOLDERS = argument("FOLDER", nargs="+", help="a folder of prepared shards: data.out of lhtrain data prepare")

DATA_VERIFY = Command(
    "data verify",
    "compare every file of prepared folders with its checksum",
    "lhtrain.commands.data:verify",
    (_FOLDERS,),
    details="""\
All faults are reported. The exit status is 1 if there is one.

Examples
  lhtrain data verify /data/edu /data/code""",
)

DATA_INSPECT = Command(
    "data inspect",
    "show what prepared folders hold, and one document of each",
    "lhtrain.commands.data:inspect",
    (_FOLDERS, argument("--document", metavar="N", default="0", help="the number of the document, from 0")),
    details="""\
Examples
  lhtrain data inspect /data/edu
  lhtrain data inspect /data/edu --document 17""",
)

ESTIMATE = Command(
    "estimate",
    "the GPU memory that a run needs, before there is a GPU",
    "lhtrain.commands.estimate:estimate",
    (CONFIG_DIR,),
    (
        Key("gpu", "h100", "a100 and h100 (80 GB), h200 (141), b200 (180), or a number of gigabytes", "h100"),
        Key("ranks", "8", "the number of GPUs of the run; without it, what parallel.* names"),
    ),
    settings=True,
    details="""\
Takes the settings of training. Prints for each stage what a GPU holds at the moment that needs most, whether
it fits, and if not, which settings help and by how much. Neither GPU nor data are read.

Examples
  lhtrain estimate model=lighthouse_530m
  lhtrain estimate model=llama3_8b gpu=h200 ranks=8 compute.recompute=full
  lhtrain estimate model=gpt_1b gpu=48 run.batch_tokens=262144 run.grad_accum=4""",
)

EXPORT = Command(
    "export",
    "write a run's weights and tokenizer as a folder of Hugging Face transformers",
    "lhtrain.commands.export:export",
    (
        argument("RUN", type=_folder, help="a run directory, for its newest checkpoint, or one checkpoint"),
        argument("FOLDER", type=_folder, help="a new or empty folder"),
    ),
    (
        Key("dtype", "float32", "of the weights; or bfloat16", "float32"),
        Key("tokenizer", "FILE", "a tokenizer.json, where the run's own is gone; none: without a tokenizer"),
        Key("max_shard_size", "5GB", "more weights than this go into several files", "5GB"),
    ),
    details="""\
FOLDER gets model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json and
a model card, README.md. If the export fails, FOLDER is as it was before. Write a path with = as ./a=b

Examples
  lhtrain export runs/mine exported
  lhtrain export runs/mine/checkpoints/step_00002000 exported dtype=bfloat16""",
)

SLURM = Command(
    "slurm",
    "submit, resume and extend runs as SLURM jobs, list runs",
    details="""\
Jobs save, requeue and continue by themselves.

Examples
  lhtrain slurm submit model=gpt_1b run.batch_tokens=2097152 cluster=gpu8 cluster.nodes=4 --dry-run
  lhtrain slurm submit cluster.partition=gpu cluster.gpus_per_node=1 cluster.time=4:00:00 run.dir=runs/mine
  lhtrain slurm resume runs/mine cluster.nodes=2
  lhtrain slurm extend runs/mine steps=+2000
  lhtrain slurm status runs

Keys most often set
  cluster.nodes=2  cluster.gpus_per_node=8  cluster.cpus_per_task=64  cluster.memory=0
  cluster.time=24:00:00          a plain number is minutes, as everywhere in SLURM
  cluster.partition=NAME  cluster.account=NAME  cluster.qos=NAME  cluster.exclusive=true
  cluster.launch=torchrun        one task a node; srun: one task a GPU
  cluster.signal_seconds=300     how long before the time limit the run saves and requeues
  cluster.max_restarts=3         attempts that may crash or make no step before the job gives up
  'cluster.setup=["module load cuda"]'     lines of bash before everything else; quotes within quotes
  'cluster.extra_args=["--mail-type=FAIL"]'

lhtrain help cluster lists all keys, lhtrain help cluster.KEY explains one.""",
)

SLURM_SUBMIT = Command(
    "slurm submit",
    "submit a run as a job",
    "lhtrain.commands.slurm:submit",
    (DRY_RUN, CONFIG_DIR),
    settings=True,
    details="""\
Takes the settings of training, and cluster.*: what to ask SLURM for. Writes the script, the configuration
with every value and the code's version into the folder slurm of the run directory, and calls sbatch. What the
run directory's checkpoint would refuse is refused at once.

Examples
  lhtrain slurm submit model=gpt_1b run.batch_tokens=2097152 cluster=gpu8 cluster.nodes=4 --dry-run
  lhtrain slurm submit cluster.partition=gpu cluster.gpus_per_node=1 run.dir=runs/mine""",
)

SLURM_RESUME = Command(
    "slurm resume",
    "continue a run as a job, with its own configuration",
    "lhtrain.commands.slurm:resume",
    (DRY_RUN, RUN_DIR),
    settings=True,
    details="""\
KEY=VALUE replaces values, also those of cluster.*.

Examples
  lhtrain slurm resume runs/mine cluster.nodes=2
  lhtrain slurm resume runs/mine --dry-run""",
)

SLURM_EXTEND = Command(
    "slurm extend",
    "lengthen a run, finished or not, and continue it as a job",
    "lhtrain.commands.slurm:extend",
    (RUN_DIR,),
    (STEPS,),
    settings=True,
    details="""\
`lhtrain extend --help` explains what that changes.

Examples
  lhtrain slurm extend runs/mine steps=+2000""",
)

SLURM_STATUS = Command(
    "slurm status",
    "list the runs in folders, their jobs, and how far they are",
    "lhtrain.commands.slurm:status",
    (argument("FOLDER", nargs="*", default=["runs"], help="folders with run directories; default: runs"),),
    details="""\
Examples
  lhtrain slurm status
  lhtrain slurm status runs /scratch/runs""",
)

# Called by a job's script alone.
SLURM_BEGIN = Command(
    "slurm begin",
    "what an attempt of a job resumes",
    "lhtrain.commands.job:begin",
    (argument("DIR"), argument("MAX_RESTARTS", type=int), argument("RESUME", nargs="*")),
    hidden=True,
)
SLURM_END = Command(
    "slurm end",
    "what follows an attempt of a job",
    "lhtrain.commands.job:end",
    (argument("DIR"), argument("STATUS", type=int), argument("BY"), argument("MAX_RESTARTS", type=int)),
    hidden=True,
)

ENV = Command(
    "env",
    "versions, GPUs, kernels, caches, missing packages: the text that a bug report needs",
    "lhtrain.commands.env:env",
    details="""\
Prints neither other variables of the environment than those of a launcher nor the user's name.

Examples
  lhtrain env""",
)

COMPLETION = Command(
    "completion",
    "print the script that completes lhtrain's commands and settings in a shell",
    "lhtrain.commands.completion:completion",
    (argument("SHELL", help="bash, zsh or fish"),),
    details="""\
Examples
  eval "$(lhtrain completion bash)"        in ~/.bashrc""",
)

HELP = Command(
    "help",
    "explain a command, a group of settings or a key",
    "lhtrain.commands.help:explain",
    (argument("TOPIC", nargs="*", help="commands, groups and keys"),),
    details="""\
Examples
  lhtrain help slurm submit
  lhtrain help optim
  lhtrain help model.seq_len""",
)

# By name, in the order in which they are listed.
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        *(TRAIN, RESUME, EXTEND, DATA, DATA_PREPARE, DATA_VERIFY, DATA_INSPECT, ESTIMATE, EXPORT),
        *(SLURM, SLURM_SUBMIT, SLURM_RESUME, SLURM_EXTEND, SLURM_STATUS, SLURM_BEGIN, SLURM_END),
        *(ENV, COMPLETION, HELP),
    )
}


def find(words: list[str]) -> tuple[Command, list[str]]:
    """The command that the words name, and the words behind its name: training without a name.

    Raises UsageError: there is no such command.
    """
    if not words or words[0].startswith(("-", "+", "~")) or "=" in words[0]:
        return TRAIN, words
    first, *rest = words
    if first not in COMMANDS:
        names = ", ".join(sorted(members()))
        near = nearest(first, members())
        more = "settings are KEY=VALUE; try lhtrain --help"
        raise UsageError(f"no command {first!r}{near} (there is: {names}); {more}")
    family = members(first)
    if not family or not rest or rest[0].startswith("-"):
        return COMMANDS[first], rest
    second, *rest = rest
    if f"{first} {second}" not in COMMANDS:
        near = nearest(second, family)
        there = ", ".join(family)
        raise UsageError(
            f"no command {first} {second!r}{near} (there is: {there}); try lhtrain {first} --help"
        )
    return COMMANDS[f"{first} {second}"], rest


def members(family: str = "") -> list[str]:
    """The second words of a family's commands, or the first words of all commands; hidden ones left out."""
    names = [name for name, command in COMMANDS.items() if not command.hidden]
    if family:
        return [name.split()[1] for name in names if name.startswith(f"{family} ")]
    return [name for name in names if " " not in name]
