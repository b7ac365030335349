"""The quality table: lowbit beside GPTQModel, the same calibration tokens, the same evaluation.

    python quality_table.py run --lowbit LOWBIT --model NAME SOURCE CALIBRATION.txt EVALUATION.txt --results FILE --work FOLDER
    python quality_table.py table FILE

`run` appends one JSON line per finished job to FILE and leaves out jobs that FILE has, so it can be killed and continued.
Needs gptqmodel, transformers, torch, tokenizers, safetensors; with --device cuda the peer and the judge use the GPU.
Every tool calibrates on the windows of 512 ids that `lowbit quantize --seed DRAW` chooses (windows.py); `table` refuses results
whose tokens differ. judge.py evaluates everything on the first windows of the evaluation text.
"""

import argparse
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
SETTINGS = [(4, 128), (3, 128), (2, 32), (8, 128)]
PEERS = {"GPTQModel": {}, "GPTQModel, mse=2.4": {"mse": 2.4},
         "GPTQModel, desc_act + static_groups, mse=2.4": {"desc_act": True, "static_groups": True, "mse": 2.4}}
OURS, ROUNDING = "lowbit", "round to nearest"
SAMPLES = 32
SWITCHES = {"order: none": ["--no-act-group-aware"],
            "order: desc_act + static_groups": ["--desc-act", "--static-groups"],
            "order: desc_act (g_idx)": ["--desc-act"],
            "clip search: off": ["--mse", "0"],
            "clip search: exponent 2": ["--mse", "2"],
            "clip search: unweighed": ["--no-weighted-mse"],
            "group parameters: before the block's updates": ["--no-updated-groups"],
            "group parameters: of the original weights": ["--static-groups"],
            "damping: 0.01": ["--damp-percent", "0.01"],
            "damping: 0.1": ["--damp-percent", "0.1"],
            "refinement: none": ["--refine-sweeps", "0"],
            "refinement: 1 sweep": ["--refine-sweeps", "1"],
            "refinement: 6 sweeps": ["--refine-sweeps", "6"],
            "samples: 16": ["--samples", "16"],
            "samples: 64": ["--samples", "64"],
            "samples: 128": ["--samples", "128"]}


def jobs(arguments):
    """Most valuable first. "peer" jobs run in workers of their own."""
    switches = dict(SWITCHES, **{name: ["=" + binary] for name, binary in arguments.build})
    for bits, group_size in SETTINGS:
        for model in arguments.model:
            for draw in range(arguments.draws):
                base = {"model": model[0], "bits": bits, "group_size": group_size, "draw": draw}
                yield dict(base, kind="ours", name=OURS, options=[])
                if draw == 0:
                    yield dict(base, kind="ours", name=ROUNDING, options=["--method", "rtn"])
                for name, options in PEERS.items():
                    yield dict(base, kind="peer", name=name, options=options)
    for bits, group_size in [s for s in SETTINGS if s[0] in arguments.switch_bits]:
        for draw in range(arguments.draws):
            for name, options in switches.items():
                for model in arguments.model:
                    yield {"model": model[0], "bits": bits, "group_size": group_size, "draw": draw, "kind": "ours", "name": name,
                           "options": options}


def key(job):
    return json.dumps([job["model"], job["bits"], job["group_size"], job["draw"], job["name"]])


