#!/usr/bin/env python3
"""How the time and memory of `quantize` grow with layers and with calibration tokens: random models, median of the rounds.

    bench/growth.py build/release/lowbit TEXT [--shape smollm2-135m] [--layers 5 10 20] [--samples 16 32 64] [--rounds 5]

The columns "per layer" and "per sample" are what each step up costs over the one before it: equal figures mean linear growth.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile

import random_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lowbit")
    parser.add_argument("text", help="plain text, for calibration")
    parser.add_argument("--shape", choices=random_model.SHAPES, default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        models = {layers: random_model.make(a.shape, f"{work}/{layers}", layers) for layers in a.layers}
        by_layers = [(layers, a.samples[0]) for layers in a.layers]
        by_samples = [(a.layers[0], samples) for samples in a.samples]
        runs = {run: [] for run in by_layers + by_samples}
        for _ in range(a.rounds):
            for layers, samples in runs:
                done = subprocess.run([a.lowbit, "quantize", models[layers], "-o", f"{work}/out", "--bits", "4", "--calibration", a.text,
                                       "--samples", str(samples), "--max-length", str(a.max_length), "--threads", str(a.threads),
                                       "--overwrite", "--no-check", "--device", "cpu", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
                runs[layers, samples].append(json.loads(done.stdout))

    def seconds(run):
        return statistics.median(report["seconds"] for report in runs[run])

    def memory(run):
        return max(report["peak_anonymous_bytes"] for report in runs[run]) / 1e6

    print(f"{a.shape}, samples of {a.max_length} tokens, {a.threads} threads, medians of {a.rounds} rounds in turn")
    for table, unit, index in (by_layers, "layer", 0), (by_samples, "sample", 1):
        print(f"\nlayers  samples   seconds   per {unit:6}   MB anonymous")
        before = None
        for run in table:
            step = "" if before is None else f"{(seconds(run) - seconds(before)) / (run[index] - before[index]):.3f}"
            print(f"{run[0]:6} {run[1]:8} {seconds(run):9.2f} {step:>12} {memory(run):14.0f}")
            before = run


if __name__ == "__main__":
    main()
