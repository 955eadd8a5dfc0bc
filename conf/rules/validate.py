"""Which values fit together. Types and key names are the schema's part."""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.batch import batch_problems, count_problems
from lhtrain.conf.rules.cluster import cluster_problems
from lhtrain.conf.rules.parallel import parallel_problems
from lhtrain.conf.rules.plugins import name_problems, option_problems
from lhtrain.conf.rules.stages import stage_steps
from lhtrain.conf.rules.tracking import logger_problems
from lhtrain.conf.schema import Config, DataConfig, Precision, Recompute, StageConfig
from lhtrain.conf.typed.paths import path_problem
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.registry import BACKENDS

LEAST_EPS = 1e-37  # a little above the least normal float32; GPUs take smaller numbers for 0
FLOAT8_MULTIPLE = 16  # of both sizes of a matrix, by the hardware's products


def validate(config: Config, n_ranks: int | None = None) -> list[Problem]:
    """Every rule that `config` breaks; an empty list means that it can run, on `n_ranks` where given."""
    parts = (
        name_problems,
        option_problems,
        _ranges,
        _largest,
        _texts,
        _model,
        _stages,
        _compute,
        _data,
        _start,
    )
    problems = [problem for part in (*parts, cluster_problems) for problem in part(config)]
    return [*problems, *parallel_problems(config, n_ranks), *batch_problems(config, n_ranks)]


def _ranges(config: Config) -> Iterator[Problem]:
    """Rules on one number alone."""
    model, optim, run = config.model, config.optim, config.run
    at_least_one = {
        "model.seq_len": model.seq_len,
        "model.dim": model.dim,
        "model.n_layers": model.n_layers,
        "model.n_heads": model.n_heads,
        "model.n_kv_heads": model.n_kv_heads,
        "model.head_dim": model.head_dim,
        "model.ffn_dim": model.ffn_dim,
        "run.steps": run.steps,
        "run.log_every": run.log_every,
        "compute.recompute_every": config.compute.recompute_every,
        "eval.every": config.eval.every,
        "eval.tokens": config.eval.tokens,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "guard.max_skips": config.guard.max_skips,
        "parallel.dp_replicate": config.parallel.dp_replicate,
        "parallel.cp": config.parallel.cp,
        "parallel.timeout": config.parallel.timeout,
        "parallel.compare_every": config.parallel.compare_every,
    }
    for key, number in at_least_one.items():
        if number < 1:
            yield Problem(key, number, "must be at least 1")
    yield from count_problems(config)
    positive = {
        "model.rope_theta": model.rope_theta,
        "model.norm_eps": model.norm_eps,
        "model.init_std": model.init_std,
        "optim.lr": optim.lr,
        "optim.eps": optim.eps,
        "optim.clip_norm": optim.clip_norm,
    }
    for key, real in positive.items():
        if not (real > 0 and math.isfinite(real)):
            yield Problem(key, real, "must be greater than 0 and finite")
        elif key.endswith("eps") and real < LEAST_EPS:
            rule = f"must be at least {LEAST_EPS:g}: float32 takes less for 0, and 0 / 0 is no number"
            yield Problem(key, real, rule)
    for phase, seconds in vars(config.watchdog).items():
        if seconds is not None and not seconds > 0:
            yield Problem(f"watchdog.{phase}", seconds, "must be greater than 0, or null")
    retry, limit = config.checkpoint.retry, config.watchdog.save
    if not (retry >= 0 and math.isfinite(retry)):
        yield Problem("checkpoint.retry", retry, "must be at least 0 and finite")
    elif limit is not None and retry >= limit > 0:
        rule = f"must be less than watchdog.save={limit:g}, which would end the run before"
        yield Problem("checkpoint.retry", retry, rule)
    if not config.guard.spike >= 0:
        yield Problem("guard.spike", config.guard.spike, "must be at least 0")
    if config.guard.max_rewinds < 0:
        yield Problem("guard.max_rewinds", config.guard.max_rewinds, "must be at least 0")
    for key, real in {"optim.weight_decay": optim.weight_decay, "optim.z_loss": optim.z_loss}.items():
        if not (real >= 0 and math.isfinite(real)):
            yield Problem(key, real, "must be at least 0 and finite")
    fractions = {
        "optim.warmup_fraction": optim.warmup_fraction,
        "optim.decay_fraction": optim.decay_fraction,
        "optim.final_lr_ratio": optim.final_lr_ratio,
    }
    for key, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            yield Problem(key, fraction, "must be between 0 and 1")
    if len(optim.betas) != 2:
        yield Problem("optim.betas", list(optim.betas), "must be two numbers")
    if not all(0 <= beta < 1 for beta in optim.betas):
        yield Problem("optim.betas", list(optim.betas), "each must be at least 0 and below 1")
    if optim.warmup_fraction + optim.decay_fraction > 1 and optim.schedule.value == "wsd":
        rule = f"with optim.warmup_fraction={optim.warmup_fraction} it must not exceed 1"
        yield Problem("optim.decay_fraction", optim.decay_fraction, rule)


