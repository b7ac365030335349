"""Writes tests/golden/demo_golden.json: what transformers computes with the demo model in float32 on the CPU.

    python3 demo/make_golden.py

Per prompt: token ids, the 20 largest next-token logits, and 24 greedy tokens.
"""

import argparse
import json
import pathlib
import platform

import tokenizers
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
PROMPT_ROWS = (0, 1, 2, 7)  # lines of data/test.jsonl: both languages, both verdicts
TOP = 20
NEW_TOKENS = 24


@torch.inference_mode()
def golden(model, tokenizer, record):
    messages = record["messages"][:-1]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    first = state = model(input_ids=torch.tensor([ids]), use_cache=True)
    greedy = [int(first.logits[0, -1].argmax())]
    while len(greedy) < NEW_TOKENS:  # on past the end of the answer, should it come earlier
        state = model(input_ids=torch.tensor([greedy[-1:]]), past_key_values=state.past_key_values, use_cache=True)
        greedy.append(int(state.logits[0, -1].argmax()))
    top = first.logits[0, -1].topk(TOP)
    return {
        "id": record["id"],
        "messages": messages,
        "prompt_ids": ids,
        "top_logits": [[int(i), round(float(v), 6)] for i, v in zip(top.indices, top.values)],
        "greedy_ids": greedy,
        "greedy_text": tokenizer.decode(greedy),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "tests" / "golden" / "demo_golden.json")
    options = parser.parse_args()

    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32).eval()
    lines = (HERE / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    report = {
        "made_by": "demo/make_golden.py",
        "versions": versions,
        "computed_in": "float32 on the CPU, bf16 weights widened",
        "prompts": [golden(model, tokenizer, json.loads(lines[row])) for row in PROMPT_ROWS],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
