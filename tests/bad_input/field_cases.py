"""Values of fields that no run can use."""

from tests.bad_input.cases import Case, made, tiny, write

MQAR = (
    "--config.data.sequence_length=64",
    "--config.model.hybrid=",
)


def one(assignment: str, *told: str, variant: str = "") -> Case:
    """`section.field=value`; the line must name the field, and hold `told`."""
    return tiny(f"--config.{assignment}", told=(f"config.{assignment.partition('=')[0]}", *told), variant=variant)


def recurrent(assignment: str, *told: str) -> Case:
    """The same of config.mixers.pararnn."""
    field = f"config.mixers.pararnn.{assignment.partition('=')[0]}"
    return tiny("--config.model.mixer=pararnn", f"--config.mixers.pararnn.{assignment}", told=(field, *told))


CASES: dict[str, Case] = {
    # training
    "steps half": one("train.steps=1.5", "not a whole number"),
    "steps zero": one("train.steps=0", "must be at least 1"),
    "steps negative": one("train.steps=-3", "must be at least 1"),
    "steps empty": one("train.steps=", "not a whole number"),
    "steps infinite": one("train.steps=1e400", "not a whole number"),
    "steps huge": one(f"train.steps={10**30}", "must be at most 2147483647"),
    "steps of 5000 digits": one(f"train.steps={'9' * 5000}", "not a whole number"),
    "log_every": one("train.log_every=0", "must be at least 1"),
    "checkpoint_every": one("train.checkpoint_every=-1", "at least 0 (0: only at the end)"),
    "micro_batches": one("train.micro_batches=3", "does not divide config.data.batch_size=8"),
    "micro_batches zero": one("train.micro_batches=0", "must be at least 1"),
    "average": one("train.ema_decay=1", "from 0 to below 1"),
    "seed negative": one("seed=-1", "from 0 to 4294967295"),
    "seed too large": one(f"seed={2**32}", "from 0 to 4294967295"),
    "seed words": one("seed=lucky", "not a whole number"),
    # optimiser
    "lr words": one("optim.lr=fast", "not a number"),
    "lr nan": one("optim.lr=nan", "finite"),
    "lr infinite": one("optim.lr=inf", "finite"),
    "lr too large": one("optim.lr=1e400", "finite"),
    "lr negative": one("optim.lr=-1e-3", "at least 0"),
    "clip": one("optim.clip=-1", "at least 0 (0: no clipping)"),
    "warmup": one("optim.warmup=1.5", "from 0 to 1"),
    "final_lr": one("optim.final_lr=2", "from 0 to 1"),
    "b1": one("optim.b1=1", "from 0 to below 1"),
    "b2": one("optim.b2=-0.1", "from 0 to below 1"),
    "weight_decay": one("optim.weight_decay=-0.1", "at least 0"),
    "optimiser": one("optim.name=adamww", "did you mean 'adamw'?"),
    "schedule": one("optim.schedule=cosin", "did you mean 'cosine'?"),
    "freeze nothing": one("optim.freeze=embeding$", "matches no parameter", "nearest: params/embedding"),
    "freeze everything": one("optim.freeze=.", "every parameter is frozen"),
    "freeze by no rule": one("optim.freeze=(", "is not a regular expression"),
    "freeze by half a list": one('optim.freeze=["a', "not a list"),
    "lr_groups without a factor": one("optim.lr_groups=embedding$", "'regex=multiplier'"),
    "lr_groups words": one("optim.lr_groups=embedding$=slow", "'regex=multiplier'"),
    "project without a bound": one("optim.project=embedding$", "'regex=bound'"),
    "project nothing": one("optim.project=embeding$=1", "matches no parameter"),
    "decay_exclude": one("optim.decay_exclude=embeding", "matches no parameter"),
    # evaluation, checkpoints, profile
    "split misspelt": one("evaluators.val.split=validaton", "did you mean 'validation'?"),
    "split of training": one("evaluators.val.split=train", "it never ends; choose validation"),
    "evaluators every": one("evaluators.val.every=-1", "at least 0 (0: only at the end)"),
    "evaluators batches": one("evaluators.val.batches=-1", "at least 0 (0: all)"),
    "no such evaluator": one("evaluators.test.every=1", "did you mean config.evaluators.val.every?"),
    "keep": one("checkpoint.keep=0", "at least 1"),
    "best_mode": one("checkpoint.best_mode=mini", "did you mean 'min'?"),
    "asynchronous": one("checkpoint.asynchronous=maybe", "say true or false"),
    "profile one": one("profile.steps=5", "FIRST:LAST, such as 10:15"),
    "profile backwards": one("profile.steps=10:5", "FIRST:LAST"),
    "tensorboard": one("log.tensorboard=perhaps", "say true or false"),
    "fault policy": one("faults.policy=skp", "did you mean 'skip'?"),
    # mesh
    "fsdp zero": one("mesh.fsdp=0", "at least 1"),
    "data minus two": one("mesh.data=-2", "must be -1 or at least 1"),
    "mesh beside the devices": tiny("--config.mesh.fsdp=3", told=("config.mesh", "does not divide the 8 devices")),
    "mesh beside the batch": tiny(
        "--config.mesh.data=8", "--config.data.batch_size=12", told=("config.mesh", "config.data.batch_size")
    ),
    "rules without axes": one("mesh.rules=embedding$", "'regex=axis,axis'"),
    "rules of no axis": one("mesh.rules=embedding$=rows", "with axes of"),
    "rules that find nothing": one("mesh.rules=embeding$=fsdp", "matches no parameter"),
    "rules that are none": one("mesh.rules=(=fsdp", "is not a regular expression"),
    # model
    "cell misspelt": recurrent("cell=gruu", "did you mean 'gru'?"),
    "cell of no file": recurrent("cell=nowhere/leaky.py", "cannot read it: No such file"),
    "mode misspelt": recurrent("mode=paralel", "did you mean 'parallel'?"),
    "no iterations": recurrent("iterations=0", "say how many (3), or a tolerance"),
    "state of odd width": tiny(
        "--config.model.mixer=pararnn",
        "--config.mixers.pararnn.state_width=7",
        told=("config.model.heads", "7 channels", "no multiple of"),
    ),
    "width zero": one("model.width=0", "at least 1"),
    "width negative": one("model.width=-16", "at least 1"),
    "width huge": one(f"model.width={10**30}", "at most 2147483647"),
    "heads": one("model.heads=3", "must both be multiples of heads=3"),
    "heads zero": one("model.heads=0", "at least 1"),
    "depth": one("model.depth=0", "at least 1 (layers)"),
    "dropout": one("model.dropout=1", "from 0 to below 1"),
    "unroll": one("model.unroll=0", "at least 1"),
    "ffn_multiple": one("model.ffn_multiple=0", "at least 1"),
    "vocab_multiple": one("model.vocab_multiple=0", "at least 1"),
    "norm_eps": one("model.norm_eps=0", "above 0"),
    "init_std": one("model.init_std=-0.02", "at least 0"),
    "dtype": one("model.dtype=float8", "did you mean 'float"),
    "dtype of integers": one("model.dtype=int8", "choose one of float32, bfloat16"),
    "dtype too wide": one("model.dtype=float64", "JAX_ENABLE_X64=1"),
    "remat": one("model.remat=ful", "did you mean 'full'?"),
    "mixer": one("model.mixer=glaa", "did you mean 'gla'?"),
    "mixer of nobody": one("model.mixer=mamba7", "there are attention, gla"),
    "mixer empty": one("model.mixer=", "names of mixers"),
    "mixer by its path": one("model.mixer=paperlab/mixers/gla.py", "no mixer can be called"),
    "mixer that is none": one("model.mixer=papers.gla.claims", "is no mixer"),
    "mixer of no paper": one("model.mixer=papers.none.mixer", "no module paperlab.papers.none.mixer"),
    "hybrid": one("model.hybrid=gla,atention", "did you mean 'attention'?"),
    "hybrid with a hole": one("model.hybrid=gla,,attention", "names of mixers with a comma between each two"),
    "another model": one("model.name=lmm", "did you mean 'lm'?"),
    "another task": one("task.name=languagemodelling", "did you mean 'language_modelling'?"),
    "a task with other fields": tiny(
        "--config.task.name=recall", told=("no field config.task.vocab_size", "base_config(task='recall')")
    ),
    "a program of nobody": one("program=search", "no program is called 'search'"),
    "slug": one("slug=../../elsewhere", "plain name"),
    # the device
    "a model larger than the device": tiny(
        f"--config.model.width={2**20}",
        told=("config.model: the state needs", "on a device that has", "config.mesh.fsdp"),
    ),
    "a batch larger than the device": made(
        lambda d: write(d, "long/a.txt", "abc " * 500_000).parent,
        "--config.data.path={}",
        "--config.data.batch_size=16384",
        "--config.data.sequence_length=64",
        "--config.data.vocab_size=100000",
        told=("config.data.batch_size: the compiled step needs", "on a device that has", "micro_batches"),
    ),
    # mixers
    "gate": one("mixers.gla.gate=chanel", "did you mean 'channel'?"),
    "gla kv_heads": one("mixers.gla.kv_heads=3", "must divide config.model.heads=2"),
    "gate_clamp": one("mixers.gla.gate_clamp=0.5", "at most 0"),
    "gate_temperature": one("mixers.gla.gate_temperature=0", "above 0"),
    "gate_low_rank": one("mixers.gla.gate_low_rank=-1", "at least 0 (0: full)"),
    "expand_k": one("mixers.gla.expand_k=0", "above 0"),
    "expand_k too small": tiny(
        "--config.mixers.gla.expand_k=0.01", told=("config.mixers.gla.expand_k=0.01", "multiples")
    ),
    "feature_map": one("mixers.gla.feature_map=cosine", "choose one of identity"),
    "norm": one("mixers.gla.norm=rsm", "did you mean 'rms'?"),
    "impl": one("mixers.gla.impl=chunk", "did you mean 'chunked'?"),
    "impl without a kernel": one("mixers.gla.impl=pallas", "use 'chunked'"),
    "chunk": one("mixers.gla.chunk=3", "power of two"),
    "sub_chunk": tiny(
        "--config.mixers.gla.chunk=4", "--config.mixers.gla.sub_chunk=8", told="sub_chunk=8 must not be larger than"
    ),
    "conv_width": one("mixers.gla.conv_width=0", "at least 1"),
    "a mixer that is not used": one("mixers.attention.window=8", "no layer of this model is 'attention'"),
    "position": one("mixers.attention.position=sine", "choose one of rope, learned, none", variant=":attention"),
    "window": one("mixers.attention.window=-1", "at least 0 (0: all tokens)", variant=":attention"),
    "attention kv_heads": one("mixers.attention.kv_heads=3", "must divide", variant=":attention"),
    "attention heads": one("model.heads=3", "must divide config.model.width=16", variant=":attention"),
    "odd channels of a head": one("model.heads=16", "even number of channels", variant=":attention"),
    # tasks
    "carry without order": one("task.carry_state=true", 'config.data.order="contiguous"'),
    "z_loss": one("task.z_loss=-1", "at least 0"),
    "too many pairs": tiny(*MQAR, "--config.task.num_pairs=20", told=("64: 20 pairs", "length >= 80"), variant=":mqar"),
    "too few words": tiny(*MQAR, "--config.task.vocab_size=8", told=("config.task.vocab_size=8",), variant=":mqar"),
    "no power": tiny(*MQAR, "--config.task.power=0", told=("config.task.power=0.0", "above 0"), variant=":mqar"),
    "nothing to validate": tiny(
        *MQAR, "--config.task.validation_examples=0", told="config.task.validation_examples=0", variant=":mqar"
    ),
    # data, without a file
    "source": one("data.source=web", "choose one of stdlib, files, hf"),
    "order": one("data.order=shuffeld", "did you mean 'shuffled'?"),
    "share": one("data.validation_share=1", "from 0 to below 1"),
    "batch_size": one("data.batch_size=0", "at least 1"),
    "sequence_length": one("data.sequence_length=0", "at least 1"),
    "sequence longer than the text": one(
        "data.sequence_length=100000", "longer than the training split", "give at most"
    ),
    "vocabulary": one("data.vocab_size=100", "smaller than the tokenizer's 257"),
    "max_bytes": one("data.max_bytes=-1", "from 0 to"),
    "shuffle_seed": one("data.shuffle_seed=-5", "from 0 to 4294967295"),
    "control characters": one("data.text_field=a\x1bb", "must not hold control characters"),
}
