"""Writes tests/golden/gptq/compat.safetensors: AutoGPTQ's algorithm on one random matrix, in numpy.

The rendering follows the published description of AutoGPTQ 0.7.1 (auto_gptq/quantization/gptq.py and quantizer.py):
FP32 but for the inversion, damping 0.01 of the mean diagonal, blocks of 128 columns, group parameters from the weights without
the updates of the block at work, no clip search. "margins" says how far each value was from a tie between two codes, in
steps: a symmetric grid puts a group's extreme exactly between two codes, so ties are common, and one code that falls the
other way changes the rest of its row. Run: python3 tests/golden/make_gptq_golden.py (numpy, safetensors).
"""

import json
import os

import numpy as np
from safetensors.numpy import save_file

F = np.float32
ROWS, COLUMNS, TOKENS, BLOCK, DAMP = 16, 192, 1000, 128, 0.01


def fma(a, b, c):
    """a * b + c, rounded once: the product of two FP32 numbers is exact in double."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(F)


def find_params(w, bits, sym):
    maxq = F(2**bits - 1)
    low, high = np.minimum(w.min(1), 0).astype(F), np.maximum(w.max(1), 0).astype(F)
    if sym:
        high = np.maximum(np.abs(low), high)
        low = np.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = np.where(empty, F(-1), low), np.where(empty, F(1), high)
    scale = ((high - low) / maxq).astype(F)
    zero = np.full_like(scale, (maxq + 1) / 2) if sym else np.rint(-low / scale).astype(F)
    return scale, zero


def gptq(w, h, bits, group, sym, desc_act, static_groups):
    w, h = w.copy(), h.copy()
    maxq, n = F(2**bits - 1), w.shape[1]
    params = find_params(w, bits, sym)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    size = n if group == -1 else group
    groups = [find_params(w[:, c:c + size], bits, sym) for c in range(0, n, size)] if static_groups and group != -1 else None
    perm = np.argsort(-np.diag(h), kind="stable") if desc_act else np.arange(n)
    w, h = w[:, perm], h[perm][:, perm]
    h[np.arange(n), np.arange(n)] += F(DAMP) * np.mean(np.diag(h), dtype=F)
    inverse = np.linalg.inv(np.linalg.cholesky(h.astype(np.float64)))  # in double: the same for every LAPACK
    u = np.linalg.cholesky(inverse.T @ inverse).T.astype(F)
    codes, margins = np.zeros(w.shape, np.uint8), np.zeros(w.shape, np.float16)
    used = []
    g_idx = np.zeros(n, np.int32)
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        block, errors = w[:, begin:end].copy(), np.zeros((w.shape[0], end - begin), F)
        for i in range(end - begin):
            c = begin + i
            if group != -1:
                if static_groups:
                    params = groups[perm[c] // group]
                    g_idx[c] = perm[c] // group
                else:
                    if c % group == 0:
                        params = find_params(w[:, c:c + group], bits, sym)
                        used.append(params)
                    g_idx[c] = c // group
            scale, zero = params
            level_of = block[:, i] / scale
            level = np.clip(np.rint(level_of) + zero, 0, maxq)
            codes[:, c] = level
            error = (block[:, i] - scale * (level - zero)) / u[c, c]
            block[:, i:] = fma(-error[:, None], u[None, c, c:end], block[:, i:])
            margins[:, c] = np.abs(np.abs(level_of - np.trunc(level_of)) - F(0.5))
            errors[:, i] = error
        total = np.zeros_like(w[:, end:])
        for i in range(end - begin):
            total = fma(errors[:, i, None], u[None, begin + i, end:], total)
        w[:, end:] -= total
    if group == -1:
        used = [params]
    elif static_groups:
        used = groups
    back = np.argsort(perm, kind="stable")
    codes, g_idx = codes[:, back], g_idx[back]
    scales, zeros = np.stack([p[0] for p in used]), np.stack([p[1] for p in used])
    # Packing: codes are found again with the F16 scales.
    stored = scales.astype(np.float16).astype(F)
    codes = np.clip(np.rint(codes * scales[g_idx].T / stored[g_idx].T), 0, maxq).astype(np.uint8)
    return codes, stored, zeros.astype(np.uint8), g_idx, margins[:, back]


def main():
    rng = np.random.default_rng(7)
    mix = rng.standard_normal((COLUMNS, COLUMNS)) * np.exp(0.5 * rng.standard_normal(COLUMNS))[None, :]
    x = (rng.standard_normal((TOKENS, COLUMNS)) @ mix).astype(F)
    x[:, [5, 130]] = 0
    w = rng.standard_normal((ROWS, COLUMNS)).astype(F)
    w[3, 64:96] = np.abs(w[3, 64:96])  # a symmetric group without negative values
    w[4, 32:64] = 0
    h = (x.T @ x).astype(F)
    tensors, cases = {"w": w, "h": h}, []
    for bits, group, sym, desc_act, static_groups in [
        (4, 32, True, False, False), (4, 128, True, False, False), (4, -1, True, False, False), (3, 64, True, True, False),
        (4, 32, True, True, True), (8, 32, True, True, False), (2, 32, False, False, False), (4, 96, False, True, False),
        (4, 32, True, False, True), (8, -1, False, True, False)]:
        name = f"case{len(cases)}"
        codes, scales, zeros, g_idx, margins = gptq(w, h, bits, group, sym, desc_act, static_groups)
        tensors |= {f"{name}.codes": codes, f"{name}.scales": scales, f"{name}.zeros": zeros, f"{name}.g_idx": g_idx,
                    f"{name}.margins": margins}
        cases.append(dict(bits=bits, group_size=group, sym=sym, desc_act=desc_act, static_groups=static_groups))
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gptq")
    os.makedirs(folder, exist_ok=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(tensors, os.path.join(folder, "compat.safetensors"),
              {"cases": json.dumps(cases), "made_with": f"numpy {np.__version__}"})


if __name__ == "__main__":
    main()
