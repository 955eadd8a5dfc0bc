"""`lhtrain export` with the real command: the exported Llama has the validation loss of the run."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lhtrain import checkpoint
from lhtrain.data import SequenceOrder, open_corpus
from lhtrain.loader import validation_batches
from lhtrain.opened import trained_stages

pytestmark = pytest.mark.slow


def test_the_exported_model_has_the_runs_loss(lhtrain, undisturbed):
    done = lhtrain.bare("export", undisturbed.path.name, "exported")
    assert done.returncode == 0, done.stderr
    assert "step_00000016 -> exported: LlamaForCausalLM, 30,880 parameters" in done.stdout

    llama = AutoModelForCausalLM.from_pretrained(lhtrain.folder / "exported")
    path = undisturbed.path / "checkpoints" / "step_00000016"
    state = checkpoint.state_of(path)
    config, stage = state["config"], trained_stages(path, state)["recovery"]
    corpus = open_corpus(**config["data"])
    order = SequenceOrder(corpus.parts["val"], {stage.seq_len}, seed=0)
    total, count = 0.0, 0
    batches = validation_batches(
        order, config["eval"]["tokens"], stage, corpus.tokenizer.eos, torch.device("cpu")
    )
    for batch in batches:
        with torch.no_grad():
            logits = llama(batch.tokens).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"
        )
        total, count = total + loss.item(), count + batch.n_targets
    assert total / count == pytest.approx(undisturbed.summary["stages"][-1]["val_loss"], rel=1e-5)


def test_the_exported_tokenizer_gives_the_runs_tokens(lhtrain, undisturbed):
    done = lhtrain.bare("export", undisturbed.path.name, "with_tokenizer", "dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    state = checkpoint.state_of(undisturbed.path / "checkpoints" / "step_00000016")
    assert state["tokenizer"]["name"] == "bytes" and state["tokenizer"]["hash"]
    tokenizer = AutoTokenizer.from_pretrained(lhtrain.folder / "with_tokenizer")
    text = (lhtrain.folder / "text" / "3.txt").read_text()
    trained = open_corpus(**state["config"]["data"]).tokenizer.encode(text)
    assert tokenizer(text)["input_ids"] == trained.tolist()
    assert tokenizer.model_max_length == 2048
