"""The data of each stage: sources that occur in several stages are read once."""

import json
from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
import torch

from lhtrain.build import build_data
from lhtrain.compute.fill import compose_config, filled
from lhtrain.conf.schema import StageDataConfig
from lhtrain.conf.stage_data import RUN
from lhtrain.data import DataError
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.distributed.mesh import Mesh
from lhtrain.distributed.world import Ranks, World
from lhtrain.progress import DataPart, Progress
from lhtrain.stage_data import StageData, open_data, orders_of
from tests.data.order.test_sequences import hashes

SEQ_LEN = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared folders; no two sequences are equal."""
    folder = tmp_path_factory.mktemp("stage_data")
    draw = Random(0)
    for name, count, length in (("web", 300, 12), ("code", 40, 100), ("books", 10, 500), ("notes", 99, 5)):
        texts = (f"{name} {i} " + "".join(draw.choices("abcdefgh", k=length)) for i in range(count))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        prepare(Recipe("files", str(folder / f"{name}.jsonl")), folder / name, 1, progress=False)
    return folder


def mix(folder, **weights):
    parts = (f"{name}: {{path: {folder / name}, weight: {weight}}}" for name, weight in weights.items())
    return f"{{{', '.join(parts)}}}"


def opened(folder, *settings):
    """Return the data of a run on `web` and `code` with the stages short, windowed and recovery."""
    config = filled(compose_config(settings_of(folder, *settings)))
    return orders_of(config, open_data(config), None)


def settings_of(folder, *settings):
    settings = f"model.seq_len={SEQ_LEN}", "stages.windowed.attention=dense", "run.batch_tokens=64", *settings
    return ["data=mix", f"data.mix={mix(folder, web=3, code=1)}", "stage=windowed", *settings]


def read(data: StageData, plan: list[tuple[str, int]], seq_len: int = SEQ_LEN):
    """Read `count` sequences in each stage; return their hashes, and the progress."""
    progress, seen = Progress(), []
    for stage, count in plan:
        order, progress.data = data.enter(stage, progress.data, progress.position)
        begin = order.align(progress.position, seq_len)
        seen += hashes(order.read(begin, count, seq_len))
        progress.position = begin + count * seq_len
    return seen, progress


@pytest.mark.parametrize("own", [{}, {"long_fraction": 0.5}])
def test_no_sequence_is_read_twice(folder, own):
    """A stage mixes a source of the run with a new one, and the run's data continue after it."""
    settings = [f"stages.windowed.data.mix={mix(folder, code=1, books=2, notes=1)}"]
    settings += [f"stages.windowed.data.{key}={value}" for key, value in own.items()]
    data = opened(folder, *settings)
    assert dict(data.owners) == {"short": RUN, "windowed": "windowed", "recovery": RUN}
    plan = [("short", 20), ("windowed", 24), ("recovery", 20)]
    seen, progress = read(data, plan)
    assert max(Counter(seen).values()) == 1
    read_blocks = data.blocks_read(progress.data, progress.position)
    assert sum(read_blocks.values()) == 64
    # A new process that knows only the progress continues in the same way.
    again, _ = opened(folder, *settings).enter("recovery", progress.data, progress.position)
    order, _ = data.enter("recovery", progress.data, progress.position)
    assert hashes(again.read(progress.position, 5, SEQ_LEN)) == hashes(
        order.read(progress.position, 5, SEQ_LEN)
    )


def test_a_stage_that_ends_within_a_sequence_of_the_next(folder):
    """The rest of the last block is not read; the next stage begins with the next block of each source."""
    data = opened(folder, "stages.short.seq_len=16", f"stages.windowed.data.mix={mix(folder, code=1)}")
    order, part = data.enter("short", DataPart(), 0)
    blocks = order.blocks_read(16 * 5)
    windowed, after = data.enter("windowed", part, 16 * 5)
    assert after == DataPart("windowed", 80, blocks) and windowed.align(80, SEQ_LEN) == 80
    (code,) = windowed.blocks_read(80)
    assert windowed.blocks_read(80 + SEQ_LEN)[code] == blocks[code] + 1


def test_without_data_of_their_own_stages_read_as_before(folder):
    data = opened(folder)
    order = data.orders[RUN]
    seen, progress = read(data, [("short", 7), ("windowed", 9), ("recovery", 3)])
    assert seen == hashes(order.read(0, 19, SEQ_LEN)) and progress.data == DataPart()
    assert data.fingerprints == {}


def test_stages_with_the_same_data_continue_with_each_other(folder):
    both = [f"stages.{name}.data.mix={mix(folder, books=1)}" for name in ("windowed", "recovery")]
    data = opened(folder, *both)
    seen, progress = read(data, [("short", 4), ("windowed", 6), ("recovery", 6)])
    assert progress.data.owner == "windowed" and progress.data.begin == 4 * SEQ_LEN
    assert seen[4:] == hashes(data.orders["windowed"].read(0, 12, SEQ_LEN))


def test_after_a_rewind_the_data_since_then_are_left_out(folder):
    """The run goes back to a checkpoint of the stage before, but its data continue where they were."""
    data = opened(folder, f"stages.windowed.data.mix={mix(folder, code=1, books=2)}")
    seen, progress = read(data, [("short", 20), ("windowed", 10)])
    order, part = data.enter("short", progress.data, progress.position)
    assert part.owner == RUN and part.begin == 30 * SEQ_LEN
    later, _ = data.enter("windowed", part, part.begin + 3 * SEQ_LEN)
    seen += hashes(order.read(part.begin, 3, SEQ_LEN))
    seen += hashes(later.read(part.begin + 3 * SEQ_LEN, 10, SEQ_LEN))
    assert max(Counter(seen).values()) == 1


