"""`lhtrain generate RUN`: text from a trained model."""

import io
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from lhtrain.compute.device import compute_dtype, pick_device
from lhtrain.conf.schema import Device, Precision
from lhtrain.data import DataError
from lhtrain.errors import Ended, RunError, UsageError, of_interrupt
from lhtrain.model.generate import Sampler
from lhtrain.opened import Opened, open_trained
from lhtrain.samples import Generation, prompt_tokens
from lhtrain.stage import Stage
from lhtrain.text import counted, is_utf8, number, printable
from lhtrain.weights import prefix_of

ATTENTIONS = ("full", "strict")


def generate(arguments: Namespace) -> None:
    """Write the text to stdout and what was done to stderr. Raises UsageError, RunError, Ended."""
    n = _whole("tokens", arguments.tokens, least=1)
    temperature = _number("temperature", arguments.temperature, "at least 0", lambda x: x >= 0)
    top_p = _number("top_p", arguments.top_p, "above 0 and at most 1", lambda x: 0 < x <= 1)
    seed = _whole("seed", arguments.seed, least=0)
    _one_of("attention", arguments.attention, ATTENTIONS)
    _one_of("device", arguments.device, [device.value for device in Device])
    prefix_of(arguments.weights)  # raises
    text = _prompt(arguments.prompt, arguments.file)

    device = pick_device(Device(arguments.device))
    dtype = compute_dtype(Precision.auto, device)
    opened = open_trained(Path(arguments.RUN), device, dtype, arguments.tokenizer, arguments.weights)
    try:
        prompt = prompt_tokens(opened.tokenizer, text)
    except DataError as error:
        raise UsageError(f"prompt=: {error}") from error
    stage = _strict_stage(opened) if arguments.attention == "strict" else None
    opened.enter(stage)
    for note in (*_about_attention(opened, stage), *_beyond(len(prompt) + n, opened.longest)):
        print(f"note: {note}", file=sys.stderr)
    sampler = Sampler(temperature, top_p, seed, opened.tokenizer.vocab_size)
    seq_len = opened.longest if stage is None else stage.seq_len
    generation = Generation(opened.model, opened.tokenizer, prompt, n, seq_len, sampler)
    kind = "full attention" if stage is None else f"the attention of stage {stage.name}"
    _write(generation, f"{opened.path}, {kind}", shown="" if arguments.file else text)


def _strict_stage(opened: Opened) -> Stage:
    """Return the last stage whose Lighthouse layers decode (`Stage.decodes`). Raises UsageError: no stage."""
    for stage in reversed(opened.stages):
        if stage.decodes:
            return stage
    kinds = (f"{stage.name} with {_kind(stage)}" for stage in opened.stages)
    keys = "lighthouse.strictly_causal=true or lighthouse.queries=own, and a scorer of single tokens"
    raise UsageError(
        f"attention=strict: needs a model with a stage that was trained with {keys} such as norm "
        f"(its stages: {', '.join(kinds) or 'not recorded'}); attention=full works with every model"
    )


def _kind(stage: Stage) -> str:
    if stage.pyramid is None:
        return f"{stage.attention} attention"
    return (
        f"Lighthouse Attention and a window of {stage.window:,}" if stage.window else "Lighthouse Attention"
    )


def _about_attention(opened: Opened, used: Stage | None) -> list[str]:
    """Return a note if the model was last trained with another attention than the one that is used."""
    last = opened.stages[-1] if opened.stages else None
    if last is None or used is not None or last.pyramid is None:
        return []
    if last.decodes:
        return [
            f"the last stage, {last.name}, used strictly causal Lighthouse Attention, and this is full "
            "attention; attention=strict generates with the layers that were trained"
        ]
    return [
        f"the last stage, {last.name}, used Lighthouse Attention, which cannot write one token at a time "
        "because its choice of rows depends on other tokens, so this is full attention; the text improves "
        "after some steps of training with it (stage=recovery and init_from)"
    ]


def _beyond(length: int, longest: int) -> list[str]:
    if length <= longest:
        return []
    return [
        f"prompt and text may have {length:,} tokens, but the model was trained on sequences of at most "
        f"{longest:,}; what it writes beyond that may be nonsense"
    ]


def _write(generation: Generation, what: str, shown: str) -> None:
    """Write the text as it comes; on a terminal after its prompt `shown`, in a dim color.

    what: the beginning of the line about it that follows on stderr.
    """
    live = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal may not have all characters
        sys.stdout.reconfigure(errors="replace")
    if live and shown:
        print(f"\033[2m{printable(shown)}\033[0m", end="", flush=True)
    times = [time.monotonic()]
    stopped: KeyboardInterrupt | None = None
    written = ""
    try:
        for part in generation:
            times.append(time.monotonic())
            written = part or written
            # A control character must not change the state of the terminal.
            print(printable(part) if live else part, end="", flush=True)
    except KeyboardInterrupt as error:
        stopped = error
    except ValueError as error:
        raise RunError(f"{what}: {error}") from error
    except DataError as error:
        raise RunError(f"{what}: the model chose a token that has no text ({error})") from error
    finally:
        if live or (_in_one_file() and not written.endswith("\n")):
            print(flush=True)  # what follows on stderr is a line of its own
    line = f"{what}: {_counts(generation, times)}"
    if stopped:
        reason, status = of_interrupt(stopped)
        raise Ended(f"{reason}; {line}", status)
    print(line, file=sys.stderr)


def _in_one_file() -> bool:
    """Return whether stdout and stderr go to the same file or pipe, such as the log of a job."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except (OSError, ValueError):  # one of them is closed, or has no file
        return False


def _counts(generation: Generation, times: list[float]) -> str:
    """Return numbers of tokens and seconds. times: of the start, and of each token."""
    n = generation.n_tokens
    read = f" read in {times[1] - times[0]:.1f} s" if len(times) > 1 else ""
    rate = (n - 1) / (times[-1] - times[1]) if n > 1 and times[-1] > times[1] else None
    speed = "" if rate is None else f", {number(rate, ',.0f')} tokens/s"
    end = ", then the text ended" if generation.ended else ""
    return (
        f"{counted(len(generation.prompt), 'prompt token')}{read}, {counted(n, 'token')} written{speed}{end}"
    )


def _prompt(text: str | None, file: str | None) -> str:
    """Return the prompt. Raises UsageError: both are given, or the file cannot be read."""
    if text is not None and file is not None:
        raise UsageError("prompt= and file=: give only one of them")
    if file is None:
        if not is_utf8(text or ""):
            raise UsageError("prompt=: must be UTF-8 text")
        return text or ""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        return content.decode()
    except OSError as error:
        raise UsageError(
            f"file={file}: must be a readable text file, or - for standard input ({error})"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"file={file}: must be UTF-8 text ({error})") from error


def _one_of(key: str, value: str, known: list[str] | tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{key}={value}: must be one of {', '.join(known)}")


def _whole(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) < least:
        raise UsageError(f"{key}={text}: must be a whole number, at least {least}")
    return int(text)


def _number(key: str, text: str, rule: str, holds: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not holds(value):
        raise UsageError(f"{key}={text}: must be a number, {rule}")
    return value
