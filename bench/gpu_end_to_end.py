#!/usr/bin/env python3
"""Tokens per second on a GPU at Qwen2-1.5B's shape, beside what the GPU reads: decoding alone and behind a long prompt, and prompts.

    bench/gpu_end_to_end.py build/release/lowbit [--rounds 5] [--new-tokens 256] [--context 3900] [--work FOLDER] [--json FILE]

Weights are random (bench/random_model.py), int4 and int8 by rounding, groups of 128. Variants run in turn within each round, and medians
are printed. A decoded token reads every weight once and the KV cache up to its position; its share is of the bandwidth that `lowbit
doctor` measures in the same minutes.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

BENCH = pathlib.Path(__file__).resolve().parent
TEXT = BENCH.parent / "demo" / "data" / "heldout.txt"
CACHE_BYTES_PER_TOKEN = 28 * 2 * 2 * 128 * 2  # layers, keys and values, KV heads, elements, BF16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lowbit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--context", type=int, default=3900, help="tokens of the long prompt, about")
    parser.add_argument("--work", help="where the models go (a temporary folder)")
    parser.add_argument("--json", help="a file for the figures")
    a = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()
    work = pathlib.Path(a.work or temporary.name)

    def lowbit(*command, stdin=None):
        done = subprocess.run([a.lowbit, *map(str, command), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, input=stdin)
        if done.returncode != 0:
            sys.exit(done.stderr.decode())
        return json.loads(done.stdout)

    models = {"bf16": work / "bf16", "int8": work / "int8", "int4": work / "int4"}
    if not models["bf16"].exists():
        subprocess.run([sys.executable, BENCH / "random_model.py", "qwen2-1.5b", models["bf16"]], check=True, stdout=subprocess.DEVNULL)
    for name in "int8", "int4":
        if not models[name].exists():
            lowbit("quantize", models["bf16"], "-o", models[name], "--method", "rtn", "--bits", name[3:], "--group-size", 128, "--no-check")

    gpu = lowbit("doctor")["gpus"][0]
    print(f"{gpu['name']}: copies {gpu['copy_gbps']:.0f} GB/s, reads {gpu['read_gbps']:.0f} GB/s; medians of {a.rounds} rounds\n")
    long_text = TEXT.read_bytes()[: int(a.context * 3.34)]
    runs = {}
    for _ in range(a.rounds):
        for name, model in models.items():
            for kind, text in ("short", b"The quick brown fox"), ("long", long_text):
                result = lowbit("generate", model, "--prompt", "-", "--max-new-tokens", a.new_tokens, "--ignore-eos", "--device", "cuda", stdin=text)
                runs.setdefault((name, kind), []).append(result)
    rows = []
    print(f"{'weights':8} {'prompt':>7} {'tokens/s':>9} {'lowest':>7} {'highest':>8} {'of reading':>11}")
    for (name, kind), results in runs.items():
        speeds = [result["tokens_per_second"] for result in results]
        prompt = results[0]["prompt_tokens"]
        size = (models[name] / "model.safetensors").stat().st_size + CACHE_BYTES_PER_TOKEN * (prompt + a.new_tokens // 2)
        speed = statistics.median(speeds)
        share = speed * size / 1e9 / gpu["read_gbps"]
        rows.append(dict(weights=name, prompt_tokens=prompt, tokens_per_second=speed, bytes_per_token=size, share_of_reading=share))
        print(f"{name:8} {prompt:7} {speed:9.0f} {min(speeds):7.0f} {max(speeds):8.0f} {100 * share:10.0f}%")
    if a.json:
        pathlib.Path(a.json).write_text(json.dumps(dict(gpu=gpu, decode=rows), indent=2))


if __name__ == "__main__":
    main()
