"""What the check_*.py scripts share, which load in the peers what lowbit wrote: the program and its greedy tokens, those of a model in torch
by full forward passes, and the loop over models and kinds of checkpoint."""

import json
import pathlib
import subprocess
import sys

import torch

PROMPT, NEW = "The bank says that", 12


def lowbit(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"lowbit {' '.join(map(str, arguments))}: {done.stderr.strip()[-300:]}")
    return done.stdout


def our_tokens(binary, checkpoint, *options):
    return json.loads(lowbit(binary, "generate", checkpoint, "--device", "cpu", "--prompt", PROMPT, "--max-new-tokens", NEW, "--ignore-eos",
                             "--temperature", 0, *options, "--json"))["token_ids"]


def is_encoder(folder):
    return json.loads((pathlib.Path(folder) / "config.json").read_text()).get("architectures") == ["BertModel"]


def apart(some, expected):
    return float((some - expected).abs().max() / expected.abs().max())


def greedy(model, prompt):
    """New ids, the first step's logits, and of each step how far the likeliest is before the next, beside the largest logit; by full
    forward passes (no cache, no padding)."""
    ids, first, gaps = list(prompt), None, []
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            first = logits if first is None else first
            ids.append(int(logits.argmax()))
            likeliest = logits.topk(2).values
            gaps.append(float((likeliest[0] - likeliest[1]) / logits.abs().max()))
    return ids[len(prompt):], first, gaps


def agree(expected, found, gaps, noise):
    """Up to the first place where the two likeliest are as near as rounding may bring them."""
    end = next((i for i, gap in enumerate(gaps) if gap < noise), len(gaps))
    return expected[:end] == found[:end]


def run(binary, work, models, variants, check, modules):
    """One line per checkpoint; exits 1 where check(binary, model, name, options, work) is not true."""
    work.mkdir(parents=True, exist_ok=True)
    print(json.dumps({module.__name__: module.__version__ for module in modules}), flush=True)
    torch.set_num_threads(2)
    good = True
    for model in models:
        for name, options in variants.items():
            try:
                good &= check(binary, model, name, options, work)
            except Exception as error:  # a refusal by either side is a result here
                print(json.dumps({"model": model.name, "checkpoint": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}), flush=True)
                good = False
    sys.exit(0 if good else 1)
