#!/bin/bash
# `lowbit quantize` killed at ten moments of its run: no result is left behind, and the next run, which takes up the
# finished layers, writes the same bytes as one that nobody disturbed. The bytes depend neither on threads nor on the
# batch size (on a GPU they may depend on that).  usage: kill_resume.sh path/to/lowbit [seed] [device, cpu]
# [model and calibration data: those of the demo, which a GPU may be too fast for]
set -euo pipefail
lowbit=$1
RANDOM=${2:-1}
device=${3:-cpu}
demo=$(cd "$(dirname "$0")/../../demo" && pwd)
model=${4:-$demo/model}
calibration=${5:-$demo/data/calibration.jsonl}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

command=("$lowbit" quantize "$model" --bits 4 --calibration "$calibration" --samples 16
  --max-length 96 --device "$device")
quantize() {  # OUT, further options
  "${command[@]}" -o "$@" >"$work/stdout" 2>"$work/stderr"
}
digest() { sha256sum <"$1/model.safetensors" | cut -d' ' -f1; }
fail() {
  echo "kill_resume.sh: $*" >&2
  tail -n 5 "$work/stderr" >&2
  exit 1
}
milliseconds() { echo $(($(date +%s%N) / 1000000)); }

duration=1000000  # of the shortest undisturbed run: other work on the machine only lengthens one
timed() {
  local begin took
  begin=$(milliseconds)
  quantize "$@" || fail "quantizing to $1 failed"
  took=$(($(milliseconds) - begin))
  [ "$took" -ge "$duration" ] || duration=$took
}

timed "$work/whole"
expected=$(digest "$work/whole")
echo "undisturbed: $duration ms, $expected"

expect_same() {  # name, options
  timed "$work/$1" "${@:2}"
  [ "$(digest "$work/$1")" = "$expected" ] || fail "$1 gave other bytes"
  echo "$1: same bytes"
}
expect_same one-thread --threads 1
expect_same two-threads --threads 2
if [ "$device" = cpu ]; then
  expect_same batch-1 --batch-size 1
  expect_same batch-8 --batch-size 8
fi

killed=0
resumed=0
for turn in 1 2 3 4 5 6 7 8 9 10; do
  out=$work/out$turn
  pause=$((duration * (RANDOM % 900 + 50) / 1000))
  "${command[@]}" -o "$out" >"$work/stdout" 2>"$work/stderr" &
  pid=$!
  sleep "$(printf '%d.%03d' $((pause / 1000)) $((pause % 1000)))"
  kill -KILL "$pid" 2>/dev/null || true  # it may have finished
  status=0
  wait "$pid" || status=$?
  layers=$({ find "$out.partial" -name 'layer-*.safetensors' 2>/dev/null || true; } | wc -l)
  if [ -e "$out" ]; then
    # Published: killed in the check that follows, or not at all.
    [ "$(digest "$out")" = "$expected" ] || fail "turn $turn left a wrong result after $pause ms"
    echo "turn $turn: finished before the kill after $pause ms"
    continue
  fi
  [ "$status" -ne 0 ] || fail "turn $turn ended well without a result"
  killed=$((killed + 1))
  quantize "$out" --json || fail "turn $turn: the second run failed"
  [ "$(digest "$out")" = "$expected" ] || fail "turn $turn: other bytes after a kill at $pause ms"
  if grep -q '"resumed": true' "$work/stdout"; then
    resumed=$((resumed + 1))
  elif [ "$layers" -gt 0 ]; then
    fail "turn $turn: $layers finished layers were not taken up"
  fi
  [ ! -e "$out.partial" ] || fail "turn $turn: $out.partial is still there"
  echo "turn $turn: killed after $pause ms with $layers finished layers, same bytes"
  rm -rf "$out"
done
echo "$killed killed, $resumed resumed"
[ "$killed" -ge 3 ] && [ "$resumed" -ge 1 ] || fail "too few runs were killed in time to say anything"
