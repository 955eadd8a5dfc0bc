"""Arguments that several commands share."""

import os
from argparse import ArgumentTypeError

from lhtrain.commands.command import Key, argument


def folder(text: str) -> str:
    if not text.strip():
        raise ArgumentTypeError("must not be empty; the current folder is .")
    return os.path.expanduser(text)


CONFIG_DIR = argument(
    *("--config-dir", "-cd"),
    metavar="DIR",
    action="append",
    default=[],
    type=folder,
    help="folder with your own presets, DIR/GROUP/NAME.yaml; may be given several times",
)
DRY_RUN = argument("--dry-run", action="store_true", help="print the job script; write and submit nothing")
RUN_DIR = argument("DIR", type=folder, help="folder of a run; its settings are read from DIR/config.yaml")
STEPS = Key("steps", "+N|N", "+N: N more steps; N: N steps in total")
