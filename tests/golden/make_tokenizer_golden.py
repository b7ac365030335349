#!/usr/bin/env python3
"""Goldens for the tokenizers, made with HF `tokenizers` (0.23.3 when last run; Unicode tables as in src/text/unicode_versions.h).
`train` needs `sentencepiece` too (0.2.3): it alone writes precompiled_charsmap.

  make_tokenizer_golden.py train [NAME ...]  trains the small tokenizers of tests/golden/tokenizers/ and writes their cases
  make_tokenizer_golden.py pairs             writes pairs.jsonl of those in PAIRS: two texts with token types, cut and not
  make_tokenizer_golden.py compare BINARY [--count 10000] [--seed 1] FOLDER ...
      compares lowbit_tokenize_lines with HF on seeded random strings for each folder that holds a tokenizer.json, and
      for the small tokenizers; prints one line each and ends with 1 when any string differs

The strings mix scripts, emoji with joiners, combining marks, spaces, controls, digits, CJK, right-to-left text and the
tokenizer's own added tokens.
"""
import argparse
import base64
import json
import os
import random
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(HERE, "tokenizers")

WORDS = """the of and to in is it that for on with as was at be this have from or had by not are but what all were when we
there can an your which their said if do will each about how up out them then she many some so these would other into has
more her two like him see time could no make than first been its who now people my made over did down only way find use may
water long little very after words called just where most know don't I'm you're we've they'll he'd it's CAN'T I'M You'Ll
quantization tokenizer perplexity internationalization HTTPServer snake_case camelCase x86_64 don''t rock'n'roll""".split()
CHINESE = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从您请告诉银行账户密码转账客服电话验证码"
PIECES = {
    "latin": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "accents": "àéîõüñçßøåÆŒŁđħıİǅǆſﬀﬁﬆẞΐὈ",
    "greek": "αβγδεζηθικλμνξοπρσςτυφχψωΑΒΓΔΣ",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяЁЇЄ",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤ\u064b\u064c\u064e\u0651٠١٢٣٤",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשתםןףץך\u05b0\u05b4\u05bc",
    "devanagari": "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह\u093e\u093f\u0940\u094d\u0902०१२",
    "thai": "กขคงจฉชซญดตถทธนบปผพภมยรลวสหอฮ\u0e31\u0e34\u0e48\u0e49๐๑",
    "kana": "あいうえおかきくけこがぎアイウエオカキクケコガギﾊﾟｶﾞーっッ",
    "hangul": "가나다라마바사한국어글ᄀᄂ\u1161\u11a8ㄱㅏ",
    "cjk": CHINESE,
    "cjk_rare": "㐀䶿鿿𠀀𪛟𪜀𫝀𫠠𬺰丽豈﨎𰀀",
    "digits": "0123456789",
    "other_numbers": "²³¹½¼Ⅷⅷ①⑳㊀〇〡৪௧፩𝟘𝟙𐄇",
    "spaces": " \t\n\r\v\f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
    "invisible": "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e\u061c\u200e\u200f\u202a\u202b\u202c\u202e\u2066\u2069",
    "controls": "\x00\x01\x02\x07\x08\x1b\x1c\x1f\x7f\x80\x8f\x9f",
    "punctuation": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "more_punctuation": "«»“”‘’„…—–·•¿¡§¶†‡‰′″‹›。，、；：？！（）【】《》「」『』～·¨´¸¢£¤¥€₽",
    "symbols": "©®™°±×÷≤≥≠∞∑∏√∫∂∇←→↑↓⇒⇔■□▲△●○★☆♠♥♦♣♪✓✗▁␣Ġġ",
    "marks": "\u0300\u0301\u0302\u0303\u0308\u030a\u0323\u0327\u0328\u0338\u0345\u035c\u0360\u20dd\u20e3\u3099\u309a\ufe0e\ufe0f",
    "emoji": "😀😂🤣😊😍🤔👍👎🙏🔥💯🚀🎉❤✨🐍🌍🏳👨👩👧👦",
    "edges": "\ufffd\uffff\U0010ffff\ue000\U000f0000\ud7ff\ufdd0\ufdfa\U0001d15e\u1e9b\u2126\u212b\u0958\u0344",
}
CLUSTERS = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇨🇳", "👍🏽", "1️⃣", "e\u0301", "ệ", "e\u0323\u0302", "가", "각", "क्षि", "ﷺ", "Å", "ﬃ", "'s", "'S", "'ll",
            "'Ve", "'ſ", "''", " '", "\r\n", "\n\n", "  ", "   ", "\t\t", " \n ", "...", "->", "!=", "://", "<s>", "</s>", "<|im_end|>",
            "<0x0A>", "##ing", "▁the", "Ġthe", "[MASK]", "[CLS]", "<unk>", "x" * 40, "1234567890123", "3.14159", "a\x00b"]


