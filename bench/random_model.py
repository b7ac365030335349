#!/usr/bin/env python3
"""A model folder with random weights of a known model's shape, to measure speed and memory without a download.

    bench/random_model.py smollm2-135m OUT [--layers N]

The tokenizer is the demo model's: its ids fit every shape here, and the rest of the vocabulary is read all the same. No token ends a text, so
that every run writes as many as it was asked for.
"""

import argparse
import json
import pathlib
import random
import shutil

DEMO = pathlib.Path(__file__).resolve().parent.parent / "demo" / "model"
SHAPES = {
    "smollm2-135m": dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=576, intermediate_size=1536,
                         num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152, rope_theta=100000.0,
                         rms_norm_eps=1e-5, max_position_embeddings=8192),
    "qwen2-0.5b": dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_size=896, intermediate_size=4864,
                       num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151936, rope_theta=1000000.0,
                       rms_norm_eps=1e-6, max_position_embeddings=32768),
    "qwen2-1.5b": dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_size=1536, intermediate_size=8960,
                       num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936, rope_theta=1000000.0,
                       rms_norm_eps=1e-6, max_position_embeddings=32768),
    "bloom-1b7": dict(model_type="bloom", architectures=["BloomForCausalLM"], hidden_size=2048, n_layer=24, n_head=16, vocab_size=250880,
                      layer_norm_epsilon=1e-5),
}
ONE, SMALL = 0x3F80, bytes(0xBC if byte & 0x80 else 0x3C for byte in range(256))


def tensors(c):
    """Name and shape of every tensor, in the file's order."""
    if c["model_type"] == "bloom":
        yield from bloom_tensors(c)
        return
    hidden, mlp, head = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["num_attention_heads"]
    kv = c["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", [c["vocab_size"], hidden]
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", [hidden]
        for name, rows in ("q", hidden), ("k", kv), ("v", kv):
            yield f"{prefix}self_attn.{name}_proj.weight", [rows, hidden]
            if c["model_type"] == "qwen2":
                yield f"{prefix}self_attn.{name}_proj.bias", [rows]
        yield prefix + "self_attn.o_proj.weight", [hidden, hidden]
        yield prefix + "post_attention_layernorm.weight", [hidden]
        yield prefix + "mlp.gate_proj.weight", [mlp, hidden]
        yield prefix + "mlp.up_proj.weight", [mlp, hidden]
        yield prefix + "mlp.down_proj.weight", [hidden, mlp]
    yield "model.norm.weight", [hidden]


def bloom_tensors(c):
    hidden = c["hidden_size"]
    yield "word_embeddings.weight", [c["vocab_size"], hidden]
    norms = ["word_embeddings_layernorm"]
    for layer in range(c["n_layer"]):
        prefix = f"h.{layer}."
        norms += [prefix + "input_layernorm", prefix + "post_attention_layernorm"]
        for name, rows, columns in (("self_attention.query_key_value", 3 * hidden, hidden), ("self_attention.dense", hidden, hidden),
                                    ("mlp.dense_h_to_4h", 4 * hidden, hidden), ("mlp.dense_4h_to_h", hidden, 4 * hidden)):
            yield f"{prefix}{name}.weight", [rows, columns]
            yield f"{prefix}{name}.bias", [rows]
    for norm in [*norms, "ln_f"]:
        yield norm + ".weight", [hidden]
        yield norm + ".bias", [hidden]


def size(shape):
    return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)


def values(shape, generator):
    """bfloat16: norms and biases are one; else the sign and the lower exponent bit and mantissa are random, 2^-7 <= |w| < 2^-5."""
    if len(shape) == 1:
        return ONE.to_bytes(2, "little") * shape[0]
    data = bytearray()
    while len(data) < size(shape):  # one call gives less than 256 MB
        data += generator.randbytes(min(size(shape) - len(data), 1 << 26))
    data[1::2] = data[1::2].translate(SMALL)
    return data


def make(shape_name, out, layers=None):
    config = dict(SHAPES[shape_name], hidden_act="silu", tie_word_embeddings=True, torch_dtype="bfloat16")
    if layers:
        config["n_layer" if "n_layer" in config else "num_hidden_layers"] = layers
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for file in DEMO.iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copy(file, out)
    tokenizer = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    del tokenizer["eos_token"]
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2), encoding="utf-8")
    (out / "config.json").write_text(json.dumps(config, indent=2))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors(config):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size(shape)]}
        end += size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = random.Random(0)
    with open(out / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in tensors(config):
            file.write(values(shape, generator))
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out")
    parser.add_argument("--layers", type=int, help="instead of the shape's own number")
    arguments = parser.parse_args()
    print(make(arguments.shape, arguments.out, arguments.layers))
