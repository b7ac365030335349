#!/usr/bin/env python3
"""What a user waits for on a CPU, beside the machine's limits: quantizing, loading, decoding, with and without a long context.

    bench/end_to_end.py build/release/lowbit MODEL TEXT [--rounds 5] [--samples 128] [--threads 2] [--work FOLDER] [--parts decode]

Variants run in turn within each round, and medians are printed. A decoded token reads every weight once, and the KV cache up to its
position; its share is of the bandwidth at which `lowbit doctor MODEL --context N` read as many bytes in the same minutes (its median
pass; in brackets its fastest).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lowbit")
    parser.add_argument("model")
    parser.add_argument("text", help="plain text, for calibration and prompts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--context", type=int, default=1024, help="tokens of the long prompt, about")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--parts", nargs="+", choices=["quantize", "decode"], default=["quantize", "decode"])
    parser.add_argument("--work", help="where the quantized models go (a temporary folder)")
    a = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()
    work = pathlib.Path(a.work or temporary.name)
    work.mkdir(parents=True, exist_ok=True)

    def lowbit(*command, threads=a.threads):
        done = subprocess.run([a.lowbit, *map(str, command), "--threads", str(threads), "--json"], stdout=subprocess.PIPE, check=True,
                              stderr=subprocess.DEVNULL)
        return json.loads(done.stdout)

    def quantize(bits, samples, threads=a.threads, *options):
        return lowbit("quantize", a.model, "-o", work / f"int{bits}", "--bits", bits, "--calibration", a.text, "--samples", samples,
                      "--max-length", a.max_length, "--overwrite", "--device", "cpu", *options, threads=threads)

    def quantize_part():
        variants = {f"4 bits, {a.samples} x {a.max_length}, check included": (4, a.samples, a.threads),
                    f"4 bits, {a.samples // 4} x {a.max_length}, no check": (4, a.samples // 4, a.threads, "--no-check")}
        if a.threads > 1:
            variants["  one thread"] = (4, a.samples // 4, 1, "--no-check")
        seconds, memory = {name: [] for name in variants}, {}
        for _ in range(a.rounds):
            for name, options in variants.items():
                report = quantize(*options)
                seconds[name].append(report["seconds"])
                memory[name] = report["peak_anonymous_bytes"] / 1e6
        print("\nquantize")
        for name, values in seconds.items():
            print(f"  {name:42} {statistics.median(values):7.1f} s   {memory[name]:6.0f} MB anonymous")

    def decode_part():
        quantize(8, 4, a.threads, "--no-check")
        quantize(4, 4, a.threads, "--no-check")
        with open(a.text, encoding="utf-8") as file:
            text = file.read(4 * a.context)
        tokens = lowbit("generate", a.model, "--prompt", text, "--max-new-tokens", 1, "--device", "cpu")["prompt_tokens"]
        long_prompt = text[:len(text) * a.context // tokens]
        models = {"source": pathlib.Path(a.model), "int8": work / "int8", "int4": work / "int4"}
        speeds, read, start = {}, {}, {name: [] for name in models}
        for _ in range(a.rounds):
            for name, model in models.items():
                begin = time.time()
                lowbit("generate", model, "--prompt", "Once", "--max-new-tokens", 1, "--device", "cpu")
                start[name].append(time.time() - begin)
                for prompt in ("Once upon a time", long_prompt):
                    run = lowbit("generate", model, "--prompt", prompt, "--max-new-tokens", a.new_tokens, "--ignore-eos", "--device", "cpu")
                    tokens = run["prompt_tokens"]
                    speeds.setdefault((name, tokens), []).append(run["tokens_per_second"])
                    limits = lowbit("doctor", model, "--context", tokens + a.new_tokens // 2)["limits"]
                    read.setdefault((name, tokens), []).append([limits[key] for key in ("buffer_bytes", "read_gbps_all", "read_gbps_all_best")])
        print("\ndecode")
        for key, values in speeds.items():
            speed = statistics.median(values)
            moved, kept_up, best = (statistics.median(column) for column in zip(*read[key]))
            print(f"  {key[0]:7} context {key[1]:5}: {speed:7.1f} tokens/s, {moved / 1e6:5.0f} MB per token, "
                  f"{100 * speed * moved / 1e9 / kept_up:4.0f} % of {kept_up:.1f} GB/s "
                  f"({100 * speed * moved / 1e9 / best:.0f} % of the fastest pass, {best:.1f})")
        print("\nprocess start to first token")
        for name, values in start.items():
            print(f"  {name:7} {statistics.median(values):6.2f} s")

    print(f"threads {a.threads}, medians of {a.rounds} rounds")
    for part in a.parts:
        {"quantize": quantize_part, "decode": decode_part}[part]()


if __name__ == "__main__":
    main()
