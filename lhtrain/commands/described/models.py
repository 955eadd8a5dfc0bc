"""Commands on one model: import, export, text and evaluation."""

from lhtrain.commands.command import Command, Key, argument
from lhtrain.commands.described.shared import folder

IMPORT = Command(
    "import",
    "turn a published model into a checkpoint to start from",
    "lhtrain.commands.import_model:run",
    (
        argument("SOURCE", help="folder of Hugging Face transformers, or hub:NAME of the Hugging Face hub"),
        argument("DIR", type=folder, help="new or empty folder to write to"),
    ),
    (Key("revision", "main", "branch, tag or commit of the repository on the hub"),),
    alone=True,
    details="""\
Reads weights in safetensors files, in bfloat16, float16 or float32, of Llama, SmolLM2, Mistral and Ministral
without sliding window, Qwen2, Qwen2.5 and Qwen3. `lhtrain init_from=DIR` starts from them; the shape of the
model and its tokenizer come with them. `lhtrain export` writes the same family again. If the import fails,
DIR stays as it was. Models of the hub are kept in its cache, HF_HOME, and are taken from there without a
network.

Examples
  lhtrain import hub:HuggingFaceTB/SmolLM2-135M smollm2
  lhtrain import downloads/Llama-3.2-1B llama
  lhtrain import hub:Qwen/Qwen3-0.6B-Base qwen revision=main""",
    docs=("extend",),
)

EXPORT = Command(
    "export",
    "write the weights and the tokenizer of a run for Hugging Face transformers",
    "lhtrain.commands.export:export",
    (
        argument(
            "RUN", type=folder, help="folder of a run, for its newest checkpoint, or folder of a checkpoint"
        ),
        argument("FOLDER", type=folder, help="new or empty folder to write to"),
    ),
    (
        Key(
            "dtype",
            "float32",
            "float32, bfloat16 or float16; default: the type of imported weights, else float32",
        ),
        Key(
            "tokenizer",
            "FILE",
            "a tokenizer.json, if the run's own has been deleted; none: export no tokenizer",
        ),
        Key("weights", "average", "last, or average: the moving average that optim.ema kept", "last"),
        Key(
            "max_shard_size",
            "5GB",
            "largest size of a file of weights; more weights go into several files",
            "5GB",
        ),
    ),
    alone=True,
    details="""\
Writes model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json and a
model card, README.md. A model that began with `lhtrain import` is written as the same family, with the
files of its tokenizer. If the export fails, FOLDER stays as it was. Write a path that contains = as ./a=b

Examples
  lhtrain export runs/mine exported
  lhtrain export runs/mine/checkpoints/step_00002000 exported dtype=bfloat16""",
    docs=("judging",),
)

GENERATE = Command(
    "generate",
    "write text with a trained model",
    "lhtrain.commands.generate:generate",
    (argument("RUN", type=folder, help="folder of a run, a checkpoint or an exported model"),),
    (
        Key("prompt", "TEXT", "text to continue; without it the model begins a document"),
        Key("file", "FILE", "file with the prompt, in place of prompt=; - reads standard input"),
        Key("tokens", "200", "most tokens to write; the text ends earlier at an end of text", "200"),
        Key("temperature", "0.8", "below 1: likelier tokens; 0: always the likeliest", "0.8"),
        Key("top_p", "0.95", "draw from the likeliest tokens that together have this probability", "0.95"),
        Key("seed", "0", "another number gives another text", "0"),
        Key(
            "attention",
            "full",
            "full, or strict: that of the stage with lighthouse.strictly_causal=true or queries=own",
            "full",
        ),
        Key("device", "auto", "cpu or cuda; auto: cuda if there is a GPU", "auto"),
        Key("weights", "average", "last, or average: the moving average that optim.ema kept", "last"),
        Key("tokenizer", "FILE", "a tokenizer.json, if the run's own has been deleted"),
    ),
    alone=True,
    details="""\
Text goes to stdout as it is written, everything else to stderr. Ctrl-C stops. The prompt is read in one pass,
and a cache holds what each token needs. attention=strict needs less memory and time for long texts.

Examples
  lhtrain generate runs/mine 'prompt=Once upon a time' tokens=100
  lhtrain generate runs/mine/checkpoints/step_00002000 file=chapter.txt temperature=0
  lhtrain generate runs/mine prompt=def seed=1""",
    docs=("judging",),
)

EVAL = Command(
    "eval",
    "measure how a trained model uses a long context",
    "lhtrain.commands.eval:evaluate",
    (
        argument(
            "SOURCE",
            type=folder,
            help="folder of a run, for its newest checkpoint; of a checkpoint; or an exported folder",
        ),
    ),
    (
        Key("eval.tasks", "[recall,passkey]", "what is measured; by default all of the tasks below"),
        Key("eval.lengths", "[4096,32768]", "sequence lengths, up to eval.beyond times the context"),
        Key("eval.beyond", "2", "how many times the context the sequences may be; more: extrapolation"),
        Key("eval.depths", "[0.1,0.9]", "where sentences are hidden, from 0, the beginning, to 1"),
        Key("eval.samples", "4", "sequences for each length, depth and number of pairs"),
        Key("eval.data", "books/", "other texts than the validation documents: files or a prepared folder"),
        Key("eval.seed", "0", "seed of the choice of texts and hidden values"),
        Key("attention", "both", "full, lighthouse (that of the stage) or both", "both"),
        Key("stage", "NAME", "stage whose attention is measured; by default the last one"),
        Key("device", "auto", "auto, cpu or cuda", "auto"),
        Key("weights", "average", "last, or average: the moving average that optim.ema kept", "last"),
        Key("precision", "auto", "auto, float32 or bfloat16; auto: bfloat16 on a GPU", "auto"),
        Key("batch_tokens", "32768", "most tokens of a pass, unless a sequence has more", "32768"),
        Key("out", "FILE", "where the results are written; by default eval.json of the run"),
    ),
    details="""\
Tasks
  loss_by_position  loss in documents at least as long as the context, by position
  gain_of_context   how much lower the loss of the last tokens is with all of the context than with its end
  recall            the value of a key, hidden in a text 1, 4 or 16 times, by length and depth
  passkey           one digit hidden in filler text; chance is 10 %
  copy              loss of a random string that is repeated, by distance
  long_ppl          perplexity of the tokens that need a long context (LongPPL)

Prints tables and writes eval.json into the folder of the run, or beside the folder of a checkpoint or export.
Quote values with brackets: 'eval.tasks=[recall,passkey]'. Under torchrun the ranks divide the sequences; each
has the whole model.

Examples
  lhtrain eval runs/mine
  lhtrain eval runs/mine 'eval.tasks=[loss_by_position,passkey]' eval.samples=1
  lhtrain eval runs/mine/checkpoints/step_00002000 eval.data=books/ attention=full""",
    docs=("judging",),
)
