#!/usr/bin/env bash
# Makes the virtual environment $VENV with $PYTHON, also where Debian has split ensurepip off Python.
set -euo pipefail

fail() { printf 'modelpress: %s\n' "$*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null || fail "no $PYTHON found; install Python 3.11 or newer, or run make PYTHON=/path/to/python"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$PYTHON is $("$PYTHON" -V 2>&1); ModelPress needs 3.11 or newer: make PYTHON=/path/to/python"

[ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && exit 0
rm -rf "$VENV"

if "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
  exec "$PYTHON" -m venv "$VENV"
fi
if "$PYTHON" -m pip --version >/dev/null 2>&1 && "$PYTHON" -c 'import venv' 2>/dev/null; then
  "$PYTHON" -m venv --without-pip "$VENV"
  exec "$PYTHON" -m pip --python "$VENV/bin/python" install --quiet --disable-pip-version-check pip
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv
  exec "$PYTHON" -m venv "$VENV"
fi
fail "$PYTHON has no ensurepip; first run: sudo apt install python3-venv"
