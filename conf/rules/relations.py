"""Descriptions of the rules between keys, for `lhtrain help KEY` and docs/settings.md.

The functions of the other files here check them. tests/conf/rules/test_relations.py composes each `broken_by`
and expects an error on one of the keys.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One rule. keys: those that it is about, with NAME for any stage. broken_by: settings that break it."""

    keys: tuple[str, ...]
    rule: str
    broken_by: tuple[str, ...]
    ranks: int | None = None  # number of ranks with which `broken_by` breaks the rule, if it matters

    def concerns(self, key: str) -> bool:
        """Whether the rule is about `key`; keys of a stage may have its name in place of NAME."""
        return key in self.keys or _any_stage(key) in self.keys


def relations_of(key: str) -> list[str]:
    """The rules between `key` and others, each a sentence."""
    return [relation.rule for relation in RELATIONS if relation.concerns(key)]


def _any_stage(key: str) -> str:
    first, *rest = key.split(".")
    return ".".join([first, "NAME", *rest[1:]]) if first == "stages" else key


LENGTHS = ("model.seq_len", "stages.NAME.seq_len")
LEVELS = ("lighthouse.levels", "stages.NAME.levels")
POOLING = ("lighthouse.pooling", "stages.NAME.pooling")
TILES = ("lighthouse.tile", "stages.NAME.tile", "lighthouse.strictly_causal", "stages.NAME.strictly_causal")
BUDGETS = ("lighthouse.budget", "stages.NAME.budget")
BATCHES = ("run.batch_tokens", "stages.NAME.batch_tokens", "run.grad_accum", "stages.NAME.grad_accum")
DENSE = ("model.dense_layers", "stages.NAME.dense_layers")
SLIDING = ("model.sliding_layers", "model.sliding_window_pattern")
SPANS = ("stages.NAME.steps", "stages.NAME.tokens", "stages.NAME.fraction")
HEADS = ("model.n_heads", "model.n_kv_heads")
MESH = ("parallel.dp_replicate", "parallel.dp_shard", "parallel.cp")

SCORERS = ("lighthouse.scorer", "stages.NAME.scorer")

