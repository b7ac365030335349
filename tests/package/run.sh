#!/bin/sh
# Installs the build into a fresh prefix, builds an example against the package, runs it.
# usage: tests/package/run.sh BUILD_FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$1" --prefix "$work/prefix" >/dev/null
cmake -S "$here" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_BUILD_TYPE=Release \
  -DLOWBIT_EXAMPLE="$here/../../examples/generate.cc" >/dev/null
cmake --build "$work/build" >/dev/null
# A folder that is no model: exit code 1 and a message, which shows that the library is really there.
if "$work/build/uses_lowbit" "$work" hello 2>"$work/error"; then exit 1; fi
grep -q config.json "$work/error"
"$work/prefix/bin/lowbit" --version
