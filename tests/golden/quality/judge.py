"""Judges GPTQ checkpoints without lowbit: dequantizes them with torch, puts the weights into the source model (transformers,
float32) and compares its next-token distributions with the source's on consecutive windows of a text.

One JSON job {"checkpoint"} per line on stdin, one JSON result per line on stdout.
usage: python judge.py SOURCE TEXT WINDOWS DEVICE
"""

import glob
import json
import math
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
RESULTS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import windows as cutting  # noqa: E402

CONTEXT = 512


def unpack(words, bits):
    """[words, columns] int32 -> [codes, columns]: a column is one little-endian stream of bits."""
    shifts = torch.arange(32, device=words.device).view(1, 32, 1)
    stream = ((words.long().unsqueeze(1) >> shifts) & 1).reshape(-1, bits, words.shape[1])
    return (stream << torch.arange(bits, device=words.device).view(1, bits, 1)).sum(1)


def dequantized(folder, device):
    """Every tensor of a checkpoint as the source model names it, float32."""
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)["quantization_config"]
    is_v2 = config.get("checkpoint_format", config.get("format", "gptq")) == "gptq_v2"
    tensors, result = {}, {}
    for path in sorted(glob.glob(f"{folder}/*.safetensors")):
        tensors.update(load_file(path, device=device))
    for name, words in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "qweight":
            scales, groups = tensors[module + ".scales"].float(), tensors[module + ".g_idx"].long()
            bits = words.shape[0] * 32 // len(groups)
            zeros = unpack(tensors[module + ".qzeros"].T.contiguous(), bits).T[:, :scales.shape[1]]
            zeros = zeros if is_v2 else (zeros + 1) % (1 << bits)
            result[module + ".weight"] = (scales[groups] * (unpack(words, bits) - zeros[groups])).T.contiguous()
        elif kind in ("weight", "bias") and module + ".qweight" not in tensors:
            result[name] = tensors[name].float()
    return result


def main():
    source, text, count, device = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    from transformers import AutoModelForCausalLM
    cut = cutting.cut(cutting.text_ids(source, text), CONTEXT)[:count]
    windows = torch.tensor(cut, device=device)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(device).eval()
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def passes():
        """Log-probabilities and the negative log-likelihood, four windows at a time."""
        with torch.no_grad():
            for batch in windows.split(4):
                logs = torch.log_softmax(model(batch).logits.float(), -1)
                yield logs, -logs[:, :-1].gather(2, batch[:, 1:, None]).double().sum().item()

    reference, loss = [], 0.0
    for logs, nll in passes():
        reference.append(logs)
        loss += nll
    scored = windows.shape[0] * (CONTEXT - 1)
    print(json.dumps({"perplexity": math.exp(loss / scored), "windows": len(cut)}), file=RESULTS, flush=True)
    for line in sys.stdin:
        try:
            checkpoint = dequantized(json.loads(line)["checkpoint"], device)
            strange = [name for name in checkpoint if name not in parameters]
            if strange:
                raise ValueError(f"tensors that the source does not have: {strange[:3]}")
            with torch.no_grad():
                for name, value in checkpoint.items():
                    parameters[name].copy_(value)
            loss, same, divergence = 0.0, 0, []
            for (logs, nll), before in zip(passes(), reference):
                loss += nll
                same += (logs.argmax(-1) == before.argmax(-1)).sum().item()
                divergence += (before.exp() * (before - logs)).sum(-1).double().mean(1).tolist()
            result = {"mean_kl": sum(divergence) / len(divergence), "top1": same / windows.numel(),
                      "perplexity": math.exp(loss / scored), "kl_of_windows": [float(f"{x:.5g}") for x in divergence]}
        except Exception as error:  # the driver records it
            import traceback
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(result), file=RESULTS, flush=True)


if __name__ == "__main__":
    main()