def random_string(rng, added):
    parts = []
    for _ in range(rng.choice([1, 1, 2, 3, 5, 8, 13, 20])):
        kind = rng.random()
        if kind < 0.3:
            parts.append((rng.choice(["", " ", " ", " "])) + rng.choice(WORDS))
        elif kind < 0.42:
            parts.append("".join(rng.choice(CHINESE) for _ in range(rng.randint(1, 8))))
        elif kind < 0.6:
            parts.append(rng.choice(CLUSTERS))
        elif kind < 0.65 and added:
            parts.append(rng.choice(["", " ", "  "]) + rng.choice(added) + rng.choice(["", " ", "\n"]))
        elif kind < 0.67:
            c = chr(rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0xD800), rng.randrange(0xE000, 0x20000)]))
            parts.append(c)
        else:
            chars = PIECES[rng.choice(list(PIECES))]
            parts.append("".join(rng.choice(chars) for _ in range(rng.choice([1, 1, 2, 3, 6, 12]))))
    return "".join(parts)


def random_strings(count, seed, added):
    rng = random.Random(seed)
    return ["", " ", "\n"] + [random_string(rng, added) for _ in range(count - 3)]


def load(folder):
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def load_for_decoding(folder):
    """tokenizers 0.23 decodes a special token that is "normalized" to its normal form and then fails to skip it. Older
    versions did not, and transformers does not let it happen: it adds such tokens again as not normalized."""
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        content = json.load(f)
    for token in content["added_tokens"]:
        token["normalized"] = token["normalized"] and not token["special"]
    return Tokenizer.from_str(json.dumps(content))


