"""Writes rope.json: inverse frequencies and attention factors of transformers' RoPE scalings, for config_test.cc.

usage: python make_rope_golden.py > rope.json      (transformers 5, torch)
"""

import json
import sys

import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CASES = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192, "rope_theta": 500000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1000000.0},
    "yarn_options": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "beta_fast": 24.0,
                     "beta_slow": 2.0, "truncate": False, "mscale": 0.9, "mscale_all_dim": 0.5, "rope_theta": 10000.0},
    "yarn_attention_factor": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048,
                              "attention_factor": 1.25, "rope_theta": 10000.0},
}


def main():
    out = {"versions": {"transformers": transformers.__version__, "torch": torch.__version__}, "cases": []}
    for name, parameters in CASES.items():
        config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, head_dim=64,
                             vocab_size=64, max_position_embeddings=131072, rope_parameters=dict(parameters))
        inverse, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, device="cpu")
        out["cases"].append({"name": name, "head_dim": 64, "max_position_embeddings": 131072, "rope_parameters": parameters,
                             "inverse": [float(f"{x:.9g}") for x in inverse.tolist()], "attention_factor": factor})
    json.dump(out, sys.stdout, indent=1)


main()
