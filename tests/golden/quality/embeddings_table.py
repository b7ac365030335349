#!/usr/bin/env python3
"""embeddings_table.py LOWBIT EXAMPLE_EMBED MODEL TEXT WORK [--only PART]: what quantizing costs a sentence encoder, the table of docs/quality.md.

LOWBIT and EXAMPLE_EMBED: the binaries; MODEL: a sentence-transformers folder (all-MiniLM-L6-v2); TEXT: wiki.test.raw; WORK: a
folder for what is made. 500 sentences of 40 to 300 characters of the text's second half are embedded, 512 of its first half
calibrate. Prints how far the embeddings in float32 are from those of sentence-transformers, then a line for each format.
`--only` makes the lines whose name has PART in it, without sentence-transformers. `--speed` also times both on the sentences, in turn, on two threads. Last run with torch 2.15.0, transformers 5.24.0,
sentence-transformers 6.2.0.
"""
import argparse
import json
import os
import subprocess
import time

INT8 = ["--method", "rtn", "--format", "int8", "--dialect", "compressed-tensors", "--activations"]
VARIANTS = {
    "rtn 8 bits g128": ["--method", "rtn", "--bits", "8"],
    "gptq 8 bits g128": ["--method", "gptq", "--bits", "8"],
    "rtn 4 bits g128": ["--method", "rtn", "--bits", "4"],
    "gptq 4 bits g128": ["--method", "gptq", "--bits", "4"],
    "gptq 4 bits g32": ["--method", "gptq", "--bits", "4", "--group-size", "32"],
    "gptq 3 bits g128": ["--method", "gptq", "--bits", "3"],
    "nf4 (load-in-4bit)": ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4"],
    "fp4 (load-in-4bit)": ["--load-in-4bit", "--bnb-4bit-quant-type", "fp4"],
    "int8 (load-in-8bit)": ["--load-in-8bit"],
    "int8 rows, W8A16": [*INT8, "none"],
    "int8 rows, W8A8 dynamic": [*INT8, "int8-dynamic"],
    **{f"int8 rows, W8A8 static, {observer}": [*INT8, "int8-static", "--observer", observer]
       for observer in ("auto", "minmax", "moving", "histogram", "percentile", "mse", "entropy")},
    **{f"int8 rows, W8A8 static, {observer}, asymmetric": [*INT8, "int8-static", "--observer", observer, "--no-activations-sym"]
       for observer in ("minmax", "mse")},
}


def sentences(text):
    with open(text, encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip() and not line.startswith(" =")]
    found = [s.strip() + " ." for line in lines for s in line.split(" . ")]
    found = [s for s in found if 40 <= len(s) <= 300]
    return found[: len(found) // 2][:512], found[len(found) // 2 :][:500]


def run(*command, **more):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **more).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lowbit")
    parser.add_argument("embed")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("work")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    calibration, tested = sentences(args.text)
    data, test = os.path.join(args.work, "calibration.jsonl"), os.path.join(args.work, "test.txt")
    with open(data, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": s}) + "\n" for s in calibration)
    with open(test, "w", encoding="utf-8") as file:
        file.writelines(s + "\n" for s in tested)

    if not args.only:
        import numpy
        import torch
        from sentence_transformers import SentenceTransformer
        torch.set_num_threads(2)
        peer = SentenceTransformer(args.model, device="cpu")
        theirs = peer.encode(tested, batch_size=32).astype("f8")
        with open(test, encoding="utf-8") as file:
            ours = numpy.loadtxt(run(args.embed, args.model, stdin=file).splitlines())
        cosines = (ours * theirs).sum(1) / numpy.linalg.norm(ours, axis=1) / numpy.linalg.norm(theirs, axis=1)
        print(f"float32 beside sentence-transformers: 1 - cosine at most {1 - cosines.min():.2e}, |difference| at most "
              f"{abs(ours - theirs).max():.2e}", flush=True)

    def judged(model, *more):
        return json.loads(run(args.lowbit, "eval", "embeddings", model, "--reference", args.model, "--text", test, "--json",
                              "--device", "cpu", "--threads", "2", *more))

    if args.speed and not args.only:
        for _ in range(3):
            start = time.perf_counter()
            peer.encode(tested, batch_size=32)
            seconds = time.perf_counter() - start
            result = judged(args.model)
            print(f"{len(tested)} sentences, {result['tokens']} tokens: sentence-transformers {seconds:.2f} s, lowbit "
                  f"{result['reference_seconds']:.2f} and {result['seconds']:.2f} s", flush=True)

    print("| | bits per weight | mean cosine | lowest 5 % | minimum | rank correlation |\n|---|---|---|---|---|---|")
    for name, options in VARIANTS.items():
        if args.only not in name:
            continue
        if options[0].startswith("--load"):
            bits, result = "4.50" if "4bit" in name else "8.06", judged(args.model, *options)
        else:
            out = os.path.join(args.work, name.replace(" ", "_"))
            takes_data = options[: len(INT8)] != INT8 or options[len(INT8)] == "int8-static"
            report = json.loads(run(args.lowbit, "quantize", args.model, "-o", out, "--overwrite", "--device", "cpu", "--threads", "2",
                                    "--json", *options, *(["--calibration", data, "--samples", "480"] if takes_data else [])))
            bits, result = f"{report['bits_per_weight']:.2f}", judged(out)
        print(f"| {name} | {bits} | {result['mean_cosine']:.5f} | {result['p5_cosine']:.5f} | {result['min_cosine']:.5f} | "
              f"{result['similarity_spearman']:.5f} |", flush=True)


if __name__ == "__main__":
    main()