def expected(tokenizer, strings):
    """Per string: ids with special tokens parsed, ids with them left as text, ids with the template around."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = False
    parsed = [e.ids for e in tokenizer.encode_batch(strings, add_special_tokens=False)]
    around = [e.ids for e in tokenizer.encode_batch(strings, add_special_tokens=True)]
    tokenizer.encode_special_tokens = True
    plain = [e.ids for e in tokenizer.encode_batch(strings, add_special_tokens=False)]
    tokenizer.encode_special_tokens = False
    return parsed, plain, around


PAIRS = ("bert_template", "byte_fallback", "unigram_charsmap", "wordpiece_mixed", "wordpiece_untyped")


def pair_requests(strings, seed):
    rng = random.Random(seed)
    return [{"text": a, "second": b, "max_length": rng.choice([0, 0, 5, 8, 13, 21]), "parse": True}
            for a, b in zip(strings, strings[1:] + strings[:1])]


def expected_pairs(tokenizer, requests):
    """Ids, then token types."""
    out = []
    for r in requests:
        tokenizer.no_truncation()
        if r["max_length"]:
            tokenizer.enable_truncation(r["max_length"], strategy="longest_first")
        e = tokenizer.encode(r["text"], r["second"])
        out.append(e.ids + e.type_ids)
    tokenizer.no_truncation()
    return out


def run_binary(binary, folder, requests):
    text = "".join(json.dumps(r) + "\n" for r in requests)
    result = subprocess.run([binary, folder], input=text.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in result.stdout.decode().split("\n") if line]


def compare(binary, folder, count, seed):
    tokenizer = load(folder)
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    strings = random_strings(count, seed, added)
    parsed, plain, around = expected(tokenizer, strings)
    decoder = load_for_decoding(folder)
    rng = random.Random(seed)
    size = tokenizer.get_vocab_size()
    known = [i for i in range(size) if tokenizer.id_to_token(i) is not None]
    random_ids = [[rng.choice(known) for _ in range(rng.randint(0, 12))] for _ in range(count // 5)]
    jobs = {
        "encode": ([{"text": s, "parse": True} for s in strings], parsed),
        "as text": ([{"text": s} for s in strings], plain),
        "template": ([{"text": s, "parse": True, "special": True} for s in strings], around),
        "decode": ([{"ids": i} for i in parsed + random_ids],
                   [decoder.decode(i, skip_special_tokens=False) for i in parsed + random_ids]),
        "skip": ([{"ids": i, "skip": True} for i in around + random_ids],
                 [decoder.decode(i, skip_special_tokens=True) for i in around + random_ids]),
    }
    if os.path.basename(os.path.normpath(folder)) in PAIRS or tokenizer.token_to_id("[SEP]") is not None:
        requests = pair_requests(strings, seed)
        jobs["pairs"] = (requests, expected_pairs(tokenizer, requests))
    differ = 0
    report = []
    for name, (requests, want) in jobs.items():
        got = run_binary(binary, folder, requests)
        bad = [k for k in range(len(want)) if got[k] != want[k]]
        report.append(f"{name} {len(want) - len(bad)}/{len(want)}")
        for k in bad[:3]:
            print("  ", name, json.dumps(requests[k]), "\n     want", json.dumps(want[k]), "\n     got ", json.dumps(got[k]))
        differ += len(bad)
    print(f"{os.path.basename(os.path.normpath(folder)):32} {'  '.join(report)}", flush=True)
    return differ


# ---- the small tokenizers ---------------------------------------------------------------------------------------------

def corpus():
    rng = random.Random(7)
    return [random_string(rng, []) for _ in range(3000)] + [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(2000)]


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
# What our map rewrites: full-width forms, ligatures, line ends, controls; a base with its mark (the grapheme cluster is the
# key), a key that another one begins with, a key of several characters that no cluster holds, and deletions.
RULES = ([((0xFEE0 + c,), (c,)) for c in range(0x21, 0x7F)] + [((c,), (0x20,)) for c in (0x09, 0x0A, 0x0D, 0xA0, 0x3000, 0x2003)] +
         [((c,), ()) for c in (0x00AD, 0x200B, 0x07, 0x7F)] +
         [((0xFB01,), (0x66, 0x69)), ((0xFB03,), (0x66, 0x66, 0x69)), ((0xBD,), (0x31, 0x2044, 0x32)), ((0xFDFA,), (0x635, 0x644, 0x6CC)),
          ((0x65, 0x301), (0xE9,)), ((0x6F, 0x308), (0xF6,)), ((0x65, 0x323, 0x302), (0x1EC7,)), ((0x0D, 0x0A), (0x20,)), ((0x212B,), (0xC5,)),
          ((0x4E00, 0x4E8C), (0x31, 0x32)), ((0x27, 0x27), (0x22,)), ((0x1F600,), (0x3A, 0x29))])
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def train_bpe(tokenizer, size, special=("<|endoftext|>",), alphabet=ALPHABET, **more):
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet,
                                  show_progress=False, min_frequency=2, **more)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def words_corpus():
    """Few characters, so that the others are unknown to what is trained on it."""
    rng = random.Random(11)
    return [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(2000)] + [
        "".join(rng.choice(CHINESE[:40]) for _ in range(10)) + str(rng.randrange(10**6)) + rng.choice(".,!?é") for _ in range(500)]


def charsmap(**options):
    """What SentencePiece writes for normalization rules: base64 of the precompiled_charsmap of a model."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "m")
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["a b c d e"] * 10), model_prefix=prefix, vocab_size=9,
                                                 model_type="char", minloglevel=2, **options)
        model = sentencepiece_model_pb2.ModelProto()
        with open(prefix + ".model", "rb") as f:
            model.ParseFromString(f.read())
    return base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()


