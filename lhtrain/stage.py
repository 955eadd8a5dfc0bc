"""One stage of a run, with all values filled in. Immutable."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lhtrain.conf.parameters import chosen, shapes
from lhtrain.conf.schema import Config, LrSchedule, Queries, StageConfig
from lhtrain.conf.stage_data import own_keys
from lhtrain.kernels.pyramid import TILE, Pyramid
from lhtrain.registry import SCORERS


@dataclass(frozen=True)
class Stage:
    """A stage of a filled configuration."""

    name: str
    attention: str  # a name of registry.ATTENTIONS, for all layers except dense_layers
    seq_len: int  # tokens per sequence
    batch_tokens: int  # tokens per optimizer step, over all ranks
    grad_accum: int  # micro-batches per step
    steps: int = 1
    lr_scale: float = 1.0
    pyramid: Pyramid | None = None  # None: the layers attend to every position
    scorer: str = "norm"  # a name of registry.SCORERS
    cover_prefix: bool = True
    window: int = 0  # tokens that a Lighthouse layer attends to exactly; 0: the published layer
    own_queries: bool = False  # each position attends to the rows with its own query, not with a pooled one
    strictly_causal: bool = False  # no output depends on later tokens, not even through the selection of rows
    options: dict[str, Any] = field(default_factory=dict)  # for an attention kind of a plugin
    rope_theta: float = 10_000.0
    dense_layers: tuple[int, ...] = ()  # layers with full attention, counted from 0
    lr: float | None = None  # peak learning rate; None: optim.lr * lr_scale
    warmup_steps: int | None = None  # None: the warm-up of the run
    # If one of these is not None, the learning rate falls within the stage.
    schedule: LrSchedule | None = None
    decay_fraction: float | None = None
    final_lr_ratio: float | None = None
    rope_scaling: dict[str, Any] | None = None
    frozen: tuple[str, ...] = ()  # patterns of parameters that the stage does not train
    data: dict[str, Any] = field(default_factory=dict)  # keys of its own data; {}: it has those of the run

    @classmethod
    def of(cls, name: str, config: StageConfig) -> "Stage":
        """Build the stage `name` of a filled configuration."""
        pyramid = None
        if config.attention == "lighthouse":
            sizes = config.seq_len, config.levels, config.pooling, config.budget
            pyramid = Pyramid.of(*sizes, config.tile, config.strictly_causal or config.queries == Queries.own)
        return cls(
            name,
            config.attention,
            config.seq_len,
            config.batch_tokens,
            config.grad_accum,
            config.steps or 0,
            config.lr_scale,
            pyramid,
            config.scorer,
            config.cover_prefix,
            config.window if config.attention == "lighthouse" else 0,
            config.queries == Queries.own and config.attention == "lighthouse",
            config.strictly_causal and config.attention == "lighthouse",
            dict(config.options),
            config.rope_theta,
            tuple(config.dense_layers),
            config.lr,
            config.warmup_steps,
            config.schedule,
            config.decay_fraction,
            config.final_lr_ratio,
            config.rope_scaling,
            tuple(config.frozen),
            own_keys(config.data),
        )

    @property
    def decodes(self) -> bool:
        """Whether its Lighthouse layers can write one token at a time.

        Nothing may depend on later tokens, and the scorer must not need tokens that a cache does not keep.
        """
        causal = self.strictly_causal or self.own_queries
        return causal and self.scorer in SCORERS and getattr(SCORERS[self.scorer], "token_local", False)

    @property
    def n_sequences(self) -> int:
        """Sequences per optimizer step, over all ranks."""
        return self.batch_tokens // self.seq_len

    @property
    def n_attended(self) -> int:
        """Number of rows that a layer attends to: positions, or selected entries of the pyramid.

        A window does not count, unless it covers the whole sequence, which is full attention.
        """
        if self.pyramid is None or self.window >= self.seq_len:
            return self.seq_len
        return self.pyramid.n_selected

    def data_in_words(self) -> str:
        """Return the settings of the stage's own data; an empty text if it has those of the run."""
        values = dict(self.data)
        if isinstance(mix := values.get("mix"), dict):
            values["mix"] = ", ".join(f"{name} {part.get('weight', 1):g}" for name, part in mix.items())
        if weights := values.get("bucket_weights"):
            values["bucket_weights"] = ", ".join(f"{weight:g}" for weight in weights)
        words = (
            f"{key} {value:g}" if key == "long_fraction" else f"{key} {value}"
            for key, value in values.items()
        )
        return f"data of its own ({'; '.join(words)})" if values else ""

    def attention_settings(self) -> dict[str, Any]:
        """Return the settings of the attention as plain values. If they change, it is a stage switch."""
        out: dict[str, Any] = {"attention": self.attention, "seq_len": self.seq_len}
        out |= {"rope_theta": self.rope_theta}
        out |= {"rope_scaling": self.rope_scaling} if self.rope_scaling else {}
        if self.pyramid is not None:
            out |= {key: getattr(self.pyramid, key) for key in ("levels", "pooling", "budget")}
            out |= {"scorer": self.scorer, "cover_prefix": self.cover_prefix}
            # Omitted at their defaults, because checkpoints of earlier versions lack these keys.
            out |= {"window": self.window} if self.window else {}
            out |= {"queries": "own"} if self.own_queries else {}
            out |= {"tile": self.pyramid.tile} if self.pyramid.tile != TILE else {}
            out |= {"strictly_causal": True} if self.strictly_causal else {}
            out |= {"dense_layers": list(self.dense_layers)}
        return out | ({"options": self.options} if self.options else {})


def saved_attention_settings(stage: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Return `Stage.attention_settings` for a stage in a saved configuration. model: its group `model`."""
    # Configurations of earlier versions have these keys only in `model`.
    of_model = ("rope_theta", "rope_scaling", "dense_layers")
    stage = {key: model[key] for key in of_model if key in model} | stage
    keys: tuple[str, ...] = ("attention", "seq_len", "rope_theta")
    keys += ("rope_scaling",) if stage.get("rope_scaling") else ()
    if stage["attention"] == "lighthouse":
        keys += ("levels", "pooling", "budget", "scorer", "cover_prefix")
        causal = stage.get("strictly_causal", False) or stage.get("queries") == Queries.own.value
        stage = stage | {"tile": Pyramid.of(0, 0, 0, 0, stage.get("tile"), causal).tile}
        keys += ("window",) if stage.get("window") else ()
        keys += ("queries",) if stage.get("queries", "pooled") != "pooled" else ()
        keys += ("tile",) if stage["tile"] != TILE else ()
        keys += ("strictly_causal",) if stage.get("strictly_causal") else ()
        keys += ("dense_layers",)
    keys += ("options",) if stage.get("options") else ()
    return {key: stage[key] for key in keys if key in stage}


def coarsest_window(stages: Iterable[Stage]) -> int:
    """Return the largest window of a pyramid of `stages`, in tokens; 1 if they have none."""
    pyramids = [stage.pyramid for stage in stages if stage.pyramid is not None]
    return max([1, *(pyramid.coarsest_window for pyramid in pyramids)])


def stages_of(config: Config) -> dict[str, Stage]:
    """Return the stages of a filled configuration by name, in order."""
    return {name: Stage.of(name, stage) for name, stage in config.stages.items()}


def always_frozen(config: Config) -> set[str]:
    """Return the names of the parameters that no stage of a filled configuration trains."""
    stages = list(config.stages.values())
    if not all(stage.frozen for stage in stages):  # the usual case, without the names
        return set()
    names = shapes(config.model)
    return set.intersection(*(chosen(stage.frozen, names) for stage in stages))
