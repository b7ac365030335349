"""What bench/gpu_end_to_end.py feeds and compares with: texts of so many tokens, and what a model has to read and to multiply."""

import json
import random
import subprocess

import random_model

DATA = random_model.DEMO.parent / "data"
EMPTY_QUESTION = "<|im_start|>system\nYou check dialogues for fraud.<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"


class Texts:
    """Pieces of the demo's texts in a fixed random order, cut to numbers of tokens; each piece follows the one before."""

    def __init__(self, lowbit):
        self.lowbit = lowbit
        texts = (DATA / "heldout.txt").read_text(encoding="utf-8").split("\n\n")
        for name in "calibration.jsonl", "test.jsonl":
            for line in (DATA / name).read_text(encoding="utf-8").splitlines():
                texts += [message["content"] for message in json.loads(line)["messages"] if message["role"] != "system"]
        random.Random(0).shuffle(texts)
        self.ids, self.next = self.tokenize("--ids", stdin="\n\n".join(texts)).split(), 0

    def tokenize(self, *options, stdin):
        command = [self.lowbit, "tokenize", random_model.DEMO, *options]
        return subprocess.run(command, input=stdin.encode(), capture_output=True, check=True).stdout.decode(errors="ignore")

    def cut(self, tokens):
        begin, self.next = self.next, self.next + tokens
        while len(self.ids) < self.next:
            self.ids += self.ids
        return self.tokenize("--decode", stdin=" ".join(self.ids[begin:self.next]))

    def dialogues(self, file, count, tokens):
        """A data file for `eval classify`: so many questions of so many tokens each, of the chat template too."""
        around = self.tokenize("--ids", "--parse-special-tokens", stdin=EMPTY_QUESTION)
        with open(file, "w", encoding="utf-8") as out:
            for i in range(count):
                question = {"role": "user", "content": self.cut(tokens - len(around.split()))}
                out.write(json.dumps({"id": str(i), "messages": [question], "is_fraud": i % 2 == 0}) + "\n")
        return file


class Work:
    """What a model of random_model has to do, for the limits of a machine."""

    def __init__(self, folder):
        c = json.loads((folder / "config.json").read_text())
        self.layers, self.heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.head = c["hidden_size"] // self.heads
        self.cache_bytes = self.layers * 2 * c["num_key_value_heads"] * self.head * 2  # of a token: keys and values, BF16
        self.linear_weights = sum(shape[0] * shape[1] for name, shape in random_model.tensors(c) if name.endswith("proj.weight"))
        self.inputs = self.layers * (3 * c["hidden_size"] ** 2 + c["intermediate_size"] ** 2)  # qkv, o, gate and up: one hidden size

    def step_bytes(self, folder, sequences, position):
        """Read by one step that writes a token for each sequence: all weights, and the cache."""
        return sum(file.stat().st_size for file in folder.glob("*.safetensors")) + sequences * position * self.cache_bytes

    def prompt_flop(self, tokens):
        """Of the linears, and of scores and sums of values below the diagonal."""
        return 2 * tokens * self.linear_weights + self.layers * self.heads * 4 * self.head * tokens * tokens / 2

    def gptq_flop(self, samples, tokens):
        """The layers' forward pass and one triangle of every X^T X."""
        return samples * (self.prompt_flop(tokens) + tokens * self.inputs)