def charsmap_of_rules():
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as f:
        for source, target in RULES:
            f.write(" ".join(f"{c:X}" for c in source) + "\t" + " ".join(f"{c:X}" for c in target) + "\n")
        f.flush()
        return charsmap(normalization_rule_tsv=f.name)


def train_unigram(tokenizer, size, special=("<pad>", "</s>", "<unk>")):
    tokenizer.train_from_iterator(words_corpus(), trainers.UnigramTrainer(vocab_size=size, special_tokens=list(special),
                                                                         unk_token="<unk>", show_progress=False))
    content = json.loads(tokenizer.to_str())
    for entry in content["model"]["vocab"]:  # a short file; ties among equals are wanted
        entry[1] = round(entry[1], 3)
    return content


def make_unigram(made, map_base64):
    # T5's and XLM-R's way: SentencePiece's map, words cut at white space.
    t = Tokenizer(models.Unigram())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    t.decoder = decoders.Metaspace()
    j = train_unigram(t, 400)
    j["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": map_base64}
    t = Tokenizer.from_str(json.dumps(j))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    made["unigram_charsmap"] = (t, {})

    # ALBERT's way, with pieces that hold spaces.
    t = Tokenizer(models.Unigram())
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.decoder = decoders.Metaspace(prepend_scheme="first")
    j = train_unigram(t, 350)
    j["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}, {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
        {"type": "Precompiled", "precompiled_charsmap": map_base64}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]}
    made["unigram_lowercase"] = (j, {})

    # Bytes for what is unknown, where all bytes of neighbours are tokens; 0xF0 is none, so emoji stay unknown.
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    j = train_unigram(t, 250)
    j["model"]["byte_fallback"] = True
    j["model"]["vocab"] += [[f"<0x{b:02X}>", 0.0] for b in range(256) if b != 0xF0]
    made["unigram_bytes"] = (j, {})


def make_byte_level(made):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(BLOOM), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    made["bloom_bpe"] = (train_bpe(t, 500, ("<unk>", "<s>", "</s>", "<pad>")), {})

    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel()
    train_bpe(t, 500, ("<|endoftext|>", "<|padding|>"))
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    made["neox_bpe"] = (t, {})


