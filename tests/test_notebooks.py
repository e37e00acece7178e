"""The notebooks as a reader finds them, the program that executes them, and the cell that installs paperlab in Colab.

Colab is stood in for by a virtual environment in which `google.colab` is loaded before the first cell, as Colab's kernel does
it; git and pip are the real ones, and pip looks at no index.
"""

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 1_000_000
MACHINE = re.compile(rf"{re.escape(str(ROOT))}|/(?:work|tmp|root|home|Users)/")


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks, colab = script("notebooks"), script("colab")
FIRST = notebooks.COLAB_CELL.format(repository="")


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook):
    return [o.data["image/png"] for o in outputs(notebook) if "image/png" in o.get("data", {})]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_shows_what_it_computed(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run: make notebooks ARGS=--save"
    assert file.stat().st_size < LARGEST
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs(notebook) if output.output_type == "stream"} == {"stdout"}
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures(notebook))
    drawing = [cell for cell in code if "plt.show()" in cell.source]
    assert drawing
    assert [cell.source for cell in drawing if not pictures(nbformat.v4.new_notebook(cells=[cell]))] == []
    text = json.dumps([{**cell, "outputs": list(cell.get("outputs", []))} for cell in notebook.cells])
    assert MACHINE.findall(re.sub(r'"image/png": "[^"]*"', "", text)) == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_begins_with_the_cell_for_colab_and_links_to_what_is_there(file):
    first, *others = nbformat.read(file, as_version=4).cells
    assert first.source == notebooks.COLAB_CELL.format(repository=notebooks.repository()).rstrip("\n")
    assert first.get("outputs") == []
    targets = re.findall(r"\]\(([^)#\s]+)\)", "".join(c.source for c in others if c.cell_type == "markdown"))
    assert [target for target in targets if "://" not in target and not (file.parent / target).exists()] == []


def test_the_gla_notebook_has_its_pictures():
    assert len(pictures(nbformat.read(ROOT / "notebooks" / "gla.ipynb", as_version=4))) >= 10


def write_notebook(file, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), file)


def test_executing_keeps_outputs_and_puts_the_cell_for_colab_first(tmp_path, capsys):
    write_notebook(tmp_path / "a.ipynb", "print(1, flush=True)\nprint(2, flush=True)", "import os; print(os.getcwd())")
    assert notebooks.execute(tmp_path / "a.ipynb", 60, save=True)
    assert notebooks.execute(tmp_path / "a.ipynb", 60, save=True)
    saved = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    assert [cell.source for cell in saved.cells[1:]] == [
        "print(1, flush=True)\nprint(2, flush=True)",
        "import os; print(os.getcwd())",
    ]
    assert saved.cells[0].source == notebooks.COLAB_CELL.format(repository=notebooks.repository()).rstrip("\n")
    assert [output.text for output in outputs(saved)] == ["1\n2\n", f"{ROOT}\n"]
    assert "a.ipynb: 3 cells in" in capsys.readouterr().out


def test_saved_pictures_have_a_palette_and_look_the_same(tmp_path):
    import io

    import numpy as np
    from PIL import Image

    gradient = np.zeros((64, 256, 4), np.uint8) + 255
    gradient[..., 0] = np.arange(256)
    original = io.BytesIO()
    Image.fromarray(gradient).save(original, "PNG")
    once = notebooks.in_256_colours(base64.b64encode(original.getvalue()).decode())
    image = Image.open(io.BytesIO(base64.b64decode(once)))
    assert image.mode == "P"
    assert np.abs(np.asarray(image.convert("RGB"), int) - gradient[..., :3]).max() <= 4
    assert notebooks.in_256_colours(once) == once


def test_a_cell_that_fails_is_named_and_nothing_is_written(tmp_path, capsys):
    write_notebook(tmp_path / "a.ipynb", "seven = 7", "seven.upper()")
    before = (tmp_path / "a.ipynb").read_bytes()
    assert not notebooks.execute(tmp_path / "a.ipynb", 60, save=True)
    assert (tmp_path / "a.ipynb").read_bytes() == before
    assert "seven.upper()" in capsys.readouterr().err


def test_a_kernel_that_dies_is_a_failure_and_no_traceback(tmp_path, capsys):
    write_notebook(tmp_path / "a.ipynb", "import os; os._exit(1)")
    assert not notebooks.execute(tmp_path / "a.ipynb", 60, save=False)
    assert "Kernel died" in capsys.readouterr().err


