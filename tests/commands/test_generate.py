"""`lhtrain generate`: what goes where, and what is refused."""

import io
import sys

import pytest
import torch

from lhtrain import cli
from lhtrain.commands import generate as command
from lhtrain.samples import Generation
from tests.interop.made import DENSE, LIGHTHOUSE, saved
from tests.test_opened import STRICT


@pytest.fixture
def generate(tmp_path, capsys):
    """Run the command on the run in tmp_path; return its status, text and notes."""

    def run(*words):
        status = 0
        capsys.readouterr()  # what saving a checkpoint printed
        try:
            device = [] if any(word.startswith("device") for word in words) else ["device=cpu"]
            cli.main(["generate", str(tmp_path), *device, *words])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def run(tmp_path):
    return saved(tmp_path, vocab_size=320)[0]


def test_only_the_text_goes_to_stdout(run, generate):
    status, text, notes = generate("prompt=naïve ", "tokens=30", "seed=3")
    assert status == 0 and text and "prompt" not in text
    (line,) = notes.splitlines()
    assert line.startswith(f"{run}, full attention: 7 prompt tokens") and "30 tokens written" in line
    assert generate("prompt=naïve ", "tokens=30", "seed=3")[1] == text
    assert generate("prompt=naïve ", "tokens=30", "seed=4")[1] != text
    assert generate("prompt=other", "tokens=30", "seed=3")[1] != text


@pytest.mark.parametrize("end", [[""], ["\n"], ["\n", ""]])
def test_in_a_log_the_line_about_the_text_begins_a_line(run, generate, tmp_path, monkeypatch, end):
    text = generate("prompt=a", "tokens=5")[1]
    monkeypatch.setattr(Generation, "__iter__", lambda self: iter([text, *end]))
    log = tmp_path / "log"
    with log.open("a") as out, log.open("a") as error, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", error)
        cli.main(["generate", str(tmp_path), "device=cpu", "prompt=a", "tokens=5"])
    assert log.read_text().startswith(f"{text}\n{run}, full attention: ")


def test_a_prompt_of_the_whole_context_from_a_file(run, generate, tmp_path, monkeypatch):
    prompt = "日本語" * 7  # 63 bytes
    (tmp_path / "prompt.txt").write_text(prompt)
    status, text, notes = generate(f"file={tmp_path / 'prompt.txt'}", "tokens=1", "temperature=0")
    assert status == 0 and "63 prompt tokens" in notes and "note:" not in notes
    assert generate(f"prompt={prompt}", "tokens=1", "temperature=0")[1] == text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt.encode())))
    assert generate("file=-", "tokens=1", "temperature=0")[1] == text
    assert "trained on sequences of at most 64" in generate(f"prompt={prompt}", "tokens=2")[2]


def test_a_long_prompt_is_no_path(run, generate):
    assert generate(f"prompt={'x' * 5000}", "tokens=1")[0] == 0


def test_text_ends_at_an_end_of_text(run, generate, monkeypatch):
    """Here the model's most likely token is 65, twice, and then the end of the text."""
    tokens = iter([65, 65, 256, 66])
    monkeypatch.setattr(command, "Sampler", lambda *_: lambda logits: torch.tensor([next(tokens)]))
    status, text, notes = generate("prompt=a", "tokens=9")
    assert (status, text) == (0, "AA") and "2 tokens written" in notes and "the text ended" in notes


def test_ctrl_c_keeps_what_was_written(run, generate, monkeypatch):
    def interrupted(logits):
        interrupted.calls += 1
        if interrupted.calls > 3:
            raise KeyboardInterrupt
        return torch.tensor([65])

    interrupted.calls = 0
    monkeypatch.setattr(command, "Sampler", lambda *_: interrupted)
    status, text, notes = generate("prompt=a", "tokens=9")
    assert (status, text) == (130, "AAA")
    assert notes.startswith("lhtrain: interrupted; ") and "3 tokens written" in notes


def test_a_terminal_shows_the_prompt_and_no_control_characters(run, generate, monkeypatch):
    tokens = iter([65, 27, 7, 66])
    monkeypatch.setattr(command, "Sampler", lambda *_: lambda logits: torch.tensor([next(tokens)]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert generate("prompt=ab", "tokens=4")[1] == "\033[2mab\033[0mA??B\n"


def test_strict_uses_the_layer_that_was_trained(tmp_path, generate):
    path, _ = saved(tmp_path, stages={"it": STRICT}, seq_len=128, vocab_size=320)
    full, strict = (
        generate("prompt=" + "abc " * 30, "tokens=20", f"attention={kind}") for kind in ("full", "strict")
    )
    assert full[0] == strict[0] == 0 and full[1] != strict[1]
    assert "attention=strict generates with" in full[2]
    assert f"{path}, the attention of stage it: 120 prompt tokens" in strict[2]


def test_strict_is_refused_for_other_layers(tmp_path, generate):
    layer = LIGHTHOUSE | {"levels": 2, "pooling": 4, "budget": 128, "seq_len": 512}
    layer |= {"scorer": "norm", "cover_prefix": True}
    done = [{"name": "a", "steps": 3, "settings": DENSE}, {"name": "b", "steps": 3, "settings": layer}]
    saved(tmp_path, done=done, seq_len=512)
    status, text, error = generate("attention=strict")
    assert (status, text) == (2, "") and "a with dense attention, b with Lighthouse Attention" in error
    status, _, notes = generate("tokens=1")
    assert status == 0 and "so this is full attention" in notes


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["tokens=0"], "tokens=0"),
        (["tokens=many"], "tokens=many"),
        (["temperature=-1"], "temperature=-1"),
        (["temperature=nan"], "temperature=nan"),
        (["top_p=0"], "top_p=0"),
        (["top_p=1.5"], "top_p=1.5"),
        (["seed=-1"], "seed=-1"),
        (["attention=lighthouse"], "attention=lighthouse: must be one of full, strict"),
        (["device=tpu"], "device=tpu: must be one of auto, cpu, cuda"),
        (["prompt=a", "file=b"], "give only one"),
        (["file=/no/such/file"], "file=/no/such/file"),
        (["prompt=\udcff"], "prompt=: must be UTF-8"),
        (["promt=a"], "did you mean prompt?"),
    ],
)
def test_wrong_arguments_name_the_key(tmp_path, generate, words, key):
    status, text, error = generate(*words)
    assert (status, text) == (2, "") and key in error


def test_weights_that_are_not_finite_are_an_error(tmp_path, generate, monkeypatch):
    real = torch.nn.Embedding.forward
    saved(tmp_path)
    monkeypatch.setattr(torch.nn.Embedding, "forward", lambda *x: real(*x) * torch.nan)
    status, _, error = generate("prompt=a")
    assert status == 1 and "not finite" in error