def make_small():
    made = {}
    make_unigram(made, charsmap_of_rules())
    make_byte_level(made)

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    train_bpe(t, 600, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    made["digits_bpe"] = (t, {})

    # ignore_merges: a word that is a token is taken whole, though its merges would give something else.
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train_bpe(t, 600, ("<|begin|>", "<|end|>"))
    j = json.loads(t.to_str())
    j["model"]["ignore_merges"] = True
    for word in ("Ġperplexity", "Ġtokenizer", "123", "'Ll"):
        if word not in j["model"]["vocab"]:
            j["model"]["vocab"][word] = len(j["model"]["vocab"])
    j["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
         "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}}}]}
    made["llama3_ignore_merges"] = (j, {})

    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(O200K), "removed", invert=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train_bpe(t, 500)
    t.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True), AddedToken("water", single_word=True, normalized=False),
                  AddedToken("Café", normalized=True)])
    t.add_special_tokens([AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<norm>", normalized=True)])
    made["o200k_added"] = (t, {})

    # Llama 2's way: no pre-tokenizer, bytes for what is unknown; merges as pairs.
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    train_bpe(t, 700, ["<unk>", "<s>", "</s>"] + bytes_, [], limit_alphabet=60)
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    j = json.loads(t.to_str())
    j["pre_tokenizer"] = None
    j["added_tokens"] = j["added_tokens"][:3]
    t = Tokenizer.from_str(json.dumps(j))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    made["byte_fallback"] = (t, {})

    # The same without bytes: unknown characters, fused and not, and the mark first only.
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    train_bpe(t, 400, ["<unk>", "<s>"], [], limit_alphabet=50)
    t.decoder = decoders.Metaspace(prepend_scheme="first")
    made["metaspace_first_unk"] = (t, {})
    j = json.loads(t.to_str())
    j["model"]["fuse_unk"] = True
    j["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    j["decoder"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    j["model"]["merges"] = [" ".join(m) for m in j["model"]["merges"]]
    made["metaspace_old_fused"] = (j, {})

    # CLIP's way: words end in </w>.
    t = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="##"))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s{2,}"), " "),
                                         normalizers.Strip()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_previous")])
    train_bpe(t, 400, ["<unk>"], [], limit_alphabet=60, end_of_word_suffix="</w>", continuing_subword_prefix="##")
    t.decoder = decoders.BPEDecoder("</w>")
    made["suffix_bpe"] = (t, {})

    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], limit_alphabet=150, show_progress=False))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    t.decoder = decoders.WordPiece()
    j = json.loads(t.to_str())
    del j["model"]["type"]
    made["wordpiece_untyped"] = (j, {})

    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], limit_alphabet=150, show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                     special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    t.decoder = decoders.WordPiece()
    made["bert_template"] = (t, {})

    t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=6))
    t.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Nmt()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=False),
                                               pre_tokenizers.Split("e", "merged_with_next")])
    t.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "<s>", "</s>"], limit_alphabet=100, show_progress=False))
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    t.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), decoders.Strip("e", 2, 0)])
    made["wordpiece_mixed"] = (t, {})

    # No decoder; Contiguous; each Roberta-like ByteLevel piece gets a space.
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[\p{P}\s]"), "contiguous"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=True)])
    train_bpe(t, 350, ["<pad>"])
    made["contiguous_prefix_space"] = (t, {})
    return made


def write_small(names):
    total = 0
    for name, (tokenizer, config) in make_small().items():
        if names and name not in names:
            continue
        folder = os.path.join(FOLDER, name)
        os.makedirs(folder, exist_ok=True)
        content = tokenizer if isinstance(tokenizer, dict) else json.loads(tokenizer.to_str())
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, separators=(",", ":"))
        hf = load(folder)
        decoder = load_for_decoding(folder)
        added = [t.content for t in hf.get_added_tokens_decoder().values()]
        strings = random_strings(60 if name.startswith(("unigram", "bloom", "neox")) else 80, 42, added[:8])
        parsed, plain, around = expected(hf, strings)
        with open(os.path.join(folder, "cases.jsonl"), "w", encoding="utf-8") as f:
            for s, a, b, c in zip(strings, parsed, plain, around):
                case = {"text": s, "ids": a, "decoded": decoder.decode(a, skip_special_tokens=False),
                        "skipped": decoder.decode(a, skip_special_tokens=True)}
                if b != a:
                    case["as_text"] = b
                if c != a:
                    case["around"] = c
                f.write(json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n")
        size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
        total += size
        print(f"{name:28} {hf.get_vocab_size():5} tokens {size:7} bytes")
    print(f"{total} bytes together")


def write_pairs():
    for name in PAIRS:
        folder = os.path.join(FOLDER, name)
        hf = load(folder)
        requests = pair_requests(random_strings(40, 43, []), 44)
        with open(os.path.join(folder, "pairs.jsonl"), "w", encoding="utf-8") as f:
            for r, e in zip(requests, expected_pairs(hf, requests)):
                f.write(json.dumps({**r, "expected": e}, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("train")
    p.add_argument("names", nargs="*", help="only these")
    commands.add_parser("pairs")
    p = commands.add_parser("compare")
    p.add_argument("binary")
    p.add_argument("folders", nargs="*")
    p.add_argument("--count", type=int, default=10000)
    p.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.command == "train":
        write_small(args.names)
        return 0
    if args.command == "pairs":
        write_pairs()
        return 0
    folders = args.folders + sorted(os.path.join(FOLDER, d) for d in os.listdir(FOLDER))
    return 1 if sum(compare(args.binary, f, args.count, args.seed) for f in folders) else 0


if __name__ == "__main__":
    sys.exit(main())
