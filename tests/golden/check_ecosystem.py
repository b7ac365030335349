"""Loads checkpoints that lowbit wrote in transformers + optimum and in GPTQModel (TORCH kernel, fp16, CPU), and compares
with lowbit: greedy tokens equal, last logits within 1e-2 of the dequantized weights in float32.

usage: python check_ecosystem.py LOWBIT MODEL CALIBRATION.txt WORK     (pip install gptqmodel optimum transformers torch)
Prints one JSON line per checkpoint and loader, and the versions. Its last results are in docs/ecosystem.md.
"""

import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

VARIANTS = {
    "int4-sym": ["--bits", "4", "--group-size", "32"],
    "int8-sym": ["--bits", "8", "--group-size", "32"],
    "int4-asym-v2": ["--bits", "4", "--group-size", "32", "--no-sym"],
    "int4-act-order-static": ["--bits", "4", "--group-size", "32", "--desc-act", "--static-groups"],
    "int4-dynamic": ["--bits", "4", "--group-size", "32", "--dynamic", r"+:model\.layers\.0\.mlp\.down_proj=bits:8,group_size:64"],
}
PROMPT = [1, 75, 443, 140, 377, 238, 55, 189, 12, 99]
NEW = 12


def lowbit(binary, *arguments):
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"lowbit {' '.join(arguments)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def greedy(model, torch):
    """New ids and the first step's logits, by full forward passes (no cache, no padding)."""
    ids, first = list(PROMPT), None
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            first = logits if first is None else first
            ids.append(int(logits.argmax()))
    return ids[len(PROMPT):], first


def main():
    binary, source, text, work = sys.argv[1:5]
    work = pathlib.Path(work)
    work.mkdir(parents=True, exist_ok=True)
    import torch
    import transformers
    import gptqmodel
    import optimum.version
    from gptqmodel import BACKEND, GPTQModel
    from transformers import AutoModelForCausalLM, GPTQConfig

    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "gptqmodel": gptqmodel.__version__,
                      "optimum": optimum.version.__version__}), flush=True)
    torch.set_num_threads(2)
    for name, options in VARIANTS.items():
        out, dense = work / name, work / (name + "-dense")
        lowbit(binary, "quantize", source, "-o", str(out), "--method", "gptq", *options, "--calibration", text,
               "--samples", "16", "--max-length", "256", "--no-check", "--overwrite")
        lowbit(binary, "convert", str(out), "-o", str(dense), "--to", "float32", "--overwrite")
        reference = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
        expected, logits = greedy(reference, torch)
        loaders = {
            "GPTQModel": lambda: GPTQModel.load(str(out), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model,
            "transformers": lambda: AutoModelForCausalLM.from_pretrained(
                out, dtype=torch.float16, device_map="cpu", quantization_config=GPTQConfig(bits=4, backend="gptq_torch")),
        }
        for loader, load in loaders.items():
            row = {"checkpoint": name, "loader": loader}
            try:
                found, theirs = greedy(load().eval(), torch)
                row["same_tokens"] = found == expected
                row["relative_difference"] = float((theirs - logits).abs().max() / logits.abs().max())
                row["within"] = row["relative_difference"] < 1e-2
            except Exception as error:  # each loader's own refusal is a result here
                row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            print(json.dumps(row), flush=True)


main()
