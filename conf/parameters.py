"""Names and shapes of the parameters of a model, and patterns for them. Needs no PyTorch.

A pattern consists of dotted parts, each of which must match the part of the name at the same place: a name,
a range of numbers such as 0-11, or a wildcard such as * or *_norm. A pattern that is shorter than a name
matches everything below it: `embedding`, `blocks.0-11`, `blocks.*.ffn`, `norm`, `blocks.*.*_norm`.
"""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from math import prod

from lhtrain.conf.schema import ModelConfig

Shape = tuple[int, ...]
RANGE = re.compile(r"(\d+)-(\d+)")


def shapes(model: ModelConfig) -> dict[str, Shape]:
    """Return the shape of each parameter of a model, in the order of GPT.named_parameters().

    Parameters of scorers are left out.
    """
    table = (model.vocab_size, model.dim)
    out: dict[str, Shape] = {"embedding.weight": table}
    for number in range(model.n_layers):
        out |= {f"blocks.{number}.{name}": shape for name, shape in _block(model).items()}
    out["norm.weight"] = (model.dim,)
    return out if model.tie_embeddings else out | {"head.weight": table}


def _block(model: ModelConfig) -> dict[str, Shape]:
    heads, kv_heads = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    out: dict[str, Shape] = {"attention_norm.weight": (model.dim,)}
    for name, size in (("wq", heads), ("wk", kv_heads), ("wv", kv_heads)):
        out[f"attention.{name}.weight"] = size, model.dim
        out |= {f"attention.{name}.bias": (size,)} if model.qkv_bias else {}
    out["attention.wo.weight"] = model.dim, heads
    out |= {f"attention.{name}.weight": (model.head_dim,) for name in ("q_norm", "k_norm") if model.qk_norm}
    out["ffn_norm.weight"] = (model.dim,)
    out |= {f"ffn.{name}.weight": (model.ffn_dim, model.dim) for name in ("gate", "up")}
    return out | {"ffn.down.weight": (model.dim, model.ffn_dim)}


def count(names: Iterable[str], of: Mapping[str, Shape]) -> int:
    """Return the number of weights of the parameters `names`."""
    return sum(prod(of[name]) for name in names)


def matches(pattern: str, name: str) -> bool:
    """Return whether `pattern` matches the parameter `name`, or something that contains it."""
    parts, names = pattern.split("."), name.split(".")
    return len(parts) <= len(names) and all(map(_matches, parts, names))


def _matches(pattern: str, part: str) -> bool:
    if bounds := RANGE.fullmatch(pattern):
        return part.isdecimal() and int(bounds[1]) <= int(part) <= int(bounds[2])
    return fnmatch.fnmatchcase(part, pattern)


def chosen(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the names that at least one of the patterns matches."""
    patterns = list(patterns)
    return {name for name in names if any(matches(pattern, name) for pattern in patterns)}


def broken_rule(pattern: object, names: Iterable[str]) -> str | None:
    """Return the rule that a pattern breaks, with names that are close to it; None if it breaks none.

    Each end of a range must exist, so that blocks.0-40 of a model with 32 blocks is an error.
    """
    if not isinstance(pattern, str):
        return "must be a pattern, such as embedding or blocks.0-11"
    names = list(names)
    for part in pattern.split("."):
        if bounds := RANGE.fullmatch(part):
            for end in bounds.groups():
                if rule := _unmatched(pattern.replace(part, end, 1), names):
                    return rule
            if int(bounds[1]) > int(bounds[2]):
                return f"the range {part} must begin with its smaller number"
    return _unmatched(pattern, names)


def _unmatched(pattern: str, names: list[str]) -> str | None:
    """Return a rule if `pattern` matches none of the names: what there is instead of its first wrong part."""
    if any(matches(pattern, name) for name in names):
        return None
    parts = pattern.split(".")
    for depth, part in enumerate(parts):
        before = ".".join(parts[:depth])
        here = [name.split(".") for name in names if not depth or matches(before, name)]
        options = list(dict.fromkeys(name[depth] for name in here if len(name) > depth))
        if not any(_matches(part, option) for option in options):
            break
    where = f"{before}." if before else ""
    if not options:
        return f"matches no parameter: there is nothing below {before}"
    if all(option.isdecimal() for option in options):
        return f"matches no parameter: there are {where}{options[0]} to {where}{options[-1]}"
    close = difflib.get_close_matches(part, options, n=1, cutoff=0.6)
    hint = f"; did you mean {'.'.join([*parts[:depth], *close, *parts[depth + 1 :]])}?" if close else ""
    return f"matches no parameter: there are {', '.join(where + option for option in options)}{hint}"
