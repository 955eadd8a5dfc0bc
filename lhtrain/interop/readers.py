"""Other programs that read an exported model, and what they do not support.

The rules were read in the source code of vLLM (model_executor/models/registry.py, layers/rotary_embedding)
and of llama.cpp (conversion/__init__.py, base.py, llama.py), both as of 2026.
"""

from typing import Any

KNOWN_CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
OF_LLAMA_CPP = "convert_hf_to_gguf.py of llama.cpp"


def readers_that_differ(config: dict[str, Any]) -> list[str]:
    """Return warnings about a config.json that vLLM or llama.cpp refuse, or compute in another way."""
    lines, rope = [], config["rope_parameters"]
    name, kind = config["architectures"][0], rope["rope_type"]
    if name not in KNOWN_CLASSES:
        slides = "sliding_attention" in config.get("layer_types", [])
        same = "; without a sliding window it is the same model as MistralForCausalLM, model_type mistral, "
        same = "" if slides else f"{same}which both know"
        lines.append(f"{OF_LLAMA_CPP} does not know {name}, and vLLM has no code of its own for it{same}")
    if kind == "dynamic":
        lines.append(
            f"{OF_LLAMA_CPP} ignores rope_type=dynamic, so contexts above the original one are wrong"
        )
    if kind == "llama3" and not name.startswith(("Llama", "Mistral")):
        lines.append(
            f"{OF_LLAMA_CPP} ignores rope_type=llama3 in {name}; it applies it in Llama and Mistral alone"
        )
    if kind == "yarn":
        dropped = [key for key in ("mscale", "mscale_all_dim", "truncate") if rope.get(key) is not None]
        if dropped:
            lines.append(f"{OF_LLAMA_CPP} ignores {', '.join(dropped)} of rope_type=yarn")
        if any(rope.get(key) is not None for key in ("attention_factor", "mscale", "mscale_all_dim")):
            lines.append(
                "older versions of vLLM ignore attention_factor, mscale and mscale_all_dim of rope_type=yarn"
            )
    return lines
