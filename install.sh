#!/usr/bin/env bash
# install.sh PYTHON VENV EXTRAS: this checkout into VENV, under constraints.txt; an installed torch is never replaced.
set -euo pipefail
cd "$(dirname "$0")"
python=$1 venv=$2 extras=$3

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install.sh: $("$python" --version) is too old; make setup PYTHON=python3.11 (or newer)" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
installed=$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
if [ -n "$installed" ]; then
    grep -v '^torch==' constraints.txt >"$constraints"
    echo "torch==$installed" >>"$constraints"
else
    cp constraints.txt "$constraints"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check -c "$constraints" -e ".[$extras]"
