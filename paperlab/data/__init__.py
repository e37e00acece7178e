"""Text and synthetic tasks as index-addressable batches: batch i is a function of i alone.

    source -> documents -> tokens (one stream per split) -> windows -> grain.MapDataset of batches

`DEFAULTS` is the `data` section of a config; `text.open_corpus` reads it, `packing.batches` (also `text.batches`)
serves it, `baselines` says what a reader would compare with, `synthetic/` makes tasks out of integers.
"""

from paperlab.limits import SEED, at_least, between, one_of, share

DEFAULTS = {
    "source": "stdlib",  # "stdlib" | "files" | "hf"; a non-empty `path` means "files", whatever is written here
    "path": "",  # a .txt/.jsonl/.parquet/.bin file, a folder (searched recursively) or a glob
    "validation_path": "",  # the same, for validation; empty: `validation_share` of the documents, chosen by hash
    "text_field": "text",  # field of .jsonl objects, column of .parquet tables and Hugging Face datasets
    "tokenizer": "bytes",  # "bytes" or a path to a Hugging Face tokenizer.json (or the folder that holds it)
    "vocab_size": 0,  # 0 = the tokenizer's; larger leaves room; states it where the data is absent (dry run)
    "sequence_length": 256,
    "batch_size": 16,  # global: all processes together
    "order": "shuffled",  # "shuffled" windows or "contiguous" (row r of batch i + 1 continues row r of batch i)
    "validation_share": 0.05,
    "max_bytes": 0,  # 0 = all; else both splits together are cut to about so many bytes
    "shuffle_seed": 0,
    "cache_dir": "",  # token cache; empty = ~/.cache/paperlab
    "hf_name": "",  # a dataset of the hub, or a folder written by `save_to_disk`
    "hf_config": "",
    "hf_split": "train",
    "hf_validation_split": "",  # empty: `validation_share` of `hf_split`
}

LIMITS = {
    "source": one_of("stdlib", "files", "hf"),
    "vocab_size": at_least(0, "0: the tokenizer's"),
    "sequence_length": at_least(1, "tokens"),
    "batch_size": at_least(1, "rows of all processes together"),
    "order": one_of("shuffled", "contiguous"),
    "validation_share": share(below=True),
    "max_bytes": between(0, 2**62, "0: all"),
    "shuffle_seed": SEED,
}
