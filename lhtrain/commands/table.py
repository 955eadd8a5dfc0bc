"""All commands of the program, with their arguments, options and help.

Dispatch, help, spelling suggestions and shell completion all come from this table. The module of a command is
imported when the command runs, so that `lhtrain --help` imports neither Hydra nor PyTorch.
"""

import os
from argparse import ArgumentTypeError

from lhtrain.commands.command import Command, Key, argument, nearest
from lhtrain.errors import UsageError


def _folder(text: str) -> str:
    if not text.strip():
        raise ArgumentTypeError("must not be empty; the current folder is .")
    return os.path.expanduser(text)


CONFIG_DIR = argument(
    *("--config-dir", "-cd"),
    metavar="DIR",
    action="append",
    default=[],
    type=_folder,
    help="folder with your own presets, DIR/GROUP/NAME.yaml; may be given several times",
)
DRY_RUN = argument("--dry-run", action="store_true", help="print the job script; write and submit nothing")
RUN_DIR = argument("DIR", type=_folder, help="folder of a run; its settings are read from DIR/config.yaml")
STEPS = Key("steps", "+N|N", "+N: N more steps; N: N steps in total")

TRAIN = Command(
    "train",
    "train a model; this is what lhtrain does if no command is named",
    "lhtrain.commands.train:train",
    (
        argument(
            "-m",
            "--multirun",
            action="store_true",
            help="train once for each combination of values that are separated by commas (a sweep)",
        ),
        CONFIG_DIR,
        argument("-cn", "--config-name", metavar="NAME", help="name of the main file instead of config"),
        argument(
            "-cp", "--config-path", metavar="DIR", help="folder to use instead of lhtrain's own presets"
        ),
        argument(
            "-c",
            "--cfg",
            choices=("job", "hydra", "all"),
            help="print the configuration, do not train; job: the settings of the run",
        ),
        argument(
            "--resolve", action="store_true", help="with --cfg: show values in place of references ${KEY}"
        ),
        argument("-p", "--package", metavar="KEY", help="with --cfg: print only the part under KEY"),
        argument(
            "-i",
            "--info",
            nargs="?",
            const="all",
            metavar="WHAT",
            help="information of Hydra: config, plugins, searchpath ...",
        ),
        argument("--hydra-help", action="store_true", help="print the help of Hydra"),
    ),
    settings=True,
    trains=True,
    details="""\
Examples
  lhtrain                                              train with the defaults, on text of this machine
  lhtrain stage=two_stage data=text data.path=books/   train on your own files
  lhtrain -m optim.lr=1e-3,2e-3                        train once with each value
  lhtrain --cfg job                                    print all settings, do not train
  torchrun --nproc-per-node=8 -m lhtrain run.batch_tokens=32768   train on 8 GPUs of one machine

Settings that are changed most often (lhtrain help KEY explains any setting)
  run.steps=400                 number of optimizer steps, over all stages
  run.batch_tokens=65536        tokens per step, over all ranks
  model.seq_len=8192            context length in tokens
  stages.lighthouse.steps=300   steps of one stage; or stages.lighthouse.fraction=0.75 of run.steps
  lighthouse.budget=1536        entries that a Lighthouse layer selects per level (k)
  run.dir=runs/mine             folder for everything that the run writes

A list is [A,B]; null is no value. Quote values with brackets or spaces: 'model.dense_layers=[0,-1]'.""",
    docs=("start", "stages", "settings"),
)

RESUME = Command(
    "resume",
    "continue a run from its newest undamaged checkpoint",
    "lhtrain.commands.resume:resume",
    (RUN_DIR,),
    settings=True,
    trains=True,
    details="""\
The run continues with its own settings, DIR/config.yaml. KEY=VALUE changes one of them. A change that affects
what the model learns also needs resume=force, whether it is given here or was made in config.yaml.

Examples
  lhtrain resume runs/mine
  lhtrain resume runs/mine checkpoint.every=50
  lhtrain resume runs/mine optim.lr=1e-4 resume=force
  torchrun --nproc-per-node=8 -m lhtrain resume runs/mine""",
    docs=("reliability",),
)

