"""Loads checkpoints that lowbit wrote in the dialect bitsandbytes in transformers + bitsandbytes (CPU), and compares with lowbit:
greedy tokens equal, last logits within 1e-2 of the weights as lowbit decodes them (in the source's type, as bitsandbytes does; products in
float32), get_memory_footprint beside what `inspect` says. In 8 bits both round the inputs too, so that 5e-2 are allowed.

usage: python check_bitsandbytes.py LOWBIT WORK MODEL [MODEL ...]     (pip install bitsandbytes transformers accelerate torch)
Prints one JSON line per checkpoint, and the versions; exits 1 where a checkpoint does not load or differs. Its last results are in
docs/ecosystem.md.
"""

import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import accelerate
import bitsandbytes
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

VARIANTS = {
    "nf4": ["--format", "nf4"],
    "fp4": ["--format", "fp4"],
    "nf4-double": ["--format", "nf4", "--bnb-4bit-use-double-quant"],
    "int8": ["--format", "int8"],
}
PROMPT, NEW = "The bank says that", 12
BOUNDS = {"int8": 5e-2}  # else 1e-2


def lowbit(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"lowbit {' '.join(map(str, arguments))}: {done.stderr.strip()[-300:]}")
    return done.stdout


def greedy(model, prompt):
    """New ids and the first step's logits, by full forward passes (no cache, no padding)."""
    ids, first = list(prompt), None
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            first = logits if first is None else first
            ids.append(int(logits.argmax()))
    return ids[len(prompt):], first


def check(binary, source, name, options, work):
    out, dense = work / f"{source.name}-{name}", work / f"{source.name}-{name}-dense"
    lowbit(binary, "quantize", source, "-o", out, "--method", "rtn", *options, "--dialect", "bitsandbytes", "--no-check", "--overwrite")
    lowbit(binary, "convert", out, "-o", dense, "--to", "float32" if name == "int8" else "bfloat16", "--overwrite")
    prompt = AutoTokenizer.from_pretrained(source)(PROMPT)["input_ids"]
    expected, logits = greedy(AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval(), prompt)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, device_map="cpu").eval()
    footprint = theirs.get_memory_footprint()
    for module in theirs.modules():  # the file asks for BF16 products, whose rounding is not the file's
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
    found, their_logits = greedy(theirs, prompt)
    ours = json.loads(lowbit(binary, "generate", out, "--device", "cpu", "--prompt", PROMPT, "--max-new-tokens", NEW, "--ignore-eos",
                             "--temperature", 0, "--json"))["token_ids"]
    difference = float((their_logits - logits).abs().max() / logits.abs().max())
    row = {"model": source.name, "checkpoint": name, "same_tokens": found == expected == ours, "relative_difference": difference,
           "footprint": footprint,
           "inspect": json.loads(lowbit(binary, "inspect", out, "--json"))["memory"]["footprint_bytes"]}
    print(json.dumps(row), flush=True)
    return row["same_tokens"] and difference < BOUNDS.get(name, 1e-2)


def main():
    binary, work = sys.argv[1], pathlib.Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    print(json.dumps({module.__name__: module.__version__ for module in (bitsandbytes, transformers, accelerate, torch)}), flush=True)
    torch.set_num_threads(2)
    good = True
    for model in map(pathlib.Path, sys.argv[3:]):
        for name, options in VARIANTS.items():
            try:
                good &= check(binary, model, name, options, work)
            except Exception as error:  # a refusal by either side is a result here
                print(json.dumps({"model": model.name, "checkpoint": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}), flush=True)
                good = False
    sys.exit(0 if good else 1)


main()
