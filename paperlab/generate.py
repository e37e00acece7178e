"""Text from a finished run, token by token as it is drawn.

    python -m paperlab.generate --workdir=DIR --prompt="def " --tokens=200 [--temperature=0.8 --top_k=40 --seed=0]

The prompt goes through the model in one parallel call; every further token takes one step of the recurrent form. It
ends after `--tokens` tokens, or where the model begins a new document. In Python: `paperlab.generate.generate`.
"""

import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from paperlab.commandline import Parser, number, path_text, tell, whole
from paperlab.decoding import generate, stream
from paperlab.errors import ConfigError

__all__ = ["generate", "main", "stream", "text"]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, prints the continuation, and returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        flags = _parser().read(argv)
        import paperlab
        from paperlab.devices import keep_compiled_programs

        keep_compiled_programs()
        run = paperlab.load(flags.workdir)
        pieces = text(
            run, flags.prompt, flags.tokens, temperature=flags.temperature, top_k=flags.top_k, seed=flags.seed
        )
        _write(flags.prompt)
        for piece in pieces:
            _write(piece)
        _write("\n")
    except KeyboardInterrupt:
        print()
        return 130
    except Exception as error:
        if "--debug" in argv:
            raise
        return tell(error)
    return 0


def _write(piece: str) -> None:
    """Prints at once; bytes that the prompt could not decode as themselves, characters that stdout lacks as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(piece, end="", flush=True)
    except UnicodeEncodeError:
        try:
            raw = piece.encode(encoding, "surrogateescape")
        except UnicodeEncodeError:
            raw = piece.encode(encoding, "backslashreplace")
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()


def text(
    run: Any, prompt: str, tokens: int, *, temperature: float = 1.0, top_k: int = 0, seed: int = 0
) -> Iterator[str]:
    """Yields the continuation of `prompt` in pieces of whole characters; `run` is what `paperlab.load` returns.

    Raises:
      ConfigError: the run has no text, or the prompt is none to its tokenizer.
      ValueError: before the first piece, for a number that is out of range.
    """
    if run.tokenizer is None:
        raise ConfigError(f"--workdir={run.workdir}: this run's tokens are integers, there is no text to continue")
    ids = jnp.asarray([[run.tokenizer.bos, *run.tokenizer.encode(prompt)]], jnp.int32)
    drawn = stream(run.model, run.params, ids, tokens, jax.random.key(seed), temperature=temperature, top_k=top_k)
    return _pieces(drawn, run.tokenizer)


def _pieces(drawn: Iterator[Any], tokenizer: Any) -> Iterator[str]:
    seen: list[int] = []
    shown = ""
    for token in drawn:
        if int(token[0]) == tokenizer.bos:
            break
        seen.append(int(token[0]))
        whole = tokenizer.decode(seen)
        if not whole.endswith(UNFINISHED):
            yield whole[len(shown) :]
            shown = whole
    yield tokenizer.decode(seen)[len(shown) :]


def _parser() -> Parser:
    parser = Parser(prog="python -m paperlab.generate", description="Continues a text with a trained model.")
    parser.add_argument("--workdir", required=True, type=path_text, help="work directory of the run")
    parser.add_argument("--prompt", default="", help="text to continue; nothing: begin a document")
    parser.add_argument("--tokens", type=whole(1), default=200, help="number of tokens to draw")
    parser.add_argument("--temperature", type=number(0), default=1.0, help="0 takes the most probable token")
    parser.add_argument("--top_k", type=whole(0), default=0, help="draw among the k most probable tokens; 0: among all")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
