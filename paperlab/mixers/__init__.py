"""Sequence mixers, one a file, found by file name.

A mixer maps [B, T, D] to [B, T, D] causally. Its module has a flax class `Mixer` with the fields `width`, `heads`,
`dtype` and its own options, and a tuple `SHARDING` of (regex on parameter paths, mesh axes of the trailing dimensions):

    Mixer.__call__(x_BxTxD, *, state=None, segment_ids=None, positions=None) -> (y_BxTxD, state)
    Mixer.step(x_BxD, state, position_B=None) -> (y_BxD, state)
    Mixer.zero_state(batch, max_len=0, dtype=None) -> state        also on an unbound module
    Mixer.check() -> None                                          the same; ConfigError for options that cannot be
    Mixer.out_width() -> int                                       the same; only where what it puts out may have another width

A state goes in and comes out; without one (`state=None`) none is returned. Every leaf of it starts with the batch axis,
and it holds the segment id of its last token. tests/mixers/test_laws.py holds the laws that every mixer must keep.
"""
