"""Starts a run: new, from its own newest checkpoint, over again, or from another run's checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lhtrain import checkpoint
from lhtrain.checkpoint.errors import Damaged
from lhtrain.checkpoint.model_settings import LAYOUT, TRAINED_FOR, differing_settings
from lhtrain.checkpoint.verify import with_remedy
from lhtrain.conf.parameters import chosen
from lhtrain.conf.schema import Config, Init, Resume
from lhtrain.data import Corpus
from lhtrain.data.order.pack import SPREAD
from lhtrain.distributed.torchrun import STARTED_OVER, note_left
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.model.decoder import OWN_SCORER
from lhtrain.progress import DataPart, Progress
from lhtrain.quote import setting
from lhtrain.runs.changes import as_container
from lhtrain.runs.checks import already_a_run, check_changes, differences, is_accepted, lost_run
from lhtrain.runs.history import History
from lhtrain.runs.run_dir import RunDir, holds_run
from lhtrain.runs.start import Start
from lhtrain.stage import saved_attention_settings
from lhtrain.text import counted
from lhtrain.weights import AVERAGE, MODEL, check_average

Tensors = dict[str, Tensor]


def find_start(run_dir: RunDir, resume: Resume, world: World) -> Start:
    """Return how a run with this `resume` starts in `run_dir`; removes leftovers of interrupted saves first.

    Raises:
        RunError: the directory contains a run and `resume` is never; its checkpoints are lost or damaged and
            `resume` is not restart; or a file cannot be read at the moment.
    """
    # torchrun runs the same command again after a failure. If the run has started over by then, it continues.
    if resume is Resume.restart and not world.on_main(lambda: _started_over(run_dir)):
        return Start("restarted")
    if resume is Resume.never:
        if world.on_main(lambda: holds_run(run_dir.path)):
            raise RunError(already_a_run(run_dir))
        return Start("new run")
    notes = world.on_main(lambda: checkpoint.tidy(run_dir.checkpoints))
    # Damage of a tensor is found when `begin` loads it.
    path, damaged = checkpoint.newest_sound(run_dir.checkpoints, world, load=lambda path: None)
    if path is None and (lost := world.on_main(lambda: lost_run(run_dir))):
        raise RunError(lost)
    return Start("new run" if path is None else "resumed", path, [*notes, *damaged])


def _started_over(run_dir: RunDir) -> bool:
    return note_left(run_dir.path / STARTED_OVER) is not None


def begin(
    start: Start,
    run_dir: RunDir,
    tensors: Tensors,
    config: Config,
    corpus: Corpus,
    world: World,
    stage_data: Mapping[str, str] | None = None,
) -> tuple[Progress, str]:
    """Load the weights and state that the run starts with; return its progress, and a note on their source.

    stage_data: fingerprints of the data of stages, by their keys, stages.NAME.data.

    Raises RunError as `resume_run` and `start_from`.
    """
    if start.path is not None:
        resumed = partial(resume_run, start, run_dir, tensors, config, corpus, stage_data)
        progress = resume_newest(start, run_dir, world, resumed)
        return progress, f"continues from {start.path.name}"
    if config.init_from is None:
        return Progress(), start.how
    if start.how == "new run":  # "restarted" stays, because the files of the earlier run must be moved aside
        start.how = "init_from"
    start.source = Path(config.init_from)
    progress, note = start_from(start.source, tensors, config, corpus, world)
    state = checkpoint.state_of(start.source)
    start.imported = state.get("imported")
    start.notes += _other_tokenizer(state.get("tokenizer"), corpus)
    with checkpoint.as_written(start.source):
        start.notes += _stretched_twice(state["config"]["model"], config)
    return progress, note


def resume_newest(start: Start, run_dir: RunDir, world: World, resumed: Callable[[], Progress]) -> Progress:
    """Restore the run from its newest checkpoint whose tensors are undamaged; sets `start.path` to it.

    resumed: restores the run from `start.path`, as `resume_run`.

    Raises RunError as `resume_run`, or if all checkpoints are damaged.
    """
    found = Progress()

    def load(path: Path) -> None:
        nonlocal found
        start.path = path
        found = resumed()

    _, notes = checkpoint.newest_sound(run_dir.checkpoints, world, load)
    start.notes += notes
    return found


def resume_run(
    start: Start,
    run_dir: RunDir,
    tensors: Tensors,
    config: Config,
    corpus: Corpus,
    stage_data: Mapping[str, str] | None = None,
) -> Progress:
    """Restore the run from its checkpoint `start.path`; sets the changed settings in `start`.

    Raises:
        RunError: settings or data differ from the checkpoint's, each named; run.steps is less than the steps
            done; the optimizer has another kind of state.
    """
    path = start.path
    assert path is not None
    state = checkpoint.state_of(path)
    with checkpoint.as_written(path):
        start.changed = differences(state, config, corpus.fingerprint, stage_data)
        progress = progress_of(state)
    check_changes(path, state, start.changed, run_dir, config)
    started = History(run_dir.history).accepted("start")
    start.new = [one for one in start.changed if not is_accepted(started, one)]
    start.guard, start.imported = state.get("guard"), state.get("imported")
    remedy = "to change it, start a new run with " + f"{setting('init_from', path)} init=weights"
    _check_optimizer(path, state, config, tensors, f"resume with these settings; {remedy}")
    optional = [OWN_SCORER, AVERAGE, *_never_trained(path, state, tensors)]
    checkpoint.load(path, tensors, optional)
    return progress


def progress_of(state: dict[str, Any]) -> Progress:
    """Return the progress in state.json. Settings of stages that older versions did not save are added."""
    progress, config = Progress.from_dict(state["progress"]), state["config"]
    for record in progress.stages:
        if record.name in config["stages"]:
            settings = saved_attention_settings(config["stages"][record.name], config["model"])
            record.settings = settings if record.settings is None else _completed(record.settings, settings)
    return progress


def _completed(recorded: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Add the keys that older versions did not record."""
    newer = ("rope_theta", "rope_scaling", "dense_layers")
    return recorded | {key: settings[key] for key in newer if key in settings and key not in recorded}