class Worker:
    """A Python process that answers JSON lines; started when first asked, and again after it died or failed."""

    def __init__(self, log, gpu, *command):
        self.command, self.log, self.process, self.lock = command, log, None, threading.Lock()
        self.environment = dict(os.environ, CUDA_VISIBLE_DEVICES=str(gpu))

    def ask(self, job, fresh_after_error=True):
        with self.lock:
            if self.process is None:
                self.process = subprocess.Popen([sys.executable, *self.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                stderr=open(self.log, "a", encoding="utf-8"), text=True,
                                                env=self.environment)
                if "judge.py" in str(self.command[0]):
                    self.reference = json.loads(self.process.stdout.readline() or "{}")
            try:
                self.process.stdin.write(json.dumps(job) + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except BrokenPipeError:
                line = ""
            result = json.loads(line) if line else {"error": f"the worker died, see {self.log}"}
            if "error" in result and fresh_after_error:
                self.stop()
            return result

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


class Run:
    def __init__(self, arguments):
        self.a = arguments
        self.sources = {name: (source, calibration, text) for name, source, calibration, text in arguments.model}
        self.work = pathlib.Path(arguments.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.end = time.time() + 60 * arguments.minutes
        self.writing, self.begun, self.running = threading.Lock(), time.time(), set()
        self.judges = {name: Worker(self.work / f"judge-{name}.log", arguments.gpus - 1, HERE / "judge.py", source, text, str(arguments.windows),
                                    arguments.device) for name, (source, _, text) in self.sources.items()}
        done = set()
        if os.path.exists(arguments.results):
            with open(arguments.results, encoding="utf-8") as file:
                done = {key(job) for job in map(json.loads, file) if "error" not in job}
        self.queues = {"peer": queue.Queue(), "ours": queue.Queue()}
        for job in jobs(arguments):
            if key(job) not in done and all(part in key(job) for part in arguments.only):
                self.queues[job["kind"]].put(job)
        print(f"{self.queues['peer'].qsize()} peer jobs, {self.queues['ours'].qsize()} of ours", flush=True)

    def lowbit(self, *command, binary=None):
        process = subprocess.Popen([binary or self.a.lowbit, *map(str, command), "--threads", str(self.a.threads), "--json"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running.add(process)
        out, errors = process.communicate()
        self.running.discard(process)
        if process.returncode != 0:
            raise RuntimeError(f"lowbit {command[0]}: exit code {process.returncode}: {errors.strip()[-300:]}")
        return json.loads(out)

    def quantize(self, job, out, peer):
        source, calibration, _ = self.sources[job["model"]]
        if peer:
            return peer.ask({"model": source, "calibration": calibration, "samples": SAMPLES, "length": 512, "draw": job["draw"],
                             "bits": job["bits"], "group_size": job["group_size"], "options": job["options"],
                             "device": self.a.device, "out": str(out)})
        binary = job["options"][0][1:] if job["options"][:1] and job["options"][0].startswith("=") else None
        options = [] if binary else job["options"]
        report = self.lowbit("quantize", source, "-o", out, "--bits", job["bits"], "--group-size", job["group_size"],
                             "--calibration", calibration, "--max-length", 512, "--seed", job["draw"], "--no-check", "--overwrite",
                             *([] if "--samples" in options else ["--samples", SAMPLES]), *options, binary=binary)
        return {"seconds": report["seconds"], "tokens_hash": report["calibration"]["tokens_hash"]}

    def finish(self, job, peer):
        out = self.work / f"{job['kind']}-{threading.get_ident()}"
        source, _, text = self.sources[job["model"]]
        try:
            row = dict(job, **self.quantize(job, out, peer))
            if "error" not in row:
                shutil.copy(pathlib.Path(source) / "tokenizer.json", out)  # GPTQModel's own saving changes some
                begin = time.time()
                judge = self.judges[job["model"]]
                row.update(judge.ask({"checkpoint": str(out)}))
                row.update(judged_in=round(time.time() - begin, 1), source=judge.reference)
                if job["draw"] < self.a.second_judge and job["name"] in (OURS, ROUNDING, *PEERS):
                    mine = self.lowbit("eval", "divergence", out, "--reference", source, "--text", text, "--context", 512, "--limit",
                                       self.a.second_windows, *self.a.eval_options.split())
                    row["by_lowbit"] = {k: mine[k] for k in ("mean_kl", "top1_agreement", "perplexity", "reference_perplexity",
                                                             "tokens")}
        except Exception as error:
            row = dict(job, error=f"{type(error).__name__}: {str(error)[:400]}")
        shutil.rmtree(out, ignore_errors=True)
        with self.writing:
            row["at"] = round(time.time() - self.begun)
            with open(self.a.results, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['at']:4d} s  {key(row)}  " + (row.get("error") or f"KL {row['mean_kl']:.4f}  {row['seconds']:.0f} s"), flush=True)
        return "error" not in row

    def drain(self, kind, peer=None):
        errors = 0
        while time.time() < self.end and errors < 3:
            try:
                errors = 0 if self.finish(self.queues[kind].get_nowait(), peer) else errors + 1
            except queue.Empty:
                return

    def run(self):
        peers = [Worker(self.work / f"peer-{i}.log", i % self.a.gpus, HERE / "peer.py") for i in range(self.a.peer_workers)]
        threads = [threading.Thread(target=self.drain, args=("peer", peer), daemon=True) for peer in peers]
        threads += [threading.Thread(target=self.drain, args=("ours",), daemon=True) for _ in range(self.a.cpu_workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, self.end + 60 * self.a.grace - time.time()) if self.a.minutes < 1e5 else None)
        for worker in [*peers, *self.judges.values()]:
            worker.stop()
        for process in list(self.running):
            process.kill()


def mean(draws, what, of=None):
    return sum(draws[draw][what] for draw in of or draws) / len(of or draws)


def compare(ours, theirs):
    """Ratio of the mean KL of two quantizers, and its standard error over windows (draws of a window belong together)."""
    windows = [[sum(row["kl_of_windows"][i] for row in draws.values()) for i in range(len(next(iter(draws.values()))["kl_of_windows"]))]
               for draws in (ours, theirs)]
    ratio = sum(windows[0]) / sum(windows[1])
    return ratio, sum((a - ratio * b) ** 2 for a, b in zip(*windows)) ** 0.5 / sum(windows[1])


def print_setting(title, names):
    print(f"\n### {title}\n\n| | mean KL | each draw | beside lowbit | top-1 | perplexity | s |\n|---|---|---|---|---|---|---|")
    ours = names.get(OURS, {})
    for name, draws in names.items():
        shared = sorted(set(draws) & set(ours))
        beside = f"{mean(draws, 'mean_kl', shared) / mean(ours, 'mean_kl', shared):.3f}" if shared else ""
        print(f"| {name} | {mean(draws, 'mean_kl'):.4g} | {' '.join(format(draws[d]['mean_kl'], '.4g') for d in sorted(draws))} | {beside} | "
              f"{100 * mean(draws, 'top1'):.1f} % | {mean(draws, 'perplexity'):.4g} | {mean(draws, 'seconds'):.0f} |")
    rivals = {name: draws for name, draws in names.items() if name in PEERS and set(draws) == set(ours)}
    if rivals:
        best = min(rivals, key=lambda name: mean(rivals[name], "mean_kl"))
        ratio, error = compare(ours, rivals[best])
        print(f"\nlowbit / {best}: {ratio:.3f} ± {error:.3f}; " + ("at most 1.02, as it must be" if ratio <= 1.02 else "MORE THAN 1.02"))
    if ROUNDING in names and any(row["mean_kl"] >= names[ROUNDING][0]["mean_kl"] for row in ours.values()):
        print("\nlowbit IS WORSE THAN ROUNDING in a draw")


def table(path):
    with open(path, encoding="utf-8") as file:
        rows = {key(row): row for row in map(json.loads, file) if "error" not in row}.values()
    tokens, settings = {}, {}
    for row in rows:
        place = (row["model"], row["draw"], row["name"] if row["name"].startswith("samples:") else "")
        if tokens.setdefault(place, row["tokens_hash"]) != row["tokens_hash"]:
            sys.exit(f"{key(row)} was calibrated on other tokens than the rest of draw {row['draw']}")
        setting = (row["model"], SETTINGS.index((row["bits"], row["group_size"])))
        settings.setdefault(setting, {}).setdefault(row["name"], {})[row["draw"]] = row
    for (model, index), names in sorted(settings.items(), key=lambda item: item[0]):
        bits, group_size = SETTINGS[index]
        source = next(iter(next(iter(names.values())).values()))["source"]
        print_setting(f"{model}, {bits} bits, group {group_size}: source perplexity {source['perplexity']:.2f}, {source['windows']} windows",
                      {name: names[name] for name in [ROUNDING, *PEERS, OURS, *names] if name in names})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--lowbit", required=True)
    run.add_argument("--model", nargs=4, action="append", required=True, metavar=("NAME", "SOURCE", "CALIBRATION", "EVALUATION"))
    run.add_argument("--results", required=True)
    run.add_argument("--work", required=True)
    run.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    run.add_argument("--gpus", type=int, default=1, help="over which the peers are spread")
    run.add_argument("--draws", type=int, default=3)
    run.add_argument("--windows", type=int, default=64, help="that judge.py evaluates")
    run.add_argument("--switch-bits", type=int, nargs="*", default=[4], help="settings at which every switch is measured")
    run.add_argument("--build", nargs=2, action="append", default=[], metavar=("NAME", "BINARY"), help="another lowbit, as a switch")
    run.add_argument("--only", nargs="*", default=[], help="jobs whose key (see the progress lines) holds all these texts")
    run.add_argument("--peer-workers", type=int, default=1)
    run.add_argument("--cpu-workers", type=int, default=1)
    run.add_argument("--threads", type=int, default=2, help="of each lowbit")
    run.add_argument("--second-judge", type=int, default=1, help="`lowbit eval divergence` too for the first draws")
    run.add_argument("--second-windows", type=int, default=18)
    run.add_argument("--eval-options", default="--kv-cache-dtype float32", help="of `lowbit eval divergence`")
    run.add_argument("--minutes", type=float, default=1e6, help="no job begins later")
    run.add_argument("--grace", type=float, default=1, help="minutes after which running jobs are killed then")
    commands.add_parser("table").add_argument("results")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table(arguments.results)
    else:
        Run(arguments).run()


if __name__ == "__main__":
    main()
