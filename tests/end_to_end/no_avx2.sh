#!/bin/bash
# The program on a processor without AVX, emulated: it starts, its reference kernels are right, it answers as on the
# real one.  usage: no_avx2.sh path/to/lowbit path/to/lowbit_ops_test;  exit code 77: qemu-user is not installed
set -euo pipefail
lowbit=$1
ops_test=$2
demo=$(cd "$(dirname "$0")/../../demo" && pwd)
command -v qemu-x86_64 >/dev/null || { echo "qemu-x86_64 is not installed (Debian: qemu-user)"; exit 77; }
emulated() { qemu-x86_64 -cpu Nehalem "$@"; }

emulated "$lowbit" --version
emulated "$ops_test" --gtest_brief=1 --gtest_filter="RmsNorm*:Rope*:Swiglu*:Add*:Softmax*:Gemm*:GptqBlock*"
answer() {
  "$@" --prompt "Is this a fraud? Caller: Pay me." --chat --max-new-tokens 4 --device cpu --kv-cache-dtype float32 2>/dev/null
}
expected=$(answer "$lowbit" generate "$demo/model" --kernel ref)
# Without --kernel: it has to find by itself that only the reference kernels run here.
got=$(answer emulated "$lowbit" generate "$demo/model" --threads 1)
echo "answer: $got"
[ -n "$got" ] && [ "$got" = "$expected" ] || { echo "expected: $expected" >&2; exit 1; }
