"""The part of `lhtrain estimate` on speed: what it prints of predictions."""

from rich.table import Table

from lhtrain.compute.memory import how
from lhtrain.compute.meshes import Hardware, Shared, best, meshes
from lhtrain.compute.prediction import Prediction
from lhtrain.compute.rates import CUDNN
from lhtrain.conf.schema import Config, DocumentMode
from lhtrain.text import counted

OF_A_MACHINE = (1, 2, 4, 8)  # numbers of GPUs for which the command says what fits
COLUMNS = "with peak memory, predicted tokens/s per GPU of each stage, limit:"
NAMES = {
    "attention": "attention (compute)",
    "products": "matrix products (compute)",
    "bandwidth": "the bandwidth of the GPU's memory",
    "kernels": "kernels with little work, which take a few microseconds each",
    "host": "the host, which starts the kernels",
    "NVLink": "the link NVLink",
    "network": "the link between machines",
}


def heading(run: Shared, gpu: str, hardware: Hardware) -> list[str]:
    """Return lines on the subject, the sources and the assumptions of the prediction."""
    count = f"1 {gpu}" if run.n_ranks == 1 else f"{run.n_ranks:,} {gpu} ({run.mesh()})"
    kernel = "FlashAttention-4" if hardware.rates.kernel == "fa4" else "cuDNN's attention"
    lines = [f"Predicted, not measured: {count}, with {kernel} and compiled blocks"]
    if hardware.rates.assumed:
        lines.append(f"  {hardware.rates.assumed}")
    if run.n_ranks > hardware.node:
        rate = f"{hardware.network / 1e9:g} GB/s per GPU (network=)"
        lines.append(f"  between machines of {counted(hardware.node, 'GPU')} (node=): {rate}, assumed")
    if run.config.data.documents is DocumentMode.apart:
        lines.append("  documents are kept apart, which is faster than this: whole sequences are counted")
    return lines


def table(run: Shared, hardware: Hardware, price: float | None) -> Table:
    """A table of speed and cost, with a column for each stage and one for all."""
    several = len(run.stages) > 1
    out = Table("")
    for name in run.stages:
        out.add_column(name, justify="right")
    if several:
        out.add_column("all", justify="right")
    steps = [stage.steps or 0 for stage in run.config.stages.values()]
    found = list(run.stages.values())
    hours = [count * one.seconds / 3600 for count, one in zip(steps, found, strict=True)]
    hours += [sum(hours)] if several else []
    whole = [run.tokens / run.seconds] if several and run.seconds else [0.0] * several
    speed = [*(one.tokens_per_second for one in found), *whole]
    out.add_row("steps", *(f"{count:,}" for count in [*steps, *([sum(steps)] if several else [])]))
    out.add_row("seconds per step", *(f"{one.seconds:.3g}" for one in found))
    out.add_row("tokens/s", *map(rounded, speed))
    out.add_row("tokens/s per GPU", *(rounded(one / run.n_ranks) for one in speed))
    out.add_section()
    out.add_row("hours", *map(_number, hours))
    kilowatts = run.n_ranks * hardware.rates.watts / 1000
    out.add_row(f"kWh, {hardware.rates.watts:g} W per GPU", *(_number(kilowatts * each) for each in hours))
    if price is not None:
        out.add_row(f"cost, {price:g} per GPU hour", *(_number(run.n_ranks * price * each) for each in hours))
    out.add_section()
    for label, text in _shares(found, run.n_ranks):
        out.add_row(label, *text)
    return out


def _shares(found: list[Prediction], n_ranks: int) -> list[tuple[str, list[str]]]:
    """Return rows with the shares of a step and, with several GPUs, the bytes on each link."""
    rows = [
        ("attention", [f"{one.share(one.compute.attention):.0%}" for one in found]),
        ("matrix products", [f"{one.share(one.compute.products):.0%}" for one in found]),
        ("memory bandwidth", [f"{one.share(one.compute.memory):.0%}" for one in found]),
    ]
    if n_ranks > 1:
        rows.append(("waiting for links", [f"{one.share(one.exposed):.1%}" for one in found]))
        rows.append(("NVLink, GB a step", [f"{one.transfers.nvlink / 1e9:.1f}" for one in found]))
        rows.append(("network, GB a step", [f"{one.transfers.network / 1e9:.1f}" for one in found]))
    return rows


def limits(run: Shared, hardware: Hardware) -> list[str]:
    """Return lines that name what limits each stage, and what another kernel changes."""
    lines = [f"limited by {'its memory, which is too small: see above' if not run.fits else _listed(run)}"]
    if hardware.rates.kernel == "fa4":
        slower = (CUDNN[0] + 2 * CUDNN[1]) / 3
        lines.append(f"without FlashAttention-4, cuDNN's attention takes about {slower:.2f} times as long")
    return lines


def _listed(run: Shared) -> str:
    named = {name: NAMES[one.limit()] for name, one in run.stages.items()}
    if len(set(named.values())) == 1:
        return named.popitem()[1]
    return ", ".join(f"{limit} in {name}" for name, limit in named.items())


def choices(config: Config, n_ranks: int, hardware: Hardware) -> list[str]:
    """Return lines with the fastest mesh that fits on 1, 2, 4 and 8 GPUs, or all meshes of more GPUs.

    config: valid, not filled.
    """
    if n_ranks > OF_A_MACHINE[-1]:
        found = meshes(config, n_ranks, hardware)
        return [f"Meshes of {n_ranks:,} GPUs, {COLUMNS}", *(_line(one, one.mesh()) for one in found)]
    lines = [f"What fits on 1, 2, 4, 8 GPUs, {COLUMNS}"]
    for count in OF_A_MACHINE:
        one = best(meshes(config, count, hardware))
        if one is None:
            lines.append(
                f"  {counted(count, 'GPU')}: run.batch_tokens has no equal shares of whole sequences"
            )
        else:
            lines.append(_line(one, one.mesh() if count == 1 else f"{count} GPUs, {one.mesh()}"))
    return lines


def _line(one: Shared, mesh: str) -> str:
    speeds = " / ".join(rounded(stage.tokens_per_second / one.n_ranks) for stage in one.stages.values())
    peak = f"{one.peak / 1e9:.1f} GB" + ("" if one.fits else ", does NOT fit")
    limit = "/".join(dict.fromkeys(stage.limit() for stage in one.stages.values()))
    return f"  {mesh}: {peak}; {speeds}; {limit}; {how(one.config)}"


def rounded(value: float) -> str:
    """Return tokens/s with three digits: a prediction has no more."""
    return f"{float(f'{value:.3g}'):,.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
