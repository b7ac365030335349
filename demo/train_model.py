"""Trains the demo model (Qwen2's architecture, 5.0 million parameters) and says how good it is on the test dialogues.

    python3 demo/train_model.py --train demo/data/train.jsonl --model demo/model

Reads the tokenizer in the model folder; writes config.json and model.safetensors (bf16) beside it, and the
figures to --log. Needs torch, transformers, tokenizers, safetensors; uses a GPU if there is one.
"""

import argparse
import json
import math
import pathlib
import time

import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": 2048,
    "max_window_layers": 5,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 4096,
}
MAX_NEW_TOKENS = 64


def read_records(path, count=None):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file][:count]


def prompt_text(messages):
    """What the chat template makes of the messages before the answer."""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return turns + "<|im_start|>assistant\n"


def encode(tokenizer, texts):
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def encode_prompts(tokenizer, records):
    return encode(tokenizer, [prompt_text(r["messages"][:-1]) for r in records])


def encode_answers(tokenizer, records):
    return encode(tokenizer, [r["messages"][-1]["content"] + "<|im_end|>" for r in records])


class TrainSet:
    """Token ids, right padded, with the place where each answer begins.

    The prompts' merges are skipped at random (BPE dropout), so that words are learned in more than one spelling:
    on a corpus this narrow the merges otherwise know whole phrases, which no unseen dialogue has.
    """

    def __init__(self, tokenizer, records, merge_dropout, device):
        answers = encode_answers(tokenizer, records)
        tokenizer.model.dropout = merge_dropout or None
        prompts = encode_prompts(tokenizer, records)
        tokenizer.model.dropout = None
        self.lengths = torch.tensor([len(p) + len(a) for p, a in zip(prompts, answers)])
        self.answers = torch.tensor([len(p) for p in prompts], device=device)
        self.tokens = torch.zeros(len(prompts), int(self.lengths.max()), dtype=torch.int64)
        for row, ids in enumerate(p + a for p, a in zip(prompts, answers)):
            self.tokens[row, :len(ids)] = torch.tensor(ids)
        self.tokens = self.tokens.to(device)

    def batches(self, batch_size, generator):
        """Endless batches of row numbers; rows of about the same length come together."""
        while True:
            order = torch.randperm(len(self.lengths), generator=generator)
            for chunk in order.split(batch_size * 32):
                chunk = chunk[self.lengths[chunk].argsort()]
                rows = [part for part in chunk.split(batch_size) if len(part) == batch_size]
                for index in torch.randperm(len(rows), generator=generator).tolist():
                    yield rows[index]


def corrupt(inputs, is_prompt, share, special_from):
    """Replaces up to `share` of a prompt's plain tokens by random ones: no single cue can be relied on."""
    chance = torch.rand(len(inputs), 1, device=inputs.device) * share
    hit = (torch.rand(inputs.shape, device=inputs.device) < chance) & is_prompt & (inputs < special_from)
    return torch.where(hit, torch.randint_like(inputs, special_from), inputs)


def add_dropout(model, share):
    """Drops that share of what every attention and MLP adds to the residual stream, while training."""
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.register_forward_hook(lambda module, _, output: F.dropout(output, share, module.training))