def test_more_long_documents_in_one_stage(folder):
    """With buckets of the run and weights of the stage, which share the sequences of each bucket."""
    weights = ["data.buckets=[64]", "stages.windowed.data.bucket_weights=[0.4,0.6]"]
    data = opened(folder, *weights)
    seen, progress = read(data, [("short", 20), ("windowed", 20)])
    assert max(Counter(seen).values()) == 1
    (end,) = [data.blocks_read(progress.data, progress.position)]
    read_here = {key: end[key] - progress.data.read[key] for key in end}
    assert sum(n for key, n in read_here.items() if key.endswith("/1")) == 12


def test_tokens_and_epochs_of_each_source(folder):
    """A whole epoch of a source has all of its tokens; the sources that are not read are left out."""
    data = opened(folder, f"stages.windowed.data.mix={mix(folder, books=1)}")
    assert data.sources(DataPart(), 0) == {}
    books = data.orders["windowed"]
    _, progress = read(data, [("short", 40), ("windowed", 2 * books.n_blocks)])
    found = data.sources(progress.data, progress.position)
    assert list(found) == ["web", "code", "books"]
    assert found["books"] == {"tokens": 2 * books.n_tokens, "epochs": 2}
    web, code = (found[name] for name in ("web", "code"))
    assert web["tokens"] / (web["tokens"] + code["tokens"]) == pytest.approx(0.75, abs=0.05)
    n_tokens = data.corpora[RUN].parts["train"][0].split.n_tokens
    assert web["epochs"] == pytest.approx(web["tokens"] / n_tokens, rel=0.01)


def test_names_of_sources(folder):
    """The same folder has one name, whatever it is called; another folder with that name gets a number."""
    own = f"{{notes: {{path: {folder / 'code'}}}, web: {{path: {folder / 'books'}}}}}"
    data = opened(
        folder,
        f"stages.windowed.data.mix={own}",
        f"stages.short.data.path={folder / 'notes'}",
        "stages.short.data.source=prepared",
    )
    assert sorted(data.names.values()) == ["code", "notes", "web", "web (2)"]


def test_data_that_differ_only_in_the_long_fraction_are_opened_once(folder):
    data = opened(folder, "stages.windowed.data.long_fraction=0.5")
    assert data.corpora["windowed"] is data.corpora[RUN]
    packings = [{id(pool.packing) for pool in order._pools} for order in data.orders.values()]
    assert packings[0] == packings[1]


def test_another_tokenizer_is_refused(folder, tmp_path):
    """The rules on settings find it first; here the folder is written after they were checked."""
    (tmp_path / "a.txt").write_text("words\n" * 100)
    prepare(Recipe("text", str(tmp_path / "a.txt"), bos=True), tmp_path / "bos", 1, progress=False)
    config = filled(compose_config(["data=text", f"data.path={tmp_path / 'a.txt'}"]))
    config.stages["recovery"].data = StageDataConfig("prepared", str(tmp_path / "bos"))
    with pytest.raises(
        DataError, match=r"stages\.recovery\.data: .* with bytes \(eos 256, bos 256\); .*the run"
    ):
        open_data(config)


def test_errors_of_the_data_name_the_stage(folder, tmp_path):
    (tmp_path / "a.txt").write_text("")
    own = ["stages.windowed.data.source=text", f"stages.windowed.data.path={tmp_path / 'a.txt'}"]
    with pytest.raises(DataError, match=r"stages\.windowed\.data: data\.path="):
        opened(folder, *own)
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(DataError, match=r"stages\.windowed\.data: the train split has"):
        opened(folder, *own)


def test_the_fingerprint_depends_on_the_data_of_the_stage(folder):
    one, other = (
        opened(folder, f"stages.windowed.data.mix={mix(folder, code=weight, books=2)}").fingerprints
        for weight in (1, 2)
    )
    assert list(one) == list(other) == ["stages.windowed.data"] and one != other


def test_what_a_run_reads_of_each_source_is_known_before_it(folder):
    """A stage that reads its few data often, and a source of the run's mixture that it reads, too."""
    data = opened(folder, f"stages.windowed.data.mix={mix(folder, books=9, code=1)}")
    counts = {"short": 40, "windowed": 300, "recovery": 20}
    stages = [
        SimpleNamespace(name=name, seq_len=SEQ_LEN, steps=count, batch_tokens=SEQ_LEN)
        for name, count in counts.items()
    ]
    _, progress = read(data, list(counts.items()))
    planned = data.planned(stages)
    assert planned == data.sources(progress.data, progress.position)
    assert planned["books"]["epochs"] > 3 > planned["web"]["epochs"]
    assert round(planned["books"]["tokens"] / planned["books"]["epochs"]) == pytest.approx(
        data.tokens_of["books"], rel=1e-3
    )


def test_a_stage_that_reads_its_data_too_often_is_named(folder):
    """The data of the run alone are enough."""
    books = f"stages.windowed.data.mix={mix(folder, books=1)}"
    shares = ["stages.short.fraction=0.1", "stages.windowed.fraction=0.8"]
    settings = [*settings_of(folder, books), *shares, "run.steps=600", "run.device=cpu"]
    config = filled(compose_config(settings))
    notes = build_data(config, Mesh(config.parallel, config.model, "global", World(Ranks(), CPU))).notes
    (note,) = (note for note in notes if "reads" in note)
    assert note.startswith("the run reads books ") and " web " not in note
