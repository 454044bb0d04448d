#!/usr/bin/env bash
# Build the wheel and try it as a user would: in a fresh environment, away from the checkout, in a project that has packages with
# the names of clsd's folders.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${BIN:-$root/.venv/bin}
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
unset PYTHONDONTWRITEBYTECODE  # else each process would compile TensorFlow anew

"$bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$away/wheels" "$root"
"$bin/python" -m venv "$away/venv"
# With uv the libraries come from its cache, in seconds; pip downloads them.
"$bin/uv" pip install --quiet --python "$away/venv/bin/python" --constraint "$root/constraints.txt" "$away"/wheels/clsd-*.whl \
|| PIP_CONSTRAINT='' "$away/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint "$root/constraints.txt" "$away"/wheels/clsd-*.whl

# A user's project with packages named as clsd's folders.
mkdir -p "$away/project/features" "$away/project/models" "$away/project/pipeline"
for name in features models pipeline; do echo 'raise SystemExit("the wrong package was imported")' > "$away/project/$name/__init__.py"; done
cd "$away/project"
clsd="$away/venv/bin/clsd"
"$away/venv/bin/python" - "$away" <<'PYTHON'
import sys
import clsd
assert clsd.__file__.startswith(sys.argv[1]), clsd.__file__
import clsd.features, clsd.models, clsd.pipeline
assert clsd.load_config.__module__ == "clsd.pipeline.shared.config_file"
PYTHON
"$clsd" --version
"$clsd" --help > /dev/null
"$clsd" run --config "$root/configs/movielens-100k.yaml" --set train.epochs=1 --set confidence.warmup_steps=5 > /dev/null
test -s runs/movielens-100k/evaluation/report.html
echo "the wheel works away from the checkout"
