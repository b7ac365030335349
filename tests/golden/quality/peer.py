"""Quantizes with GPTQModel: one JSON job per line on stdin, one JSON result per line on stdout, progress on stderr.

A job has model, calibration, samples, length, draw, bits, group_size, options (of QuantizeConfig), device, out.
"""

import gc
import json
import os
import pathlib
import shutil
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GPTQMODEL_OFFLINE", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
RESULTS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # GPTQModel prints to stdout

import windows  # noqa: E402


def with_embedding(model, work):
    """GPTQModel wants a tied model's embedding under its own name; some files hold only `lm_head.weight`."""
    from safetensors.torch import load_file, save_file
    path = pathlib.Path(model) / "model.safetensors"
    if not path.exists():
        return model
    from safetensors import safe_open
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    if "model.embed_tokens.weight" in names or "lm_head.weight" not in names:
        return model
    copy = pathlib.Path(work) / f"source-{os.getpid()}"
    if not copy.exists():
        shutil.copytree(model, copy, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = load_file(path)
        tensors["model.embed_tokens.weight"] = tensors.pop("lm_head.weight")
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


def quantize(job):
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    chosen = windows.calibration(job["model"], job["calibration"], job["samples"], job["length"], job["draw"])
    data = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in chosen]
    source = with_embedding(job["model"], pathlib.Path(job["out"]).parent)
    begin = time.time()
    config = QuantizeConfig(bits=job["bits"], group_size=job["group_size"], **job["options"])
    where = {"device": "cpu"} if job["device"] == "cpu" else {}  # it takes the GPU by itself
    model = GPTQModel.load(source, config, **where)
    model.quantize(data, batch_size=8)
    model.save(job["out"])
    seconds = time.time() - begin
    del model
    gc.collect()
    if job["device"] == "cuda":
        torch.cuda.empty_cache()
    return {"seconds": seconds, "tokens_hash": windows.fingerprint(chosen)}


def main():
    for line in sys.stdin:
        try:
            result = quantize(json.loads(line))
        except Exception as error:  # the driver records it and starts a new process
            import traceback
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(result), file=RESULTS, flush=True)


if __name__ == "__main__":
    main()
