#!/bin/sh
# Runs each fuzz target for a while, seeded with real files where they are present.
# usage: tests/fuzz/smoke.sh BUILD_FOLDER SECONDS_EACH
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
material=${LOWBIT_MATERIAL:-$root/../shared/material}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
seed() { # seed TARGET FILES...: copies those that exist and are small
  mkdir -p "$work/$1"
  target=$1
  shift
  for file in "$@"; do
    if [ -f "$file" ]; then cp "$file" "$work/$target/$(echo "$file" | cksum | cut -d' ' -f1)"; fi
  done
}
seed fuzz_safetensors "$root"/tests/golden/gptq/*.safetensors "$material"/peers/gptq/*/model.safetensors
seed fuzz_index "$material"/peers/models/*/model.safetensors.index.json
seed fuzz_config "$root"/demo/model/config.json "$material"/peers/*/*/config.json
seed fuzz_tokenizer "$root"/tests/golden/tokenizers/*.json "$material"/model-*/tokenizer.json
seed fuzz_chat_template "$material"/templates/llamacpp/*.jinja
seed fuzz_dataset "$root"/demo/data/test.jsonl
for target in fuzz_safetensors fuzz_index fuzz_config fuzz_tokenizer fuzz_chat_template fuzz_dataset; do
  echo "== $target"
  (cd "$work" && "$(cd "$1" && pwd)/$target" -max_total_time="$2" -rss_limit_mb=4096 -timeout=25 -print_final_stats=1 \
    "$work/$target" 2>&1 | tail -12)
done
