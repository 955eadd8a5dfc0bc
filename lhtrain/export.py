"""`lhtrain export RUN FOLDER`: a checkpoint's weights as a Hugging Face Llama, which needs none of this code.

Lighthouse Attention has no weights of its own, and the decoder is Llama's, with its rotary embedding by
halves: only names change.
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lhtrain import checkpoint
from lhtrain.conf.schema import Attention, ModelConfig
from lhtrain.data import DataError
from lhtrain.data.tokenizer import PREPARED, open_tokenizer
from lhtrain.errors import RunError
from lhtrain.model import GPT

HELP = """lhtrain export: a run's weights as a Hugging Face Llama.

Usage: lhtrain export RUN FOLDER [dtype=float32|bfloat16]

RUN is a run directory, whose newest checkpoint is taken, or a checkpoint. FOLDER, which must be new or empty,
gets model.safetensors, config.json and, where the tokens are those of a tokenizer.json, that file.

Examples
  lhtrain export runs/mine exported
  lhtrain export runs/mine/checkpoints/step_00002000 exported dtype=bfloat16"""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Modules of GPT and of a block -> of transformers' LlamaForCausalLM and LlamaDecoderLayer.
OF_MODEL = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
OF_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def llama_name(parameter: str) -> str:
    """The name in LlamaForCausalLM of a `parameter` of `lhtrain.model.GPT`."""
    module = parameter.removesuffix(".weight")
    if not module.startswith("blocks."):
        return f"{OF_MODEL[module]}.weight"
    _, number, part = module.split(".", 2)
    return f"model.layers.{number}.{OF_BLOCK[part]}.weight"


def llama_config(model: ModelConfig, dtype: str = "float32", eos: int | None = None) -> dict[str, Any]:
    """The config.json of the same decoder; eos: the token that ends a document."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": model.seq_len,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,  # as transformers 4 reads it; the next line as 5 does
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "bos_token_id": None,
        "eos_token_id": eos,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def export(source: Path, folder: Path, dtype: str = "float32") -> list[str]:
    """Write the checkpoint `source`, or the newest of the run directory `source`, to `folder`.

    Returns notes: what was written, and what its user should know of it.

    Raises:
        RunError: no sound checkpoint; a folder with something in it; a package that is missing.
    """
    if find_spec("safetensors") is None:
        raise RunError("lhtrain export: needs the package safetensors: pip install 'lhtrain[hf]'")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: must be a new or an empty folder")
    from safetensors.torch import save_file

    path = next(reversed(checkpoint.complete(source / "checkpoints")), source)
    state = checkpoint.read_state(path)
    config = state["config"]
    model = ModelConfig(**config["model"])
    weights = {llama_name(name): tensor.to(DTYPES[dtype]) for name, tensor in _weights(path, model).items()}
    tokenizer, eos = _tokenizer(config["data"])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    description = folder / "config.json"
    description.write_text(json.dumps(llama_config(model, dtype, eos), indent=2) + "\n")
    (folder / "model.safetensors").chmod(description.stat().st_mode)  # safetensors lets nobody else read it
    count = sum(tensor.numel() for tensor in weights.values())
    return [
        f"{path} -> {folder}: LlamaForCausalLM, {count:,} parameters, {dtype}",
        *_warnings(state, tokenizer),
    ]


def _weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Parameters of the checked checkpoint `path`, float32, by their names in GPT; a tied head is none."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in GPT(config).named_parameters()}
    tensors = {f"model.{name}": torch.empty(shape) for name, shape in shapes.items()}
    checkpoint.load(path, tensors)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def _tokenizer(data: dict[str, Any]) -> tuple[Path | None, int | None]:
    """The tokenizer.json that the run's tokens are of, if there is one, and the token that ends a document;
    neither where the tokenizer is not on this machine."""
    name = data["tokenizer"]
    file = Path(name.removeprefix(PREPARED), "tokenizer.json") if name.startswith(PREPARED) else Path(name)
    try:
        eos = open_tokenizer(name).eos
    except DataError:
        return None, None
    return (file if file.suffix == ".json" and file.is_file() else None), eos


def _warnings(state: dict[str, Any], tokenizer: Path | None) -> list[str]:
    config, last = state["config"], state["progress"]["stages"][-1]["name"]
    lines = []
    if tokenizer is None:
        name = config["data"]["tokenizer"]
        lines.append(f"its tokens are those of data.tokenizer={name}; no tokenizer.json goes with it")
    if config["stages"][last]["attention"] == Attention.lighthouse.value:
        lines.append(
            f"its last stage, {last}, had Lighthouse Attention, and the exported model has full attention: "
            "train it for a while with stage=recovery and init_from first"
        )
    return lines


def main(arguments: list[str]) -> None:
    """`lhtrain export ARGUMENTS`. Ends the program: status 2 for wrong arguments, 1 for what is there."""
    from lhtrain.cli import fail

    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    places = [argument for argument in arguments if "=" not in argument]
    settings = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if len(places) != 2 or settings.keys() - {"dtype"}:
        fail(f"export {' '.join(arguments)}: needs RUN FOLDER [dtype=...]; try lhtrain export --help")
    if (dtype := settings.get("dtype", "float32")) not in DTYPES:
        fail(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    try:
        notes = export(Path(places[0]), Path(places[1]), dtype)
    except (RunError, OSError) as error:
        fail(str(error), status=1)
    print(*notes, sep="\n")