# What a library or an index of 32 or 64 bits takes at most; beyond them a number is a slip of the keyboard.
_DIMENSION, _COUNT, _TOKENS = 2**24, 2**31 - 1, 2**48
_LARGEST = {
    "model": {"seq_len": _COUNT, "vocab_size": _COUNT, "n_layers": 2**16},
    "run": {"steps": _COUNT, "batch_tokens": _TOKENS, "seed": 2**63 - 1},
    "data": {"max_documents": 2**62, "max_tokens": 2**62, "workers": 2**12},
    "eval": {"tokens": _TOKENS},
    "lighthouse": {"levels": 64, "pooling": 2**20, "budget": _COUNT},
    "parallel": {"timeout": 10**7},
    "cluster": {"nodes": 2**20, "gpus_per_node": 2**10, "cpus_per_task": 2**16, "max_restarts": 2**20},
}


def _largest(config: Config) -> Iterator[Problem]:
    """Upper bounds of whole numbers, and numbers that are no numbers."""
    for group, owner in [("", config), *vars(config).items()]:
        if group in ("", "stages") or not hasattr(owner, "__dataclass_fields__"):
            continue
        for name, value in vars(owner).items():
            if isinstance(value, int) and not isinstance(value, bool):
                default = _DIMENSION if group == "model" else _COUNT
                most = _LARGEST.get(group, {}).get(name, default)
                if value > most:
                    yield Problem(f"{group}.{name}", value, f"must be at most {most:,}")
            elif isinstance(value, float) and abs(value) > 1e30 and math.isfinite(value):
                yield Problem(f"{group}.{name}", value, "must be at most 1e30")
    if config.run.seed < 0:
        yield Problem("run.seed", config.run.seed, "must be at least 0")
    for name, seconds in vars(config.watchdog).items():
        if seconds is not None and math.isinf(seconds):
            yield Problem(f"watchdog.{name}", seconds, "must be finite, or null for no limit")
    if not math.isfinite(config.guard.spike):
        yield Problem("guard.spike", config.guard.spike, "must be finite; 0 reports no spikes")


def _texts(config: Config) -> Iterator[Problem]:
    """Names and paths: not empty, and such that a file system takes them."""
    if problem := path_problem(config.run.dir):
        yield Problem("run.dir", config.run.dir, problem)
    if not config.run.name.strip():
        yield Problem("run.name", config.run.name, "must not be empty")
    if config.init_from is not None and (problem := path_problem(config.init_from)):
        yield Problem("init_from", config.init_from, f"{problem}; null starts from new weights")
    for name in config.stages:
        if not str(name).strip() or not str(name).isprintable():
            yield Problem("stages", repr(name), "the name of a stage must be printable and not empty")
    if not config.model.name.strip():
        yield Problem("model.name", config.model.name, "must not be empty")


