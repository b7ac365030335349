#!/bin/sh
# Runs each fuzz target for a while, seeded with real files where they are present. Exits 1 when one finds a fault; the
# input that did it is kept in BUILD_FOLDER/crashes.
# usage: tests/fuzz/smoke.sh BUILD_FOLDER SECONDS_EACH
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
root=$here/../..
material=${LOWBIT_MATERIAL:-$root/../shared/material}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# seed TARGET PREFIX FILES...: copies those that exist and are small enough to be changed usefully.
seed() {
  target=$1 prefix=$2
  mkdir -p "$work/$target"
  shift 2
  for file in "$@"; do
    if [ -f "$file" ] && [ "$(wc -c <"$file")" -le 100000 ]; then
      { printf %s "$prefix" && cat "$file"; } >"$work/$target/$(echo "$file" | cksum | cut -d' ' -f1)"
    fi
  done
}
seed fuzz_safetensors "" "$root"/tests/golden/gptq/*.safetensors
python3 - "$work/fuzz_safetensors/small" <<'END'
import struct, sys
header = (b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
          b'"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"c":{"dtype":"U8","shape":[0],"data_offsets":[14,14]}}')
open(sys.argv[1], "wb").write(struct.pack("<Q", len(header)) + header + bytes(14))
END
seed fuzz_index "" "$material"/peers/models/*/model.safetensors.index.json
seed fuzz_config "" "$root"/demo/model/config.json "$material"/peers/*/*/config.json
seed fuzz_checkpoint "" /dev/null
python3 "$here/checkpoint_seeds.py" "$work/fuzz_checkpoint"
seed fuzz_model_config "" "$root"/demo/model/config.json "$root"/tests/golden/*/config.json "$material"/peers/models/*/config.json
printf '{}\377{"max_seq_length": 256, "do_lower_case": false}\377{"pooling_mode_cls_token": true}\377[{"type": "a.Transformer"}, {"type": "a.Normalize"}]' \
  >"$work/fuzz_model_config/encoder"
seed fuzz_tokenizer { "$root"/tests/golden/tokenizers/*/tokenizer.json "$root"/demo/model/tokenizer.json
seed fuzz_charsmap "" /dev/null
python3 - "$root"/tests/golden/tokenizers/unigram_charsmap/tokenizer.json "$work/fuzz_charsmap/small" <<'END'
import base64, json, sys
content = json.load(open(sys.argv[1], encoding="utf-8"))
open(sys.argv[2], "wb").write(base64.b64decode(content["normalizer"]["precompiled_charsmap"]))
END
seed fuzz_chat_template "" "$material"/templates/llamacpp/*.jinja
tr '\n' '\0' <"$root"/tests/golden/jinja_cases.txt | sed 's/\x00====\x00/\n/g' | tr '\0' ' ' |
  split -l 1 -a 3 - "$work/fuzz_chat_template/case"
seed fuzz_dataset "" /dev/null
split -l 1 -a 3 "$root"/demo/data/calibration.jsonl "$work/fuzz_dataset/line"

status=0
mkdir -p "$build/crashes"
for target in fuzz_safetensors fuzz_index fuzz_config fuzz_checkpoint fuzz_model_config fuzz_charsmap fuzz_tokenizer fuzz_chat_template fuzz_dataset; do
  log=$build/crashes/$target.log
  echo "== $target ($(ls "$work/$target" | wc -l) seeds)"
  if "$build/tests/fuzz/$target" -max_total_time="$2" -rss_limit_mb=4096 -timeout=25 -print_final_stats=1 \
    -artifact_prefix="$build/crashes/$target-" "$work/$target" >"$log" 2>&1; then
    grep -E 'number_of_executed_units|peak_rss_mb' "$log"
  else
    status=1
    tail -50 "$log"
  fi
done
exit $status
