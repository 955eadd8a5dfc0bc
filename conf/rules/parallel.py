"""Rules on the settings of a run with several ranks."""

from collections.abc import Iterator
from dataclasses import replace

from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.stages import pyramid_of
from lhtrain.conf.schema import Config, ParallelConfig, Queries, StageConfig
from lhtrain.kernels.pyramid import Pyramid

METHODS = ("auto", "ring", "ulysses")
HEADS_ALONE = ("norm", "dilated", "recent")  # scorers that treat each head alone, whatever its number


def mesh_sizes(config: ParallelConfig, n_ranks: int) -> tuple[int, int, int]:
    """Return dp_replicate, dp_shard and cp, with -1 replaced by a number.

    Raises ValueError: the product of the sizes is not the number of ranks.
    """
    known = config.dp_replicate * config.cp
    shard = n_ranks // known if config.dp_shard == -1 else config.dp_shard
    if known * shard != n_ranks:
        launch = "; torchrun --nproc-per-node=N -m lhtrain … starts N" if n_ranks == 1 else ""
        raise ValueError(f"their product must be the number of ranks, {n_ranks}{launch}")
    return config.dp_replicate, shard, config.cp


def pick_method(method: str, n_heads: int, n_kv_heads: int, size: int) -> str:
    """auto: ulysses where the ranks share the heads evenly (any dense kernel, two exchanges), else ring.

    Raises ValueError: an unknown method, or ulysses with heads that cannot be shared.
    """
    if method not in METHODS:
        raise ValueError(f"cp_attention={method}: must be one of {', '.join(METHODS)}")
    divides = n_heads % size == 0 and n_kv_heads % size == 0
    if method == "ulysses" and not divides:
        heads = f"n_heads={n_heads} and n_kv_heads={n_kv_heads}"
        raise ValueError(f"cp_attention=ulysses: {heads} must be multiples of cp={size}; ring takes any")
    return ("ulysses" if divides else "ring") if method == "auto" else method


def parallel_problems(config: Config, n_ranks: int | None) -> Iterator[Problem]:
    """Yield broken rules on `parallel` and on the sizes that its keys must divide.

    Without `n_ranks`, dp_shard=-1 counts as one rank.
    """
    parallel = config.parallel
    if min(parallel.dp_replicate, parallel.cp) < 1:
        return  # reported already
    if parallel.dp_shard < 1 and parallel.dp_shard != -1:
        yield Problem(
            "parallel.dp_shard", parallel.dp_shard, "must be at least 1, or -1 for all that are left"
        )
        return
    try:
        known = parallel.dp_replicate * parallel.cp
        _, _, cp = mesh_sizes(parallel, n_ranks or known * max(parallel.dp_shard, 1))
    except ValueError as error:
        sizes = f"{parallel.dp_replicate} * {parallel.dp_shard} * {parallel.cp}"
        yield Problem("parallel.dp_replicate * dp_shard * cp", sizes, str(error))
        return
    heads = {"n_heads": config.model.n_heads, "n_kv_heads": config.model.n_kv_heads}
    if parallel.cp_attention.value == "ulysses" and any(count % cp for count in heads.values()):
        rule = f"parallel.cp={cp} must divide {' and '.join(f'model.{k}={v}' for k, v in heads.items())}"
        yield Problem("parallel.cp_attention", "ulysses", f"{rule}; ring allows any number of heads")
    for name, stage in config.stages.items():
        if stage.seq_len >= 1 and cp > 1:
            yield from _stage(f"stages.{name}", stage, cp)
    if cp > 1:
        auto = "ring" if any(n % cp for n in heads.values()) else "ulysses"
        yield from _sliding_window(config, cp, auto)
        yield from _own_queries(config, auto)


def _stage(key: str, stage: StageConfig, cp: int) -> Iterator[Problem]:
    if stage.seq_len % (2 * cp):
        yield Problem(f"{key}.seq_len", stage.seq_len, f"must be a multiple of 2 * parallel.cp = {2 * cp}")
    elif stage.attention == "lighthouse" and stage.queries is not Queries.own:
        chunk = stage.seq_len // (2 * cp)
        if chunk < stage.window < stage.seq_len:
            rule = f"must be at most {chunk}, the tokens of each of the 2 * parallel.cp = {2 * cp} chunks"
            yield Problem(f"{key}.window", stage.window, rule)
        pyramid = pyramid_of(stage)
        if not pyramid.problems() and not _chunks_fit(pyramid, pyramid.budget, cp):
            fitting = [
                k for k in range(pyramid.tile, pyramid.seq_len, pyramid.tile) if _chunks_fit(pyramid, k, cp)
            ]
            near = sorted(sorted(fitting, key=lambda k: abs(k - pyramid.budget))[:2])
            least = 2 * cp * pyramid.tile * pyramid.coarsest_window
            longer = f"a seq_len of at least {least}, or " if least > stage.seq_len else ""
            none = f"no budget does with seq_len={stage.seq_len}; use {longer}a smaller cp"
            advice = f"nearest: {' or '.join(map(str, near))}" if near else none
            rule = f"must give each of the 2 * parallel.cp = {2 * cp} chunks of a sequence whole tiles"
            yield Problem(f"{key}.budget", stage.budget, f"{rule}; {advice}")


def _own_queries(config: Config, auto: str) -> Iterator[Problem]:
    """Yield problems of stages with own queries, whose heads the ranks exchange. auto: cp_attention=auto."""
    method = config.parallel.cp_attention.value
    for name, stage in config.stages.items():
        if stage.attention != "lighthouse" or stage.queries is not Queries.own:
            continue
        key = f"stages.{name}"
        if (auto if method == "auto" else method) == "ring":
            rule = "with parallel.cp > 1 needs parallel.cp_attention=ulysses, and a parallel.cp that divides "
            rule += f"model.n_heads={config.model.n_heads} and model.n_kv_heads={config.model.n_kv_heads}"
            yield Problem(f"{key}.queries", stage.queries.name, rule)
        elif stage.scorer not in HEADS_ALONE:
            rule = f"must be one of {', '.join(HEADS_ALONE)} with queries=own and parallel.cp > 1"
            yield Problem(f"{key}.scorer", stage.scorer, rule)


def _sliding_window(config: Config, cp: int, auto: str) -> Iterator[Problem]:
    """Yield a problem if the sliding window is longer than a chunk of a ring. auto: cp_attention=auto."""
    window, method = config.model.sliding_window, config.parallel.cp_attention.value
    if window is None or (auto if method == "auto" else method) != "ring":
        return
    longer = [stage.seq_len for stage in config.stages.values() if stage.seq_len > window]
    if longer and window > (chunk := min(longer) // (2 * cp)):
        rule = f"must be at most {chunk}, the tokens of each of the 2 * parallel.cp = {2 * cp} chunks of a "
        rule += "sequence, with parallel.cp_attention=ring"
        rule += "; ulysses takes any window" if auto == "ulysses" else "; use a smaller parallel.cp"
        yield Problem("model.sliding_window", window, rule)


def _chunks_fit(whole: Pyramid, budget: int, cp: int) -> bool:
    if budget % (2 * cp):
        return False
    return not replace(whole, seq_len=whole.seq_len // (2 * cp), budget=budget // (2 * cp)).problems()