def _model(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.n_kv_heads > 0 and model.n_heads % model.n_kv_heads:
        rule = f"must be a multiple of model.n_kv_heads={model.n_kv_heads}"
        yield Problem("model.n_heads", model.n_heads, rule)
    if model.n_heads > 0 and model.head_dim == model.dim // model.n_heads and model.dim % model.n_heads:
        rule = f"must be a multiple of model.n_heads={model.n_heads}, or model.head_dim be set"
        yield Problem("model.dim", model.dim, rule)
    elif model.head_dim % 2:
        yield Problem("model.head_dim", model.head_dim, "must be even: rotary embedding turns pairs")
    for layer in model.dense_layers:
        if not -model.n_layers <= layer < model.n_layers:
            rule = f"{layer} is no layer: model.n_layers={model.n_layers}"
            yield Problem("model.dense_layers", model.dense_layers, rule)
    lighthouse = [name for name, stage in config.stages.items() if stage.attention == "lighthouse"]
    dense = {layer % model.n_layers for layer in model.dense_layers} if model.n_layers >= 1 else set()
    if lighthouse and len(dense) == model.n_layers:
        rule = f"names every layer, so that none is left for stage {lighthouse[0]} to attend "
        rule += "with Lighthouse Attention; name fewer, such as [0], or use stage=dense"
        yield Problem("model.dense_layers", model.dense_layers, rule)


def _compute(config: Config) -> Iterator[Problem]:
    compute, model = config.compute, config.model
    if compute.offload and compute.recompute is not Recompute.full:
        yield Problem("compute.offload", True, "needs compute.recompute=full: it moves what that keeps")
    if not compute.float8:
        return
    if importlib.util.find_spec("torchao") is None:
        yield Problem("compute.float8", True, "needs the package: pip install 'lhtrain[float8]'")
    if compute.precision is Precision.float32:
        yield Problem("compute.float8", True, "needs compute.precision=bfloat16, or auto on a GPU")
    sizes = {"model.dim": model.dim, "model.ffn_dim": model.ffn_dim}
    sizes |= {"model.n_heads * head_dim": model.n_heads * model.head_dim}
    sizes |= {"model.n_kv_heads * head_dim": model.n_kv_heads * model.head_dim}
    for key, size in sizes.items():
        if size % FLOAT8_MULTIPLE:
            yield Problem(key, size, f"must be a multiple of {FLOAT8_MULTIPLE} for compute.float8=true")


def _stages(config: Config) -> Iterator[Problem]:
    if not config.stages:
        yield Problem("stages", "{}", "must hold at least one stage")
        return
    for name, stage in config.stages.items():
        yield from _stage(f"stages.{name}", stage, config)
    if config.run.steps >= 1:
        yield from stage_steps(config)[1]
    longest = max(stage.seq_len for stage in config.stages.values())
    for name, stage in config.stages.items():
        if stage.seq_len >= 1 and longest % stage.seq_len:
            rule = f"must divide the longest stage's {longest}"
            yield Problem(f"stages.{name}.seq_len", stage.seq_len, rule)


def _stage(key: str, stage: StageConfig, config: Config) -> Iterator[Problem]:
    """Rules on one stage, for its own keys."""
    if stage.steps is not None and stage.steps < 1:
        yield Problem(f"{key}.steps", stage.steps, "must be at least 1")
    if stage.fraction is not None and not 0 < stage.fraction <= 1:
        yield Problem(f"{key}.fraction", stage.fraction, "must be above 0 and at most 1")
    if not (stage.lr_scale > 0 and math.isfinite(stage.lr_scale)):
        yield Problem(f"{key}.lr_scale", stage.lr_scale, "must be greater than 0 and finite")
    if stage.seq_len < 1:
        if stage.seq_len != config.model.seq_len:  # which is named there already
            yield Problem(f"{key}.seq_len", stage.seq_len, "must be at least 1")
        return
    if stage.attention == "lighthouse":
        pyramid = Pyramid(stage.seq_len, stage.levels, stage.pooling, stage.budget)
        for field, value, rule in pyramid.problems():
            yield Problem(f"{key}.{field}", value, rule)


def _data(config: Config) -> Iterator[Problem]:
    yield from data_problems(config.data)
    from lhtrain.data.errors import DataError
    from lhtrain.data.tokenizers.tokenizer import tokenizer_problem, vocabulary_size

    name = config.data.tokenizer
    if tokenizer_problem(name):
        return
    try:
        least = vocabulary_size(name)
    except DataError as error:
        yield Problem("data.tokenizer", name, str(error))
        return
    yield from _end_of_text(config.data)
    if config.model.vocab_size < least:
        rule = f"must be at least the tokenizer's {least}"
        yield Problem("model.vocab_size", config.model.vocab_size, rule)


def _end_of_text(data: DataConfig) -> Iterator[Problem]:
    """Whether the tokenizer has the end-of-text token that is asked for, or one of a known name."""
    from lhtrain.data.errors import DataError
    from lhtrain.data.prepare.recipe import PREPARABLE
    from lhtrain.data.tokenizers.tokenizer import eos_problem, open_tokenizer

    if data.source not in PREPARABLE:
        return  # the folder knows
    if problem := eos_problem(data.tokenizer, data.eos):
        yield Problem("data.eos", data.eos, problem)
    elif data.tokenizer.lower().endswith(".json"):
        try:
            open_tokenizer(data.tokenizer, data.bos, data.eos)
        except DataError as error:
            yield Problem("data.eos", data.eos, str(error))


def data_problems(data: DataConfig) -> Iterator[Problem]:
    """Rules on `data` alone: all that `lhtrain data prepare` needs."""
    from lhtrain.data.prepare.recipe import SOURCES
    from lhtrain.data.sources.filters import filter_problem
    from lhtrain.data.tokenizers.tokenizer import PREPARED, tokenizer_problem

    if data.source not in SOURCES:
        yield Problem("data.source", data.source, f"must be one of {', '.join(SOURCES)}")
    else:
        yield from _without_effect(data)
    yield from _data_texts(data)
    if data.source in ("text", "code", "files", "prepared") and data.path in (None, "", []):
        what = "the folder" if data.source == "prepared" else "a file or folder"
        yield Problem("data.path", data.path, f"data.source={data.source} needs {what}: data.path=PATH")
    if data.source == "hf" and not data.name:
        yield Problem("data.name", data.name, "data.source=hf needs the dataset: data.name=OWNER/NAME")
    if problem := tokenizer_problem(data.tokenizer):
        its_own = data.source == "prepared" and data.tokenizer.startswith(PREPARED)
        key, value = ("data.path", data.path) if its_own else ("data.tokenizer", data.tokenizer)
        yield Problem(key, value, problem)
    if not 0 < data.val_fraction < 1:
        yield Problem("data.val_fraction", data.val_fraction, "must be above 0 and below 1")
    if data.long_fraction is not None and not 0 <= data.long_fraction <= 1:
        yield Problem("data.long_fraction", data.long_fraction, "must be between 0 and 1, or null")
    for key in ("max_documents", "max_tokens", "workers"):
        number = getattr(data, key)
        if number is not None and number < 1:
            yield Problem(f"data.{key}", number, "must be at least 1, or null")
    for text in data.filters:
        if problem := filter_problem(text):
            yield Problem("data.filters", text, problem)
    if data.source == "mix":
        yield from _mix(data.mix)
    if data.source in ("prepared", "mix"):
        yield from _fixed_when_prepared(data)


def _data_texts(data: DataConfig) -> Iterator[Problem]:
    """Types and spelling of the texts of `data`."""
    paths = data.path if isinstance(data.path, list) else [data.path]
    for path in paths:
        if path is None and not isinstance(data.path, list):
            continue
        if not isinstance(path, str):
            yield Problem("data.path", data.path, "must be a path, or a list of paths: [A,B]")
        elif path == "" and not isinstance(data.path, list):
            continue  # named by its source's rule
        elif problem := path_problem(path):
            yield Problem("data.path", data.path, problem)
    for key in ("out", "cache_dir"):
        path = getattr(data, key)
        if path is not None and (problem := path_problem(path)):
            yield Problem(f"data.{key}", path, f"{problem}; null takes the default")
    for key in ("name", "subset", "revision"):
        if getattr(data, key) == "" and (key != "name" or data.source != "hf"):
            yield Problem(f"data.{key}", "", "must not be empty; null leaves it out")
    for key in ("split", "column"):
        if not getattr(data, key):
            yield Problem(f"data.{key}", "", "must not be empty")


def _without_effect(data: DataConfig) -> Iterator[Problem]:
    """Keys that are set although nothing reads them for this source."""
    from lhtrain.data.prepare.recipe import PREPARABLE

    rows, hub, unset = ("files", "hf"), ("hf",), DataConfig()
    readers: dict[str, tuple[str, ...]] = {
        "path": ("text", "code", "files", "prepared"),
        **dict.fromkeys(("name", "subset", "split", "revision", "streaming"), hub),
        **dict.fromkeys(("column", "filters"), rows),
        **dict.fromkeys(("max_documents", "max_tokens", "bos", "eos", "out"), PREPARABLE),
        "mix": ("mix",),
    }
    for key, sources in readers.items():
        value = getattr(data, key)
        if data.source not in sources and value != getattr(unset, key):
            rule = f"does not go with data={data.source}, only {', '.join(sources)}"
            yield Problem(f"data.{key}", value, rule)


def _fixed_when_prepared(data: DataConfig) -> Iterator[Problem]:
    """data.tokenizer beside folders that were prepared with another: their tokens would mean other texts.
    Other rules have what is wrong with the folders."""
    from lhtrain.data.errors import DataError
    from lhtrain.data.tokenizers.tokenizer import PREPARED, same_tokenizer

    if data.tokenizer.startswith(PREPARED):
        return  # the folder's own, which `conf/data` sets
    folders = {"data.path": data.path}
    if data.source == "mix":
        parts = data.mix.items() if isinstance(data.mix, dict) else ()
        folders = {f"data.mix.{name}.path": p.get("path") for name, p in parts if isinstance(p, dict)}
    for key, path in folders.items():
        if not isinstance(path, str) or not path:
            continue
        try:
            there = same_tokenizer(Path(path).expanduser(), data.tokenizer)
        except (DataError, RuntimeError) as error:
            yield Problem(key, path, str(error))
            continue
        if there is not None:
            rule = f"the data in {path} were prepared with {there}, which fixes it; leave the key out"
            yield Problem("data.tokenizer", data.tokenizer, f"{rule}, or prepare them again")
            return


def _mix(mix: Any) -> Iterator[Problem]:
    if not isinstance(mix, dict) or not mix:
        yield Problem("data.mix", mix, "needs at least one source, NAME: {path: FOLDER, weight: NUMBER}")
        return
    weights = {}
    for name, part in mix.items():
        if not isinstance(part, dict) or not {"path"} <= part.keys() <= {"path", "weight"}:
            yield Problem(f"data.mix.{name}", part, "must be {path: FOLDER, weight: NUMBER}")
            continue
        if not isinstance(part["path"], str) or (problem := path_problem(part["path"])):
            rule = problem if isinstance(part["path"], str) else "must be the path of a prepared folder"
            yield Problem(f"data.mix.{name}.path", part["path"], rule or "")
        weight = part.get("weight", 1.0)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (number and 0 < weight < 1e30):
            yield Problem(f"data.mix.{name}.weight", weight, "must be a number greater than 0 and finite")
        else:
            weights[name] = weight
    from lhtrain.data.order.mix import SMALLEST_SHARE

    for name, weight in weights.items():
        if weight / sum(weights.values()) < SMALLEST_SHARE:
            rule = f"must be at least 1 / {1 / SMALLEST_SHARE:,.0f} of the sum of all weights"
            yield Problem(f"data.mix.{name}.weight", weight, rule)


def _start(config: Config) -> Iterator[Problem]:
    """Rules on how the run starts and where it reports."""
    if config.lighthouse.backend not in BACKENDS:
        yield Problem(
            "lighthouse.backend", config.lighthouse.backend, f"must be one of {', '.join(BACKENDS)}"
        )
    yield from logger_problems(config.logger)
