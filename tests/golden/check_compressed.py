"""Loads checkpoints that lowbit wrote in the dialect compressed-tensors in transformers + compressed-tensors (CPU, float32), and compares last
logits and greedy tokens, the package's and lowbit's, with the weights of `lowbit convert --to float32` in torch, whose inputs are rounded here
as the file's input_scale and input_zero_point say. Of an encoder (BertModel) the last hidden states, the package's and torch's.

usage: python check_compressed.py LOWBIT WORK CALIBRATION.txt MODEL [MODEL ...]     (pip install compressed-tensors transformers accelerate torch)
Prints one JSON line per checkpoint, and the versions; exits 1 where a checkpoint does not load or differs. Its last results are in
docs/ecosystem.md.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import compressed_tensors
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from peer_check import PROMPT, agree, apart, greedy, is_encoder, lowbit, our_tokens, run

STATIC = ["--activations", "int8-static"]
VARIANTS = {
    "w8a8-dynamic": ["--activations", "int8-dynamic"],
    "w8a8-static": [*STATIC, "--activations-sym"],
    "w8a8-static-asymmetric": [*STATIC, "--no-activations-sym"],
    "w8a8-static-smooth": [*STATIC, "--smooth-alpha", "0.5"],
    "w8a8-static-mixed": [*STATIC, "--dynamic", r".*\.(down_proj|intermediate\.dense)=activations:none"],
    "w8a16": ["--activations", "none"],
}


def rounded(x, scale, zero_point):
    codes = torch.clamp(torch.round(x * (1 / scale)) + zero_point, -128, 127)
    return (codes - zero_point) * scale


def rounded_by_row(x):
    largest = x.abs().amax(-1, keepdim=True)
    return torch.round(x * (127 / largest)) * (largest / 127)


def round_inputs(model, tensors, is_dynamic):
    for name, module in model.named_modules():
        if f"{name}.weight_scale" not in tensors:
            continue
        scale, zero_point = tensors.get(f"{name}.input_scale"), tensors.get(f"{name}.input_zero_point")
        if scale is not None:
            zero_point = 0 if zero_point is None else int(zero_point)
            module.register_forward_pre_hook(lambda _, x, s=float(scale), z=zero_point: (rounded(x[0], s, z), *x[1:]))
        elif is_dynamic:
            module.register_forward_pre_hook(lambda _, x: (rounded_by_row(x[0]), *x[1:]))


def check_encoder(source, name, dense, out, tensors, ids, bound):
    reference = AutoModel.from_pretrained(dense, dtype=torch.float32).eval()
    round_inputs(reference, tensors, name == "w8a8-dynamic")
    theirs = AutoModel.from_pretrained(out, dtype=torch.float32, device_map="cpu").eval()
    with torch.no_grad():
        expected, found = (model(input_ids=ids).last_hidden_state for model in (reference, theirs))
    matrices = sum(name.endswith(".weight_scale") for name in tensors)
    row = {"model": source.name, "checkpoint": name, "matrices": matrices,
           "relative_difference": apart(found, expected)}
    print(json.dumps(row), flush=True)
    return matrices > 0 and row["relative_difference"] < bound


def check(binary, source, name, options, work, text):
    if is_encoder(source) and "--smooth-alpha" in options:
        print(json.dumps({"model": source.name, "checkpoint": name, "skipped": "no norm or product before its linears is theirs alone"}))
        return True
    out, dense = work / f"{source.name}-{name}", work / f"{source.name}-{name}-dense"
    calibration = [] if not options[1].endswith("static") else ["--calibration", text, "--samples", "8", "--max-length", "256"]
    lowbit(binary, "quantize", source, "-o", out, "--method", "rtn", "--format", "int8", "--dialect", "compressed-tensors", *options,
           *calibration, "--no-check", "--overwrite")
    lowbit(binary, "convert", out, "-o", dense, "--to", "float32", "--overwrite")
    # The package divides a token's largest magnitude by 127.5, vLLM and lowbit by 127.
    bound = 5e-2 if name == "w8a8-dynamic" else 1e-3
    prompt = AutoTokenizer.from_pretrained(source)(PROMPT)["input_ids"]
    tensors = load_file(out / "model.safetensors")
    if is_encoder(source):
        return check_encoder(source, name, dense, out, tensors, torch.tensor([prompt]), bound)
    reference = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    round_inputs(reference, tensors, name == "w8a8-dynamic")
    expected, logits, gaps = greedy(reference, prompt)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, device_map="cpu").eval()
    found, their_logits, _ = greedy(theirs, prompt)
    ours = our_tokens(binary, out, "--kv-cache-dtype", "float32")
    difference = apart(their_logits, logits)
    row = {"model": source.name, "checkpoint": name, "our_tokens": agree(expected, ours, gaps, 1e-2),
           "their_tokens": agree(expected, found, gaps, bound), "relative_difference": difference}
    print(json.dumps(row), flush=True)
    return row["our_tokens"] and row["their_tokens"] and difference < bound


if __name__ == "__main__":
    text = sys.argv[3]
    run(sys.argv[1], pathlib.Path(sys.argv[2]), map(pathlib.Path, sys.argv[4:]), VARIANTS,
        lambda *arguments: check(*arguments, text), (compressed_tensors, transformers, torch))
