#!/bin/sh
# The demo: quantizes the demo model to int8 and int4 on its own calibration dialogues, then evaluates all three on the
# held-out ones and prints one table.  usage: demo/run.sh path/to/lowbit [folder for the results]
set -eu
lowbit=$1
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -gt 1 ]; then
  out=$2
  mkdir -p "$out"
else
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi

for bits in 8 4; do
  "$lowbit" quantize "$here/model" -o "$out/int$bits" --method gptq --bits "$bits" --group-size 128 \
    --calibration "$here/data/calibration.jsonl" --samples 128 --max-length 512 --overwrite >&2
done
"$lowbit" compare "$here/model" "$out/int8" "$out/int4" --data "$here/data/test.jsonl" \
  --text "$here/data/heldout.txt" --context 128
