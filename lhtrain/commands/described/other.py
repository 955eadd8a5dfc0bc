"""Commands about this installation, and the help."""

from lhtrain.commands.command import Command, argument

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
