"""Every operation of this package by name."""

from importlib import import_module

from kernels_pallas.op import Op

# name: the module that holds it as OP (or, for several in one, as OPS[name])
MODULES: dict[str, str] = {
    "linear_scan": "kernels_pallas.scan.op",
    "complex_scan": "kernels_pallas.scan.op",
    "block2_scan": "kernels_pallas.scan.op",
    "gla": "kernels_pallas.gated_linear_attention.op",
    "newton_gru": "kernels_pallas.newton.op",
    "newton_lstm": "kernels_pallas.newton.op",
    "plstm_grid": "kernels_pallas.plstm.op",
}


def operation(name: str) -> Op:
    """The operation of that name.

    Raises:
      KeyError: there is none.
    """
    module = import_module(MODULES[name])
    return module.OPS[name] if hasattr(module, "OPS") else module.OP


def operations() -> list[Op]:
    """All of them."""
    return [operation(name) for name in MODULES]
