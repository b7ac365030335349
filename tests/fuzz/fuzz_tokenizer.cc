// tokenizer.json from untrusted bytes. The first byte says how the rest is cut: a tokenizer file and a text
// for it, or, with one of the fixed tokenizers here, a text alone. What loads must encode and decode any text
// or say why not, and a stream must give what decode gives.
#include "lowbit/error.h"
#include "lowbit/tokenizer.h"

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

using lowbit::Tokenizer;

constexpr const char* kFixed[] = {
    R"({"model":{"type":"BPE","byte_fallback":true,"unk_token":"<unk>","fuse_unk":true,"vocab":{"<unk>":0,"a":1,"b":2,"ab":3,"▁":4,
        "▁a":5,"<0x0A>":6,"<0xE2>":7,"<0x81>":8},"merges":["a b","▁ a"]},
        "normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
        "added_tokens":[{"id":9,"content":"<s>","special":true,"normalized":true,"lstrip":true},{"id":10,"content":"bb","single_word":true,"rstrip":true}],
        "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},
        {"type":"Strip","content":" ","start":1,"stop":1}]}})",
    R"({"model":{"vocab":{"[UNK]":0,"a":1,"##b":2,"ab":3,"你":4},"unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":20},
        "normalizer":{"type":"BertNormalizer"},"pre_tokenizer":{"type":"BertPreTokenizer"},"decoder":{"type":"WordPiece"}})",
    R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"Ġ":2,"ab":3,"â":4,"Ģ":5},"merges":["a b"],"ignore_merges":true},"normalizer":{"type":"NFKC"},
        "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}|\\s+(?!\\S)|\\w+"},"behavior":"MergedWithNext"},
        {"type":"Digits","individual_digits":true},{"type":"ByteLevel"}]},"decoder":{"type":"ByteLevel"}})",
    R"({"model":{"type":"Unigram","byte_fallback":true,"unk_id":0,"vocab":[["<unk>",0],["▁",-2],["a",-1],["ab",-3],["▁a",-2],["aba",-1],["é",-4],
        ["<0xE2>",-9],["<0x81>",-9],["<0x0A>",-9]]},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"WhitespaceSplit"},
        {"type":"Metaspace","replacement":"▁","prepend_scheme":"first"}]},"decoder":{"type":"Metaspace","replacement":"▁"}})",
};

void exercise(const Tokenizer& tokenizer, std::string_view text) {
  const lowbit::TextRange literal[] = {{text.size() / 3, text.size() / 2}};
  for (bool parse : {false, true}) {
    lowbit::EncodeOptions options{.add_special_tokens = parse, .parse_special_tokens = parse};
    if (parse) options.literal = literal;
    try {
      const std::vector<int32_t> ids = tokenizer.encode(text, options);
      for (bool skip : {false, true}) {
        const lowbit::DecodeOptions decode{.skip_special_tokens = skip};
        const std::string whole = tokenizer.decode(ids, decode);
        lowbit::StreamDecoder stream(tokenizer, decode);
        std::string all;
        for (int32_t id : ids) all += stream.push(id);
        all += stream.finish();
        if (all != whole) std::abort();
      }
    } catch (const lowbit::Error&) {
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<Tokenizer> kTokenizers = [] {
    std::vector<Tokenizer> list;
    for (const char* json : kFixed) list.push_back(Tokenizer::from_json(json, "", "fixed"));
    return list;
  }();
  if (size < 2) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 7 < kTokenizers.size()) {  // smoke.sh begins a file with '{', which is 4 of 7
    exercise(kTokenizers[data[0] % 7], rest);
    return 0;
  }
  // A file, and after a byte FF (which no JSON has) a text.
  const size_t cut = rest.find('\xFF');
  const std::string_view text = cut == rest.npos ? "ab a\u0301 12 \u4F60 <s>" : rest.substr(cut + 1);
  try {
    exercise(Tokenizer::from_json(rest.substr(0, cut), "", "fuzz"), text);
  } catch (const lowbit::Error&) {
  }
  return 0;
}
