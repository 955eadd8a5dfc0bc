"""Published weights with the real command: import, prepare, extend, export; the loss in transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lhtrain import checkpoint
from lhtrain.data import SequenceOrder, open_corpus
from lhtrain.loader import Apart, validation_batches
from lhtrain.opened import trained_stages
from tests.interop.published import TEMPLATE, published

pytestmark = pytest.mark.slow
SMALL = [
    *("model.seq_len=256", "run.steps=8", "run.batch_tokens=512", "eval.tokens=2048", "run.device=cpu"),
    *("lighthouse.levels=2", "lighthouse.pooling=2", "lighthouse.budget=16", "lighthouse.tile=16"),
    *("stages.windowed.window=64", "optim.lr=1e-3"),
]


def succeed(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def extended(lhtrain):
    """A run that starts from an imported Qwen3 with a context of 64 tokens; returns its folder and output."""
    published(lhtrain.folder / "published", "qwen3-tied", "bfloat16")
    printed = succeed(lhtrain.bare("import", "published", "weights"))
    assert "Qwen3ForCausalLM, 31,296 parameters, bfloat16" in printed
    data = ["data=text", "data.path=text", "data.val_fraction=0.3", "data.tokenizer=weights/tokenizer.json"]
    succeed(lhtrain.bare("data", "prepare", *data, "data.out=prepared_for_import"))
    use = [
        "init_from=weights",
        "stage=extend",
        "data=prepared",
        "data.path=prepared_for_import",
        "run.dir=lengthened",
    ]
    return lhtrain.folder / "lengthened", succeed(lhtrain.bare(*use, *SMALL))


def test_the_run_takes_weights_shape_and_tokenizer(extended):
    place, printed = extended
    assert "weights of " in printed and "the optimizer state is new" in printed
    newest = checkpoint.complete(place / "checkpoints")[-1]
    state = checkpoint.state_of(newest)
    assert state["config"]["model"]["qk_norm"] and state["config"]["data"]["documents"] == "apart"
    assert state["imported"]["family"] == "qwen3" and (place / "imported" / "chat_template.jinja").is_file()


def test_the_exported_family_has_the_runs_loss(lhtrain, extended):
    place, _ = extended
    printed = succeed(lhtrain.bare("export", "lengthened", "lengthened_hf", "dtype=float32"))
    assert "Qwen3ForCausalLM" in printed
    model = AutoModelForCausalLM.from_pretrained(lhtrain.folder / "lengthened_hf")
    assert model.config.max_position_embeddings == 256
    assert AutoTokenizer.from_pretrained(lhtrain.folder / "lengthened_hf").chat_template == TEMPLATE
    card = (lhtrain.folder / "lengthened_hf" / "README.md").read_text()
    assert "Base model: published" in card and "| windowed |" in card

    newest = checkpoint.complete(place / "checkpoints")[-1]
    state = checkpoint.state_of(newest)
    config = state["config"]
    stage = trained_stages(newest, state)["recovery"]
    corpus = open_corpus(**{**config["data"], "path": str(lhtrain.folder / "prepared_for_import")})
    order = SequenceOrder(corpus.parts["val"], {256}, seed=0, alignment=2)
    apart = Apart.of([order], {256}, restarted=False)
    total, count = 0.0, 0
    device = torch.device("cpu")
    for batch in validation_batches(order, 2048, stage, corpus.tokenizer.eos, device, apart=apart):
        total, count = total + loss_of(model, batch), count + batch.n_targets
    assert total / count == pytest.approx(state["progress"]["stages"][-1]["val_loss"], rel=1e-5)


def loss_of(model, batch):
    """Return the summed loss of a batch whose documents are kept apart: each one is computed alone."""
    total = 0.0
    for row in range(len(batch.tokens)):
        starts = batch.documents.starts[row]
        for start in starts.unique():
            where = starts == start
            with torch.no_grad():
                logits = model(batch.tokens[row][where][None]).logits[0]
            targets = batch.targets[row][where]
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total
