"""Reads a cell file (see `paperlab.layers.cells`) and makes of it what a layer and the parallel solver need.

Initialisation of recurrent weights and of the input map B (arXiv 2510.21450, appendix C.1 and the authors' library):

    style      recurrent a, peepholes p                     B                                        bias
    library    N(0, (2 / sqrt(5 d))^2)                      uniform, +-sqrt(6 / (fan_in + fan_out))  0; gate 0: -linspace(0, 1, d)
    paper      normal, deviation 1 / sqrt(d), cut at 0.9    uniform, +-sqrt(3 / fan_in)              0
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from paperlab.discovery import names as known_names
from paperlab.errors import ConfigError
from paperlab.layers.activations import activation
from paperlab.limits import did_you_mean
from paperlab.recurrence import Cell, check_cell
from paperlab.recurrence.block import STRUCTURES

STYLES = ("library", "paper")
_NEEDED = ("STRUCTURE", "INPUTS", "init", "step")


@dataclass(frozen=True)
class Recipe:
    """A cell of one width. `recipe` returns the same object for the same arguments, so that jitted programs are found again.

    cell: step and structure, for `paperlab.recurrence.newton_solve`.
    width: channels of the input vectors and of the output.
    inputs: input vectors that the step reads.
    linear: one Newton iteration is exact.
    own: it is the user's file.
    init: key -> recurrent parameters.
    bias: () -> [inputs, width].
    bound: (fan_in, heads) -> the bound of the uniform initialisation of the input map.
    fused: (params, x [B,T,inputs,width], h0, iterations=, impl=, starts=) -> (states, residual [B]), or None.
    """

    cell: Cell
    width: int
    inputs: int
    linear: bool
    own: bool
    init: Callable[[Array], Any]
    bias: Callable[[], Array]
    bound: Callable[[int, int], float]
    fused: Callable[..., tuple[Array, Array]] | None

    def zero_state(self, *batch: int) -> Array:
        """float32 zeros [*batch, *state]."""
        return jnp.zeros((*batch, *self.cell.state), jnp.float32)


def names() -> list[str]:
    """The cells of the house, sorted."""
    return known_names("layers.cells")


def recipe(
    name: str,
    width: int,
    heads: int = 1,
    *,
    nonlinearity: str = "tanh",
    output_nonlinearity: str = "tanh",
    style: str = "library",
) -> Recipe:
    """The cell called `name`, or of the file `name` where that ends in ".py".

    Args:
      width: channels of its state (of each variable).
      heads: of cells whose structure is "heads".
      nonlinearity, output_nonlinearity: names of paperlab.layers.activations, for cells that take them.
      style: of the initialisation, "library" or "paper".

    Raises:
      ConfigError: no such cell; a file that cannot be read, or lacks a part, or whose parts do not fit; options it does not take.
    """
    if name.endswith(".py"):
        path = Path(name).expanduser().resolve()
        try:
            found = path.stat()
        except OSError as error:
            raise ConfigError(f"{_field(name)}: cannot read it: {error.strerror or error}") from None
        stamp = (str(path), found.st_mtime_ns, found.st_size)
    elif name in names():
        stamp = None
    else:
        raise ConfigError(
            f"{_field(name)}: {did_you_mean(name, names())} (or the path of your own file, ending in .py)"
        )
    return _recipe(name, stamp, width, heads, nonlinearity, output_nonlinearity, style)


@cache
def _recipe(
    name: str, stamp: tuple | None, width: int, heads: int, nonlinearity: str, output_nonlinearity: str, style: str
) -> Recipe:
    with jax.ensure_compile_time_eval():  # constants of a module must not belong to a trace
        module = importlib.import_module(f"paperlab.layers.cells.{name}") if stamp is None else _own(name, stamp[0])
    _check_parts(name, module)
    if module.STRUCTURE == "heads" and width % heads:
        raise ConfigError(f"{_field(name)}: its width of {width} is no multiple of config.model.heads={heads}")
    functions = {"nonlinearity": nonlinearity, "output_nonlinearity": output_nonlinearity}
    for field, chosen in functions.items():
        if chosen != "tanh" and field not in inspect.signature(module.step).parameters:
            raise ConfigError(f"config.mixers.pararnn.{field}={chosen!r}: the step of cell {name!r} takes no {field}")
    found = {field: activation(one, f"config.mixers.pararnn.{field}") for field, one in functions.items()}
    parts = {part: _bound(getattr(module, part, None), found) for part in ("step", "jacobian", "diagonal", "output")}
    state = _state(module, width, heads)
    output = parts.pop("output") or _output(module.STRUCTURE, width)
    cell = Cell(**parts, state=state, structure=module.STRUCTURE, guess=getattr(module, "guess", None), output=output)
    fused = getattr(module, "fused", None) if set(functions.values()) == {"tanh"} else None
    biased = getattr(module, "bias", None)
    made = Recipe(
        cell,
        width,
        module.INPUTS,
        linear=getattr(module, "LINEAR", False),
        own=stamp is not None,
        init=_bound(module.init, {"heads": heads, "style": style}, width),
        bias=partial(biased, width, style) if biased else partial(jnp.zeros, (module.INPUTS, width)),
        bound=partial(_input_bound, style, width, getattr(module, "FAN_OUT", "width")),
        fused=fused,
    )
    _check_shapes(name, made)
    return made


def verify(name: str, made: Recipe) -> None:
    """Compares the declared structure with full derivatives, at initial parameters and at random ones near them.

    Raises:
      ConfigError: the step mixes what it is declared not to mix, or a `jacobian` is not its derivative; says where.
    """
    told = _verified(made)
    if told:
        raise ConfigError(f"{_field(name)}: {told}")


@cache
def _verified(made: Recipe) -> str:
    """What is wrong, "" where nothing is."""
    with jax.ensure_compile_time_eval():
        keys = iter(jax.random.split(jax.random.key(0), 99))
        params = made.init(next(keys))
        near = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape), params)
        x = jax.random.normal(next(keys), (4, made.inputs, made.width))
        h = jax.random.normal(next(keys), (4, *made.cell.state))
        try:
            for one in (params, near):
                check_cell(made.cell, one, x, h)
        except ValueError as error:
            return str(error)
    return ""


def recurrent_weights(key: Array, shape: tuple[int, ...], style: str) -> Array:
    """Vectors a and p of width shape[-1]: see the module."""
    d = shape[-1]
    if style == "library":
        return 2 / (5 * d) ** 0.5 * jax.random.normal(key, shape)
    cut = 0.9 * d**0.5
    return d**-0.5 * jax.random.truncated_normal(key, -cut, cut, shape)


def first_bias(width: int, style: str) -> Array:
    """[3, width]: gate 0 of the library starts between half and nearly shut, so that channels remember for different times."""
    bias = jnp.zeros((3, width))
    return bias.at[0].set(-jnp.linspace(0, 1, width)) if style == "library" else bias


def _input_bound(style: str, width: int, fan: str, fan_in: int, heads: int) -> float:
    fan_out = width // heads if fan == "head" else width
    return (3 / fan_in) ** 0.5 if style == "paper" else (6 / (fan_in + fan_out)) ** 0.5


def _field(name: str) -> str:
    return f"config.mixers.pararnn.cell={name!r}"


def _own(name: str, path: str) -> ModuleType:
    """The user's file as a module of its own; nothing is put into sys.modules."""
    spec = importlib.util.spec_from_file_location(f"cell_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{_field(name)}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{_field(name)}: does not load: {type(error).__name__}: {_line(error)}") from error
    return module


