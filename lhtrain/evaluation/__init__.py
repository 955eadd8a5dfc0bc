"""Measures a model: the validation loss, and the tasks of `lhtrain eval` on long contexts.

validation.py        the validation loss, and the passes that compile the model
judge.py             runs the model on sequences: the loss of each token, under one attention, on any ranks
attention.py         the attention of a stage at other sequence lengths
sources.py           the texts of an evaluation
texts.py             long passages of text, and words as tokens of the model's tokenizer
plan.py              what is measured, and how much fits into a share of a run
trial.py             what the tasks share: the judge, the texts, the plan, losses on long documents
tasks.py             the tasks by name, and their results as one dictionary
result.py            the content of eval.json; its table is in lhtrain/report/evaluation.py
loop.py              the tasks during a run
hidden.py            sentences hidden in a text, and a question at its end
loss_by_position.py, gain_of_context.py, recall.py, passkey.py, copying.py, long_ppl.py: one task each
"""

from lhtrain.evaluation.loop import LoopTasks
from lhtrain.evaluation.validation import validation_loss, warm_up

__all__ = ["LoopTasks", "validation_loss", "warm_up"]
