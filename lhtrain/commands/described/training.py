"""Commands that train, and the estimate of what training needs."""

from lhtrain.commands.command import Command, Key, argument
from lhtrain.commands.described.shared import CONFIG_DIR, RUN_DIR, STEPS

TRAIN = Command(
    "train",
    "train a model; this is what lhtrain does if no command is named",
    "lhtrain.commands.train:train",
    (
        argument(
            "-m",
            "--multirun",
            action="store_true",
            help="train once for each combination of values that are separated by commas (a sweep)",
        ),
        CONFIG_DIR,
        argument("-cn", "--config-name", metavar="NAME", help="name of the main file instead of config"),
        argument(
            "-cp", "--config-path", metavar="DIR", help="folder to use instead of lhtrain's own presets"
        ),
        argument(
            "-c",
            "--cfg",
            choices=("job", "hydra", "all"),
            help="print the configuration, do not train; job: the settings of the run",
        ),
        argument(
            "--resolve", action="store_true", help="with --cfg: show values in place of references ${KEY}"
        ),
        argument("-p", "--package", metavar="KEY", help="with --cfg: print only the part under KEY"),
        argument(
            "-i",
            "--info",
            nargs="?",
            const="all",
            metavar="WHAT",
            help="information of Hydra: config, plugins, searchpath ...",
        ),
        argument("--hydra-help", action="store_true", help="print the help of Hydra"),
    ),
    settings=True,
    trains=True,
    details="""\
Examples
  lhtrain                                              train with the defaults, on text of this machine
  lhtrain stage=two_stage data=text data.path=books/   train on your own files
  lhtrain -m optim.lr=1e-3,2e-3                        train once with each value
  lhtrain --cfg job                                    print all settings, do not train
  torchrun --nproc-per-node=8 -m lhtrain run.batch_tokens=32768   train on 8 GPUs of one machine

Settings that are changed most often (lhtrain help KEY explains any setting)
  run.steps=400                 number of optimizer steps, over all stages
  run.batch_tokens=65536        tokens per step, over all ranks
  model.seq_len=8192            context length in tokens
  stages.lighthouse.steps=300   steps of one stage; or stages.lighthouse.fraction=0.75 of run.steps
  lighthouse.budget=1536        entries that a Lighthouse layer selects per level (k)
  run.dir=runs/mine             folder for everything that the run writes

A list is [A,B]; null is no value. Quote values with brackets or spaces: 'model.dense_layers=[0,-1]'.""",
    docs=("start", "stages", "settings"),
)

RESUME = Command(
    "resume",
    "continue a run from its newest undamaged checkpoint",
    "lhtrain.commands.resume:resume",
    (RUN_DIR,),
    settings=True,
    trains=True,
    details="""\
The run continues with its own settings, DIR/config.yaml. KEY=VALUE changes one of them. A change that affects
what the model learns also needs resume=force, whether it is given here or was made in config.yaml.

Examples
  lhtrain resume runs/mine
  lhtrain resume runs/mine checkpoint.every=50
  lhtrain resume runs/mine optim.lr=1e-4 resume=force
  torchrun --nproc-per-node=8 -m lhtrain resume runs/mine""",
    docs=("reliability",),
)

EXTEND = Command(
    "extend",
    "give a run more steps and continue it, whether it has finished or not",
    "lhtrain.commands.resume:extend",
    (RUN_DIR,),
    (STEPS,),
    settings=True,
    trains=True,
    details="""\
The last stage of the run gets the additional steps. The learning rates that follow are printed before
training starts. With the default schedule the rate rises to its constant value again, and then decays over
the last fifth of the longer run. A command with steps=N can be repeated: the second time it changes nothing.
KEY=VALUE works as in `lhtrain resume`.

Examples
  lhtrain extend runs/mine steps=+2000
  lhtrain extend runs/mine steps=12000""",
    docs=("reliability",),
)

ESTIMATE = Command(
    "estimate",
    "estimate memory, speed and cost of a run on GPUs; this needs no GPU",
    "lhtrain.commands.estimate:estimate",
    (CONFIG_DIR,),
    (
        Key("gpu", "h100", "a100 or h100 (80 GB), h200 (141 GB), b200 (180 GB), or a number of GB", "h100"),
        Key("ranks", "8", "number of GPUs of the run; by default as many as parallel.* need"),
        Key("price", "2.5", "of one GPU for an hour, in any currency; adds a row with the money"),
        Key("network", "40", "GB/s that each GPU receives from other machines; 40 is assumed"),
        Key("node", "8", "number of GPUs of a machine; 8 is assumed"),
    ),
    settings=True,
    details="""\
Takes the same settings as training. Prints the peak memory of a GPU in each stage, by its parts, and whether
it fits. If it does not fit, the settings that reduce it follow, with the memory that each needs. Then come
predictions from measured rates: tokens/s, hours, kWh of the GPUs, money, what a GPU receives over each link,
what limits the speed, and what fits on 1, 2, 4 and 8 GPUs. With more than 8 ranks: the meshes of as many.

Examples
  lhtrain estimate model=lighthouse_530m price=2.5
  lhtrain estimate model=llama3_8b gpu=h200 ranks=8 compute.recompute=full
  lhtrain estimate model=llama3_8b ranks=512 parallel.dp_replicate=64
  lhtrain estimate model=gpt_1b gpu=48 run.batch_tokens=262144 run.grad_accum=4""",
    docs=("memory_and_gpus", "scaling"),
)
