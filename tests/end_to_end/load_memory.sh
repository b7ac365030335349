#!/bin/bash
# A model of bloom-1b7's shape, rounded to 4 bits while it is loaded, takes the memory of what it becomes and one tensor;
# saved in bitsandbytes' dialect, 4 and 8 bits have the sizes that bitsandbytes gives for bloom-1b7, 1,630 and 2,135 MiB.
# usage: load_memory.sh path/to/lowbit;  exit code 77: no python3, or no room for 8 GB of files
set -euo pipefail
lowbit=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
command -v python3 >/dev/null || { echo "python3 is not installed"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ "$(df --output=avail -k "$work" | tail -n 1)" -gt 8000000 ] || { echo "$work has no room for 8 GB"; exit 77; }
python3 "$root/bench/random_model.py" bloom-1b7 "$work/model" >/dev/null

failed=0
expect_between() {  # WHAT FOUND LEAST MOST
  echo "$1: $2 (between $3 and $4)"
  [ "$2" -ge "$3" ] && [ "$2" -le "$4" ] || failed=1
}
peak_of() { "$lowbit" generate "$work/model" --device cpu "$@" --prompt Hello --max-new-tokens 1 --json 2>/dev/null | grep -o '"peak_rss_bytes": [0-9]*' | grep -o '[0-9]*$'; }
expect_between "bytes resident with --load-in-4bit" "$(peak_of --load-in-4bit)" 1700000000 1900000000
for format in nf4 int8; do
  "$lowbit" quantize "$work/model" -o "$work/$format" --method rtn --format "$format" --dialect bitsandbytes --no-check >/dev/null 2>&1
  bytes=$(cat "$work/$format"/*.safetensors | wc -c)
  case $format in nf4) mib=1630 ;; int8) mib=2135 ;; esac
  expect_between "bytes of $format on disk" "$bytes" $(((mib - 1) * 1048576)) $(((mib + 1) * 1048576))
  rm -rf "${work:?}/$format"
done
exit $failed
