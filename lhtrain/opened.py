"""Opens a trained model, to generate text with it or to evaluate it: weights, tokenizer and stages."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lhtrain import checkpoint
from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.attention.where import Attend
from lhtrain.build import add_scorers
from lhtrain.conf.schema import LighthouseConfig, ModelConfig, Queries, StageConfig, StageDataConfig
from lhtrain.data import DataError
from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.errors import RunError
from lhtrain.interop.importer import published_tokenizer
from lhtrain.interop.published import is_published, open_published
from lhtrain.interop.source import State, model_config, own_tokenizer, read_newest
from lhtrain.interop.tokenizer import trained_tokenizer
from lhtrain.interop.trained import longest
from lhtrain.kernels.pyramid import TILE
from lhtrain.model.decoder import GPT, OWN_SCORER
from lhtrain.model.rope import Rope
from lhtrain.registry import ATTENTIONS
from lhtrain.stage import Stage, saved_attention_settings
from lhtrain.weights import AVERAGE, check_average, prefix_of

# Settings of a Lighthouse stage that `Stage.attention_settings` leaves out at these values.
OMITTED = {"window": 0, "queries": "pooled", "tile": TILE, "strictly_causal": False, "options": {}}

# Groups whose keys stages copy, for checkpoints of versions that did not have a key.
GROUPS = {"lighthouse": LighthouseConfig, "model": ModelConfig}


@dataclass(frozen=True)
class Opened:
    """A trained model on one device.

    Attributes:
        path: the checkpoint, or the exported folder.
        state: content of its state.json; {} for an exported folder.
        config: the shape of the model.
        model: the model, with full attention until `enter`; its weights have the dtype of the activations.
        tokenizer: the tokenizer of the training data.
        stages: stages that did at least one step, in order. Empty for an exported folder.
        longest: length in tokens of the longest sequences that the weights were trained on.
    """

    path: Path
    state: State
    config: ModelConfig
    model: GPT
    tokenizer: Tokenizer
    stages: tuple[Stage, ...]
    longest: int

    def attention(self, stage: Stage | None) -> Attend:
        """Return the attention of a stage's layers; full attention for None."""
        if stage is None:
            return FULL_ATTENTION
        attend: Attend = ATTENTIONS[stage.attention].of(stage, "auto")
        return attend

    def enter(self, stage: Stage | None) -> None:
        """Let the model attend as in a stage. None: full attention, with the positions of the last stage."""
        layers = () if stage is None else stage.dense_layers
        self.model.attend_with(self.attention(stage), dense_layers=layers)
        last = stage or (self.stages[-1] if self.stages else None)
        if last is not None:
            self.model.rope = Rope(last.rope_theta, last.rope_scaling, last.seq_len)


def open_trained(
    source: Path,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | None = None,
    weights: str = "last",
) -> Opened:
    """Open a trained model.

    Args:
        source: one checkpoint; a run directory or its folder of checkpoints, for the newest one; or a folder
            as `lhtrain export` and Hugging Face transformers write it.
        device: where the model computes.
        dtype: of weights and activations. A weight is rounded to it once, as it is at each use in training.
        tokenizer: a tokenizer.json in place of the run's own.
        weights: "last", or "average": the moving average of the weights (optim.ema).

    Raises:
        RunError: there is no undamaged checkpoint, or its tokenizer cannot be read.
    """
    source = source.expanduser()
    if is_published(source):
        if weights != "last":
            raise RunError(f"weights={weights}: {source} is an exported folder, which has one set of weights")
        return _open_published(source, device, dtype, tokenizer)

    def read(path: Path, state: State) -> GPT:
        return _model(path, state, device, dtype, weights)

    path, state, model = read_newest(source, read)
    try:
        its_tokenizer = trained_tokenizer(state, own_tokenizer(path), tokenizer)
    except DataError as error:
        if tokenizer is not None:
            raise RunError(
                f"tokenizer={tokenizer}: must be the tokenizer.json of the run ({error})"
            ) from error
        remedy = "give the tokenizer.json of the run with tokenizer=FILE"
        raise RunError(f"{path}: its tokenizer cannot be read ({error}); {remedy}") from error
    stages = tuple(trained_stages(path, state).values())
    out = Opened(path, state, model.config, model, its_tokenizer, stages, longest(state))
    out.enter(None)
    return out


