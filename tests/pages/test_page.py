"""The page of a report: it is whole, escapes what comes from the user, and a browser draws its charts."""

import json
import re
import shutil
import subprocess
from argparse import Namespace
from html.parser import HTMLParser

import pytest

from lhtrain.commands.report import report
from lhtrain.compare.run import read_runs
from lhtrain.errors import RunError, UsageError
from lhtrain.pages.page import big, render
from tests.compare.made import dense_rows, made_run, row, two_stage_rows, two_stages

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
RESULTS = {
    "loss_by_position": {
        "loss": 3.0,
        "last": {"loss": 2.5},
        "buckets": [{"begin": 0, "end": 64, "loss": 4.0}],
    },
    "gain_of_context": {"gain": 0.0625},
    "recall": {"exact": 0.5, "cells": [{"pairs": 4, "length": 1024, "depth": 0.5, "exact": 0.75, "n": 4}]},
    "passkey": {
        "accuracy": 0.25,
        "cells": [{"length": 2048, "depth": 0.1, "accuracy": 1.0}, {"length": None}, 3],
    },
    "copy": {"loss": 1.0, "cells": [{"length": 1024, "distance": 64, "loss": 1.5}]},
    "long_ppl": {"ppl": None},
}


class Page(HTMLParser):
    """The elements of a page, the data of its charts, and its text outside of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text, self.data = "", ""
        self.feed(text)
        assert self.open == []
        self.charts = json.loads(self.data)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.data += data if self.tags[-1][1].get("id") == "data" else ""
        elif self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture
def two(tmp_path):
    dense, both = (
        made_run(tmp_path / "dense", dense_rows()),
        made_run(tmp_path / "both", two_stage_rows(), two_stages()),
    )
    (both / "eval.json").write_text(json.dumps({"step": 10, "full": RESULTS, "lighthouse": None}))
    sample = {"step": 10, "stage": "recovery", "prompt": EVIL, "text": EVIL, "seed": 0, "temperature": 0.8}
    (both / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return [dense, both]


def page_of(*paths, **options) -> Page:
    return Page(render(read_runs(paths), **options))


def test_a_page_of_one_run(two):
    page = page_of(two[1], price=2.0)
    assert {"loss", "speed", "mfu", "lr", "switch-0-0", "position", "copy"} <= page.charts.keys()
    loss = page.charts["loss"]
    assert loss["axes"] == ["step", "tokens", "seconds"], (
        "the configuration has no model, so FLOPs are not known"
    )
    assert loss["marks"] == [
        {"x": {"step": 5, "tokens": 24576.0, "seconds": 1.0, "flops": None}, "text": "recovery", "color": 1}
    ]
    assert [one["x"]["step"] for one in loss["series"] if one["kind"] == "dots"] == [[5], [5, 6, 7, 8, 9, 10]]
    for text in (
        "3.0000",
        "CPU hours",
        "cost",
        "75%",
        "100%",
        "0.0625",
        "lighthouse → recovery after step 5",
    ):
        assert text in page.text, text


def test_the_validations_of_the_average_of_the_weights(tmp_path, two):
    rows = [
        one | ({"average_val_loss": one["val_loss"] / 8} if one["kind"] == "validation" else {})
        for one in dense_rows()
    ]
    run = made_run(tmp_path / "averaged", rows)
    summary = json.loads((run / "summary.json").read_text())
    summary["stages"][0]["average_val_loss"] = 0.1234
    (run / "summary.json").write_text(json.dumps(summary))
    page = page_of(run)
    (series,) = (one for one in page.charts["loss"]["series"] if one["name"] == "validation of the average")
    assert series["kind"] == "dots" and series["x"]["step"] == [2, 4, 6, 8, 10]
    assert series["y"] == pytest.approx([one["val_loss"] / 8 for one in rows if one["kind"] == "validation"])
    assert "moving average of the weights" in page.text and "average 0.1234" in page.text
    assert "0.3750" in page.text, "the last validation"
    assert "average of the weights" not in page_of(two[0]).text
    both = page_of(two[0], run).charts["loss"]["series"]
    assert "averaged, average of the weights" in {one["name"] for one in both}
    assert {one["group"] for one in both} == {"dense", "averaged"}


def test_the_sources_of_the_data(tmp_path):
    sources = {"<web>": {"tokens": 2_500_000, "epochs": 1.25}, "code": {"tokens": None}, "bad": 3}
    (run,) = read_runs([made_run(tmp_path / "run", dense_rows(), sources=sources)])
    text = Page(render([run])).text
    assert "Data that were read" in text and "<web>2.5 M1.25" in "".join(text.split("\n"))
    (without,) = read_runs([made_run(tmp_path / "without", dense_rows(), sources=3)])
    assert "Data that were read" not in Page(render([without])).text


def test_a_page_of_two_runs(two):
    page = page_of(*two)
    assert "1.67x" in page.text and "3.0000 / 3.8000" in page.text and "stages.recovery" in page.text
    assert {one["name"] for one in page.charts["loss"]["series"]} == {"dense", "both"}


def test_nothing_is_loaded_from_elsewhere(two):
    text = render(read_runs(two))
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "base")]
    assert not [
        attrs for _, attrs in page.tags if "src" in attrs or not attrs.get("href", "#").startswith("#")
    ]
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    (policy,) = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_texts_of_the_user_are_escaped(tmp_path):
    evil = "</script><b>x"
    rows = [one | {"stage": EVIL} for one in dense_rows()] + [row("spike", 10, EVIL, 10.0, loss=EVIL)]
    run = made_run(tmp_path / evil.replace("/", "|"), rows, name=EVIL, hardware={EVIL: EVIL}, data=EVIL)
    (run / "config.yaml").write_text(json.dumps({"run": {"name": EVIL, "steps": 10}, "stages": {EVIL: {}}}))
    (run / "samples.jsonl").write_text(json.dumps({"step": EVIL, "prompt": EVIL, "text": EVIL}) + "\n")
    (run / "eval.json").write_text(json.dumps({"stage": EVIL, "texts": EVIL, "full": RESULTS}))
    with (run / "history.jsonl").open("a") as file:
        changed = [{"key": EVIL, "before": EVIL, "after": EVIL}]
        file.write(json.dumps({"event": EVIL, "command": EVIL, "time": EVIL, "changed": changed}) + "\n")
    page = page_of(run)
    assert [tag for tag, _ in page.tags].count("script") == 2 and not [
        tag for tag, _ in page.tags if tag == "img"
    ]
    assert EVIL in page.text and page.charts["loss"]["series"][0]["name"] == EVIL


def test_runs_that_have_just_begun_or_are_damaged(tmp_path, two):
    empty = made_run(tmp_path / "empty", [], stages={})
    (empty / "summary.json").unlink()
    (empty / "config.yaml").write_text("a: {")
    assert "No step has been logged yet" in page_of(empty).text
    begun = made_run(tmp_path / "begun", dense_rows()[:1], finished=False, ended=None, switches=[3])
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "switch", "step": 2}\n{"kind": "train", "st')
    (begun / "eval.json").write_text('{"full": {"recall": {"cells": 3}, "copy": []}}')
    page = page_of(begun)
    assert "step" in page.text and page.charts["loss"]
    page_of(empty, begun, *two)


def test_long_runs_are_thinned_and_keep_their_spikes(tmp_path):
    rows = dense_rows(steps=10_000)
    next(one for one in rows if one["kind"] == "train" and one["step"] == 5000)["loss"] = 99.0
    run = made_run(tmp_path / "a", rows)
    text = render(read_runs([run]))
    series = Page(text).charts["loss"]["series"]
    assert max(max(one["y"]) for one in series) == 99.0
    assert sum(len(one["y"]) for one in series if one["kind"] != "dots") < 4000


def test_the_command(two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report(Namespace(RUN=[str(two[0])], out=None, price=None))
    assert (two[0] / "report.html").exists()
    report(Namespace(RUN=list(map(str, two)), out=None, price="2.5"))
    assert "report.html: 2 runs" in capsys.readouterr().out and (tmp_path / "report.html").exists()
    report(Namespace(RUN=[str(two[0])], out="new/page.html", price=None))
    for wrong in ({"price": "two"}, {"price": "-1"}, {"price": "nan"}, {"out": ""}):
        with pytest.raises(UsageError):
            report(Namespace(**{"RUN": [str(two[0])], "out": None, "price": None} | wrong))
    with pytest.raises(RunError, match="names another file"):
        report(Namespace(RUN=[str(two[0])], out=str(two[0]), price=None))


def test_large_numbers():
    assert [big(x) for x in (None, 5, 614400, 1.5e9, 2e18)] == ["-", "5", "614 K", "1.5 G", "2.00e+18"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_draws_every_chart(two, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(render(read_runs(two)))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path}/b",
        "--enable-logging=stderr",  # messages of the console
    ]
    command = [BROWSER, *options, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    figures = done.stdout.count('<figure class="chart')
    assert figures >= 6 and f'data-charts="{figures}"' in done.stdout, done.stderr[-2000:]
    assert done.stdout.count("<svg") == figures
    assert "Uncaught" not in done.stderr, done.stderr[-2000:]


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    run = made_run(tmp_path / "r\udcff", dense_rows())
    report(Namespace(RUN=[str(run)], out=str(tmp_path / "page\udcfe.html"), price=None))
    assert "r\\udcff" in (tmp_path / "page\udcfe.html").read_text()
