// Text to token ids and back, as a model's own tokenizer.json defines it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// Bytes [begin, end) of a text.
struct TextRange {
  size_t begin = 0, end = 0;
};

struct EncodeOptions {
  bool add_special_tokens =
      false;  // run the post-processor (BOS, [CLS] ...), as transformers does by default
  bool parse_special_tokens =
      false;  // "<|im_end|>" in the text becomes the special token; otherwise it stays text
  std::span<const TextRange> literal =
      {};  // with parse_special_tokens: ranges (sorted) in which nothing is special
};

struct DecodeOptions {
  bool skip_special_tokens = false;
  // An id without a token decodes to nothing instead of throwing: a model may have more rows than its
  // tokenizer has tokens (Qwen2: 151,936 and 151,665) and give one of those.
  bool skip_unknown_ids = false;
};

// What an encoder reads.
struct EncoderInput {
  std::vector<int32_t> ids, types;  // types: 0 for the first text and what belongs to it, 1 for the second
  int64_t full_length = 0;          // ids that it would be if nothing was cut
};

class Tokenizer {
 public:
  // Reads tokenizer.json of a model folder, and tokenizer_config.json beside it where present.
  // Errors: kNotFound, kCorruptFile, kUnsupported (names the component that is not known).
  static Tokenizer load(const std::filesystem::path& model_folder);
  // `where` names the source in messages. An empty tokenizer_config_json is allowed.
  static Tokenizer from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                             std::string_view where);

  // Linear in the length of the text. Text that is not UTF-8: each invalid byte becomes U+FFFD.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;
  // One text or two, with the special tokens around them and the token types that the post-processor gives.
  // max_length > 0: at most so many ids; what the longer text has more is cut off its end first, then both
  // are (transformers: longest_first). kUnsupported: the post-processor knows no pairs.
  // options.add_special_tokens is not read.
  EncoderInput encode_input(std::string_view text, std::optional<std::string_view> second = {},
                            int64_t max_length = 0, const EncodeOptions& options = {}) const;
  // Ids outside the vocabulary throw kInvalidArgument, unless skipped.
  std::string decode(std::span<const int32_t> ids, const DecodeOptions& options = {}) const;

  // The token as it stands in the vocabulary ("Ġthe", "▁the", "##ing"); empty when the id has no token.
  std::string token(int32_t id) const;
  std::optional<int32_t> find_token(std::string_view token) const;
  bool is_special(int32_t id) const;
  int32_t vocab_size() const;  // largest id + 1, added tokens included

  std::optional<int32_t> bos_id() const;  // of tokenizer_config.json
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;
  std::optional<int32_t> unk_id() const;

  struct State;  // internal

 private:
  friend class StreamDecoder;
  std::shared_ptr<const State> state_;
};

// Turns ids into text one by one; never returns half a character. Concatenated results plus finish() equal
// Tokenizer::decode of all ids.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, const DecodeOptions& options = {});
  ~StreamDecoder();
  std::string push(int32_t id);
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lowbit