def _check_parts(name: str, module: ModuleType) -> None:
    missing = [part for part in _NEEDED if not hasattr(module, part)]
    if missing:
        raise ConfigError(f"{_field(name)}: it has no {' and no '.join(missing)}; a cell file has {', '.join(_NEEDED)}")
    if module.STRUCTURE not in STRUCTURES:
        raise ConfigError(
            f"{_field(name)}: STRUCTURE={module.STRUCTURE!r}: {did_you_mean(str(module.STRUCTURE), STRUCTURES)}"
        )
    counts = {"INPUTS": module.INPUTS, "VARIABLES": getattr(module, "VARIABLES", 2)}
    for part, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{_field(name)}: {part}={count!r} must be a whole number of at least 1")
    if module.STRUCTURE == "blocks" and not hasattr(module, "VARIABLES"):
        raise ConfigError(f"{_field(name)}: STRUCTURE='blocks' needs VARIABLES, how many a channel has")


def _check_shapes(name: str, made: Recipe) -> None:
    """Abstractly: no array is made."""

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def run(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return jax.eval_shape(function, *arguments)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{_field(name)}: {part} raises {type(error).__name__}: {_line(error)}") from error

    params = run("init", made.init, jax.eval_shape(lambda: jax.random.key(0)))
    leaves = jax.tree.leaves(params)
    if not isinstance(params, dict) or any(not jnp.issubdtype(a.dtype, jnp.floating) for a in leaves):
        raise ConfigError(f"{_field(name)}: init must return a dict of floating-point arrays")
    state, x = made.cell.state, shape(2, 3, made.inputs, made.width)
    after = run("step", made.cell.step, params, x, shape(2, 3, *state))
    if getattr(after, "shape", None) != (2, 3, *state):
        got = getattr(after, "shape", type(after).__name__)
        raise ConfigError(
            f"{_field(name)}: step must return states {(2, 3, *state)} for two rows of three steps, got {got}"
        )
    out = run("output", made.cell.output, after)  # type: ignore[arg-type]
    if getattr(out, "shape", None) != (2, 3, made.width):
        raise ConfigError(f"{_field(name)}: output must return [..., {made.width}], got {getattr(out, 'shape', out)}")
    if run("bias", made.bias).shape != (made.inputs, made.width):
        raise ConfigError(f"{_field(name)}: bias must return [{made.inputs}, {made.width}]")


def _bound(function: Callable | None, options: dict[str, Any], *first: Any) -> Any:
    """`function` with those of the options that it takes; `first` are bound after its first argument."""
    if function is None:
        return None
    taken = {key: value for key, value in options.items() if key in inspect.signature(function).parameters}
    if first:
        return lambda start: function(start, *first, **taken)
    return partial(function, **taken) if taken else function


def _state(module: ModuleType, width: int, heads: int) -> tuple[int, ...]:
    if module.STRUCTURE == "blocks":
        return (module.VARIABLES, width)
    return (heads, width // heads) if module.STRUCTURE == "heads" else (width,)


def _output(structure: str, width: int) -> Callable[[Array], Array]:
    """[..., *state] -> [..., width]: the state, or the last of several variables."""
    if structure == "blocks":
        return lambda states: states[..., -1, :]
    if structure == "heads":
        return lambda states: states.reshape(*states.shape[:-2], width)
    return lambda states: states


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
