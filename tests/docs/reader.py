"""A reader who does what a page says, in a folder with texts and a run of their own.

Commands that train are made small: another model, few steps, a small text. The settings as they are written
are checked first, so that no key or value of a page can be wrong. Of marked blocks they are only checked.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from lhtrain.commands.table import find
from lhtrain.conf.compose import checked, data_config, with_folders
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.typed.sweep import sweep_of
from tests.data.encodings import fill_cache
from tests.docs.page import ROOT, Block, Page
from tests.docs.shell import commands
from tests.integration.forked import Forked
from tests.small_texts import write_texts

# In place of what a page says about the size of a run.
REPLACED = re.compile(
    r"model\.(dim|seq_len|n_layers|n_heads|n_kv_heads|head_dim|ffn_dim)|run\.(steps|batch_tokens|grad_accum)"
    r"|stages\.\w+\.(steps|warmup_steps|seq_len|batch_tokens)|eval\.(every|tokens)|checkpoint\.every"
)
SMALL = [
    *("model.dim=32", "model.seq_len=4096", "model.n_layers=2", "model.n_heads=2", "model.ffn_dim=64"),
    *("run.steps=4", "run.device=cpu", "eval.tokens=4096", "eval.every=4"),
]
LARGE = ("data=stdlib", "data.tokenizer=gpt2")  # the logits of 50,257 tokens take most of a step's time
TEXT = ["data=text", "data.path=books/"]
SETTING = re.compile(r"[a-z][\w.]*=")
NEWEST = re.compile(r"([\w./-]+/checkpoints)/step_\d{8}")
SHELL = ("cat", "cp", "head", "ls", "mkdir", "python", "tail")  # run as they are
NOT_RUN = ("cd", "git", "source", "tmux", "nohup")


class Reader:
    def __init__(self, folder: Path, finished_run: Path | None = None):
        """finished_run: copied to runs/mine when a command first names a run that no other command made."""
        self.folder, self.finished_run = folder, finished_run
        lines = write_texts(folder / "books")
        for name in "ab":
            (folder / "repos" / name).mkdir(parents=True)
            (folder / "repos" / name / "main.py").write_text(f"print({name!r})\n" * 20000)
        rows = [{"text": "".join(lines[i : i + 20]), "score": i // 20 % 5} for i in range(0, 6000, 20)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "dump.jsonl").write_text(text)
        (folder / "dump.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        (folder / "encodings").mkdir()
        fill_cache(folder / "encodings")
        self._compressed(rows, text)
        self.environment = os.environ | {
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "LHTRAIN_CACHE": str(folder / "cache"),
            "TIKTOKEN_CACHE_DIR": str(folder / "encodings"),
            "WANDB_MODE": "offline",
            "COLUMNS": "110",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def _compressed(self, rows: list[dict], text: str) -> None:
        import pyarrow
        import pyarrow.parquet
        import zstandard

        (self.folder / "a.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self.folder / "b.parquet")

    def follow(self, page: Page) -> None:
        """Do what the page says, from top to bottom."""
        for block in page.blocks:
            if block.file:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            elif block.language == "console":
                self._compare(page, block)
            elif block.is_shell:
                for number, line in block.commands():
                    for words in commands(line):
                        try:
                            self._do(words, block.mark)
                        except Exception as error:
                            raise AssertionError(f"{page.name}:{number}: {line}\n{error}") from error

    def _do(self, words: list[str], mark: str) -> None:
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        name, rest = Path(words[0]).name, words[1:]
        if name == "eval" and (match := re.fullmatch(r"\$\((lhtrain .*)\)", rest[0])):
            name, *rest = shlex.split(match[1])
        if name == "torchrun" or rest[:2] == ["-m", "torch.distributed.run"]:
            assert mark, "a command of several ranks: mark the block"
            counts = [
                int(word.partition("=")[2])
                for word in rest
                if re.match(r"--n(nodes|proc-per-node)=\d+$", word)
            ]
            rest = rest[rest.index("lhtrain") + 1 :]
            self._check(rest, counts[0] if len(counts) == 1 else None)
        elif name == "lhtrain":
            self._import_for(rest)
            mixed = {"|", ">", ";", "&"} & set(rest)
            assert not mixed, f"a block for this page's commands has no {mixed}"
            self._check(rest)
            if mark == "slurm" and rest[:2] in (["slurm", "submit"], ["slurm", "resume"]):
                self._given(rest)
                self._run([word for word in rest if word != "--dry-run"] + ["--dry-run"])
            elif not mark:
                self._run(self._shrunk(rest))
        elif name == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            target = next((word for word in rest if "=" not in word), None)
            assert target is None or target in targets, f"no target {target}"
            for word in rest:
                if target == "train" and word.startswith("ARGS="):
                    self._check(shlex.split(word.removeprefix("ARGS=")))
        elif name in ("pip", "pip3") or rest[:2] == ["-m", "pip"]:
            of_ours = re.findall(
                r"\[([\w,]+)\]", " ".join(w for w in rest if w.startswith((".", "lhtrain[")))
            )
            extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
            unknown = {extra for names in of_ours for extra in names.split(",")} - set(extras)
            assert not unknown, f"no extras {unknown}"
        elif re.match(r"python3?$", name) and rest[:1] and rest[0].startswith("scripts/"):
            self._check_script(rest)
            assert mark, "a script: mark the block, it takes long"
        elif name == "export":
            key, _, value = rest[0].partition("=")
            self.environment[key] = value
        elif name in NOT_RUN or mark or rest[:2] == ["-m", "venv"]:
            pass
        else:
            assert name in SHELL, f"what is {name}? mark the block"
            self._given(rest)
            self._succeed(subprocess.run([name, *rest], cwd=self.folder, env=self.environment, **PIPES))

    def _check(self, words: list[str], n_ranks: int | None = None) -> None:
        """The command and its options exist, and its settings as they are written are valid."""
        command, rest = find(words)
        arguments = command.parse(rest)
        if not command.settings:
            return
        settings = list(arguments.settings)
        if find_spec("submitit") is None:  # make test-slurm installs it
            settings = [word for word in settings if word != "hydra/launcher=lhtrain_slurm"]
        if any(word.startswith("plugins=") for word in settings):  # in a process that may import the plugin
            if command.name == "train":
                self._run([*words, "--cfg", "job"])
            return
        with chdir(self.folder):
            settings = with_folders(getattr(arguments, "config_dir", []), settings)
            is_sweep = getattr(arguments, "multirun", False)
            for job in sweep_of(settings).jobs if is_sweep else [settings]:
                try:
                    data_config(job) if command.name == "data prepare" else checked(job, n_ranks=n_ranks)
                except ConfigError as error:
                    if not all(problem.is_here or "meta.json" in problem.rule for problem in error.problems):
                        raise  # and not only because nobody has prepared the data

    def _check_script(self, words: list[str]) -> None:
        """The script exists and has the options; settings of training are valid."""
        source = (ROOT / words[0]).read_text()
        for word in words[1:]:
            if word.startswith("--"):
                assert f'"{word.partition("=")[0]}"' in source, f"{words[0]} has no option {word}"
        if words[0] == "scripts/bench/train.py":
            pairs = list(pairwise(words))
            variants = [word.split() for before, word in pairs if before == "--with"]
            settings = [word for before, word in pairs if before != "--with" and SETTING.match(word)]
            folders = [f"--config-dir={ROOT / word}" for before, word in pairs if before == "--config-dir"]
            for variant in variants or [[]]:
                self._check([*folders, *settings, *variant])

    def _shrunk(self, words: list[str]) -> list[str]:
        """The words of a command that trains, with the settings that make it small."""
        command, _ = find(words)
        words = [NEWEST.sub(self._newest, word) for word in words]
        self._given(words)
        if not command.trains or "--cfg" in words or "--help" in words:
            return words
        if command.name != "train":
            return [re.sub(r"^steps=.*", "steps=+2", word) for word in words]
        out = [word for word in words if not REPLACED.fullmatch(word.partition("=")[0])]
        out = [word for word in out if word not in LARGE and not self._is_large_budget(word)]
        keys = {word.partition("=")[0] for word in out}
        layers = [] if "model.dense_layers" in keys else ["model.dense_layers=[]"]
        own_data = {"data", "experiment"} & keys
        named_run = keys == {"run.dir", "resume"} and (self.folder / self._run_dir(out)).exists()
        long_enough = ["run.steps=10"]  # for the last stage, which may be a tenth
        steps = long_enough if {"stage=extend", "stage=extend_long"} & {*out} else []
        return out if named_run else [*out, *SMALL, *steps, *layers, *([] if own_data else TEXT)]

    @staticmethod
    def _is_large_budget(word: str) -> bool:
        key, _, value = word.partition("=")
        return key.endswith(".budget") and value.isdecimal() and int(value) > 256

    @staticmethod
    def _run_dir(words: list[str]) -> str:
        return next(word.removeprefix("run.dir=") for word in words if word.startswith("run.dir="))

    def _newest(self, match: re.Match[str]) -> str:
        self._given([match[1]])
        return str(max(Path(self.folder, match[1]).glob("step_*")).relative_to(self.folder))

    def _given(self, words: list[str]) -> None:
        """Give the reader the run that the words name, if there is none: `runs/mine`."""
        mine = self.folder / "runs" / "mine"
        reads_it = any(
            re.search(r"(^|=)runs/mine\b", word) and not word.startswith("run.dir=") for word in words
        )
        if reads_it and not mine.exists() and self.finished_run is not None:
            shutil.copytree(self.finished_run, mine)

    def _import_for(self, words: list[str]) -> None:
        """Give the reader a small model in place of the imported one that the words name: `smollm2`."""
        folder = self.folder / "smollm2"
        if folder.exists() or not any(re.match(r"(\S+=)?smollm2(/|$)", word) for word in words):
            return
        from lhtrain.interop.importer import import_model
        from tests.interop.published import published

        published(self.folder / "hub", "smollm2")
        import_model(str(self.folder / "hub"), folder)

    def _run(self, words: list[str]) -> None:
        self._succeed(self.lhtrain(words))

    def lhtrain(self, words: list[str]) -> subprocess.CompletedProcess:
        done = Forked(words, self.folder, self.environment)
        out, err = done.communicate()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    @staticmethod
    def _succeed(done: subprocess.CompletedProcess) -> None:
        assert done.returncode == 0, f"as run: {shlex.join(done.args)}\n{done.stdout[-2000:]}\n{done.stderr}"

    def _compare(self, page: Page, block: Block) -> None:
        """`$ command`, and the lines that it prints. A line … stands for any lines."""
        command, *shown = block.lines
        assert command.startswith("$ lhtrain "), f"{page.name}:{block.number}: $ lhtrain …"
        (words,) = commands(command.removeprefix("$ "))
        self._given(words)
        done = self.lhtrain(words[1:])
        printed = "\n".join(line.rstrip() for line in (done.stdout + done.stderr).splitlines())
        parts = "\n".join(line.rstrip() for line in shown).split("\n…\n")
        pattern = r"\n(?:.*\n)*?".join(re.escape(part) for part in parts)
        assert re.fullmatch(pattern, printed), f"{page.name}:{block.number}: {command} prints\n{printed}"


PIPES = {"capture_output": True, "text": True}
