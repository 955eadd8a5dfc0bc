"""README.md of an exported folder, the model card: what the model is, how it was trained, how to load it."""

from collections.abc import Sequence
from typing import Any

import lhtrain
from lhtrain.conf.schema import ModelConfig
from lhtrain.data.tokenizers.base import PREPARED
from lhtrain.interop.tokenizer import ExportedTokenizer
from lhtrain.interop.trained import Trained, longest, stages

# Encodings whose tokens llama.cpp's converter knows, by the names of gpt-2 and dbrx.
KNOWN_TO_LLAMA_CPP = ("gpt2", "r50k_base", "cl100k_base")


def card(
    state: dict[str, Any],
    model: ModelConfig,
    tokenizer: ExportedTokenizer,
    n_parameters: int,
    dtype: str,
    notes: list[str],
) -> str:
    """Markdown. Paths of the machine that trained are omitted."""
    progress, config = state["progress"], state["config"]
    ran = stages(state)
    name = _on_one_line(model.name)
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---",
        f"# {name}",
        f"A decoder of the Llama kind with {n_parameters:,} parameters, pre-trained by lhtrain "
        f"{lhtrain.__version__} and exported after step {progress['step']:,}. It is a base model: it "
        "continues text and was not taught to follow instructions.",
        _usage(tokenizer, dtype),
        "## Notes\n\n" + "\n".join(f"- {note}" for note in [*notes, *remarks(model, tokenizer)]),
        "## Model\n\n" + _table(("", ""), _model_rows(model, longest(state), dtype)),
        f"## Training\n\n{_data(config)}\n\n" + _table(*_stage_rows(ran)),
        f"{sum(stage.tokens for stage in ran):,} tokens in {progress['step']:,} steps. Losses are in nats "
        "per token: the mean training loss of a stage's last logged steps, and its last validation loss.",
    ]
    return "\n\n".join(parts) + "\n"


def remarks(model: ModelConfig, tokenizer: ExportedTokenizer) -> list[str]:
    """Warnings for the user of the folder that its files do not show."""
    lines = []
    if tokenizer.vocab_size is not None and model.vocab_size > tokenizer.vocab_size:
        lines.append(
            f"The vocabulary has {model.vocab_size:,} rows for {tokenizer.vocab_size:,} tokens: matrix "
            "products like round sizes. The rows from the tokenizer's last token on were never a target."
        )
    if tokenizer.content is None:
        return lines
    begin = "with a beginning-of-text token in front" if tokenizer.bos is not None else "nothing in front"
    lines.append(f"AutoTokenizer gives the tokens of training, {begin}.")
    if tokenizer.spelt:
        lines[-1] += (
            f" A text that spells a special token, such as `{tokenizer.text(tokenizer.eos)}`, is ordinary "
            "text, as in training; `from_pretrained(..., split_special_tokens=False)` makes it special."
        )
    known = tokenizer.name in KNOWN_TO_LLAMA_CPP and tokenizer.bos is None
    if tokenizer.content["model"]["type"] == "BPE" and not known:
        lines.append(
            "llama.cpp's convert_hf_to_gguf.py refuses byte-pair tokenizers that are not in its own list "
            "(`BPE pre-tokenizer was not recognized`); this one may have to be added there, in "
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
    needs = f"Weights are stored in {dtype}. transformers 4.57 or newer is needed."
    return f"## Use\n\n```python\n{code}\n```\n\n{needs}"


def _model_rows(model: ModelConfig, length: int, dtype: str) -> list[tuple[str, str]]:
    return [
        ("layers", f"{model.n_layers}"),
        ("width", f"{model.dim:,}"),
        ("heads", f"{model.n_heads}, {model.n_kv_heads} of keys and values, of {model.head_dim}"),
        ("hidden size of the SwiGLU", f"{model.ffn_dim:,}"),
        ("rotary base", f"{model.rope_theta:,.0f}"),
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


def _data(config: dict[str, Any]) -> str:
    """Where the tokens came from. A folder's path is nobody's business but the trainer's."""
    data = config["data"]
    what = str(data.get("source", "-"))
    if data.get("name"):
        subset = f", {data['subset']}" if data.get("subset") else ""
        what += f", {data['name']}{subset}"
    name = str(data["tokenizer"])
    name = "that of the prepared data" if name.startswith(PREPARED) else name.rsplit("/", 1)[-1]
    text = f"Data: {_on_one_line(what)}. Tokenizer: {_on_one_line(name)}."
    if config.get("init_from"):
        text += (
            " The run began with the weights of another checkpoint (init_from); its steps are not counted."
        )
    return text


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _on_one_line(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain.replace("\\", r"\\").replace("|", r"\|").replace("`", "'").replace("<", "&lt;")
