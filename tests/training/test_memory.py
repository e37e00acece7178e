"""Memory: what is said before step 0 adds up, and what cannot fit is refused before it is tried."""

import jax
import pytest

from paperlab import devices
from paperlab.errors import ConfigError
from paperlab.training import memory, setup
from paperlab.training.loop import train
from tests.test_run import TINY
from tests.training.tiny_task import INPUTS, ROWS, WIDTH, TinyTask, tiny_config

PARAMETERS = 4 * (INPUTS * WIDTH + WIDTH + WIDTH + 1)


@pytest.fixture(scope="module")
def ready():
    return setup.prepare(tiny_config(), TinyTask())


def test_bytes_by_hand(ready):
    assert memory.local_bytes(ready.shapes.params) == PARAMETERS
    assert memory.local_bytes(ready.batch) == 4 * ROWS * (INPUTS + 2)
    with jax.set_mesh(ready.mesh):
        compiled = setup.compile_step(tiny_config(), TinyTask(), ready)
    needed = memory.of_step(compiled)
    assert needed.total >= needed.arguments >= memory.local_bytes(ready.shapes)
    assert needed.total <= needed.arguments + needed.temporaries + 1024  # the state is given back in its own place
    said = memory.text(ready.shapes, ready.batch, compiled, ready.mesh)
    assert f"parameters {PARAMETERS} B, " in said
    assert f"at most {memory.gigabytes(needed.total)} of " in said


def test_a_cut_state_is_weighed_by_the_device():
    config = tiny_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    shapes = setup.prepare(config, TinyTask()).shapes
    assert memory.local_bytes(shapes.params) == 4 * (
        INPUTS * WIDTH // 4 + WIDTH + WIDTH + 1
    )  # the kernel over fsdp x tensor


def test_what_does_not_fit_is_refused_in_one_line(ready):
    with jax.set_mesh(ready.mesh):
        compiled = setup.compile_step(tiny_config(), TinyTask(), ready)
    state, step = memory.local_bytes(ready.shapes), memory.of_step(compiled).total
    memory.refuse_state(ready.shapes, ready.mesh, limit=state)
    memory.refuse_step(compiled, ready.mesh, limit=step)
    with pytest.raises(
        ConfigError, match=rf"the state needs .* on a device that has .*parameters {PARAMETERS} B.*mesh.fsdp"
    ):
        memory.refuse_state(ready.shapes, ready.mesh, limit=state - 1)
    with pytest.raises(ConfigError, match=r"config.data.batch_size: the compiled step needs .*micro_batches.*remat"):
        memory.refuse_step(compiled, ready.mesh, limit=step - 1)


def test_a_run_is_refused_before_anything_is_allocated_or_compiled(monkeypatch, tmp_path):
    def never(*_):
        raise AssertionError("reached")

    monkeypatch.setattr(memory, "memory_of", lambda device: 100)
    for name in ("init_state", "compile_step"):
        monkeypatch.setattr(setup, name, never)
    with pytest.raises(ConfigError, match="the state needs"):
        train(tiny_config(), tmp_path, TinyTask())


def test_the_front_door_refuses_a_model_beyond_this_machine(tmp_path, capsys):
    from paperlab.run import main

    (tmp_path / "text.txt").write_text("abc " * 1000)
    flags = [*TINY, f"--config.data.path={tmp_path / 'text.txt'}", f"--workdir={tmp_path / 'run'}"]
    assert main([*flags, "--config.model.width=200000", "--config.model.heads=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config.model: the state needs ")
    assert "TB on a device that has" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("texts", "limit"), [(["max\n"], 0), (["1000000\n"], 10**6), (["max", "2000"], 2000), ([], 0)])
def test_the_machine_is_as_large_as_its_control_group(tmp_path, texts, limit):
    files = [tmp_path / str(i) for i in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    whole = devices.machine_memory(())
    assert whole > 2**28
    assert devices.machine_memory(tuple(map(str, files))) == (limit or whole)


@pytest.mark.parametrize(
    ("number", "shown"), [(12, "12 B"), (1234, "1.23 kB"), (34_600_000, "34.6 MB"), (8e10, "80 GB")]
)
def test_sizes_are_short(number, shown):
    assert memory.gigabytes(number) == shown