def test_the_repository_is_where_the_citation_says(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    (tmp_path / "CITATION.cff").write_text("title: x\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert notebooks.repository() == ""
    (tmp_path / "pyproject.toml").write_text('[project]\nurls = {Repository = "https://host.example/a"}\n')
    assert notebooks.repository() == "https://host.example/a"
    (tmp_path / "CITATION.cff").write_text('repository-code: "https://host.example/b"\n')
    assert notebooks.repository() == "https://host.example/b"


def run_cell(python, folder, cell=FIRST, before="", after="", **environment):
    """The first cell in a fresh process in `folder`; `before` and `after` are run around it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "COLAB"))}
    command = [str(python), "-c", f"{before}\nexec({cell!r})\n{after}"]
    return subprocess.run(command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True)


def test_outside_colab_the_cell_does_nothing(tmp_path):
    look = "import os, sys; state = lambda: (os.getcwd(), list(sys.path), sorted({'runpy', 'subprocess'} & set(sys.modules)))"
    done = run_cell(sys.executable, tmp_path, before=f"{look}; before = state()", after="assert state() == before")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """(python, content folder, address of the repository, wheels): an environment like Colab's, and a repository to clone."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "env", with_pip=importlib.util.find_spec("pip") is None)
    packages = next((folder / "env" / "lib").glob("python*/site-packages"))
    (packages / "preinstalled.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    (packages / "sitecustomize.py").write_text("import google.colab\n")
    origin = folder / "origin"
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("paperlab", "kernels_pallas", "scripts"):
        shutil.copytree(ROOT / name, origin / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, origin / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=origin, check=True)
    for name in ("content", "wheels", "empty"):
        (folder / name).mkdir()
    return folder / "env" / "bin" / "python", folder / "content", origin.as_uri(), folder / "wheels"


def pip_settings(wheels):
    """pip that looks at a folder only and builds with the setuptools that is there."""
    return {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }


WHERE = "import importlib.metadata as m, paperlab; print(m.version('jax'), m.version('paperlab'), paperlab.__file__)"


def test_colab_clones_installs_and_keeps_a_jax_that_suffices(stand_in):
    python, content, address, wheels = stand_in
    own = importlib.metadata.version("jax")
    cell = notebooks.COLAB_CELL.format(repository=address)
    done = run_cell(python, content, cell, after=f"{WHERE}; print(os.getcwd())", **pip_settings(wheels))
    assert done.returncode == 0, done.stderr
    clone = content / "paperlab"
    assert done.stdout.splitlines() == [
        f"Colab's jax {own} suffices and stays.",
        f"paperlab 0.1.0 is installed, with jax {own}.",
        f"{own} 0.1.0 {clone / 'paperlab' / '__init__.py'}",
        str(clone),
    ]
    again = run_cell(
        python, content, FIRST, after=WHERE, **pip_settings(wheels)
    )  # after a restart: no address is needed
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-2]


def plant(packages, name, version):
    """An installed distribution of one module that does nothing."""
    info = packages / f"{name}-{version}.dist-info"
    info.mkdir()
    (packages / f"{name}.py").touch()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    paths = [f"{name}.py", *(f"{info.name}/{file}" for file in ("METADATA", "INSTALLER", "RECORD"))]
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in paths))


def write_wheel(folder, name, version):
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_colab_with_an_older_jax_says_so_upgrades_and_asks_for_a_restart(stand_in):
    python, content, address, wheels = stand_in
    packages = next(python.parents[1].glob("lib/python*/site-packages"))
    plant(packages, "jax", "0.7.2")
    write_wheel(wheels, "jax", "0.11.99")
    cell = notebooks.COLAB_CELL.format(repository=address)
    settings = {**pip_settings(wheels), "PATH": os.environ["PATH"]}
    done = run_cell(python, content, cell, before="import jax", **settings)
    assert done.returncode == 1
    assert "Colab has jax 0.7.2, paperlab needs jax<0.12,>=0.11" in done.stdout
    assert "RuntimeError: Installed, but jax 0.7.2 was loaded before. Runtime > Restart session" in done.stderr
    version = "import importlib.metadata as m; print(m.version('jax'))"
    assert subprocess.run([python, "-c", version], capture_output=True, text=True).stdout == "0.11.99\n"


def test_colab_without_an_address_or_with_a_wrong_one_says_what_to_do(stand_in):
    python, content, _, _ = stand_in
    empty = content.parent / "empty"
    assert "write its address into REPOSITORY" in run_cell(python, empty).stderr
    wrong = notebooks.COLAB_CELL.format(repository=(empty / "nothing").as_uri())
    assert re.search(
        r"RuntimeError: git clone file://\S+/nothing: .*\n?fatal:", run_cell(python, empty, wrong, LC_ALL="C").stderr
    )
    assert list(empty.iterdir()) == []


def test_what_pip_says_is_shown_when_it_fails(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if importlib.util.find_spec("pip") is None:
        with pytest.raises(RuntimeError, match="No module named pip"):
            colab.install("no-such-package")
    else:
        with pytest.raises(RuntimeError, match="No matching distribution found for no-such-package"):
            colab.install("no-such-package")


@pytest.mark.parametrize(
    ("installed", "environment", "nvidia_smi", "extra"),
    [
        ({}, {}, None, ""),
        ({"jax-cuda12-plugin": "0.7.2"}, {}, None, ""),
        ({"jax-cuda12-plugin": "0.7.2"}, {}, 0, "[cuda12]"),
        ({"jax-cuda13-plugin": "0.10.0"}, {}, 0, "[cuda13]"),
        ({"jax-cuda12-plugin": "0.7.2"}, {}, 9, ""),
        ({"libtpu": "0.0.20"}, {"TPU_ACCELERATOR_TYPE": "v5e-1"}, None, "[tpu]"),
    ],
)
def test_an_upgrade_is_for_the_accelerator_that_is_there(
    tmp_path, monkeypatch, installed, environment, nvidia_smi, extra
):
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if nvidia_smi is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nexit {nvidia_smi}\n")
        program.chmod(0o755)
    packages, pins = colab.plan(colab.jax_requirement(), {"jax": "0.7.2", **installed})
    assert packages == [f"jax{extra}<0.12,>=0.11"]
    assert pins == ""


def test_everything_of_a_jax_that_suffices_is_held_fast(capsys):
    installed = {"jax": "0.11.0", "jaxlib": "0.11.0", "jax-cuda12-plugin": "0.11.0", "numpy": "2.1.0"}
    packages, pins = colab.plan(colab.jax_requirement(), installed)
    assert packages == []
    assert pins.splitlines() == ["jax==0.11.0", "jaxlib==0.11.0", "jax-cuda12-plugin==0.11.0"]
    assert "suffices and stays" in capsys.readouterr().out