EXTEND = Command(
    "extend",
    "give a run more steps and continue it, whether it has finished or not",
    "lhtrain.commands.resume:extend",
    (RUN_DIR,),
    (STEPS,),
    settings=True,
    trains=True,
    details="""\
The last stage of the run gets the additional steps. The learning rates that follow are printed before
training starts. With the default schedule the rate rises to its constant value again, and then decays over
the last fifth of the longer run. A command with steps=N can be repeated: the second time it changes nothing.
KEY=VALUE works as in `lhtrain resume`.

Examples
  lhtrain extend runs/mine steps=+2000
  lhtrain extend runs/mine steps=12000""",
    docs=("reliability",),
)

DATA = Command(
    "data",
    "prepare texts for training, verify and inspect prepared data",
    details="""\
Examples
  lhtrain data prepare data=text data.path=books/ data.out=/data/books
  lhtrain data verify /data/books
  lhtrain data inspect /data/books --document 3
  lhtrain data=prepared data.path=/data/books          train on the prepared data
  lhtrain data=mix 'data.mix={web: {path: /data/edu, weight: 3}, code: {path: /data/code, weight: 1}}'""",
    docs=("data",),
)

DATA_PREPARE = Command(
    "data prepare",
    "tokenize texts once and write them as shards, which training reads",
    "lhtrain.commands.data:prepare",
    (CONFIG_DIR,),
    settings=True,
    details="""\
Takes the same settings as training; only data.* have an effect.

Sources
  data=stdlib  the standard library of Python       data=text   files and folders; each file is a document
  data=code    folders; each folder is a document   data=files  JSON lines (.gz, .xz, .zst), parquet, arrow
  data=hf      a dataset of the Hugging Face hub

Settings that are changed most often
  data.out=FOLDER       folder for the shards; by default a folder in the cache, which is printed
  data.tokenizer=bytes  or gpt2, r50k_base, p50k_base, cl100k_base, o200k_base, or the path of a
                        tokenizer.json; data.eos=TOKEN names its end-of-text token if it is not found
  data.max_tokens=N     stop after N tokens; data.max_documents=N: after N documents
  data.workers=N        number of processes
  data.column=text      name of the column with the text
  'data.filters=["score >= 3", "chars > 200"]'   conditions that a row must meet

Examples
  lhtrain data prepare data=text data.path=books/ data.out=/data/books
  lhtrain data prepare data=code 'data.path=repos/*' data.out=/data/code data.tokenizer=cl100k_base
  lhtrain data prepare data=files data.path=dump/ data.column=content 'data.filters=["score >= 3"]'
  lhtrain data prepare data=hf data.name=HuggingFaceFW/fineweb-edu data.subset=sample-10BT \\
      data.max_tokens=1000000000 data.tokenizer=gpt2 data.out=/data/edu

If it is interrupted, the same command continues after the last finished shard. The result does not depend on
the number of processes. lhtrain help data.KEY explains a setting.""",
    docs=("data",),
)

_FOLDERS = argument("FOLDER", nargs="+", help="folder of prepared data: data.out of lhtrain data prepare")

DATA_VERIFY = Command(
    "data verify",
    "compare each file of prepared data with its checksum",
    "lhtrain.commands.data:verify",
    (_FOLDERS,),
    details="""\
Reports all damaged files. The exit status is 1 if there are any, otherwise 0.

Examples
  lhtrain data verify /data/edu /data/code""",
    docs=("data",),
)

DATA_INSPECT = Command(
    "data inspect",
    "show what prepared data contain, and the text of one document",
    "lhtrain.commands.data:inspect",
    (
        _FOLDERS,
        argument("--document", metavar="N", default="0", help="number of the document, from 0; default: 0"),
    ),
    details="""\
Examples
  lhtrain data inspect /data/edu
  lhtrain data inspect /data/edu --document 17""",
    docs=("data",),
)

