"""The calibration and evaluation windows that lowbit cuts, computed independently: the same ids for every tool."""

import struct

MASK = (1 << 64) - 1


def text_ids(model, text):
    """Ids of a whole text file, without special tokens."""
    from tokenizers import Tokenizer
    with open(text, encoding="utf-8", newline="") as file:
        return Tokenizer.from_file(f"{model}/tokenizer.json").encode(file.read(), add_special_tokens=False).ids


def cut(ids, length):
    return [ids[begin:begin + length] for begin in range(0, len(ids) - length + 1, length)]


def shuffled(count, seed):
    """lowbit's choice among more windows than asked for: splitmix64 and a shuffle from the end."""
    order, state = list(range(count)), seed
    for i in range(count, 1, -1):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        j = (z ^ (z >> 31)) % i
        order[i - 1], order[j] = order[j], order[i - 1]
    return order


def calibration(model, text, samples, length, seed):
    """The windows that `lowbit quantize --calibration text --samples --max-length --seed` calibrates on."""
    windows, chosen, seen = cut(text_ids(model, text), length), [], set()
    for index in shuffled(len(windows), seed):
        if len(chosen) == samples:
            break
        if tuple(windows[index]) not in seen:
            seen.add(tuple(windows[index]))
            chosen.append(index)
    return [windows[index] for index in sorted(chosen)]


def fingerprint(windows):
    """The `tokens_hash` of lowbit's report (FNV-1a)."""
    value = 14695981039346656037
    for ids in windows:
        for byte in struct.pack(f"<Q{len(ids)}i", len(ids), *ids):
            value = ((value ^ byte) * 1099511628211) & MASK
    return f"{value:016x}"
