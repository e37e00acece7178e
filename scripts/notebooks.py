"""Executes notebooks/*.ipynb from top to bottom, or those that are named.

    python scripts/notebooks.py [FILE ...] [--save] [--timeout=SECONDS]

They run in the repository root, each in a kernel of its own; `--save` keeps
the outputs in the files. Exit status 1 names the notebook and the cell that failed.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Executes each notebook in its own kernel; returns the exit status."""
    parser = argparse.ArgumentParser(description="Execute notebooks.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--save", action="store_true", help="write the outputs into the files")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one cell may take")
    flags = parser.parse_args()
    files = flags.files or sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not files:
        print("No notebooks in notebooks/.")
        return 0
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    failed = [file for file in files if not execute(file, flags.timeout, flags.save)]
    print(f"notebooks: {len(files) - len(failed)} executed, {len(failed)} failed")
    return int(bool(failed))


def execute(file: Path, timeout: int, save: bool) -> bool:
    """Whether every cell ran; says what went wrong otherwise."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    start = time.monotonic()
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
        record_timing=False,
    )
    client.create_kernel_manager()
    client.km.transport = "ipc"
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return False
    if save:
        nbformat.write(notebook, file)
    print(f"{file.name}: {len(notebook.cells)} cells in {time.monotonic() - start:.0f} s")
    return True


if __name__ == "__main__":
    sys.exit(main())
