"""Compares lowbit's chat templates with transformers' own rendering (Python jinja2), byte for byte.

    python tests/golden/make_template_golden.py compare MATERIAL build/release/src/text/lowbit_render_lines
    python tests/golden/make_template_golden.py write > tests/golden/jinja_cases.jsonl

compare: every template under MATERIAL/templates with standard conversations (and the golden files there); prints each
difference and a count, exits 1 when there is any. write: the expected results of the expressions in jinja_cases.txt beside
this script, which src/text/jinja_test.cc checks. Made with jinja2 3.1.6 and transformers 5.23.
"""
import datetime
import difflib
import glob
import json
import os
import subprocess
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TZ"] = "UTC"
time.tzset()
from transformers.utils import chat_template_utils  # noqa: E402

NOW = 1735732800  # 2025-01-01 12:00 UTC


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, tz)


chat_template_utils.datetime = FixedClock

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather <now> & later of a \"place\"", "parameters": {
        "type": "object", "properties": {
            "place": {"type": "string", "description": "City, e.g. Zürich"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": ["integer", "null"], "description": "1 to 10"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "options": {"type": "object", "properties": {"wind": {"type": "boolean"}}, "required": ["wind"]}},
        "required": ["place"]}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call12345", "type": "function",
     "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2, "x": 1.5, "deep": {"a": [1, None, True]}}}}]}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": "{\"t\": 21}"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant"}
HELLO = {"role": "user", "content": "Hello"}
THERE = {"role": "assistant", "content": "Hi there"}
CONVERSATIONS = {
    "user": [HELLO],
    "two turns": [HELLO, THERE, {"role": "user", "content": "  Who are you?\n"}],
    "system": [SYSTEM, HELLO, THERE, {"role": "user", "content": "Wer bist du? 你好 🙂"}],
    "ends with assistant": [HELLO, {"role": "assistant", "content": "   I am an assistant   "}],
    "thinking": [HELLO, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi"}, {"role": "user", "content": "more"}],
    "reasoning": [HELLO, {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}, {"role": "user", "content": "?"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": " this?"}]}],
    "tool call": [SYSTEM, HELLO, CALL, RESULT, {"role": "assistant", "content": "21 degrees"}, HELLO],
    "tool result last": [HELLO, CALL, RESULT],
    "typed tokens": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n</s>[INST]<think>"}],
    "no content": [HELLO, {"role": "assistant", "content": None, "tool_calls": CALL["tool_calls"]}, RESULT],
    "empty": [],
}
EXTRAS = {
    "": {},
    "tools": {"tools": [WEATHER]},
    "thinking": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    "not thinking": {"enable_thinking": False},
    "documents": {"documents": [{"title": "One", "text": "first\ndocument"}, {"title": "Two", "text": "second"}]},
}


def render(template, messages, special, extra, prompt):
    try:
        arguments = {**special, **extra}
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=prompt, **arguments)
        return rendered[0], None
    except Exception as error:  # whatever Python raises, lowbit must refuse too
        return None, f"{type(error).__name__}: {error}"


def requests_of(material):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    for path in sorted(glob.glob(f"{material}/templates/**/*.jinja", recursive=True)):
        template = open(path, encoding="utf-8", newline="").read()
        for name, messages in CONVERSATIONS.items():
            for extra_name, extra in EXTRAS.items():
                for prompt in (True, False):
                    label = f"{os.path.basename(path)} | {name} | {extra_name} | prompt={prompt}"
                    yield label, template, messages, special, extra, prompt
    for case in json.load(open(f"{material}/templates/llamacpp/expected_cases.json", encoding="utf-8")):
        special = {"bos_token": case["bos_token"], "eos_token": case["eos_token"]}
        yield case["name"], case["chat_template"], case["messages"], special, {}, case["add_generation_prompt"]


def answers(tool, requests):
    lines = [json.dumps({"template": t, "messages": m, "special_tokens": s, "extra": e, "add_generation_prompt": p, "now": NOW})
             for _, t, m, s, e, p in requests]
    output = subprocess.run([tool], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True,
                            env={**os.environ, "TZ": "UTC"})
    return [json.loads(line) for line in output.stdout.split("\n") if line]


def compare(material, tool):
    requests = list(requests_of(material))
    equal = both_fail = 0
    differences = []
    for request, answer in zip(requests, answers(tool, requests), strict=True):
        label, *arguments = request
        expected, error = render(*arguments)
        if expected is None and "error" in answer:
            both_fail += 1
        elif expected is not None and answer.get("text") == expected:
            equal += 1
        else:
            differences.append(label)
            print(f"--- {label}\n    python: {error or 'renders'}\n    lowbit: {answer.get('error', 'renders')}")
            if expected is not None and "text" in answer:
                changes = difflib.unified_diff(expected.splitlines(True), answer["text"].splitlines(True), "python", "lowbit", n=0)
                sys.stdout.writelines(f"    {line!r}\n" for line in list(changes)[:12])
    print(f"{len(requests)} renderings: {equal} equal, {both_fail} refused by both, {len(differences)} differ")
    return 1 if differences else 0


def write():
    """One case a line: a template over the fixed context below."""
    context = json.load(open(os.path.join(os.path.dirname(__file__), "jinja_context.json"), encoding="utf-8"))
    compiled = open(os.path.join(os.path.dirname(__file__), "jinja_cases.txt"), encoding="utf-8", newline="").read()
    for template in compiled.split("\n====\n"):
        text, error = render(template, [HELLO], {}, context, True)
        print(json.dumps({"template": template, "expected": text, "error": error}, ensure_ascii=False))


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "compare":
        sys.exit(compare(sys.argv[2], sys.argv[3]))
    if len(sys.argv) == 2 and sys.argv[1] == "write":
        write()
    else:
        sys.exit(__doc__)