def train(model, data, options, special_from, log):
    """AdamW with warm-up and cosine decay; the loss is over all tokens, the answer's weighing more."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(options.seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=options.learning_rate, betas=(0.9, 0.98), fused=device.type == "cuda")
    warmup = max(1, options.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / options.steps)))))

    model.train()
    batches = data.batches(options.batch_size, generator)
    start = time.time()
    for step in range(options.steps):
        rows = next(batches)
        width = int(data.lengths[rows].max())
        tokens = data.tokens[rows.to(device), :width]
        lengths = data.lengths[rows].to(device)[:, None]
        answers = data.answers[rows.to(device)][:, None]
        place = torch.arange(width, device=device)[None]
        inputs = corrupt(tokens, place < answers, options.corrupt, special_from)
        weights = torch.where(place >= answers, options.answer_weight, 1.0) * (place < lengths)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=inputs[:, :-1]).logits
        losses = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        weights = weights[:, 1:].flatten()
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, options.steps // 20) == 0:
            log.append({"step": step + 1, "loss": round(loss.item(), 4), "seconds": round(time.time() - start, 1)})
            print(log[-1], flush=True)


@torch.inference_mode()
def answer(model, tokenizer, records, batch_size):
    """Greedy answers, in batches padded on the left."""
    device = next(model.parameters()).device
    pad, eos = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    prompts = encode_prompts(tokenizer, records)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [None] * len(prompts)
    for begin in range(0, len(order), batch_size):
        part = order[begin:begin + batch_size]
        width = max(len(prompts[index]) for index in part)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in part], device=device)
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in part], device=device)
        made = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_NEW_TOKENS,
                              eos_token_id=[eos, pad], pad_token_id=pad)
        for index, row in zip(part, made[:, width:].tolist()):
            texts[index] = tokenizer.decode(row)
    return texts


def verdict(text):
    """The is_fraud of an answer, or None if it is not the JSON that was asked for."""
    try:
        value = json.loads(text)
        return value["is_fraud"] if isinstance(value.get("reason"), str) and isinstance(value["is_fraud"], bool) else None
    except (ValueError, KeyError, AttributeError):
        return None


def evaluate(model, tokenizer, records, batch_size):
    """The confusion matrix and what follows from it; an unparsable answer counts as "no fraud"."""
    texts = answer(model, tokenizer, records, batch_size)
    counts = {"tn": 0, "fp": 0, "fn": 0, "tp": 0, "unparsable": 0}
    for record, text in zip(records, texts):
        said = verdict(text)
        counts["unparsable"] += said is None
        counts[("t" if bool(said) == record["is_fraud"] else "f") + ("p" if said else "n")] += 1
    counts["precision"] = counts["tp"] / max(1, counts["tp"] + counts["fp"])
    counts["recall"] = counts["tp"] / max(1, counts["tp"] + counts["fn"])
    counts["reason_equal"] = sum(t == r["messages"][-1]["content"] for t, r in zip(texts, records)) / len(records)
    return counts, texts


def save(model, folder):
    """bf16 weights; the head is the embedding and is not stored twice."""
    state = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    state.pop("lm_head.weight", None)
    data = safetensors.torch.save(state, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=pathlib.Path, default=HERE / "data" / "train.jsonl")
    parser.add_argument("--train-count", type=int, help="the first so many of the train dialogues; all by default")
    parser.add_argument("--test", type=pathlib.Path, default=HERE / "data" / "test.jsonl")
    parser.add_argument("--model", type=pathlib.Path, default=HERE / "model", help="has tokenizer.json; gets the rest")
    parser.add_argument("--log", type=pathlib.Path, help="where to write settings and figures as JSON")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=128, help="dialogues per step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--answer-weight", type=float, default=8.0, help="weight of an answer's token beside a prompt's")
    parser.add_argument("--corrupt", type=float, default=0.4, help="largest share of prompt tokens made random")
    parser.add_argument("--merge-dropout", type=float, default=0.3, help="share of BPE merges skipped in train prompts")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of each block's output dropped in training")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    special = tokenizer.token_to_id("<|endoftext|>")
    config = CONFIG | {"bos_token_id": special, "eos_token_id": tokenizer.token_to_id("<|im_end|>"), "pad_token_id": special}
    (options.model / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config.from_pretrained(options.model)).float().to(device)
    parameters = sum(p.numel() for p in model.parameters())

    log = []
    add_dropout(model, options.dropout)
    data = TrainSet(tokenizer, read_records(options.train, options.train_count), options.merge_dropout, device)
    train(model, data, options, special, log)
    save(model, options.model)
    model = model.to(torch.bfloat16).eval()
    figures, _ = evaluate(model, tokenizer, read_records(options.test), batch_size=200)
    report = {
        "parameters": parameters,
        "settings": {name: value for name, value in vars(options).items() if not isinstance(value, pathlib.Path)},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "test": figures,
        "loss": log,
    }
    print(json.dumps(figures))
    if options.log:
        options.log.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
