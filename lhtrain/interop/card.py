"""Writes README.md of an exported folder, the model card: the model, its training, how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

import lhtrain
from lhtrain.conf.schema import ModelConfig
from lhtrain.data.tokenizers.base import PREPARED
from lhtrain.interop.carried import is_imported
from lhtrain.interop.tokenizer import ExportedTokenizer
from lhtrain.interop.trained import Trained, longest, stages

# Encodings that llama.cpp's converter recognizes; it calls them gpt-2 and dbrx.
KNOWN_TO_LLAMA_CPP = ("gpt2", "r50k_base", "cl100k_base")


def card(
    state: dict[str, Any],
    model: ModelConfig,
    tokenizer: ExportedTokenizer,
    n_parameters: int,
    dtype: str,
    notes: list[str],
    average: bool = False,
) -> str:
    """Return the model card as Markdown, without paths of the machine that trained the model.

    Args:
        state: content of the checkpoint's state.json.
        model: sizes of the model.
        tokenizer: the exported tokenizer.
        n_parameters: number of weights.
        dtype: data type of the exported weights.
        notes: warnings of the export.
        average: whether the weights are the moving average, whose validation losses the card then has.
    """
    progress, config = state["progress"], state["config"]
    ran, imported = stages(state, average), state.get("imported")
    name = _on_one_line(model.name)
    parts = [
        _header(imported),
        f"# {name}",
        _origin(imported, n_parameters, progress["step"]),
        _usage(tokenizer, dtype),
        "## Notes\n\n" + "\n".join(f"- {note}" for note in [*notes, *remarks(model, tokenizer, imported)]),
        "## Model\n\n" + _table(("", ""), _model_rows(model, longest(state), dtype)),
        f"## Training\n\n{_data(config, imported is not None)}\n\n" + _table(*_stage_rows(ran)),
        f"Total: {sum(stage.tokens for stage in ran):,} tokens in {progress['step']:,} steps. Losses are in "
        "nats per token. The training loss is the mean over the last logged steps of a stage; the validation "
        f"loss is the last one of the stage{', that of the moving average' if average else ''}.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(imported: dict[str, Any] | None) -> str:
    """Return the metadata of the card, as the Hugging Face hub reads them."""
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if imported:
        if imported["source"].startswith("hub:"):
            data["base_model"] = imported["name"]
        data |= imported["card"]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _origin(imported: dict[str, Any] | None, n_parameters: int, step: int) -> str:
    """Return a paragraph: what the model is and where it comes from."""
    by = f"with lhtrain {lhtrain.__version__}"
    if imported is None:
        return (
            f"A Llama-style decoder with {n_parameters:,} parameters, pre-trained {by} and exported after "
            f"step {step:,}. It is a base model: it continues text and was not trained to follow "
            "instructions."
        )
    name = _on_one_line(imported["name"])
    if imported["source"].startswith("hub:"):
        name = f"[{name}](https://huggingface.co/{name})"
    commit = f" (commit {imported['commit']})" if imported["commit"] else ""
    return (
        f"A model of the family {imported['family']} with {n_parameters:,} parameters. Base model: "
        f"{name}{commit}, whose weights were trained further {by} and exported after step {step:,}. The base "
        f"model had a context of {imported['context']:,} tokens."
    )


def remarks(
    model: ModelConfig, tokenizer: ExportedTokenizer, imported: dict[str, Any] | None = None
) -> list[str]:
    """Return notes for users of the exported folder about its vocabulary and tokenizer."""
    lines: list[str] = []
    if imported and tokenizer.source is not None and is_imported(tokenizer.source, imported):
        return ["The tokenizer and its files are those of the base model, unchanged."]
    if tokenizer.vocab_size is not None and model.vocab_size > tokenizer.vocab_size:
        lines.append(
            f"The vocabulary has {model.vocab_size:,} rows for {tokenizer.vocab_size:,} tokens, because "
            "matrix products are faster with round sizes. The rows without a token were never a target."
        )
    if tokenizer.content is None:
        return lines
    begin = "with" if tokenizer.bos is not None else "without"
    lines.append(
        f"AutoTokenizer gives the same tokens as training did, {begin} a beginning-of-text token in front."
    )
    if tokenizer.spelt:
        lines[-1] += (
            f" If a text contains the name of a special token, such as `{tokenizer.text(tokenizer.eos)}`, "
            "the name is ordinary text, as in training; `from_pretrained(..., split_special_tokens=False)` "
            "makes it the special token."
        )
    known = tokenizer.name in KNOWN_TO_LLAMA_CPP and tokenizer.bos is None
    if tokenizer.content["model"]["type"] == "BPE" and not known:
        lines.append(
            "llama.cpp's convert_hf_to_gguf.py refuses byte-pair tokenizers that are not in its list "
            "(`BPE pre-tokenizer was not recognized`); you may have to add this one there, in "
            "`get_vocab_base_pre`."
        )
    return lines


def _usage(tokenizer: ExportedTokenizer, dtype: str) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines.append('model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")')
    if tokenizer.content is None:
        lines[0] = "from transformers import AutoModelForCausalLM"
    else:
        lines += [
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))",
        ]
    code = "\n".join(lines)
    needs = f"Weights are stored in {dtype}. You need transformers 4.57 or newer."
    return f"## Use\n\n```python\n{code}\n```\n\n{needs}"


def _scaling(scaling: Mapping[str, Any] | None) -> str:
    if scaling is None:
        return "none"
    return ", ".join(f"{key} {value}" for key, value in scaling.items())


def _model_rows(model: ModelConfig, length: int, dtype: str) -> list[tuple[str, str]]:
    return [
        ("layers", f"{model.n_layers}"),
        ("width", f"{model.dim:,}"),
        ("heads", f"{model.n_heads} (keys and values: {model.n_kv_heads}), head size {model.head_dim}"),
        ("hidden size of SwiGLU", f"{model.ffn_dim:,}"),
        ("rotary base", f"{model.rope_theta:,.0f}"),
        ("rotary scaling", _scaling(model.rope_scaling)),
        ("tied embeddings", "yes" if model.tie_embeddings else "no"),
        ("longest sequences in training", f"{length:,} tokens"),
        ("data type", dtype),
    ]


def _stage_rows(ran: list[Trained]) -> tuple[tuple[str, ...], Sequence[tuple[str, ...]]]:
    head = ("stage", "attention", "sequence length", "steps", "tokens", "training loss", "validation loss")
    rows = [
        (
            _on_one_line(stage.name),
            _attention(stage.attention),
            _number(stage.seq_len, ","),
            f"{stage.steps:,}",
            f"{stage.tokens:,}",
            _number(stage.loss, ".4f"),
            _number(stage.val_loss, ".4f"),
        )
        for stage in ran
    ]
    return head, rows


def _attention(kind: str | None) -> str:
    if kind == "lighthouse":
        return "[Lighthouse](https://arxiv.org/abs/2605.06554)"
    return kind or "-"


def _data(config: dict[str, Any], imported: bool) -> str:
    """Return a line with the data and the tokenizer. Paths of folders are private and left out."""
    data = config["data"]
    what = str(data.get("source", "-"))
    if data.get("name"):
        subset = f", {data['subset']}" if data.get("subset") else ""
        what += f", {data['name']}{subset}"
    if not data.get("source"):
        return "Data: none; these are the imported weights."
    name = str(data["tokenizer"])
    name = "from the prepared data" if name.startswith(PREPARED) else name.rsplit("/", 1)[-1]
    text = f"Data: {_on_one_line(what)}. Tokenizer: {_on_one_line(name)}."
    own = {name: (stage.get("data") or {}).values() for name, stage in config["stages"].items()}
    if others := [name for name, values in own.items() if any(value is not None for value in values)]:
        text += f" Stages with data of their own: {_on_one_line(', '.join(others))}."
    if config.get("init_from") and not imported:
        text += " The run started from the weights of another checkpoint (init_from)."
        text += " The steps of that checkpoint are not counted here."
    return text


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _on_one_line(text: str) -> str:
    """Return `text` on one line, escaped so that Markdown shows it unchanged, also in a table."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain.replace("\\", r"\\").replace("|", r"\|").replace("`", "'").replace("<", "&lt;")
