"""Decompresses checkpoints that lowbit wrote in the dialect compressed-tensors with the package of that name, and compares with lowbit: every
weight equal to the bit, in the type that the package decompresses to (that of the scales). Then loads them in transformers, which
decompresses them too, and compares the last logits and the greedy tokens with lowbit's decoded weights in float32.

usage: python check_compressed_tensors.py LOWBIT WORK MODEL CALIBRATION     (pip install compressed-tensors transformers accelerate torch)
CALIBRATION: a text for GPTQ. Prints one JSON line per checkpoint, and the versions; exits 1 where something differs. Its last results are in
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
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peer_check import PROMPT, greedy, lowbit

GPTQ = ["--method", "gptq", "--samples", 8, "--max-length", 256]
VARIANTS = {
    "w8a16": ["--method", "rtn", "--format", "int8"],
    "w8a8": ["--method", "rtn", "--format", "int8", "--activations", "int8-dynamic"],
    "w4a16-gptq": [*GPTQ, "--format", "affine", "--bits", 4, "--group-size", 32],
    "w4a16-asym-gptq": [*GPTQ, "--format", "affine", "--bits", 4, "--group-size", 32, "--no-sym"],
    "w4a16-rows": ["--method", "rtn", "--format", "affine", "--bits", 4, "--group-size", -1],
    "w8a16-groups": ["--method", "rtn", "--format", "affine", "--bits", 8, "--group-size", 32],
    "fp8": ["--method", "rtn", "--format", "fp8"],
    "fp8-gptq": [*GPTQ, "--format", "fp8"],
}

def decompressed(out):
    """The quantized weights of a folder, as the package decompresses them."""
    config = QuantizationConfig.model_validate(json.loads((out / "config.json").read_text())["quantization_config"])
    [scheme] = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(config.format)
    tensors = load_file(out / "model.safetensors")
    weights = {}
    for name in tensors:
        if name.endswith(".weight_scale"):
            module = name.removesuffix(".weight_scale")
            parts = {key.removeprefix(module + "."): value for key, value in tensors.items() if key.startswith(module + ".")}
            parts.pop("bias", None)
            weights[module + ".weight"] = compressor.decompress(parts, scheme)["weight"]
    return weights


def check(binary, source, name, options, work, calibration):
    out, dense = work / f"{source.name}-{name}", work / f"{source.name}-{name}-dense"
    data = ["--calibration", calibration] if "gptq" in options else []
    lowbit(binary, "quantize", source, "-o", out, *options, *data, "--dialect", "compressed-tensors", "--no-check", "--overwrite", "--device", "cpu")
    lowbit(binary, "convert", out, "-o", dense, "--to", "float32", "--overwrite")
    ours, theirs = load_file(dense / "model.safetensors"), decompressed(out)
    equal = bool(theirs) and all(torch.equal(weight, ours[key].to(weight.dtype)) for key, weight in theirs.items())
    prompt = AutoTokenizer.from_pretrained(source)(PROMPT)["input_ids"]
    expected, logits, _ = greedy(AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval(), prompt)
    loaded = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, quantization_config=transformers.CompressedTensorsConfig(run_compressed=False)).eval()
    found, their_logits, _ = greedy(loaded, prompt)
    difference = float((their_logits - logits).abs().max() / logits.abs().max())
    return {"checkpoint": name, "matrices": len(theirs), "dtype": str(next(iter(theirs.values())).dtype), "weights_equal": equal,
            "same_tokens": found == expected, "logits": round(difference, 5), "ok": equal and difference < 0.05}


def main():
    binary, work, source, calibration = sys.argv[1], *map(pathlib.Path, sys.argv[2:5])
    work.mkdir(parents=True, exist_ok=True)
    print(json.dumps({"compressed_tensors": compressed_tensors.__version__, "transformers": transformers.__version__,
                      "torch": torch.__version__}))
    results = [check(binary, source, name, options, work, calibration) for name, options in VARIANTS.items()]
    print("\n".join(map(json.dumps, results)))
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
