"""Commands that list runs and put them beside each other."""

from lhtrain.commands.command import Command, Key, argument

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

REPORT = Command(
    "report",
    "write a page about runs: curves, switches, stages, evaluation, samples, history",
    "lhtrain.commands.report:report",
    (_RUNS,),
    (
        Key("out", "FILE", "file to write; default: report.html, in the folder of the run if it is one run"),
        Key("price", "2.5", "price of a GPU for an hour, from which the cost is computed"),
    ),
    alone=True,
    details="""\
The page is one HTML file, which a browser opens without a network. Several runs are drawn into the same
charts, and compared with the first one as in lhtrain compare. Runs may still be running.

Examples
  lhtrain report runs/mine
  lhtrain report runs/dense runs/two_stage out=compare.html price=2.5
  lhtrain report runs/lr_sweep""",
    docs=("judging",),
)
