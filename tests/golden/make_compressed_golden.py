"""Writes tests/golden/compressed/{w8a8,w8a16,w8a8-static,w8a8-static-asymmetric}: int8 checkpoints as the package
compressed-tensors makes them.

One matrix [24, 22] of a folder that is no whole model: config.json, model.safetensors, and golden.safetensors with the
weights that the package itself decompresses, and of static inputs some and their codes. Run: python3 tests/golden/make_compressed_golden.py (torch,
compressed-tensors, safetensors).
"""

import json
import pathlib

import compressed_tensors
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

OUT, IN = 24, 22
HERE = pathlib.Path(__file__).parent / "compressed"


def args(symmetric=True, **more):
    return QuantizationArgs(num_bits=8, type="int", symmetric=symmetric, **more)


def make(name, format_name, inputs):
    weights = args(strategy="channel")
    torch.manual_seed(3)
    dense = (torch.randn(OUT, IN) * 0.1).to(torch.bfloat16)
    low, high = dense.amin(1, keepdim=True), dense.amax(1, keepdim=True)
    scale, zero_point = calculate_qparams(low, high, weights)
    scale = scale.to(torch.bfloat16)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs, format=format_name)
    compressor = BaseCompressor.get_value_from_registry(format_name)
    state = {"weight": dense, "weight_scale": scale, "weight_zero_point": zero_point}
    golden = {}
    if inputs is not None and not inputs.dynamic:
        x = torch.randn(40, IN) * 2 + 0.5
        scale, zero_point = calculate_qparams(x.amin() * 0.9, x.amax() * 0.9, inputs)
        state["input_scale"] = scale.to(torch.bfloat16)
        if not inputs.symmetric:
            state["input_zero_point"] = zero_point
        golden["inputs"] = x
        golden["codes"] = quantize(x, state["input_scale"].float(), zero_point, inputs, dtype=torch.int8)
    compressed = compressor.compress(state, scheme)
    back = compressor.decompress(dict(compressed), scheme)["weight"]
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"m.{key}": value.contiguous() for key, value in compressed.items()}, folder / "model.safetensors")
    save_file({"m.weight": back.contiguous(), **golden}, folder / "golden.safetensors")
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=format_name, ignore=["lm_head"], quantization_status="compressed"
    )
    text = json.dumps({"model_type": "llama", "quantization_config": config.to_dict()}, indent=2, default=str)
    (folder / "config.json").write_text(text + "\n")
    print(name, compressed_tensors.__version__, {key: (value.dtype, list(value.shape)) for key, value in compressed.items()})


make("w8a8", CompressionFormat.int_quantized.value, args(strategy="token", dynamic=True))
make("w8a8-static", CompressionFormat.int_quantized.value, args(strategy="tensor"))
make("w8a8-static-asymmetric", CompressionFormat.int_quantized.value, args(strategy="tensor", symmetric=False))
make("w8a16", CompressionFormat.pack_quantized.value, None)