RELATIONS = (
    Relation(
        HEADS,
        "model.n_heads must be a multiple of model.n_kv_heads",
        ("model.n_kv_heads=3",),
    ),
    Relation(
        ("model.dim", "model.n_heads", "model.head_dim"),
        "model.dim must be a multiple of model.n_heads, unless model.head_dim is set",
        ("model.n_heads=3",),
    ),
    Relation(
        (*SCORERS, *LENGTHS, "parallel.cp"),
        "with the scorer dilated, 4 must divide the tokens of a sequence, or of each of its 2 * parallel.cp "
        "chunks if parallel.cp > 1",
        ("lighthouse.scorer=dilated", "model.seq_len=258", "lighthouse.levels=2", "lighthouse.pooling=2"),
    ),
    Relation(
        (*SCORERS, *POOLING, "data.documents"),
        "with the scorer dilated and data.documents=apart, pooling^(levels-1) must be a multiple of 4",
        ("lighthouse.scorer=dilated", "data.documents=apart", "lighthouse.levels=2", "lighthouse.pooling=2"),
    ),
    Relation(
        (*DENSE, "model.n_layers"),
        "each of dense_layers must be from -model.n_layers to model.n_layers - 1",
        ("stages.recovery.dense_layers=[9]",),
    ),
    Relation(
        (*DENSE, "stages.NAME.attention"),
        "if a stage uses lighthouse, its dense_layers must leave at least one layer out",
        ("model.dense_layers=[0,1,2,3]",),
    ),
    Relation(
        ("stages.NAME.frozen",),
        "each pattern must match a parameter of the model, and a stage must train at least one parameter",
        ("stages.recovery.frozen=[blocks.*.mlp]",),
    ),
    Relation(
        ("optim.state", "optim.betas"),
        "with optim.state=bfloat16, the second of optim.betas must be at most 0.99",
        ("optim.state=bfloat16", "optim.betas=[0.9,0.999]"),
    ),
    Relation(
        ("optim.groups",),
        "each pattern must match a parameter of the model; lr_scale and weight_decay must be at least 0",
        ("optim.groups={embeding: 0.1}",),
    ),
    Relation(
        (*SLIDING, "model.sliding_window"),
        "model.sliding_window and either sliding_window_pattern or sliding_layers must be set together",
        ("model.sliding_window=64",),
    ),
    Relation(
        (*SLIDING, "model.n_layers"),
        "each of sliding_layers must be from -model.n_layers to model.n_layers - 1, and if "
        "sliding_window_pattern is set too, both must name the same layers",
        ("model.sliding_window=64", "model.sliding_window_pattern=2", "model.sliding_layers=[1]"),
    ),
    Relation(
        (*SLIDING, *DENSE),
        "a layer cannot be in dense_layers and in sliding_layers",
        ("model.sliding_window=64", "model.sliding_layers=[0]", "model.dense_layers=[0]"),
    ),
    Relation(
        (*SLIDING, *DENSE, "stages.NAME.attention"),
        "if a stage uses lighthouse, sliding_layers and dense_layers must leave at least one layer out",
        ("model.sliding_window=64", "model.sliding_layers=[0,1,2,3]", "model.dense_layers=[]"),
    ),
    Relation(
        ("model.sliding_window", "parallel.cp", "parallel.cp_attention", *LENGTHS),
        "with parallel.cp > 1 and ring attention, model.sliding_window must be at most seq_len / (2 * "
        "parallel.cp), or at least seq_len",
        (
            *("stage=dense", "parallel.cp=2", "parallel.cp_attention=ring", "model.sliding_window=2000"),
            "model.sliding_window_pattern=2",
        ),
    ),
    Relation(
        ("lighthouse.queries", "stages.NAME.queries", "lighthouse.window", "stages.NAME.window", *TILES),
        "with queries=own, window must be at least two tiles, 2 * seq_len * tile / budget tokens, and "
        "strictly_causal must be false",
        ("lighthouse.queries=own",),
    ),
    Relation(
        (
            "lighthouse.queries",
            "stages.NAME.queries",
            *SCORERS,
            "parallel.cp",
            "parallel.cp_attention",
            *HEADS,
        ),
        "queries=own with parallel.cp > 1 needs parallel.cp_attention=ulysses, and the scorer norm, dilated "
        "or recent",
        ("lighthouse.queries=own", "lighthouse.window=2048", "parallel.cp=2", "parallel.cp_attention=ring"),
    ),
    Relation(
        ("init", "init_from"),
        "init other than auto needs init_from",
        ("init=weights",),
    ),
    Relation(
        ("model.rope_scaling",),
        "model.rope_scaling needs rope_type and factor; all types but linear need "
        "original_max_position_embeddings, the length before scaling; llama3 needs low_freq_factor and "
        "high_freq_factor; yarn may have attention_factor, beta_fast, beta_slow, mscale, mscale_all_dim and "
        "truncate",
        ("model.rope_scaling={rope_type: llama3, factor: 8}",),
    ),
    Relation(
        ("model.vocab_size", "data.tokenizer"),
        "model.vocab_size must be at least the number of tokens that data.tokenizer has",
        ("model.vocab_size=100",),
    ),
    Relation(
        (*LENGTHS, *LEVELS, *POOLING),
        "in a lighthouse stage, pooling^(levels - 1) must divide seq_len",
        ("model.seq_len=4104",),
    ),
    Relation(
        (*BUDGETS, *TILES),
        "in a lighthouse stage, budget must be a multiple of tile",
        ("lighthouse.budget=256", "lighthouse.tile=96"),
    ),
    Relation(
        (*BUDGETS, *TILES, *LENGTHS, *LEVELS, *POOLING),
        "in a lighthouse stage, budget must be at most seq_len / pooling^(levels - 1), the size of the "
        "coarsest level, and budget / tile must divide that size",
        ("lighthouse.budget=384", "model.seq_len=8192"),
    ),
    Relation(
        ("stages.NAME.seq_len",),
        "the seq_len of each stage must divide the longest seq_len of all stages",
        ("stages.recovery.seq_len=3072",),
    ),
    Relation(
        ("run.steps", *SPANS),
        "the steps of all stages must add up to run.steps; one stage may leave steps, tokens and fraction "
        "null and gets the remaining steps",
        ("stages.recovery.steps=1",),
    ),
    Relation(
        SPANS,
        "the length of a stage is steps, tokens or a fraction: steps and tokens cannot both be set, and a "
        "fraction counts only if both are null",
        ("stages.recovery.steps=10", "stages.recovery.tokens=4096"),
    ),
    Relation(
        ("stages.NAME.lr", "stages.NAME.lr_scale"),
        "a stage with lr must leave lr_scale at 1",
        ("stages.recovery.lr=1e-4", "stages.recovery.lr_scale=0.5"),
    ),
    Relation(
        ("stages.NAME.warmup_steps", *SPANS, "stages.NAME.schedule", "stages.NAME.decay_fraction"),
        "the warm-up of a stage and, with schedule=wsd, its own decay must fit into the steps of the stage",
        ("stages.recovery.warmup_steps=60", "stages.recovery.decay_fraction=0.5"),
    ),
    Relation(
        (*BATCHES, *LENGTHS, *MESH),
        "batch_tokens must be a multiple of seq_len * grad_accum * dp_replicate * dp_shard, so that each "
        "rank gets whole sequences",
        ("run.batch_tokens=5000",),
    ),
    Relation(
        MESH,
        "dp_replicate * dp_shard * cp must be the number of ranks",
        ("parallel.dp_replicate=2",),
        ranks=1,
    ),
    Relation(
        ("parallel.cp_attention", "parallel.cp", *HEADS),
        "parallel.cp_attention=ulysses needs a parallel.cp that divides model.n_heads and model.n_kv_heads",
        ("stage=dense", "parallel.cp=4", "parallel.cp_attention=ulysses"),
    ),
    Relation(
        ("parallel.cp", *LENGTHS),
        "with parallel.cp > 1, seq_len must be a multiple of 2 * parallel.cp",
        ("stage=dense", "parallel.cp=2", "model.seq_len=4098"),
    ),
    Relation(
        ("parallel.cp", *BUDGETS, *TILES),
        "with parallel.cp > 1, budget must be a multiple of tile * 2 * parallel.cp",
        ("parallel.cp=2",),
    ),
    Relation(
        ("parallel.cp", "lighthouse.window", "stages.NAME.window", *LENGTHS),
        "with parallel.cp > 1, window must be at most seq_len / (2 * parallel.cp), or at least seq_len",
        ("parallel.cp=2", "stages.lighthouse.budget=512", "model.seq_len=32768", "lighthouse.window=9000"),
    ),
    Relation(
        ("optim.warmup_fraction", "optim.decay_fraction", "optim.schedule"),
        "with optim.schedule=wsd, optim.warmup_fraction + optim.decay_fraction must be at most 1",
        ("optim.warmup_fraction=0.9",),
    ),
    Relation(
        ("profile.steps",),
        "profile.steps are the numbers of a first and a last step, for at most 100 steps",
        ("profile.steps=[10,110]",),
    ),
    Relation(
        ("checkpoint.retry", "watchdog.save"),
        "checkpoint.retry must be less than watchdog.save, unless that is null",
        ("checkpoint.retry=1800",),
    ),
    Relation(
        ("compute.offload", "compute.recompute"),
        "compute.offload=true needs compute.recompute=full",
        ("compute.offload=true",),
    ),
    Relation(
        ("compute.float8", "compute.precision"),
        "compute.float8=true needs compute.precision=bfloat16, or auto on a GPU",
        ("compute.float8=true", "compute.precision=float32"),
    ),
    Relation(
        ("compute.float8", "model.dim", "model.ffn_dim", *HEADS, "model.head_dim"),
        "with compute.float8=true, model.dim, model.ffn_dim, n_heads * head_dim and n_kv_heads * head_dim "
        "must be multiples of 16",
        ("compute.float8=true", "model.ffn_dim=100"),
    ),
    Relation(
        ("data.source", "data.path"),
        "data=text, code, files and prepared need data.path; other sources do not take it",
        ("data.path=books",),
    ),
    Relation(
        ("data.source", "data.name", "data.subset", "data.split", "data.revision", "data.streaming"),
        "data.name, subset, split, revision and streaming are for data=hf, which needs data.name",
        ("data.name=OWNER/NAME",),
    ),
    Relation(
        ("data.source", "data.column", "data.filters"),
        "data.column and data.filters are for data=files and data=hf",
        ("data.column=content",),
    ),
    Relation(
        ("data.source", "data.max_documents", "data.max_tokens", "data.bos", "data.eos", "data.out"),
        "data.max_documents, max_tokens, bos, eos and out do not go with data=prepared or data=mix, whose "
        "data are prepared already",
        ("data=mix", "data.mix={a: {path: x}}", "data.max_tokens=5"),
    ),
    Relation(
        ("data.source", "data.mix"),
        "data.mix is for data=mix, which needs it",
        ("data.mix={a: {path: x}}",),
    ),
    Relation(
        ("data.prepare", "data.source"),
        "data.prepare=during is for data=hf, files, code, text, stdlib, and for data=mix with such sources",
        ("data=mix", "data.mix={a: {path: x}}", "data.prepare=during"),
    ),
    Relation(
        ("data.prepare", "data.mix"),
        "sources of data.mix that have a key source need data.prepare=during",
        ("data=mix", "data.mix={a: {source: text, path: .}}"),
    ),
    Relation(
        ("data.prepare", "data.max_documents", "data.max_tokens", "data.out"),
        "data.max_documents, max_tokens and out do not go with data.prepare=during",
        ("data.prepare=during", "data.max_tokens=5"),
    ),
    Relation(
        ("data.prepare", "data.buckets", "data.long_fraction"),
        "data.buckets and long_fraction do not go with data.prepare=during",
        ("data.prepare=during", "data.long_fraction=0.5"),
    ),
    Relation(
        ("data.prepare", "data.portion", "data.keep_gb"),
        "data.portion and keep_gb are for data.prepare=during, and keep_gb must have room for four portions",
        ("data.prepare=during", "data.keep_gb=0.001"),
    ),
    Relation(
        ("data.portion", *LENGTHS),
        "with data.prepare=during, data.portion must be at least the longest sequence of the run",
        ("data.prepare=during", "data.portion=10"),
    ),
    Relation(
        ("data.buckets", "data.bucket_weights"),
        "data.bucket_weights needs data.buckets, and has one weight more",
        ("data.buckets=[4096]", "data.bucket_weights=[1]"),
    ),
    Relation(
        ("data.buckets", "data.long_fraction"),
        "data.long_fraction does not go with data.buckets",
        ("data.buckets=[4096]", "data.long_fraction=0.5"),
    ),
    Relation(
        ("stages.NAME.data.source", "stages.NAME.data.path", "stages.NAME.data.mix"),
        "the data of a stage are stdlib, text, prepared or mix, with the path or the mix that this needs, "
        "and the tokenizer of the run; other sources must be prepared before",
        ("stages.recovery.data.source=files", "stages.recovery.data.path=x"),
    ),
    Relation(
        ("data.documents", "data.positions"),
        "data.positions=restarted needs data.documents=apart",
        ("data.positions=restarted",),
    ),
    Relation(
        ("optim.kind", "optim.mup"),
        "optim.mup=true needs optim.kind=adamw",
        ("optim.mup=true", "optim.kind=muon"),
    ),
    Relation(
        ("optim.kind", "optim.options"),
        "optim.options are for an optimizer of a plugin",
        ("optim.options={a: 1}",),
    ),
    Relation(
        ("logger.kind", "logger.options"),
        "logger.options are for a tracker of a plugin",
        ("logger=wandb", "logger.options={a: 1}"),
    ),
    Relation(
        ("stages.NAME.attention", "stages.NAME.scorer", "stages.NAME.options"),
        "the options of a stage are for an attention or a scorer of a plugin",
        ("stages.recovery.options={a: 1}",),
    ),
    Relation(
        ("eval.lengths", "eval.beyond", *LENGTHS),
        "each of eval.lengths must be at most eval.beyond times the longest sequence of the run",
        ("eval.lengths=[1000000]",),
    ),
    Relation(
        ("cluster.time", "cluster.signal_seconds"),
        "cluster.time must be longer than cluster.signal_seconds",
        ("cluster.time=5",),
    ),
)