ESTIMATE = Command(
    "estimate",
    "estimate the GPU memory that a run needs; this needs no GPU",
    "lhtrain.commands.estimate:estimate",
    (CONFIG_DIR,),
    (
        Key("gpu", "h100", "a100 or h100 (80 GB), h200 (141 GB), b200 (180 GB), or a number of GB", "h100"),
        Key("ranks", "8", "number of GPUs of the run; by default as many as parallel.* need"),
    ),
    settings=True,
    details="""\
Takes the same settings as training. Prints the peak memory of a GPU in each stage, by its parts, and whether
it fits. If it does not fit, the settings that reduce it follow, with the memory that each needs.

Examples
  lhtrain estimate model=lighthouse_530m
  lhtrain estimate model=llama3_8b gpu=h200 ranks=8 compute.recompute=full
  lhtrain estimate model=gpt_1b gpu=48 run.batch_tokens=262144 run.grad_accum=4""",
    docs=("memory_and_gpus",),
)

IMPORT = Command(
    "import",
    "turn a published model into a checkpoint to start from",
    "lhtrain.commands.import_model:run",
    (
        argument("SOURCE", help="folder of Hugging Face transformers, or hub:NAME of the Hugging Face hub"),
        argument("DIR", type=_folder, help="new or empty folder to write to"),
    ),
    (Key("revision", "main", "branch, tag or commit of the repository on the hub"),),
    details="""\
Reads weights in safetensors files, in bfloat16, float16 or float32, of Llama, SmolLM2, Mistral and Ministral
without sliding window, Qwen2, Qwen2.5 and Qwen3. `lhtrain init_from=DIR` starts from them; the shape of the
model and its tokenizer come with them. `lhtrain export` writes the same family again. If the import fails,
DIR stays as it was. Models of the hub are kept in its cache, HF_HOME, and are taken from there without a
network.

Examples
  lhtrain import hub:HuggingFaceTB/SmolLM2-135M smollm2
  lhtrain import downloads/Llama-3.2-1B llama
  lhtrain import hub:Qwen/Qwen3-0.6B-Base qwen revision=main""",
    docs=("extend",),
)

EXPORT = Command(
    "export",
    "write the weights and the tokenizer of a run for Hugging Face transformers",
    "lhtrain.commands.export:export",
    (
        argument(
            "RUN", type=_folder, help="folder of a run, for its newest checkpoint, or folder of a checkpoint"
        ),
        argument("FOLDER", type=_folder, help="new or empty folder to write to"),
    ),
    (
        Key(
            "dtype",
            "float32",
            "float32, bfloat16 or float16; default: the type of imported weights, else float32",
        ),
        Key(
            "tokenizer",
            "FILE",
            "a tokenizer.json, if the run's own has been deleted; none: export no tokenizer",
        ),
        Key(
            "max_shard_size",
            "5GB",
            "largest size of a file of weights; more weights go into several files",
            "5GB",
        ),
    ),
    details="""\
Writes model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json and a
model card, README.md. A model that began with `lhtrain import` is written as the same family, with the
files of its tokenizer. If the export fails, FOLDER stays as it was. Write a path that contains = as ./a=b

Examples
  lhtrain export runs/mine exported
  lhtrain export runs/mine/checkpoints/step_00002000 exported dtype=bfloat16""",
    docs=("judging",),
)

GENERATE = Command(
    "generate",
    "write text with a trained model",
    "lhtrain.commands.generate:generate",
    (argument("RUN", type=_folder, help="folder of a run, a checkpoint or an exported model"),),
    (
        Key("prompt", "TEXT", "text to continue; without it the model begins a document"),
        Key("file", "FILE", "file with the prompt, in place of prompt=; - reads standard input"),
        Key("tokens", "200", "most tokens to write; the text ends earlier at an end of text", "200"),
        Key("temperature", "0.8", "below 1: likelier tokens; 0: always the likeliest", "0.8"),
        Key("top_p", "0.95", "draw from the likeliest tokens that together have this probability", "0.95"),
        Key("seed", "0", "another number gives another text", "0"),
        Key(
            "attention",
            "full",
            "full, or strict: that of the stage with lighthouse.strictly_causal=true",
            "full",
        ),
        Key("device", "auto", "cpu or cuda; auto: cuda if there is a GPU", "auto"),
        Key("tokenizer", "FILE", "a tokenizer.json, if the run's own has been deleted"),
    ),
    details="""\
Text goes to stdout as it is written, everything else to stderr. Ctrl-C stops. The prompt is read in one pass,
and a cache holds what each token needs. attention=strict needs less memory and time for long texts.

Examples
  lhtrain generate runs/mine 'prompt=Once upon a time' tokens=100
  lhtrain generate runs/mine/checkpoints/step_00002000 file=chapter.txt temperature=0
  lhtrain generate runs/mine prompt=def seed=1""",
    docs=("judging",),
)

