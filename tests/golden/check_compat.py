"""Compares `lowbit quantize --compat autogptq` on whole models with AutoGPTQ's algorithm in numpy, code by code.

usage: python check_compat.py LOWBIT WORK TEXT.txt MODEL [MODEL ...]     (numpy, torch, transformers, tokenizers, safetensors)

The algorithm is that of make_gptq_golden.py; the layers' inputs come from transformers in float32 on the same windows of the
text, summed into Hessians as AutoGPTQ does (a running mean over sequences). Two ways to go through a model:
  given   every module sees what lowbit's own earlier modules give, so that each is judged alone
  free    the rendering goes on with its own codes; a tie that falls the other way is felt by all later modules
A symmetric grid puts a group's extreme exactly between two codes, so ties are real, and behind one the rest of its row is
rounded from other weights. Hence the second judge: in the order of work the first code of a row that differs must lie near a tie.
Columns tie too, in the order of desc_act: both orders are tried where two diagonal elements differ by less than 1e-5 of themselves.
Prints one line per run; exits 1 when, given, fewer than 99.9 % of codes are equal or a row begins to differ far from a tie.
"""

import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import tokenizers
import torch
import transformers
from safetensors import safe_open

from make_gptq_golden import F, gptq

SAMPLES, LENGTH, NEAR = 16, 128, 1e-3
STAGES = [["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"], ["self_attn.o_proj"],
          ["mlp.up_proj", "mlp.gate_proj"], ["mlp.down_proj"]]
RUNS = [(4, 32, True, False, False), (4, 128, True, False, False), (8, 128, True, False, False), (4, 32, True, True, False),
        (4, 64, True, True, True), (3, 128, False, False, False), (2, 32, False, False, False)]


def shuffled(count):
    """The order in which lowbit draws examples with seed 0: Fisher-Yates with splitmix64."""
    state, order = 0, list(range(count))
    for i in range(count, 1, -1):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        j = (z ^ z >> 31) % i
        order[i - 1], order[j] = order[j], order[i - 1]
    return order


def calibration(model, text):
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # as lowbit: what a text spells stays text
    ids = tokenizer.encode(pathlib.Path(text).read_text(encoding="utf-8"), add_special_tokens=False).ids
    windows = [ids[i:i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
    return [windows[i] for i in sorted(shuffled(len(windows))[:SAMPLES])]


def unpack(words, bits, count):
    """Words down axis 0, a little-endian stream of bits: uint8 [count, columns]."""
    stream = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), axis=1, bitorder="little")
    fields = stream[:, :count * bits].reshape(words.shape[1], count, bits)
    return (fields << np.arange(bits, dtype=np.uint8)).sum(2, dtype=np.uint8).T


def read_module(tensors, name, bits, is_v1):
    """Codes [out, in], scales and zero points [groups, out], group of each column."""
    scales, g_idx = tensors[f"{name}.scales"].astype(F), tensors[f"{name}.g_idx"]
    codes = unpack(tensors[f"{name}.qweight"], bits, len(g_idx)).T
    zeros = unpack(tensors[f"{name}.qzeros"].T, bits, scales.shape[1]).T.astype(np.int32)
    return codes, scales, (zeros + is_v1) % 2**bits, g_idx


def decoded(codes, scales, zeros, g_idx):
    return scales[g_idx].T * (codes.astype(F) - zeros[g_idx].T.astype(F))


def hessian(network, module, sequences):
    """AutoGPTQ's add_batch, one sequence at a time, over the inputs of `module`."""
    h = np.zeros((module.in_features, module.in_features), F)
    seen = 0

    def add(_, inputs):
        nonlocal h, seen
        x = inputs[0].detach().reshape(-1, module.in_features).numpy().astype(F).T
        h *= F(seen / (seen + 1))
        seen += 1
        x = F(np.sqrt(2 / seen)) * x
        h += x @ x.T

    hook = module.register_forward_pre_hook(add)
    with torch.no_grad():
        for ids in sequences:
            network(torch.tensor([ids]))
    hook.remove()
    return h