def _open_published(folder: Path, device: torch.device, dtype: torch.dtype, tokenizer: str | None) -> Opened:
    """Open an exported or published folder. Raises RunError."""
    published = open_published(folder)
    model = _empty(published.model, {}, device, dtype)
    published.load({name: parameter.data for name, parameter in model.named_parameters()})
    file = published.tokenizer if tokenizer is None else Path(tokenizer).expanduser()
    if file is None:
        raise RunError(f"{folder}: has no tokenizer.json; give one with tokenizer=FILE")
    try:
        its_tokenizer = published_tokenizer(file, published.config.get("eos_token_id"))
    except DataError as error:
        raise RunError(f"{folder}: its tokenizer cannot be read ({error})") from error
    model = model.to(dtype).requires_grad_(False)
    return Opened(folder, {}, published.model, model, its_tokenizer, (), published.model.seq_len)


def _empty(config: ModelConfig, stages: dict[str, Stage], device: torch.device, dtype: torch.dtype) -> GPT:
    """Return a model whose weights are not set yet, with the scorers of `stages` that have parameters."""
    with torch.device("meta"):
        model = GPT(config, dtype)
        add_scorers(model, stages)
    model.to_empty(device=device)
    model.tie()  # `to_empty` made new parameters
    return model


def trained_stages(path: Path, state: State) -> dict[str, Stage]:
    """Return by name the stages that did at least one step, as they were trained, in order."""
    found = {}
    with checkpoint.as_written(path):
        config = state["config"]
        for record in state["progress"]["stages"]:
            name, settings = record["name"], record.get("settings")
            if settings is None and name in config["stages"]:
                settings = saved_attention_settings(config["stages"][name], config["model"])
            if record.get("steps") and settings is not None:
                found[name] = Stage.of(name, _stage_config(config, name, settings))
    return found


def _stage_config(config: dict[str, Any], name: str, settings: dict[str, Any]) -> StageConfig:
    """Return the settings of a stage that ran. They may differ from the configuration, which may be newer."""
    known = {field.name for field in fields(StageConfig)}
    values = {key: value for key, value in config["stages"].get(name, {}).items() if key in known}
    values |= OMITTED if settings["attention"] == "lighthouse" else {}
    values |= {"rope_scaling": None} if "rope_theta" in settings else {}
    values |= {key: value for key, value in settings.items() if key in known}
    for field in fields(StageConfig):  # that the version of the checkpoint did not have
        if field.name not in values and field.default is not MISSING:
            values[field.name] = _default(field.default, config)
    if isinstance(values["queries"], str):  # saved as a name
        values["queries"] = Queries(values["queries"])
    of_data = {field.name for field in fields(StageDataConfig)}
    data = {key: value for key, value in (values.pop("data", None) or {}).items() if key in of_data}
    return StageConfig(**values, data=StageDataConfig(**data))


def _default(value: Any, config: dict[str, Any]) -> Any:
    """Return a default of a stage; one that refers to another key, ${group.key}, is that key's value."""
    if not isinstance(value, str) or not value.startswith("${"):
        return value
    group, _, key = value.removeprefix("${").removesuffix("}").partition(".")
    found = config.get(group, {}).get(key)
    return getattr(GROUPS[group](), key, None) if found is None and group in GROUPS else found


def _model(path: Path, state: State, device: torch.device, dtype: torch.dtype, weights: str) -> GPT:
    """Return the model of the checkpoint `path` with its weights. Raises RunError."""
    model = _empty(model_config(path, state), trained_stages(path, state), device, dtype)
    prefix = prefix_of(weights)
    if prefix == AVERAGE:
        check_average(path, checkpoint.opened(path).tensors, f"weights={weights}")
    tensors = {f"{prefix}{name}": parameter.data for name, parameter in model.named_parameters()}
    checkpoint.load(path, tensors, optional=[OWN_SCORER], partial=prefix == AVERAGE)
    return model.to(dtype).requires_grad_(False)
