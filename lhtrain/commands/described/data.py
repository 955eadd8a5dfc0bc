"""Commands on prepared data."""

from lhtrain.commands.command import Command, argument
from lhtrain.commands.described.shared import CONFIG_DIR

DATA = Command(
    "data",
    "prepare texts for training, verify and inspect prepared data, train a tokenizer",
    details="""\
Examples
  lhtrain data prepare data=text data.path=books/ data.out=/data/books
  lhtrain data verify /data/books
  lhtrain data inspect /data/books --document 3
  lhtrain data train-tokenizer books/ --vocab-size 32768 --out books.json
  lhtrain data=prepared data.path=/data/books          train on the prepared data
  lhtrain data=mix 'data.mix={web: {path: /data/edu, weight: 3}, code: {path: /data/code, weight: 1}}'""",
    docs=("data",),
)

DATA_PREPARE = Command(
    "data prepare",
    "tokenize texts once and write them as shards, which training reads",
    "lhtrain.commands.data:prepare",
    (CONFIG_DIR,),
    settings=True,
    alone=True,
    details="""\
Takes the same settings as training; only data.* have an effect.

Sources
  data=stdlib  the standard library of Python       data=text   files and folders; each file is a document
  data=code    folders; each folder is a document   data=files  JSON lines (.gz, .xz, .zst), parquet, arrow
  data=hf      a dataset of the Hugging Face hub

Settings that are changed most often
  data.out=FOLDER       folder for the shards; by default a folder in the cache, which is printed
  data.tokenizer=bytes  or gpt2, r50k_base, p50k_base, cl100k_base, o200k_base, or the path of a
                        tokenizer.json; data.eos=TOKEN names its end-of-text token if it is not found
  data.max_tokens=N     stop after N tokens; data.max_documents=N: after N documents
  data.workers=N        number of processes
  data.column=text      name of the column with the text
  'data.filters=["score >= 3", "chars > 200"]'   conditions that a row must meet

Examples
  lhtrain data prepare data=text data.path=books/ data.out=/data/books
  lhtrain data prepare data=code 'data.path=repos/*' data.out=/data/code data.tokenizer=cl100k_base
  lhtrain data prepare data=files data.path=dump/ data.column=content 'data.filters=["score >= 3"]'
  lhtrain data prepare data=hf data.name=HuggingFaceFW/fineweb-edu data.subset=sample-10BT \\
      data.max_tokens=1000000000 data.tokenizer=gpt2 data.out=/data/edu

If it is interrupted, the same command continues after the last finished shard. The result does not depend on
the number of processes. lhtrain help data.KEY explains a setting.""",
    docs=("data",),
)

_FOLDERS = argument("FOLDER", nargs="+", help="folder of prepared data: data.out of lhtrain data prepare")

DATA_TRAIN_TOKENIZER = Command(
    "data train-tokenizer",
    "train a byte-level BPE tokenizer on texts and write it as a tokenizer.json",
    "lhtrain.commands.train_tokenizer:train",
    (
        argument(
            *("FILE",),
            nargs="*",
            help="text file, folder of text files, or pattern; or JSON lines, parquet and arrow files, whose "
            "column data.column=text is read. Without files: data=NAME and its settings, as in lhtrain data "
            "prepare",
        ),
        argument(
            "--vocab-size",
            metavar="N",
            required=True,
            help="number of tokens, at least 258; for example 32768",
        ),
        argument("--out", metavar="OUT", required=True, help="file to write; its name must end in .json"),
        argument(
            "--max-bytes",
            metavar="N",
            default=None,
            help="stop after the document in which N bytes of text are reached; by default all is read",
        ),
    ),
    alone=True,
    details="""\
The tokens are the 256 bytes, <|begin_of_text|>, <|end_of_text|> and merged bytes, so every text can be
encoded. Texts are split before merging as in Llama 3. The result depends only on the texts, the number of
tokens and the version of the package tokenizers. Texts are not kept in memory, only their different words.

Examples
  lhtrain data train-tokenizer books/ --vocab-size 32768 --out books.json
  lhtrain data train-tokenizer a.jsonl.zst b.parquet data.column=content --vocab-size 65536 --out web.json
  lhtrain data train-tokenizer data=hf data.name=HuggingFaceFW/fineweb-edu data.subset=sample-10BT \\
      --max-bytes 2000000000 --vocab-size 32768 --out edu.json

data.tokenizer=books.json then uses it, in training and in lhtrain data prepare.""",
    docs=("data",),
)

DATA_VERIFY = Command(
    "data verify",
    "compare each file of prepared data with its checksum",
    "lhtrain.commands.data:verify",
    (_FOLDERS,),
    details="""\
Reports all damaged files. The exit status is 1 if there are any, otherwise 0.

Examples
  lhtrain data verify /data/edu /data/code""",
    docs=("data",),
)

DATA_INSPECT = Command(
    "data inspect",
    "show what prepared data contain, and the text of one document",
    "lhtrain.commands.data:inspect",
    (
        _FOLDERS,
        argument("--document", metavar="N", default="0", help="number of the document, from 0; default: 0"),
        argument("--seq-len", metavar="N", help="report padding in sequences of N tokens, and cut documents"),
        argument(
            "--compare",
            metavar="N",
            default="10000",
            help="compare at most N documents to find near copies; 0: none; default: 10000",
        ),
    ),
    details="""\
Shows the lengths of the documents, the share of tokens in documents of each length or longer, and copies.

Examples
  lhtrain data inspect /data/edu
  lhtrain data inspect /data/edu --document 17
  lhtrain data inspect /data/edu --seq-len 32768 --compare 50000""",
    docs=("data",),
)