def start_from(
    path: Path, tensors: Tensors, config: Config, corpus: Corpus, world: World
) -> tuple[Progress, str]:
    """Begin a new run with another run's weights, optimizer state and, if the data are the same, position.

    `config.init` may restrict it to the weights. Imported weights have nothing else.

    Returns the new run's progress, at step 0, and a note on the source and the differences.

    Raises:
        RunError: the checkpoint is damaged or does not match the model, or init=all and it has weights alone.
    """
    state = checkpoint.read_state(path, world, contents=False)
    now = as_container(config)["model"]
    with checkpoint.as_written(path):
        saved, step = dict(state["config"]["model"]), state["progress"]["step"]
    if changed := differing_settings(saved, now, LAYOUT):
        raise RunError(
            f"init_from={path}: its weights have another layout of heads (saved -> now): "
            f"{', '.join(changed)}; use the saved values"
        )
    whole = _takes_all(path, config.init)
    _load_from(path, state, tensors, config, whole, world)
    what = "average of the weights" if config.init is Init.average else "weights"
    note = f"{what} {'and optimizer ' if whole else ''}of {path}, step {step}" + _scorers(path, tensors)
    if changed := differing_settings(saved, now, TRAINED_FOR):
        note += ", which were trained with other settings; those of this run count (saved -> now): "
        note += ", ".join(changed)
    if not whole:
        return Progress(), f"{note}; the optimizer state is new, and the data are read from their start"
    progress, of_data = _continued_data(path, state, config, corpus)
    return progress, f"{note}; {of_data}"


def _load_from(
    path: Path, state: dict[str, Any], tensors: Tensors, config: Config, whole: bool, world: World
) -> None:
    """Load the weights of another run, and its optimizer state if `whole`. Raises as `start_from`."""
    wanted = {name: tensor for name, tensor in tensors.items() if whole or name.startswith(MODEL)}
    if whole:
        _check_optimizer(path, state, config, tensors, "use these settings, or init=weights")
    of_average = config.init is Init.average
    if of_average:
        check_average(path, checkpoint.opened(path).tensors, "init=average")
        wanted = {f"{AVERAGE}{name.removeprefix(MODEL)}": tensor for name, tensor in wanted.items()}
    optional = [OWN_SCORER, f"{AVERAGE}updates", *_never_trained(path, state, wanted)]
    optional += [] if of_average else [AVERAGE]
    try:
        checkpoint.load(path, wanted, optional, partial=of_average)
    except Damaged as error:
        raise with_remedy(path, error.found, world) from error


def _continued_data(
    path: Path, state: dict[str, Any], config: Config, corpus: Corpus
) -> tuple[Progress, str]:
    """Return the progress of a new run that continues the data of another run, and a note on the data."""
    with checkpoint.as_written(path):
        data, position = state["data"], state["progress"]["position"]
    if data != corpus.fingerprint:
        return Progress(), "the data differ and are read from their start"
    note = f"data continue at token {position:,}"
    with checkpoint.as_written(path):
        order, streams = _order(state["config"]), state["progress"].get("streams", {})
    if order != _order(as_container(config)):
        keys = "run.seed, sequence lengths, long_fraction, data.buckets, documents or packing"
        note += f", in another order ({keys} differ), so some are read again"
        return Progress(position=position, streams=streams), note
    with checkpoint.as_written(path):
        part = DataPart(**state["progress"].get("data", {}))
        if part != DataPart():  # stages with data of their own have read some of the data, too
            part = DataPart(begin=position, read=state["blocks_read"])
    return Progress(position=position, data=part, streams=streams), note


