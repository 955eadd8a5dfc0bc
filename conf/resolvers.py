"""OmegaConf resolvers: functions in the schema and the YAML files that compute values from other values."""

from omegaconf import DictConfig, OmegaConf

from lhtrain.conf.rope_scaling import broken_rules, fitting_base
from lhtrain.conf.typed.paths import expanded


def register() -> None:
    """Register all resolvers."""
    for resolver in (
        div,
        budget,
        exact_window,
        fit_rope,
        tokenizer_vocab,
        prepared_tokenizer,
        mixed_tokenizer,
        stage_names,
        home,
        sweep_name,
    ):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def div(number: int, by: int) -> int:
    return number // max(by, 1)  # `validate` reports a `by` below 1


def budget(given: int | None, seq_len: int) -> int:
    """Return the budget k: as given, or seq_len / 64 rounded up to a multiple of 128, as in the paper."""
    return given if given is not None else round_up(-(-seq_len // 64), 128)


def exact_window(seq_len: int, at_most: int = 2048) -> int:
    """Return the window of Lighthouse stages: `at_most`, as measured, or less for short sequences."""
    return min(at_most, max(seq_len, 0) // 8)  # so that it fits a chunk with parallel.cp=4


def fit_rope(base: float, seq_len: int, *, _parent_: DictConfig, _root_: DictConfig) -> float:
    """Return a rotary base for `seq_len` tokens: as given, or larger if that is too low.

    The rope_scaling beside the key counts, because less base is enough with it.
    """
    scaling = _parent_.get("rope_scaling")
    scaling = OmegaConf.to_container(scaling, resolve=True) if isinstance(scaling, DictConfig) else scaling
    head_dim = _root_.model.head_dim
    if any(broken_rules(scaling)) or head_dim < 4:
        scaling = None  # `validate` reports it
    return fitting_base(base, max(seq_len, 1), scaling, head_dim)  # it reports a seq_len below 1, too


def tokenizer_vocab(name: str) -> int:
    """Return the size of the tokenizer's vocabulary, rounded up to a multiple of 64 for matrix products."""
    from lhtrain.data.errors import DataError
    from lhtrain.data.tokenizers.named import vocabulary_size

    try:
        return round_up(vocabulary_size(name), 64)
    except DataError:  # `validate` reports it
        return 64


def prepared_tokenizer(path: str) -> str:
    """Return the name of the tokenizer that is kept in a prepared folder."""
    from lhtrain.data.tokenizers.base import PREPARED

    return f"{PREPARED}{expanded(str(path))}"


def mixed_tokenizer(mix: DictConfig) -> str:
    """Return the tokenizer of a mixture's first folder; the others are compared when the data are opened.

    Sources that are tokenized during training do not have one.
    """
    parts = mix.values() if isinstance(mix, DictConfig) else ()
    first = next((one for one in parts if not (isinstance(one, DictConfig) and "source" in one)), None)
    path = first.get("path") if isinstance(first, DictConfig) else None
    return prepared_tokenizer(path) if path else "bytes"  # `validate` reports a missing path


def home(path: str) -> str:
    """Return `path` with `~` expanded."""
    return expanded(str(path))


def sweep_name(*keys: str, _root_: DictConfig) -> str:
    """Return the name of the folder of a run of a sweep, from its values of the swept keys."""
    from lhtrain.conf.typed.sweep_names import name_of

    return name_of([str(text) for text in _root_.hydra.overrides.task], keys)


def round_up(number: int, multiple: int) -> int:
    """Return the least multiple that is at least `number`."""
    return -(-number // multiple) * multiple


def stage_names(*, _root_: DictConfig) -> str:
    """Return the names of the stages, joined by "_", for run.name."""
    return "_".join(str(name) for name in _root_.stages)
