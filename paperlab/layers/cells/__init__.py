"""Recurrent cells, one a file, found by file name; `paperlab.layers.recurrent_cell` reads them.

A cell says one step of a nonlinear recurrence and which entries of its state Jacobian can differ from zero. Everything else, the
parallel solution and its gradient among it, follows. The cell of a config may also be the reader's own file, "path/to/leaky.py".

    STRUCTURE = "diagonal"                 state [..., width]: channels do not mix
              | "blocks"                   state [..., VARIABLES, width]: several variables a channel, such as an LSTM's (c, h)
              | "heads"                    state [..., heads, width / heads]: one full matrix a head
              | "dense"                    state [..., width]: everything mixes
    INPUTS = 2                             input vectors that the step reads, one a gate
    init(key, width)                       -> recurrent parameters, a dict of arrays; {} where there are none
    step(params, x, h)                     -> the next state; x [..., INPUTS, width] is B x + b, h a state; leading axes broadcast

and, where it wants: VARIABLES (of "blocks"), LINEAR = True (one Newton iteration is exact), FAN_OUT = "head" (of the input map's
initialisation), bias(width, style) -> [INPUTS, width], guess(params, x), jacobian(params, x, h) and diagonal(params, x, h) as in
`paperlab.recurrence.Cell`, output(states) -> [..., width] (else the last variable), fused(params, x, h0, **how).

`init` may also take heads and style ("library" or "paper"); functions of the state may take nonlinearity and output_nonlinearity.
"""
