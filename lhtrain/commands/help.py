"""`lhtrain help [COMMAND|KEY …]`, and `lhtrain --help`."""

import importlib

from lhtrain.cli import COMMANDS, fail

# One line for each command, in the order in which they are listed.
SUMMARIES = {
    "train": "train a model; without a command's name this is what runs",
    "resume": "continue a run from its newest sound checkpoint",
    "extend": "lengthen a run, finished or not, and continue it",
    "data": "prepare texts as token shards, verify and inspect them",
    "estimate": "the GPU memory that a run needs, before there is a GPU",
    "export": "write a checkpoint as a Hugging Face Llama",
    "slurm": "submit, resume and extend runs as SLURM jobs, list runs",
    "help": "explain a command, a group of settings or a key: lhtrain help model.seq_len",
}

OVERVIEW = """lhtrain: pre-train a GPT on long contexts, with Lighthouse Attention and then full attention.

Usage: lhtrain [COMMAND] [GROUP=NAME ...] [KEY=VALUE ...] [FLAGS]

Commands (lhtrain COMMAND --help says more)
{commands}

Examples
  lhtrain                                              both stages, on this machine's own text
  lhtrain stage=two_stage data=text data.path=books/   your own files
  lhtrain resume runs/mine                             continue from the newest sound checkpoint there
  lhtrain extend runs/mine steps=+2000                 more steps
  lhtrain -m optim.lr=1e-3,2e-3                        one run for each value
  torchrun --nproc-per-node=8 -m lhtrain run.batch_tokens=32768   eight ranks, FSDP; parallel.cp=2 and others
  lhtrain --cfg job                                    every key and its value, without running

Groups (GROUP=NAME picks a file; its keys can then be set one by one)
{groups}

Keys most often set (lhtrain help KEY explains any; lhtrain help run lists a group's)
  run.steps=400              optimizer steps, over all stages
  run.batch_tokens=65536     tokens of a step, over all ranks
  model.seq_len=8192         context length; stages.recovery.seq_len=… for one stage alone
  stages.lighthouse.steps=300   or stages.lighthouse.fraction=0.75 of run.steps
  lighthouse.budget=1536     k, of which follows how many rows a Lighthouse layer selects
  run.dir=runs/mine          where everything goes

Text is kept as it is typed. A list is [A,B], null is none; quotes keep commas and brackets together.

Flags
  -m, --multirun       a run for every combination of the values that commas separate
  --config-dir DIR     a folder with groups of files of your own
  --cfg job            print the configuration instead of running it; --resolve, --package KEY
  --version, --info, --hydra-help
Completion in bash, zsh and fish: eval "$(lhtrain -sc install=bash)".
Exit status: 0 done, 1 error, 2 wrong settings, 75 a rank hung, 128 + N stopped by signal N before its end."""


def show(topics: list[str]) -> None:
    """Print the help on each topic: a command, a group or a key; without topics, the overview."""
    if not topics:
        print(overview())
    command = topics[0] if topics else ""
    if command in COMMANDS and command != "train":
        module, function = COMMANDS[command].split(":")
        return getattr(importlib.import_module(module), function)([*topics[1:], "--help"])
    for topic in topics:
        print(overview() if topic in ("train", "help") else _setting(topic.partition("=")[0]))


def overview() -> str:
    names = [name for name in SUMMARIES if name in COMMANDS or name == "help"]
    names += [name for name in COMMANDS if name not in SUMMARIES]
    commands = "\n".join(f"  {name:9}  {SUMMARIES.get(name, '')}".rstrip() for name in names)
    groups = "\n".join(f"  {group}: {', '.join(options)}" for group, options in _groups().items())
    return OVERVIEW.format(commands=commands, groups=groups)


def _groups() -> dict[str, list[str]]:
    from hydra.core.global_hydra import GlobalHydra

    from lhtrain.conf.compose import hydra

    with hydra():
        loader = GlobalHydra.instance().config_loader()
        names = [name for name in loader.list_groups("") if name != "hydra"]
        return {name: loader.get_group_options(name) for name in names}


def _setting(key: str) -> str:
    """The help on a key, or on a group with its choices."""
    from hydra import compose

    from lhtrain.conf.compose import hydra
    from lhtrain.conf.explain import default_of, explain, no_such_key

    groups = _groups()
    choices = f"{key}=NAME, one of: {', '.join(groups[key])}" if key in groups else None
    with hydra():
        text = explain(key, default_of(compose("config"), key))
    if text is None and choices is None:
        fail(f"help: {no_such_key(key)}; try lhtrain help")
    return "\n".join(part for part in (choices, text) if part)
