#!/usr/bin/env bash
# Builds the wheel and tries it as a user would: in a fresh environment, away from the checkout, beside packages of the same
# names as clsd's folders. The heavy libraries are those of the development environment.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${BIN:-$root/.venv/bin}
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT

"$bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$away/wheels" "$root"
"$bin/python" -m venv "$away/venv"
"$away/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$away"/wheels/clsd-*.whl
# The development environment's libraries, without its editable clsd.
"$bin/python" - "$away" <<'PYTHON'
import site, sys
from pathlib import Path

away, libraries = Path(sys.argv[1]), Path(site.getsitepackages()[0])
here = next((away / "venv" / "lib").glob("python*/site-packages"))
(here / "libraries.pth").write_text(f"{libraries}\n")
PYTHON

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
