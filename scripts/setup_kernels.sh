#!/bin/sh
# Put the wheels of the extra `kernels-compile` into .venv/kernels-compile, for compiling kernels without their devices.
#
# Not into .venv itself: JAX would look for a TPU and a GPU at every start. About 1.1 GB, Linux on x86_64 only.
set -eu
cd "$(dirname "$0")/.."
target=.venv/kernels-compile
jax=$(sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.lock)
wanted=$(.venv/bin/python - "$jax" <<'PY'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    extra = tomllib.load(file)["project"]["optional-dependencies"]["kernels-compile"]
print("\n".join(f"{name}=={sys.argv[1]}" if name.startswith("jax-") else name for name in extra))
PY
)
stamp=$target/.ready
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
rm -rf "$target"
echo "paperlab: installing the compilers for TPU and Hopper into $target (1.1 GB)" >&2
if command -v uv >/dev/null 2>&1; then
    # shellcheck disable=SC2086
    uv pip install --quiet --python .venv/bin/python --target "$target" --no-deps $wanted
else
    # shellcheck disable=SC2086
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --target "$target" --no-deps $wanted
fi
printf '%s\n' "$wanted" >"$stamp"
