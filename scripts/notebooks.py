"""Executes notebooks/*.ipynb from top to bottom, or those that are named.

    python scripts/notebooks.py [FILE ...] [--save] [--timeout=SECONDS]

They run in the repository root, each in a kernel of its own. `--save` keeps the outputs in the files, pictures in 256 colours,
and writes their first cell, which installs paperlab in Colab, anew. Exit status 1 names the notebook and the cell that failed.
"""

import argparse
import base64
import io
import os
import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COLAB_CELL = """\
# @title In Colab, and only there: clone and install paperlab
import sys

REPOSITORY = "{repository}"  # what `git clone` takes, for a notebook that was not opened inside a clone

if "google.colab" in sys.modules:
    import os
    import runpy
    import subprocess

    def clone():
        return next((place for place in (".", "..", "paperlab") if os.path.exists(f"{{place}}/scripts/colab.py")), "")

    if not clone():
        if not REPOSITORY:
            raise RuntimeError("there is no clone of paperlab here: write its address into REPOSITORY, above")
        done = subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "paperlab"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"git clone {{REPOSITORY}}: {{done.stderr}}")
    os.chdir(clone())
    runpy.run_path("scripts/colab.py", run_name="__main__")
"""


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
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    start = time.monotonic()
    notebook = nbformat.read(file, as_version=4)
    if save:
        put_colab_cell_first(notebook)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.create_kernel_manager()
    client.km.transport = "ipc"
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return False
    if save:
        notebook.metadata.language_info = {"name": "python"}
        for data in (
            o.data for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
        ):
            data["image/png"] = in_256_colours(data["image/png"])
        nbformat.write(notebook, file)
    print(f"{file.name}: {len(notebook.cells)} cells in {time.monotonic() - start:.0f} s")
    return True


def put_colab_cell_first(notebook: Any) -> None:
    """Puts the cell that installs paperlab in Colab where it belongs, or brings the one that is there up to date."""
    import nbformat

    cells = notebook.cells
    if cells and cells[0].cell_type == "code" and "google.colab" in cells[0].source:
        cells.pop(0)
    source = COLAB_CELL.format(repository=repository()).rstrip("\n")
    cells.insert(0, nbformat.v4.new_code_cell(source, id="colab", metadata={"cellView": "form"}))


def in_256_colours(picture: str) -> str:
    """A PNG in base64 with a palette of its own colours, about a third as large."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    out = io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def repository() -> str:
    """Where to clone from: `repository-code` of CITATION.cff, else a URL of pyproject.toml, else ""."""
    cited = re.search(r"^repository-code:\s*[\"']?([^\s\"']+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    if cited:
        return cited[1]
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    return next((url for name, url in urls.items() if name.lower() in ("repository", "source", "source code")), "")


if __name__ == "__main__":
    sys.exit(main())
