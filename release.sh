#!/usr/bin/env bash
# Release the version at the head of CHANGELOG.md: check, test, build, tag. Uploads nothing; it prints what to do next.
#   bash release.sh
set -euo pipefail
cd "$(dirname "$0")"
version=$(sed -nE 's/^## ([0-9]+\.[0-9]+\.[0-9]+)$/\1/p' CHANGELOG.md | head -n 1)
fail() { echo "error: $1" >&2; exit 2; }
test -n "$version" || fail "CHANGELOG.md: no version at its head; write '## 1.2.3'"
test -z "$(git status --porcelain)" || fail "the working tree has changes; commit them first"
test "$(git branch --show-current)" = main || fail "not on main; merge first"
git rev-parse --quiet --verify "refs/tags/v$version" > /dev/null && fail "v$version is tagged already; begin a new section in CHANGELOG.md"
grep -q "^version: $version$" CITATION.cff || fail "CITATION.cff has another version; set it to $version"
bash .ci/run
rm -rf dist
.venv/bin/python -m build --no-isolation --outdir dist .
git tag --annotate "v$version" --message "clsd $version"
echo "dist/ holds clsd $version, tagged v$version. Next: git push origin main v$version; .venv/bin/python -m twine upload dist/*"
