"""`lhtrain env`: what this machine has and what a run would use, for a bug report. It prints no secrets.

The sections are independent: if PyTorch or a driver is missing or broken, a section prints the error in place
of its values.
"""

import getpass
import os
import platform
import re
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.metadata import metadata, requires
from pathlib import Path

from packaging.requirements import Requirement  # comes with Hydra

import lhtrain
from lhtrain.distributed.ranks import OF_SLURM, OF_TORCHRUN
from lhtrain.provenance import code_version, cpu_cores, cpu_name, in_words, installed

# Variables that determine how ranks start. Others are not printed, because they may contain secrets.
LAUNCHER = (
    *(*OF_TORCHRUN, "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"),
    *(*OF_SLURM, "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
)
FOR_DEVELOPERS = ("dev", "all")  # extras that are not printed
MODEL = "gpt_350m"  # the kernels are shown for the stages of this model
WIDTH = 12  # width of the section names

Lines = Iterator[str]


def env(arguments: Namespace) -> None:
    """Print all sections."""
    sections: dict[str, Callable[[], Lines]] = {
        "lhtrain": _program,
        "packages": _packages,
        "system": _system,
        "GPUs": _gpus,
        "attention": _kernels,
        "compile": _compile,
        "caches": _caches,
        "launcher": _launcher,
        "extras": _extras,
    }
    for name, section in sections.items():
        for number, line in enumerate(_lines(section)):
            print(f"{name if number == 0 else '':{WIDTH}}{_without_user(line)}", flush=True)


def _lines(section: Callable[[], Lines]) -> Lines:
    try:
        yield from section()
    except Exception as error:  # such as a PyTorch whose libraries do not load
        yield f"unknown: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _without_user(text: str) -> str:
    """The text with ~ in place of the user's home and name, which may occur in paths."""
    home, user = os.path.expanduser("~"), getpass.getuser()
    text = text.replace(home, "~") if len(home) > 1 else text
    return re.sub(rf"(?<=[/_]){re.escape(user)}(?=[/:, ]|$)", "~", text)


def _program() -> Lines:
    yield in_words(code_version())
    yield f"Python {platform.python_version()}, {sys.executable}"


def _requirements() -> dict[str, list[str]]:
    """The packages that lhtrain needs, as the value of "", and those that each extra adds.

    They are read from pyproject.toml in a working copy, otherwise from the metadata of the installed package.
    """
    own = Path(lhtrain.__file__).parents[1] / "pyproject.toml"
    if own.is_file():
        project = tomllib.loads(own.read_text())["project"]
        texts = {"": project["dependencies"], **project["optional-dependencies"]}
    else:
        extras = metadata("lhtrain").get_all("Provides-Extra") or []
        texts = {extra: requires("lhtrain") or [] for extra in ("", *extras)}
    out: dict[str, list[str]] = {}
    for extra, lines in texts.items():
        found = [Requirement(line) for line in lines]
        names = [one.name for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]
        out[extra] = [name for name in dict.fromkeys(names) if extra == "" or name not in out[""]]
    return out


def _packages() -> Lines:
    versions = {name: installed(name) for name in _requirements()[""]}
    yield ", ".join(f"{name} {found}" for name, found in versions.items() if found)
    if missing := [name for name, found in versions.items() if not found]:
        yield f"missing: {', '.join(missing)}; install them with: pip install -c constraints.txt -e ."


def _extras() -> Lines:
    for extra, names in _requirements().items():
        if extra == "" or extra in FOR_DEVELOPERS:
            continue
        versions = {name: installed(name) for name in names}
        there = ", ".join(f"{name} {found}" for name, found in versions.items() if found)
        missing = ", ".join(name for name, found in versions.items() if not found)
        remedy = f"missing: {missing}; pip install 'lhtrain[{extra}]'" if missing else ""
        yield f"{extra:7} {'; '.join(filter(None, (there, remedy)))}"


def _system() -> Lines:
    yield f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield f"{cpu_name()}, {cpu_cores()} of {os.cpu_count()} cores usable, {_memory()}"


def _memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB of memory"


def _gpus() -> Lines:
    import torch

    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield f"PyTorch finds none (it is {built})"
        return
    yield f"CUDA {torch.version.cuda}, driver {_driver()}"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        capability = f"compute capability {found.major}.{found.minor}"
        yield f"{number}: {found.name}, {found.total_memory / 1e9:.1f} GB, {capability}"


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split("Kernel Module", 1)[-1].split() if path.exists() else []
    return next((word for word in words if word[:1].isdigit()), "unknown")


def _kernels() -> Lines:
    import torch

    from lhtrain.attention.dense import pick_dense
    from lhtrain.compute.device import compute_dtype, pick_device
    from lhtrain.compute.fill import compose_config
    from lhtrain.conf.schema import Device, Precision
    from lhtrain.stage import stages_of

    device = pick_device(Device.auto)
    dtype = compute_dtype(Precision.auto, device)
    config = compose_config([f"model={MODEL}"])
    size = config.model.head_dim
    kind = f"heads of {size}, {str(dtype).removeprefix('torch.')}, on {device.type}"
    yield f"dense kernels for model={MODEL}, {kind}:"
    for name, stage in stages_of(config).items():
        rows = stage.n_attended
        picked, why = pick_dense(rows, size, dtype, device)
        of = f" of {stage.seq_len:,}" if stage.pyramid else ""
        yield f"{name} ({stage.attention}), {rows:,} rows{of}: {picked}, {why}"
    yield f"installed FlashAttention packages: {', '.join(_flash()) or 'none'}"
    if not torch.cuda.is_available():
        yield "lhtrain's own kernels need a GPU; here their plain PyTorch versions are used"


def _flash() -> list[str]:
    from lhtrain.attention.flash4 import INSTALLED, PACKAGES

    return [package for name, package in PACKAGES.items() if INSTALLED[name]]


def _compile() -> Lines:
    from lhtrain.compute.device import pick_device
    from lhtrain.conf.schema import Device

    on = pick_device(Device.auto).type == "cuda"
    yield f"compute.compile=auto {'compiles the blocks' if on else 'compiles nothing: there is no GPU'}"


def _caches() -> Lines:
    from lhtrain.data.store.cache import cache_root

    root = cache_root(None)
    yield f"{root}: {_size(root)}; tokenized data and compiled code; set LHTRAIN_CACHE to use another folder"
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME", "TIKTOKEN_CACHE_DIR"):
        if folder := os.environ.get(name):
            yield f"{name}={folder}: {_size(Path(folder))}"


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "does not exist yet"
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # a file that another process has just removed
                continue
    return f"{total / 1e9:.2f} GB"


def _launcher() -> Lines:
    found = [f"{name}={os.environ[name]}" for name in LAUNCHER if os.environ.get(name)]
    yield " ".join(found) or "no variables of torchrun or SLURM are set: one rank"
