"""`lhtrain data …`, and training on the prepared data, with the real command."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(lhtrain):
    """Two prepared folders: `short` documents, and `long` documents of several sequences."""
    for name, lines, count in (("short", 12, 600), ("long", 700, 30)):
        rows = (
            {"text": "".join(f"{name} {i} line {j}, and so on\n" for j in range(lines))} for i in range(count)
        )
        source = lhtrain.folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = lhtrain.bare(
            *("data", "prepare", "data=files", f"data.path={source}", "data.workers=2"),
            f"data.out={lhtrain.folder / name}",
        )
        assert done.returncode == 0, done.stderr
        assert f"{count} documents" in done.stdout
    return lhtrain.folder


def test_verify_and_inspect(lhtrain, prepared):
    sound = lhtrain.bare("data", "verify", str(prepared / "short"), str(prepared / "long"))
    assert sound.returncode == 0 and sound.stdout.count("sound") == 2
    text = lhtrain.bare("data", "inspect", str(prepared / "long"), "--document", "3").stdout
    for part in ("documents   30", "median", "█", "long 3 line 0, and so on"):
        assert part in text


def test_verify_names_a_damaged_shard(lhtrain, prepared, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (prepared / "short").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "00000.bin").read_bytes())
    content[2000] ^= 1
    (copy / "00000.bin").write_bytes(content)
    found = lhtrain.bare("data", "verify", str(copy))
    assert found.returncode == 1 and "00000.bin" in found.stderr
    assert "1 of 1 shard damaged" in found.stdout
    training = lhtrain.bare(
        "data=prepared", f"data.path={copy}", f"run.dir={tmp_path / 'run'}", "stage=dense"
    )
    assert training.returncode == 1 and not (tmp_path / "run").exists()
    assert "00000.bin': the content's crc32" in training.stderr and "Traceback" not in training.stderr


def test_a_mixture_trains_and_resumes_bit_for_bit(lhtrain, prepared):
    parts = ", ".join(
        f"{name}: {{path: {prepared / name}, weight: {w}}}" for name, w in (("short", 1), ("long", 3))
    )
    settings = ["data=mix", f"data.mix={{{parts}}}", "data.long_fraction=0.5", "data.packing=best_fit"]
    lhtrain_data, lhtrain.data = lhtrain.data, []
    try:
        whole = lhtrain("mixture", *settings)
        assert lhtrain.kill_after("mixture_killed", 9, *settings).status == -9
        resumed = lhtrain("mixture_killed", *settings, "resume=auto")
    finally:
        lhtrain.data = lhtrain_data
    assert resumed.trace == whole.trace
    assert whole.summary["stages"][1]["val_loss"] < whole.summary["stages"][0]["first_loss"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["data", "nonsense"],
            2,
            "no command data 'nonsense' (commands: prepare, verify, inspect, train-tokenizer)",
        ),
        (["data", "prepare", "data=files", "data.column=3x", "data.foo=1"], 2, "data.foo=1: no such key"),
        (
            ["data", "prepare", "data=text", "data.path=.", "data.column=body", "data.split=test"],
            2,
            "data.column=body: is not used by data=text, only by files, hf",
        ),
        (["data", "prepare", "data=text", "data.path=/no/such"], 1, "data.path='/no/such': must exist"),
        (
            ["data=stdlib", "data.max_tokens=5000"],
            1,
            "prepare the data before training:\n  lhtrain data prepare data=",
        ),
        (["data", "verify", "/no/such"], 1, "/no/such"),
        (["data", "verify", "--fast"], 2, "--fast: no such option"),
        (["data=prepared", "data.path=/no/such"], 2, "'/no/such/meta.json' must exist"),
        (
            ["data=mix", "data.mix={a: {path: /no/such, weight: 0}}"],
            2,
            "data.mix.a.weight=0: must be a number",
        ),
        (["data=mix", "data.mix={a: {weight: 1}}"], 2, "data.mix.a={'weight': 1}: must be {path: FOLDER"),
        (["data=hf", "data.name=x/y"], 1, "prepare the data before training:\n  lhtrain data prepare data="),
    ],
)
def test_mistakes_are_named(lhtrain, arguments, status, message):
    done = lhtrain.bare(
        *arguments, *([f"run.dir={lhtrain.folder / 'bad'}"] if arguments[0] != "data" else [])
    )
    assert done.returncode == status, done.stderr
    assert message in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_help_names_the_commands(lhtrain):
    text = lhtrain.bare("data", "--help").stdout
    assert "lhtrain data prepare" in text and "verify" in text and "inspect" in text