def with_ties_swapped(h):
    """h, and h with neighbours in the order of desc_act exchanged where FP32 sums cannot tell them apart, in all ways."""
    order, results = np.argsort(-np.diag(h), kind="stable"), [h]
    for a, b in zip(order, order[1:]):
        if h[a, a] - h[b, b] < 1e-5 * h[a, a] and len(results) <= 8:
            for swapped in [known.copy() for known in results]:
                swapped[b, b] = np.nextafter(h[a, a], F(np.inf))
                results.append(swapped)
    return results


def compare(folder, sequences, tensors, run, is_free):
    """Counts over all modules, and the margins (in steps) of the first code of each row that differs."""
    bits, group, sym, desc_act, static_groups = run
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, different, rows, margins, worst = 0, 0, 0, [], (0, "")
    for index, layer in enumerate(network.model.layers):
        for stage in STAGES:
            h = hessian(network, layer.get_submodule(stage[0]), sequences)
            hessians = with_ties_swapped(h) if desc_act else [h]
            for name in stage:
                module = layer.get_submodule(name)
                found, scales, zeros, found_idx = read_module(tensors, f"model.layers.{index}.{name}", bits, sym)
                weight = module.weight.detach().numpy()
                results = [(gptq(weight, h, bits, group, sym, desc_act, static_groups), h) for h in hessians]
                (codes, stored, zero_points, g_idx, margin), h = min(
                    results, key=lambda result: ((result[0][3] != found_idx).sum(), (result[0][0] != found).sum()))
                assert is_free or (found_idx == g_idx).all(), f"layer {index} {name}: other groups"
                order = np.argsort(-np.diag(h), kind="stable") if desc_act else np.arange(h.shape[0])
                unequal = (codes != found)[:, order]
                total, different, rows = total + unequal.size, different + int(unequal.sum()), rows + len(unequal)
                hit = unequal.any(1)
                first = unequal.argmax(1)[hit]
                at = margin[:, order][hit, first].astype(float)
                margins += at.tolist()
                if len(at) and at.max() > worst[0]:
                    worst = (at.max(), f"layer {index} {name}")
                own = (codes, stored, zero_points, g_idx) if is_free else (found, scales, zeros, g_idx)
                module.weight.data = torch.from_numpy(decoded(*own))
    return total, different, rows, np.array(margins), worst


def main():
    binary, work, text = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    print(json.dumps({"numpy": np.__version__, "torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    is_good = True
    for folder in map(pathlib.Path, sys.argv[4:]):
        sequences = calibration(folder, text)
        for run in RUNS:
            bits, group, sym, desc_act, static_groups = run
            options = ["--bits", str(bits), "--group-size", str(group)]
            options += [name for name, on in [("--no-sym", not sym), ("--desc-act", desc_act), ("--static-groups", static_groups)] if on]
            out = work / "out"
            subprocess.run([binary, "quantize", str(folder), "-o", str(out), "--compat", "autogptq", *options, "--kernel", "ref",
                            "--calibration", text, "--samples", str(SAMPLES), "--max-length", str(LENGTH), "--no-check",
                            "--overwrite", "--no-resume"], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            with safe_open(out / "model.safetensors", "numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()
                           if name.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))}
            for way in ("given", "free"):
                total, different, rows, margins, worst = compare(folder, sequences, tensors, run, way == "free")
                share, near = 1 - different / total, bool((margins < NEAR).all())
                line = {"model": "/".join(folder.parts[-2:]), "options": " ".join(options), "way": way, "codes": total, "different": different,
                        "equal": f"{100 * share:.4f} %", "rows": rows, "rows_that_differ": len(margins)}
                if len(margins):
                    line |= {"steps_from_tie": {"median": f"{np.median(margins):.1e}", "most": f"{worst[0]:.1e}", "at": worst[1]}}
                print(json.dumps(line), flush=True)
                is_good = is_good and (way == "free" or (share >= 0.999 and near))
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
