"""paperlab: recurrent, recursive, elastic and symbolic networks from 33 papers, in one JAX house.

import paperlab
run = paperlab.load("runs/gla-1a2b3c4d")  # or paperlab.train(config), which makes one
logits, state = run.model.apply(run.params, tokens)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperlab.loading import Run, load, train

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in ("Run", "load", "train"):
        from paperlab import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'paperlab' has no attribute {name!r}")