def _never_trained(path: Path, state: dict[str, Any], tensors: Tensors) -> list[str]:
    """Return the tensors of optimizer state that the checkpoint lacks, because all its stages froze them.

    They keep the values that they have at the start of a run.
    """
    there = checkpoint.opened(path).tensors
    missing = [name for name in tensors if name.startswith("optimizer.") and name not in there]
    patterns = [stage.get("frozen", []) for stage in state["config"].get("stages", {}).values()]
    parameters = {name: name.split(".", 2)[2] for name in missing}
    frozen = [chosen(of_stage, parameters.values()) for of_stage in patterns]
    return [name for name in missing if frozen and all(parameters[name] in one for one in frozen)]


def _takes_all(path: Path, init: Init) -> bool:
    """Return whether a run takes the optimizer state of the checkpoint `path`, too."""
    has_state = any(name.startswith("optimizer.") for name in checkpoint.opened(path).tensors)
    if init is Init.all and not has_state:
        raise RunError(f"init=all: {path} has weights alone, no optimizer state; use init=weights")
    return has_state and init not in (Init.weights, Init.average)


def _check_optimizer(
    path: Path, state: dict[str, Any], config: Config, tensors: Tensors, remedy: str
) -> None:
    """Raise RunError if a parameter has other optimizer state in the checkpoint than in this run.

    Parameters without state in one of them do not count: a stage that froze them may be the reason.
    """
    there, ours = _optimizer_state(checkpoint.opened(path).tensors), _optimizer_state(tensors)
    other = [name for name in there.keys() & ours.keys() if there[name] != ours[name]]
    if not other:
        return
    optim = config.optim
    with checkpoint.as_written(path):
        saved = state["config"]["optim"]
        before = f"optim.kind={saved.get('kind', 'adamw')} optim.state={saved.get('state', 'float32')}"
    now = f"optim.kind={optim.kind} optim.state={optim.state.name}"
    if before == now:  # an optimizer of a plugin that has changed
        first = min(other)
        before, now = (f"{now} ({', '.join(sorted(state[first]))})" for state in (there, ours))
    raise RunError(
        f"{path}: its optimizer state is that of {before}, and this run has {now}, whose state is of another "
        f"kind; {remedy}"
    )


def _optimizer_state(names: Iterable[str]) -> dict[str, set[str]]:
    """Return the names of the state of each parameter; names: those of tensors of a checkpoint."""
    out: dict[str, set[str]] = {}
    for name in names:
        if name.startswith("optimizer."):
            _, key, parameter = name.split(".", 2)
            out.setdefault(parameter, set()).add(key)
    return out


def _scorers(path: Path, tensors: Tensors) -> str:
    """Return a note on weights of scorers that only the checkpoint or only this run has."""
    ours, theirs = (
        {name for name in names if name.startswith(MODEL) and OWN_SCORER in name}
        for names in (tensors, checkpoint.opened(path).tensors)
    )
    note = f"; without {counted(len(theirs - ours), 'tensor')} of scorers" if theirs - ours else ""
    return note + (f"; with {counted(len(ours - theirs), 'new tensor')} of scorers" if ours - theirs else "")


def _other_tokenizer(recorded: dict[str, Any] | None, corpus: Corpus) -> list[str]:
    """Return a warning if the weights were trained with another tokenizer than that of the data."""
    if recorded is None or recorded["hash"] == corpus.tokenizer.fingerprint:
        return []
    theirs = f"{recorded['name']} (eos {recorded['eos']}, bos {recorded['bos']})"
    return [
        f"the data have the tokenizer {corpus.tokenizer.name}, but the weights of init_from were trained "
        f"with {theirs}; prepare the data with that one"
    ]


def _stretched_twice(saved: dict[str, Any], config: Config) -> list[str]:
    """Return a warning if stages raise the rotary base of weights and keep their rope_scaling, too."""
    if not (scaling := saved.get("rope_scaling")):
        return []
    base, own = saved["rope_theta"], config.stages.items()
    stages = [name for name, stage in own if stage.rope_scaling == scaling and stage.rope_theta > base]
    if not stages:
        return []
    return [
        f"stage {', '.join(stages)}: the rotary base is above that of the weights, {base:,.10g}, and their "
        f"rope_scaling ({scaling['rope_type']}) still applies, so positions are stretched twice; "
        "model.rope_scaling=null removes it"
    ]


def _order(config: dict[str, Any]) -> tuple:
    """Return the settings that determine the order of the data."""
    stages, data = config["stages"].values(), config["data"]
    alignment = 1
    if data.get("documents") == "apart":
        windows = [s["pooling"] ** (s["levels"] - 1) for s in stages if s["attention"] == "lighthouse"]
        alignment = max([1, *windows])
    lengths = {stage["seq_len"] for stage in stages}
    # Whether long and short blocks are counted separately.
    fractions = [data["long_fraction"], *((stage.get("data") or {}).get("long_fraction") for stage in stages)]
    by_kind = any(fraction is not None for fraction in fractions)
    # Older versions had only one packing, and no buckets.
    documents = data.get("packing", SPREAD), data.get("buckets", []), data.get("bucket_weights", [])
    return lengths, config["run"]["seed"], data["long_fraction"], by_kind, alignment, *documents
