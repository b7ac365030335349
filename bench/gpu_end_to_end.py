#!/usr/bin/env python3
"""What a user of a GPU waits for at Qwen2-1.5B's shape, beside the goals for an H200 and beside the machine's limits.

    bench/gpu_end_to_end.py build/release/lowbit [--rounds 5] [--parts decode prefill] [--work FOLDER] [--json FILE]
    bench/gpu_end_to_end.py build/release/lowbit --device cpu --shape smollm2-135m --layers 2 --samples 8 --rounds 1   (tries the script)

Weights are random (bench/random_model.py). Every run is a process of its own; variants run in turn within each round; medians, lowest and
highest are printed. Goals are for the default shape. Limits are what `lowbit doctor` measures first: reading, products of BF16 matrices.

quantize   the process, without the check after it; "alone": weights to the device, Hessians, codes, forward. Limit: the products of the
           forward pass and of one triangle of X^T X
decode     tokens after the first, one sequence. Limit: a step reads every weight once, and the cache up to the position in the middle
batches    `bench`: tokens of all sequences after the first, warm; beside one sequence measured so
prefill    the same with one new token: no loading, no tokenizing, warm. Limit: products
classify   as the command says it: with tokenizing and its first batch, without loading. Limit: products of prompts, bytes of steps
memory     the most of the GPU's memory that a run with all of its context in use allocated. Limit: weights and cache. Start: a whole process
"""

import argparse
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import random_model
from gpu_inputs import Texts, Work

BITS = {"int4": 4, "int8": 8}
QUANTIZING = "weights to the device", "hessians", "codes", "forward"  # phases that are neither loading nor saving
GOALS = {"quantize": 10, "quantizing": 6, "decode": {"int4": 1500, "int8": 1200, "bf16": 900}, "far": 0.85, "batches": {8: 6, 32: 16},
         "prefill": {"bf16": 180e3, "int4": 170e3, "int8": 170e3}, "classify": 150, "memory": 1.45, "start": 1.5}


class Bench:
    def __init__(self, a, work):
        self.a, self.folder, self.rows, self.runs = a, work, [], {}
        self.models = {name: work / name for name in ("int4", "int8", "bf16")}
        if not self.models["bf16"].exists():
            random_model.make(a.shape, work / "partial", a.layers).rename(self.models["bf16"])
        self.texts, self.work = Texts(a.lowbit), Work(self.models["bf16"])
        self.doctor = json.loads(subprocess.run([a.lowbit, "doctor", "--json"], stdout=subprocess.PIPE, check=True).stdout)
        if a.device != "cpu" and not self.doctor["gpus"]:
            sys.exit(self.doctor["cuda"]["problem"])
        cpu = self.doctor["limits"]
        self.machine = self.doctor["gpus"][int(a.device[5:] or 0)] if a.device != "cpu" else {
            "name": self.doctor["processor"], "read_gbps": cpu["read_gbps_all"], "bf16_tflops": cpu["bf16_gflops_all"] / 1e3}
        self.bytes_per_second = self.machine["read_gbps"] * 1e9
        self.flop_per_second = (self.machine["bf16_tflops"] or math.inf) * 1e12  # unknown without cuBLASLt

    def run(self, *command, stdin=""):
        """The JSON of a command, with the wall time of its process; of classify, also samples per second from the end of the first batch on, and
        where the seconds before it went."""
        command = [self.a.lowbit, *map(str, command), "--device", self.a.device, "--json"]
        said, done = [], []
        with tempfile.TemporaryFile("w+", encoding="utf-8") as given, tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
            given.write(stdin)
            given.seek(0)
            begin = time.perf_counter()
            with subprocess.Popen(command, stdin=given, stdout=printed, stderr=subprocess.PIPE, encoding="utf-8") as process:
                for line in process.stderr:
                    said.append(line)
                    if match := re.match(r"classify (\d+)/", line):
                        done.append((int(match[1]), time.perf_counter() - begin))
            seconds = time.perf_counter() - begin
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}: {''.join(said[-3:])}")
            printed.seek(0)
            result = {key: value for key, value in json.load(printed).items() if key not in ("modules", "engines", "text")}
        if done:  # first of nothing
            result["batch_seconds"] = [after - before for (_, before), (_, after) in zip(done, done[1:])]
            result["tokenizing_seconds"] = result["seconds"] - sum(result["batch_seconds"])
            result["warm_samples_per_second"] = (done[-1][0] - done[1][0]) / (done[-1][1] - done[1][1])
        return dict(result, wall_seconds=seconds)

    def quantize(self, name, *options):
        return self.run("quantize", self.models["bf16"], "-o", self.models[name], "--bits", BITS[name], "--group-size", 128, "--no-check", *options)

    def generate(self, name, prompt, new_tokens):
        return self.run("generate", self.models[name], "--prompt", "-", "--max-new-tokens", new_tokens, "--ignore-eos", stdin=prompt)

    def speed(self, name, batch, prompt_tokens, new_tokens):
        result = self.run("bench", self.models[name], "--batch-size", batch, "--prompt-tokens", prompt_tokens, "--new-tokens", new_tokens, "--rounds", 1)
        return result["models"][0]["speeds"][0]

    def classify(self, name, data, batch, new_tokens):
        return self.run("eval", "classify", self.models[name], "--data", data, "--batch-size", batch, "--max-new-tokens", new_tokens)

    def in_turn(self, part, variants, measure, rounds=None):
        """What each variant gave, round by round, the variants in turn."""
        results = {variant: [] for variant in variants}
        for _ in range(rounds or self.a.rounds):
            for variant in variants:
                results[variant].append(measure(variant))
        self.runs[part] = [dict(variant=variant, runs=runs) for variant, runs in results.items()]
        return results

    def row(self, what, unit, values, goal=None, limit=None, more_is_better=True):
        value = statistics.median(values)
        goal, limit = (x if x and math.isfinite(x) else None for x in (goal, limit))
        reached = None if goal is None else value >= goal if more_is_better else value <= goal
        share = None if limit is None else value / limit if more_is_better else limit / value
        self.rows.append(dict(what=what, unit=unit, median=value, lowest=min(values), highest=max(values), goal=goal, reached=reached,
                              limit=limit, share_of_limit=share))

    def steps_per_second(self, name, sequences, position):
        return self.bytes_per_second / self.work.step_bytes(self.models[name], sequences, position)


