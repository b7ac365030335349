"""Writes seeds of fuzz_checkpoint into a folder: small checkpoints of every dialect, in the form that its head describes."""

import json
import pathlib
import re
import struct
import sys

HERE = pathlib.Path(__file__).parent
SOURCE = (HERE / "fuzz_checkpoint.cc").read_text(encoding="utf-8")
ENDINGS = re.findall(r'"(\.[\w.]+)"', SOURCE[SOURCE.index("kEndings") : SOURCE.index("kTypes")])
NAMES = {"kF8E4M3": "F8_E4M3", "kBool": "BOOL"}
TYPES = [NAMES.get(name, name[1:]) for name in re.findall(r"DType::(\w+)", SOURCE[SOURCE.index("kTypes[]") : SOURCE.index("class Bytes")])]

CODEBOOKS = {
    "nf4": (-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983,
            0.562617, 0.72295684, 1),
    "fp4": tuple(sign * value for sign in (1, -1) for value in (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4)),
}


def tensor(ending, dtype, shape, data):
    sizes = b"".join(bytes([size]) if size < 255 else b"\xff" + struct.pack("<H", size) for size in shape)
    return bytes([ENDINGS.index(ending), TYPES.index(dtype), len(shape)]) + sizes + bytes(data)


def seed(config, *tensors):
    return json.dumps(config).encode() + b"\xff" + b"".join(tensors)


def of_file(folder):
    """A folder of tests/golden whose one module is called m."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    parts = []
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + at for at in entry["data_offsets"])
            parts.append(tensor(name.removeprefix("m"), entry["dtype"], entry["shape"], data[begin:end]))
    return seed(config, *parts)


def bnb_4bit(kind, nested):
    out, columns = 4, 64
    state = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [out, columns]}
    if nested:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    text = json.dumps(state).encode()
    parts = [tensor(".weight", "U8", [out * columns // 2, 1], range(128)),
             tensor(f".weight.quant_state.bitsandbytes__{kind}", "U8", [len(text)], text)]
    parts.append(tensor(".weight.quant_map", "F32", [16], struct.pack("<16f", *CODEBOOKS[kind])))
    if nested:
        parts += [tensor(".weight.absmax", "U8", [out], [1, 2, 3, 4]), tensor(".weight.nested_absmax", "F32", [1], struct.pack("<f", 2)),
                  tensor(".weight.nested_quant_map", "F32", [256], b"".join(struct.pack("<f", i / 128 - 1) for i in range(256)))]
    else:
        parts.append(tensor(".weight.absmax", "F32", [out], struct.pack("<4f", 1, 2, 3, 4)))
    return seed({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested,
                 "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8"}, *parts)


def bnb_int8():
    return seed({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}, tensor(".weight", "I8", [2, 8], range(16)),
                tensor(".SCB", "F32", [2], struct.pack("<2f", 1, 2)), tensor(".weight_format", "U8", [], [0]))


def lowbit(name, bits, group_size):
    out, columns = 3, 40
    words, groups = (columns * bits + 31) // 32, -(-columns // group_size)
    return seed({"quant_method": "lowbit", "version": 1, "format": name, "bits": bits, "group_size": group_size, "log_base": 2.0},
                tensor(".codes", "I32", [words, out], bytes(4 * words * out)), tensor(".scales", "F32", [groups, out], struct.pack("<f", 1) * groups * out),
                tensor(".shape", "I64", [2], struct.pack("<2q", out, columns)))


def gptq():
    return seed({"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "desc_act": True}, tensor(".qweight", "I32", [4, 8], range(128)),
                tensor(".qzeros", "I32", [2, 1], range(8)), tensor(".scales", "F16", [2, 8], bytes([0, 60]) * 16),
                tensor(".g_idx", "I32", [32], b"".join(struct.pack("<i", i % 2) for i in range(32))))


seeds = {folder.name: of_file(folder) for folder in sorted((HERE.parent / "golden" / "compressed").iterdir())}
seeds |= {f"{kind}{nested}": bnb_4bit(kind, nested) for kind in ("nf4", "fp4") for nested in (False, True)}
seeds |= {"int8": bnb_int8(), "gptq": gptq(), "nf4": lowbit("nf4", 4, 16), "fp8": lowbit("fp8", 8, 32), "log2": lowbit("log2", 3, 32)}
for name, data in seeds.items():
    (pathlib.Path(sys.argv[1]) / name).write_bytes(data)
