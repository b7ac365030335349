"""Writes tests/golden/compressed/*: checkpoints as the package compressed-tensors makes them.

One matrix each, of a folder that is no whole model: config.json, model.safetensors, and golden.safetensors with the
weights that the package itself decompresses, and of static inputs some and their codes. Run:
python3 tests/golden/make_compressed_golden.py (torch, compressed-tensors, safetensors; the stored ones are of 0.20.1).
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

HERE = pathlib.Path(__file__).parent / "compressed"


def int8(**more):
    return QuantizationArgs(num_bits=8, type="int", **{"symmetric": True, **more})


def int4(**more):
    return QuantizationArgs(num_bits=4, type="int", **{"symmetric": True, **more})


def fp8(**more):
    return QuantizationArgs(num_bits=8, type="float", symmetric=True, **more)


def ranges(dense, weights):
    """Lowest and highest of what shares a scale."""
    if weights.strategy == "tensor":
        return dense.min().reshape(1), dense.max().reshape(1)
    groups = dense.unflatten(1, (-1, weights.group_size)) if weights.strategy == "group" else dense.unsqueeze(1)
    return groups.amin(2), groups.amax(2)


def make(name, format_name, weights, inputs=None, size=(24, 22), dtype=torch.bfloat16):
    torch.manual_seed(3)
    dense = (torch.randn(size) * 0.1 + (0 if weights.symmetric else 0.05)).to(dtype)
    scale, zero_point = calculate_qparams(*ranges(dense, weights), weights)
    scale = scale.to(dtype)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs, format=format_name)
    compressor = BaseCompressor.get_value_from_registry(format_name)
    state = {"weight": dense, "weight_scale": scale, "weight_zero_point": zero_point}
    golden = {}
    if inputs is not None and not inputs.dynamic:
        x = torch.randn(40, size[1]) * 2 + 0.5
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


PACKED, INT, FLOAT = (getattr(CompressionFormat, kind).value for kind in ("pack_quantized", "int_quantized", "float_quantized"))
make("w8a8", INT, int8(strategy="channel"), int8(strategy="token", dynamic=True))
make("w8a16", PACKED, int8(strategy="channel"))
make("w8a16-group", PACKED, int8(strategy="group", group_size=16), size=(20, 48))
make("w4a16-group", PACKED, int4(strategy="group", group_size=16), size=(20, 48))
make("w4a16-group-asym", PACKED, int4(strategy="group", group_size=16, symmetric=False), size=(20, 48), dtype=torch.float16)
make("w4a16-channel-asym", PACKED, int4(strategy="channel", symmetric=False))
make("fp8-channel", FLOAT, fp8(strategy="channel"))
make("fp8-tensor-dynamic", FLOAT, fp8(strategy="tensor"), fp8(strategy="token", dynamic=True))
make("w8a8-static", INT, int8(strategy="channel"), int8(strategy="tensor"))
make("w8a8-static-asymmetric", INT, int8(strategy="channel"), int8(strategy="tensor", symmetric=False))