RUNS = Command(
    "runs",
    "list the runs in folders: state, stage, step, validation loss, tokens/s, age",
    "lhtrain.commands.compare:list_runs",
    (
        argument("FOLDER", nargs="*", default=["runs"], help="folders that contain runs; default: runs"),
        argument(
            "--sort",
            metavar="ORDER",
            default="age",
            help="age (the newest first, default), name, loss (the lowest first), step or state",
        ),
        argument("--json", action="store_true", help="print JSON"),
    ),
    details="""\
A run is running, waiting (its job is in the queue), finished, stopped (by a signal, or killed) or failed.
The age is the time since the run last wrote a row.

Examples
  lhtrain runs
  lhtrain runs runs/lr_sweep --sort loss
  lhtrain runs --json""",
    docs=("judging",),
)

_RUNS = argument("RUN", nargs="+", help="folder of a run, or a folder that contains runs, such as a sweep")

COMPARE = Command(
    "compare",
    "compare runs: settings that differ, losses, speed-up at equal validation loss",
    "lhtrain.commands.compare:compare_runs",
    (
        _RUNS,
        argument(
            "--assert-equal",
            action="store_true",
            help="compare losses, steps and data of two runs bit for bit; exit status 1 if they differ",
        ),
        argument(
            "--save-reference",
            metavar="FILE",
            help="keep the losses of one run in a file, which --assert-equal takes in place of a run",
        ),
        argument(
            "--sort",
            choices=("given", "loss"),
            default="given",
            help="order of the runs: as given, or by validation loss; the first one is the baseline",
        ),
        argument("--json", action="store_true", help="print JSON"),
    ),
    details="""\
The first run is the baseline. Only validations under the attention with which a run ends are compared, so a
two-stage run counts from its switch on. Times include validation and checkpoints, but not compilation.

Examples
  lhtrain compare runs/dense runs/two_stage
  lhtrain compare runs/lr_sweep --sort loss
  lhtrain compare --assert-equal runs/a runs/b
  lhtrain compare --save-reference cpu.jsonl runs/a
  lhtrain compare --assert-equal cpu.jsonl runs/b""",
    docs=("judging",),
)

EVAL = Command(
    "eval",
    "measure how a trained model uses a long context",
    "lhtrain.commands.eval:evaluate",
    (
        argument(
            "SOURCE",
            type=_folder,
            help="folder of a run, for its newest checkpoint; of a checkpoint; or an exported folder",
        ),
    ),
    (
        Key("eval.tasks", "[recall,passkey]", "what is measured; by default all of the tasks below"),
        Key("eval.lengths", "[4096,32768]", "sequence lengths, up to twice the context"),
        Key("eval.depths", "[0.1,0.9]", "where sentences are hidden, from 0, the beginning, to 1"),
        Key("eval.samples", "4", "sequences for each length, depth and number of pairs"),
        Key("eval.data", "books/", "other texts than the validation documents: files or a prepared folder"),
        Key("eval.seed", "0", "seed of the choice of texts and hidden values"),
        Key("attention", "both", "full, lighthouse (that of the stage) or both", "both"),
        Key("stage", "NAME", "stage whose attention is measured; by default the last one"),
        Key("device", "auto", "auto, cpu or cuda", "auto"),
        Key("precision", "auto", "auto, float32 or bfloat16; auto: bfloat16 on a GPU", "auto"),
        Key("batch_tokens", "32768", "most tokens of a pass, unless a sequence has more", "32768"),
        Key("out", "FILE", "where the results are written; by default eval.json of the run"),
    ),
    details="""\
Tasks
  loss_by_position  loss in documents at least as long as the context, by position
  gain_of_context   how much lower the loss of the last tokens is with all of the context than with its end
  recall            the value of a key, hidden in a text 1, 4 or 16 times, by length and depth
  passkey           one digit hidden in filler text; chance is 10 %
  copy              loss of a random string that is repeated, by distance
  long_ppl          perplexity of the tokens that need a long context (LongPPL)

Prints tables and writes eval.json into the folder of the run, or beside the folder of a checkpoint or export.
Quote values with brackets: 'eval.tasks=[recall,passkey]'

Examples
  lhtrain eval runs/mine
  lhtrain eval runs/mine 'eval.tasks=[loss_by_position,passkey]' eval.samples=1
  lhtrain eval runs/mine/checkpoints/step_00002000 eval.data=books/ attention=full""",
    docs=("judging",),
)