def quantize(b):
    samples, length = b.a.samples, 1024
    text = b.folder / "calibration.txt"
    text.write_text(b.texts.cut((samples + 1) * length), encoding="utf-8")
    options = "--calibration", text, "--samples", samples, "--max-length", length, "--overwrite", "--no-resume"
    runs = b.in_turn("quantize", BITS, lambda name: b.quantize(name, *options), min(2, b.a.rounds))
    for name, results in runs.items():
        phases = {phase: [r["seconds_by_phase"][phase] for r in results] for phase in results[0]["seconds_by_phase"]}
        alone = [sum(seconds) for seconds in zip(*(phases[phase] for phase in QUANTIZING))]
        b.row(f"quantize {name}, {samples} x {length}", "s", [r["wall_seconds"] for r in results], GOALS["quantize"], None, False)
        b.row("  the quantizing alone", "s", alone, GOALS["quantizing"], b.work.gptq_flop(samples, length) / b.flop_per_second, False)
        for phase, seconds in phases.items():
            b.row(f"    {phase}", "s", seconds)


def decode(b):
    new, prompts = b.a.new_tokens, {"short": "The quick brown fox", "far": b.texts.cut(b.a.context)}
    variants = [(name, kind) for name in b.models for kind in prompts]
    runs = b.in_turn("decode", variants, lambda variant: b.generate(variant[0], prompts[variant[1]], new))
    for (name, kind), results in runs.items():
        prompt, goal = results[0]["prompt_tokens"], GOALS["decode"][name] * (GOALS["far"] if kind == "far" else 1)
        speeds, limit = [r["tokens_per_second"] for r in results], b.steps_per_second(name, 1, prompt + new // 2)
        b.row(f"decode {name}, prompt of {prompt}", "tokens/s", speeds, goal, limit)


def batches(b):
    new, prompt = b.a.new_tokens, 40
    runs = b.in_turn("batches", (1, *GOALS["batches"]), lambda size: b.speed("int4", size, prompt, new))
    one = statistics.median(r["decode_tokens_per_second"]["median"] for r in runs[1])
    for size, results in runs.items():
        goal = GOALS["batches"][size] * one if size > 1 else None
        b.row(f"decode int4, batch {size}, all together", "tokens/s", [r["decode_tokens_per_second"]["median"] for r in results], goal,
              size * b.steps_per_second("int4", size, prompt + new // 2))


def prefill(b):
    tokens, batch = 2048, 8
    data = b.texts.dialogues(b.folder / "long.jsonl", 5 * batch, tokens)
    runs = b.in_turn("prefill", b.models, lambda name: b.classify(name, data, batch, 1))
    limit = b.flop_per_second * tokens / b.work.prompt_flop(tokens)
    for name, results in runs.items():
        speeds = [r["warm_samples_per_second"] * tokens for r in results]
        b.row(f"prefill {name}, {batch} x {tokens}", "tokens/s", speeds, GOALS["prefill"][name], limit)


def classify(b):
    tokens, new, batch = 700, 8, 8
    data = b.texts.dialogues(b.folder / "dialogues.jsonl", 10 * batch, tokens)
    runs = b.in_turn("classify", ("int4", "bf16"), lambda name: b.classify(name, data, batch, new))
    for name, results in runs.items():
        limit = batch / ((new - 1) / b.steps_per_second(name, batch, tokens) + batch * b.work.prompt_flop(tokens) / b.flop_per_second)
        speeds = [r["samples_per_second"] for r in results]
        b.row(f"classify {name}, batch {batch}, {tokens} + {new} tokens", "samples/s", speeds, GOALS["classify"], limit)
        b.row("  after its first batch", "samples/s", [r["warm_samples_per_second"] for r in results], None, limit)
        b.row("  tokenizing all of them", "s", [r["tokenizing_seconds"] for r in results])
        b.row("  its first batch", "s", [r["batch_seconds"][0] for r in results])
        b.row("  its other batches, each", "s", [statistics.median(r["batch_seconds"][1:]) for r in results])


def memory(b):
    [result] = b.in_turn("memory", ["int4"], lambda name: b.generate(name, b.texts.cut(2048 - 256), 256), 1)["int4"]
    used, use = result["prompt_tokens"] + len(result["token_ids"]), result["memory"]
    limit = b.work.step_bytes(b.models["int4"], 1, used) / 1e9
    b.row(f"memory int4, context of {used} in use", "GB", [use.get("gpu_peak_bytes", use["peak_rss_bytes"]) / 1e9], GOALS["memory"], limit, False)


def start(b):
    runs = b.in_turn("start", ["int4"], lambda name: b.generate(name, "The quick brown fox", 1))
    b.row("start to first token, int4", "s", [r["wall_seconds"] for r in runs["int4"]], GOALS["start"], None, False)


PARTS = {part.__name__: part for part in (quantize, decode, batches, prefill, classify, memory, start)}


def print_table(rows):
    def number(value):
        return "" if value is None else f"{value:.{3 if value < 10 else 1 if value < 100 else 0}f}"

    print(f"{'':42} {'median':>8} {'lowest':>8} {'highest':>8}  {'':9} {'goal':>7}     {'limit':>8} {'of it':>6}")
    for r in rows:
        share = "" if r["share_of_limit"] is None else f"{100 * r['share_of_limit']:.0f}%"
        print(f"{r['what']:42} {number(r['median']):>8} {number(r['lowest']):>8} {number(r['highest']):>8}  {r['unit']:9} {number(r['goal']):>7} "
              f"{ {None: '', True: 'yes', False: 'NO'}[r['reached']]:3} {number(r['limit']):>8} {share:>6}".rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lowbit")
    parser.add_argument("--rounds", type=int, default=5, help="quantizing takes two at most")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="without quantize, models are rounded")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=random_model.SHAPES, default="qwen2-1.5b")
    parser.add_argument("--layers", type=int, help="instead of the shape's own number")
    parser.add_argument("--samples", type=int, default=128, help="of the calibration")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--context", type=int, default=3900, help="tokens of the long prompt")
    parser.add_argument("--work", help="where the models go and stay (a temporary folder)")
    parser.add_argument("--json", help="a file for the figures, the limits and what every run said")
    a = parser.parse_args()
    begin, temporary = time.perf_counter(), tempfile.TemporaryDirectory()
    work = pathlib.Path(a.work or temporary.name, a.shape if a.layers is None else f"{a.shape}-{a.layers}")
    work.mkdir(parents=True, exist_ok=True)
    bench, problems, seconds = Bench(a, work), {}, {}
    for part in a.parts:
        since = time.perf_counter()
        try:
            for name in BITS:
                if part != "quantize" and not bench.models[name].exists():
                    bench.quantize(name, "--method", "rtn")
            PARTS[part](bench)
        except Exception as error:  # the other parts' figures are still worth having
            problems[part] = f"{type(error).__name__}: {error}"
        seconds[part] = time.perf_counter() - since
        print(f"{part}: {seconds[part]:.0f} s", file=sys.stderr)
    seconds["all"] = time.perf_counter() - begin

    print(f"\n{bench.machine['name']}: reads {bench.machine['read_gbps']:.0f} GB/s, {bench.machine['bf16_tflops'] or 0:.0f} TFLOP/s of BF16; "
          f"{a.shape}; medians of {a.rounds} rounds, {seconds['all']:.0f} s in all\n")
    print_table(bench.rows)
    print("".join(f"\n{part} failed: {problem}\n" for part, problem in problems.items()), end="")
    if a.json:
        pathlib.Path(a.json).write_text(json.dumps(dict(
            date=time.strftime("%Y-%m-%d %H:%M:%S %z"), machine=bench.machine, cuda=bench.doctor["cuda"], processors=bench.doctor["processors"],
            lowbit=bench.doctor["version"], options=vars(a), rows=bench.rows, problems=problems, seconds=seconds, runs=bench.runs), indent=1))
        print(f"\nfigures, limits and every run: {a.json}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
