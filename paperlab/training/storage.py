"""Orbax, which lays arrays on disk: imported late, quiet, and never waiting for another process when it reads.

When one read of a damaged checkpoint, or one write on a full disk, fails, orbax gives up hundreds of others, each with a
page of text by asyncio, by the garbage collector or at exit. `_silence` drops these pages and nothing else; what went
wrong becomes our one line.
"""

import gc
import logging
import sys
import warnings
from pathlib import Path
from types import CoroutineType, TracebackType
from typing import Any

from paperlab.training import paths

ORBAX = "orbax"  # a part of the path of its code


def import_orbax() -> Any:
    """orbax.checkpoint, late because it is slow to import, without its log and its pages about what it gave up."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    _silence()
    return ocp


def read_arrays(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """{path: array} from the item in `folder`, in the layout of `wanted` {path: shape with sharding}.

    Orbax's checkpointer ends a read with a barrier, in which the other processes would wait for one that failed;
    its handler reads without.

    Raises:
      Exception: whatever orbax, tensorstore or the file system found wrong; ValueError where an array is of another
        shape or type than wanted, as happens when orbax's own notes are damaged.
    """
    ocp = import_orbax()
    item = paths.nest(wanted)
    args = ocp.args.PyTreeRestore(item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        values = paths.flatten(handler.restore(folder, args=args))
    finally:
        handler.close()
    _as_wanted(values, wanted)
    return {name: values[name] for name in wanted}


def _as_wanted(values: dict[str, Any], wanted: dict[str, Any]) -> None:
    import jax

    for name, leaf in wanted.items():
        got = values.get(name)
        if not isinstance(got, jax.Array) or got.shape != leaf.shape or got.dtype != leaf.dtype:
            raise ValueError(f"{name} is not an array of {leaf.dtype}{list(leaf.shape)}")


class _Abandoned(logging.Filter):
    """Drops asyncio's records about what orbax has given up."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or not ("OCDBT" in str(error) or _of_orbax(error.__traceback__))


def _silence() -> None:
    """From now on nothing is said about what orbax gave up: some of it ends long after what failed, some at exit."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    if any(isinstance(one, _Abandoned) for one in logger.filters):
        return
    logger.addFilter(_Abandoned())
    warnings.filterwarnings("ignore", message="coroutine '(_read_|Store[.])", category=RuntimeWarning)

    def unraisable(found: Any) -> None:
        theirs = isinstance(found.object, CoroutineType) and ORBAX in found.object.cr_code.co_filename
        late = isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"
        if not theirs and not late and not _of_orbax(found.exc_traceback):
            hook(found)

    sys.unraisablehook = unraisable


def forget_failed_reads() -> None:
    """Frees what the frames of a failed read still hold: it may be as large as the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never awaited
        gc.collect()


def _of_orbax(trace: TracebackType | None) -> bool:
    while trace is not None:
        if ORBAX in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False
