"""Speed of the operations of this package on the device at hand, beside its floors and its peers.

    python -m kernels_pallas.bench [OP ...] [--peers] [--wheels=FOLDER] [--json=FILE] [--quick]

`device` measures what the device can do at all, `subject` draws the arrays of a case, `check` compares results and gradients with
float64, `timing` times, `xla` holds what runs in this process, `torch_process` the peers that need PyTorch and `torch_side` the
way to them, `measure` makes a row of it all and `record` a file.
What gives wrong numbers or cannot run has no time: it is recorded with its reason.
"""
