"""The table of formats: what each format and method costs a model, with bits per weight; and int8 with and without its
outlier part on a model with planted outliers.

    python format_table.py run --lowbit LOWBIT SOURCE CALIBRATION.txt EVALUATION.txt --results FILE --work FOLDER
    python format_table.py table FILE

`run` appends one JSON line per row to FILE and leaves out those that FILE has, so it can be killed and continued; --rows
chooses some. Needs nothing but Python.
"""

import argparse
import array
import json
import pathlib
import re
import shutil
import struct
import subprocess

GPTQ, RTN = ["--method", "gptq"], ["--method", "rtn"]
BNB, CT, OWN = ["--dialect", "bitsandbytes"], ["--dialect", "compressed-tensors"], ["--dialect", "lowbit"]
STATIC = ["--activations", "int8-static"]
ROUNDED = {  # what needs a checkpoint: name, options of `quantize`
    f"affine, {bits} bits in groups of {group}, {method[1]}": ["--bits", str(bits), "--group-size", str(group), *method]
    for bits, group in ((8, 128), (4, 128), (4, 64), (3, 128), (2, 32)) for method in (RTN, GPTQ)
} | {
    f"{name} in groups of 64, {method[1]}": ["--format", name, *BNB, *method] for name in ("nf4", "fp4") for method in (RTN, GPTQ)
} | {
    "nf4 in groups of 64, double quantization, rtn": ["--format", "nf4", *BNB, *RTN, "--bnb-4bit-use-double-quant"],
} | {
    f"log2, base {base}, {bits} bits in groups of 64, {method[1]}":
        ["--format", "log2", *OWN, *method, "--bits", str(bits), "--log-base", base, "--group-size", "64"]
    for bits, base in ((3, "2"), (4, "1.41"), (6, "1.11")) for method in (RTN, GPTQ)
} | {
    "fp8 E4M3, whole rows, rtn": ["--format", "fp8", *OWN, *RTN, "--group-size", "-1", "--mse", "0"],
    "fp8 E5M2, whole rows, rtn": ["--format", "fp8_e5m2", *OWN, *RTN, "--group-size", "-1", "--mse", "0"],
    "int8 rows, inputs as they are (W8A16)": ["--format", "int8", *CT, *RTN, "--activations", "none"],
    "int8 rows and inputs (W8A8 dynamic)": ["--format", "int8", *CT, *RTN, "--activations", "int8-dynamic"],
    "int8 rows and inputs (W8A8 static)": ["--format", "int8", *CT, *RTN, *STATIC],
    "int8 rows and inputs (W8A8 static), smoothed": ["--format", "int8", *CT, *RTN, *STATIC, "--smooth-alpha", "0.5"],
}
LLM_INT8 = {"LLM.int8(), threshold 6": ["--load-in-8bit"],
            "LLM.int8(), threshold 0: no outlier part": ["--load-in-8bit", "--llm-int8-threshold", "0"]}
KINDS = ("bf16", "planted")


def planted(source, out, scale=4, channels=6):
    """Outliers that change nothing: of `channels` hidden channels the norms' weights times 2^scale, and the columns of
    what reads them divided by it. Llama's names; BF16, so every product is exact but where a column underflows."""
    shutil.copytree(source, out)
    path = out / "model.safetensors"
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    for name, entry in header.items():
        reads = name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") if name != "__metadata__" else False
        if not reads and not name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{path}: {name} is {entry['dtype']}, expected BF16")
        first, end = (8 + size + place for place in entry["data_offsets"])
        values, width = array.array("H", bytes(data[first:end])), entry["shape"][-1]
        for channel in range(channels):
            column = slice(channel * width // channels + 17, None, width)
            by = -scale if reads else scale
            values[column] = array.array("H", (v if v >> 7 & 255 == 0 else 0 if (v >> 7 & 255) + by <= 0 else v + by * 128
                                               for v in values[column]))
        data[first:end] = values.tobytes()
    path.write_bytes(data)


def run(arguments):
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    done = {(row["model"], row["name"]) for row in map(json.loads, arguments.results.read_text().splitlines())} if arguments.results.exists() else set()
    sources = dict(zip(KINDS, (arguments.source, work / "planted")))
    jobs = [(kind, name, options, {}) for kind in ("planted", "bf16") for name, options in LLM_INT8.items()]
    jobs += [("planted", name, [], ROUNDED[name]) for name in ROUNDED if name.startswith("int8 rows")]
    jobs += [("bf16", name, [], options) for name, options in ROUNDED.items()]

    def chosen(kind, name):
        return (kind, name) not in done and re.search(arguments.rows, f"{kind}: {name}")

    if not sources["planted"].exists() and "planted" in {kind for kind, name, _, _ in jobs if chosen(kind, name)}:
        planted(arguments.source, work / "partial")
        (work / "partial").rename(sources["planted"])

    def lowbit(*command):
        return json.loads(subprocess.run([arguments.lowbit, *map(str, command), "--json"], check=True, capture_output=True, text=True).stdout)

    for kind, name, loading, options in jobs:
        if not chosen(kind, name):
            continue
        row, model = {"model": kind, "name": name}, sources[kind]
        if options:
            model = work / "result"
            shutil.rmtree(model, ignore_errors=True)
            data = [] if "rtn" in options and "int8-static" not in options else ["--calibration", arguments.calibration, "--samples", arguments.samples, "--max-length", 512]
            made = lowbit("quantize", sources[kind], "-o", model, *options, *data, "--no-check", "--no-resume")
            row["bits_per_weight"], row["seconds"] = made["bits_per_weight"], made["seconds"]
        found = lowbit("eval", "divergence", model, "--reference", sources[kind], "--text", arguments.evaluation, "--context", 512,
                       "--limit", arguments.windows, *loading)
        row |= {key: found[key] for key in ("mean_kl", "standard_error", "top1_agreement", "perplexity", "reference_perplexity", "windows")}
        with arguments.results.open("a") as results:
            results.write(json.dumps(row) + "\n")
        print(row, flush=True)


def table(arguments):
    rows = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    for kind in KINDS:
        of_kind = [row for row in rows if row["model"] == kind]
        if not of_kind:
            continue
        print(f"\n{kind}: perplexity of the source {of_kind[0]['reference_perplexity']:.2f}, {of_kind[0]['windows']} windows of 512\n")
        print("| format, groups, method | bits per weight | mean KL | same top token | perplexity |\n|---|---|---|---|---|")
        for row in sorted(of_kind, key=lambda row: -row.get("bits_per_weight", 8)):
            bits = f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else "8.03"
            print(f"| {row['name']} | {bits} | {row['mean_kl']:.3g} ± {row['standard_error']:.1g} | {100 * row['top1_agreement']:.1f} % | {row['perplexity']:.2f} |")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
commands = parser.add_subparsers(required=True)
command = commands.add_parser("run")
command.set_defaults(act=run)
command.add_argument("source", type=pathlib.Path)
command.add_argument("calibration")
command.add_argument("evaluation")
command.add_argument("--lowbit", required=True)
command.add_argument("--results", type=pathlib.Path, required=True)
command.add_argument("--work", type=pathlib.Path, required=True)
command.add_argument("--rows", default="", help="a regular expression: of rows named \"bf16: nf4 in groups of 64, gptq\" those that match")
command.add_argument("--samples", type=int, default=12)
command.add_argument("--windows", type=int, default=6)
command = commands.add_parser("table")
command.set_defaults(act=table)
command.add_argument("results", type=pathlib.Path)
arguments = parser.parse_args()
arguments.act(arguments)
