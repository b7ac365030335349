#!/usr/bin/env python3
"""make_encoder_golden.py: writes tests/golden/bert_classifier/, a random BertForSequenceClassification with the tokenizer of
tokenizers/bert_template, and golden.json: what transformers makes of texts and pairs of texts, in float32 on the CPU with eager
attention, as one batch padded on the right. Last run with torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3.

Per example: ids and token types (cut to max_length, longest_first, where given), the logits, the pooled output, and the last
hidden states' mean over the tokens and first row.
"""
import json
import os
import shutil

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from make_tokenizer_golden import random_strings

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(HERE, "bert_classifier")


def make_model(vocab_size):
    torch.manual_seed(5)
    config = BertConfig(vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                        max_position_embeddings=48, id2label={0: "ham", 1: "spam", 2: "other"},
                        label2id={"ham": 0, "spam": 1, "other": 2}, attn_implementation="eager")
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_gain = "LayerNorm.weight" in name
            p.copy_(torch.randn_like(p) * (0.2 if is_gain or "bias" in name or "embeddings" in name else 0.25) + is_gain)
        model.classifier.weight.mul_(4)
    return model


def numbers(tensor):
    return [float(f"{x:.9g}") for x in tensor.tolist()]


def main():
    os.makedirs(FOLDER, exist_ok=True)
    shutil.copy(os.path.join(HERE, "tokenizers", "bert_template", "tokenizer.json"), FOLDER)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(FOLDER, "tokenizer.json"), pad_token="[PAD]",
                                        cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", mask_token="[MASK]")
    model = make_model(len(tokenizer))
    model.save_pretrained(FOLDER)
    strings = [s for s in random_strings(60, 17, []) if 3 < len(tokenizer(s)["input_ids"])]
    examples = []
    for i, text in enumerate(strings[:24]):
        pair = strings[24 + i % 8] if i % 3 == 1 else None
        limit = (0, 48, 11, 16)[i % 4] or 48
        encoded = tokenizer(text, pair, truncation="longest_first", max_length=limit, return_token_type_ids=True)
        examples.append({"text": text, "text_pair": pair, "max_length": limit, "ids": encoded["input_ids"],
                         "types": encoded["token_type_ids"]})
    longest = max(len(e["ids"]) for e in examples)
    pad = lambda key: torch.tensor([e[key] + [0] * (longest - len(e[key])) for e in examples])
    mask = torch.tensor([[1] * len(e["ids"]) + [0] * (longest - len(e["ids"])) for e in examples])
    with torch.no_grad():
        out = model.bert(input_ids=pad("ids"), attention_mask=mask, token_type_ids=pad("types"))
        logits = model.classifier(out.pooler_output)
    for i, e in enumerate(examples):
        states = out.last_hidden_state[i, : len(e["ids"])]
        e["logits"] = numbers(logits[i])
        e["pooled"] = numbers(out.pooler_output[i])
        e["mean"] = numbers(states.mean(0))
        e["cls"] = numbers(states[0])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    with open(os.path.join(FOLDER, "golden.json"), "w", encoding="utf-8") as f:
        f.write('{"versions": ' + json.dumps(versions) + ',\n"examples": [\n')
        f.write(",\n".join(json.dumps(e, ensure_ascii=False, separators=(",", ":")) for e in examples) + "\n]}\n")
    print(len(examples), "examples of up to", longest, "tokens;", sum(os.path.getsize(os.path.join(FOLDER, f)) for f in os.listdir(FOLDER)), "bytes;",
          "labels", logits.argmax(-1).tolist())


if __name__ == "__main__":
    main()
