"""Loads checkpoints that lowbit wrote in the dialect bitsandbytes in transformers + bitsandbytes (CPU), and compares with lowbit:
decoded weights equal to the bit (4 bits), get_memory_footprint what `inspect` says, lowbit's greedy tokens those of its decoded weights
in torch (float32) up to a near tie, and the last logits. bitsandbytes multiplies in BF16 on the CPU, and in 8 bits rounds the inputs to int8: its
logits may lie 1e-2 from those of float32, or twice as far as torch's own BF16 products (8 bits: 1e-1 too), where that is more; its tokens
are compared likewise. Of an encoder (BertModel) the decoded weights, the footprint and the last hidden state.

usage: python check_bitsandbytes.py LOWBIT WORK MODEL [MODEL ...]     (pip install bitsandbytes transformers accelerate torch)
Prints one JSON line per checkpoint, and the versions; exits 1 where a checkpoint does not load or differs. Its last results are in
docs/ecosystem.md.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import accelerate
import bitsandbytes
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from peer_check import PROMPT, agree, apart, greedy, is_encoder, lowbit, our_tokens, run

TEXT = pathlib.Path(__file__).parents[2] / "demo" / "data" / "heldout.txt"
VARIANTS = {
    "nf4": ["--format", "nf4", "--method", "rtn"],
    "fp4": ["--format", "fp4", "--method", "rtn"],
    "nf4-double": ["--format", "nf4", "--method", "rtn", "--bnb-4bit-use-double-quant"],
    "nf4-bfloat16": ["--format", "nf4", "--method", "rtn", "--bnb-4bit-quant-storage", "bfloat16", "--bnb-4bit-compute-dtype", "bfloat16"],
    "nf4-gptq": ["--format", "nf4", "--method", "gptq", "--calibration", TEXT, "--samples", 8, "--max-length", 256],
    "int8": ["--format", "int8", "--method", "rtn"],
}


def equal_weights(reference, theirs):
    decoded = dict(reference.named_modules())
    return all(
        torch.equal(bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float(), decoded[place].weight)
        for place, module in theirs.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit))


def footprints(binary, theirs, out):
    return {"footprint": theirs.get_memory_footprint(),
            "inspect": json.loads(lowbit(binary, "inspect", out, "--json"))["memory"]["footprint_bytes"]}


def bound_of(name, of_bf16):
    return max(1e-2, 2 * of_bf16, 1e-1 if name == "int8" else 0)


def check_encoder(binary, dense, out, name):
    ids = AutoTokenizer.from_pretrained(out)(PROMPT, return_tensors="pt")
    reference = AutoModel.from_pretrained(dense, dtype=torch.float32).eval()
    theirs = AutoModel.from_pretrained(out, dtype="auto", device_map="cpu").eval()
    in_bf16 = AutoModel.from_pretrained(dense, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        state, *others = (model(**ids).last_hidden_state.float() for model in (reference, theirs, in_bf16))
    difference, of_bf16 = (apart(other, state) for other in others)
    kinds = {bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt}
    row = {"model": out.name, "checkpoint": name, "weights_equal": equal_weights(reference, theirs),
           "matrices": sum(type(module) in kinds for module in theirs.modules()), "relative_difference": difference,
           "of_bf16_products": of_bf16} | footprints(binary, theirs, out)
    print(json.dumps(row), flush=True)
    return row["weights_equal"] and row["matrices"] > 0 and difference < bound_of(name, of_bf16) and row["footprint"] == row["inspect"]


def check(binary, source, name, options, work):
    out, dense = work / f"{source.name}-{name}", work / f"{source.name}-{name}-dense"
    lowbit(binary, "quantize", source, "-o", out, *options, "--dialect", "bitsandbytes", "--no-check", "--overwrite")
    dtype = "float32" if name == "int8" or is_encoder(source) else "bfloat16"  # of what bitsandbytes decodes to
    lowbit(binary, "convert", out, "-o", dense, "--to", dtype, "--overwrite")
    if is_encoder(source):
        return check_encoder(binary, dense, out, name)
    prompt = AutoTokenizer.from_pretrained(source)(PROMPT)["input_ids"]
    reference = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    expected, logits, gaps = greedy(reference, prompt)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype="auto", device_map="cpu").eval()
    sizes = footprints(binary, theirs, out)
    weights_equal = equal_weights(reference, theirs)
    found, their_logits, _ = greedy(theirs, prompt)
    ours = our_tokens(binary, out)
    _, rounded, _ = greedy(reference.to(torch.bfloat16), prompt)
    difference, of_bf16 = (apart(some, logits) for some in (their_logits, rounded))
    bound = bound_of(name, of_bf16)
    row = {"model": source.name, "checkpoint": name, "weights_equal": weights_equal, "our_tokens": agree(expected, ours, gaps, of_bf16),
           "their_tokens": agree(expected, found, gaps, bound), "relative_difference": difference, "of_bf16_products": of_bf16} | sizes
    print(json.dumps(row), flush=True)
    return weights_equal and row["our_tokens"] and row["their_tokens"] and difference < bound and row["footprint"] == row["inspect"]


if __name__ == "__main__":
    run(sys.argv[1], pathlib.Path(sys.argv[2]), map(pathlib.Path, sys.argv[3:]), VARIANTS, check, (bitsandbytes, transformers, accelerate, torch))