REPORT = Command(
    "report",
    "write a page about runs: curves, switches, stages, evaluation, samples, history",
    "lhtrain.commands.report:report",
    (_RUNS,),
    (
        Key("out", "FILE", "file to write; default: report.html, in the folder of the run if it is one run"),
        Key("price", "2.5", "price of a GPU for an hour, from which the cost is computed"),
    ),
    details="""\
The page is one HTML file, which a browser opens without a network. Several runs are drawn into the same
charts, and compared with the first one as in lhtrain compare. Runs may still be running.

Examples
  lhtrain report runs/mine
  lhtrain report runs/dense runs/two_stage out=compare.html price=2.5
  lhtrain report runs/lr_sweep""",
    docs=("judging",),
)

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

ENV = Command(
    "env",
    "print versions, GPUs, kernels, caches and missing packages, for a bug report",
    "lhtrain.commands.env:env",
    details="""\
Of the environment variables it prints only those of a launcher, and it does not print the user's name.

Examples
  lhtrain env""",
)

COMPLETION = Command(
    "completion",
    "print a script with which a shell completes commands and settings",
    "lhtrain.commands.completion:completion",
    (argument("SHELL", help="bash, zsh or fish"),),
    details="""\
Examples
  eval "$(lhtrain completion bash)"        put this line into ~/.bashrc""",
)

HELP = Command(
    "help",
    "explain commands, settings, groups of settings and presets",
    "lhtrain.commands.help:explain",
    (argument("TOPIC", nargs="*", help="a command, KEY, GROUP, GROUP=NAME or NAME of a preset"),),
    details="""\
For a setting it prints the meaning, type, bounds, default, the presets that set it, and the rules that
connect it with other settings.

Examples
  lhtrain help slurm submit
  lhtrain help optim
  lhtrain help model.seq_len
  lhtrain help model=gpt_350m""",
    docs=("settings",),
)

# Commands by name, in the order in which they are listed.
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        *(TRAIN, RESUME, EXTEND, DATA, DATA_PREPARE, DATA_VERIFY, DATA_INSPECT, ESTIMATE),
        *(IMPORT, EXPORT, GENERATE, EVAL, RUNS, COMPARE, REPORT),
        *(SLURM, SLURM_SUBMIT, SLURM_RESUME, SLURM_EXTEND, SLURM_STATUS, SLURM_BEGIN, SLURM_END),
        *(ENV, COMPLETION, HELP),
    )
}


def find(words: list[str]) -> tuple[Command, list[str]]:
    """Return the command that `words` name, and the words after its name. Without a name: training.

    Raises UsageError if there is no such command.
    """
    if not words or words[0].startswith(("-", "+", "~")) or "=" in words[0]:
        return TRAIN, words
    first, *rest = words
    if first not in COMMANDS:
        names = ", ".join(sorted(members()))
        near = nearest(first, members())
        more = "A setting is KEY=VALUE. Try lhtrain --help"
        raise UsageError(f"no command {first!r}{near} (commands: {names}). {more}")
    family = members(first)
    if not family or not rest or rest[0].startswith("-"):
        return COMMANDS[first], rest
    second, *rest = rest
    if f"{first} {second}" not in COMMANDS:
        near = nearest(second, family)
        there = ", ".join(family)
        raise UsageError(
            f"no command {first} {second!r}{near} (commands: {there}). Try lhtrain {first} --help"
        )
    return COMMANDS[f"{first} {second}"], rest


def members(family: str = "") -> list[str]:
    """The second words of a family's commands; without a family, the first words of all.."""
    names = [name for name, command in COMMANDS.items() if not command.hidden]
    if family:
        return [name.split()[1] for name in names if name.startswith(f"{family} ")]
    return [name for name in names if " " not in name]
