#include "lowbit/tokenizer.h"

#include "base/fail.h"
#include "base/files.h"
#include "base/json.h"
#include "text/tokenizer_state.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;
// Positions in one text fit 32 bits all the way, the normal form and one symbol per byte included.
constexpr size_t kMaxTextBytes = size_t{256} << 20;
constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

Json parse_optional(const fs::path& path) {
  if (!fs::exists(path)) return {};
  return parse_json(read_file(path, kMaxFileBytes), path.string());
}

// Valid UTF-8: each byte that is part of no character becomes U+FFFD. `literal` moves along.
struct CleanText {
  std::string text;
  std::vector<TextRange> literal;
};

CleanText replace_invalid(std::string_view text, std::span<const TextRange> literal) {
  CleanText clean;
  std::vector<size_t> position(text.size() + 1);
  for (size_t at = 0; at < text.size();) {
    const Utf8Unit unit = next_utf8_unit(text, at);
    for (uint32_t i = 0; i < unit.length; ++i) {
      position[at + i] = clean.text.size();
      if (!unit.is_valid) clean.text += kReplacementCharacter;
    }
    if (unit.is_valid) clean.text += text.substr(at, unit.length);
    at += unit.length;
  }
  position[text.size()] = clean.text.size();
  for (const TextRange& range : literal)
    clean.literal.push_back({position[range.begin], position[range.end]});
  return clean;
}

void check_literal(std::span<const TextRange> literal, size_t size) {
  size_t last = 0;
  for (const TextRange& range : literal) {
    if (range.begin < last || range.end < range.begin || range.end > size) {
      fail(ErrorCode::kInvalidArgument,
           "[tokenizer] the literal range {} to {} is not sorted, or not inside of the text of {} bytes",
           range.begin, range.end, size);
    }
    last = range.end;
  }
}

class Encoder {
 public:
  Encoder(const Tokenizer::State& state, const AddedTokens::Filter& filter, std::vector<int32_t>& ids)
      : state_(state), filter_(filter), ids_(ids) {}

  void encode(std::string_view text) {
    max_normalized_ = text.size() * 64 + (size_t{1} << 20);
    std::vector<TextSegment> segments;
    state_.added.split(text, false, filter_, 0, {}, segments);
    for (const TextSegment& segment : segments) {
      if (segment.id >= 0) {
        ids_.push_back(segment.id);
      } else {
        encode_segment(text.substr(segment.range.begin, segment.range.end - segment.range.begin),
                       segment.range.begin);
      }
    }
  }

 private:
  void encode_segment(std::string_view text, size_t base) {
    const bool needs_origin =
        filter_.parse_special && !filter_.literal.empty() && state_.added.has_special_normalized();
    NormalizedText normalized = state_.normalizer.apply(text, needs_origin);
    normalized_total_ += normalized.text.size();
    if (normalized_total_ > max_normalized_) {
      fail(ErrorCode::kUnsupported, "[tokenizer] the normalizer turns a text into more than {} bytes",
           max_normalized_);
    }
    const bool is_start = base == 0 && normalized.keeps_start;
    if (!state_.added.has_normalized()) return encode_piece(std::move(normalized.text), is_start);
    std::vector<TextSegment> segments;
    state_.added.split(normalized.text, true, filter_, base, normalized.origin, segments);
    for (const TextSegment& segment : segments) {
      if (segment.id >= 0) {
        ids_.push_back(segment.id);
      } else {
        encode_piece(normalized.text.substr(segment.range.begin, segment.range.end - segment.range.begin),
                     is_start && segment.range.begin == 0);
      }
    }
  }

  void encode_piece(std::string text, bool is_start) {
    if (text.empty()) return;
    TextPieces pieces;
    pieces.pieces.push_back({0, text.size()});
    pieces.text = std::move(text);
    pieces.is_start = is_start;
    state_.pre_tokenizer.apply(pieces);
    if (pieces.text.size() > static_cast<size_t>(INT32_MAX) - 1) {
      fail(ErrorCode::kInvalidArgument, "[tokenizer] a text of {} bytes is too long for one call: cut it",
           pieces.text.size());
    }
    state_.model->encode(pieces.text, pieces.pieces, ids_);
  }

  const Tokenizer::State& state_;
  const AddedTokens::Filter& filter_;
  std::vector<int32_t>& ids_;
  size_t normalized_total_ = 0, max_normalized_ = 0;
};

// Null for what is to be skipped.
const std::string* text_to_decode(const Tokenizer::State& state, int32_t id, const DecodeOptions& options) {
  const std::string* text = state.text(id);
  if (text == nullptr && options.skip_unknown_ids) return nullptr;
  if (text == nullptr) {
    fail(ErrorCode::kInvalidArgument, "[tokenizer] there is no token with id {}, the vocabulary ends at {}",
         id, state.end_id - 1);
  }
  return options.skip_special_tokens && state.added.is_special(*text) ? nullptr : text;
}

}  // namespace

Tokenizer Tokenizer::load(const fs::path& model_folder) {
  const fs::path path = model_folder / "tokenizer.json";
  if (!fs::exists(path)) {
    fail(ErrorCode::kNotFound,
         "[tokenizer] {} has no tokenizer.json. Where there is only a tokenizer.model or a vocab.json, "
         "transformers writes one: "
         "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
         model_folder.string());
  }
  Tokenizer tokenizer;
  tokenizer.state_ = read_tokenizer(parse_json(read_file(path, kMaxFileBytes), path.string()),
                                    parse_optional(model_folder / "tokenizer_config.json"),
                                    parse_optional(model_folder / "special_tokens_map.json"), path.string());
  return tokenizer;
}

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                               std::string_view where) {
  Tokenizer tokenizer;
  const Json config = tokenizer_config_json.empty()
                          ? Json()
                          : parse_json(tokenizer_config_json, fmt::format("{} (config)", where));
  tokenizer.state_ = read_tokenizer(parse_json(tokenizer_json, where), config, Json(), where);
  return tokenizer;
}

namespace {

void encode_text(const Tokenizer::State& state, std::string_view text, const EncodeOptions& options,
                 std::vector<int32_t>& ids) {
  if (text.size() > kMaxTextBytes) {
    fail(ErrorCode::kInvalidArgument, "[tokenizer] a text has {} bytes, at most {} go into one call: cut it",
         text.size(), kMaxTextBytes);
  }
  check_literal(options.literal, text.size());
  AddedTokens::Filter filter{options.parse_special_tokens, options.literal};
  CleanText clean;
  if (!is_utf8(text)) {
    clean = replace_invalid(text, options.literal);
    text = clean.text;
    filter.literal = clean.literal;
  }
  ids.reserve(ids.size() + text.size() / 4 + 8);
  Encoder(state, filter, ids).encode(text);
}

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  if (!options.add_special_tokens) {
    encode_text(*state_, text, options, ids);
    return ids;
  }
  for (const PostProcessor::Piece& piece : state_->post_processor.single) {
    if (piece.id == PostProcessor::kFirst) {
      encode_text(*state_, text, options, ids);
    } else {
      ids.push_back(piece.id);
    }
  }
  return ids;
}

EncoderInput Tokenizer::encode_input(std::string_view text, std::optional<std::string_view> second,
                                     int64_t max_length, const EncodeOptions& options) const {
  const PostProcessor& post = state_->post_processor;
  const std::vector<PostProcessor::Piece>& pieces = second ? post.pair : post.single;
  if (pieces.empty())
    fail(ErrorCode::kUnsupported, "[tokenizer] tokenizer.json does not say what stands around two texts");
  std::vector<int32_t> texts[2];
  encode_text(*state_, text, options, texts[0]);
  if (second) encode_text(*state_, *second, options, texts[1]);
  const size_t around = pieces.size() - (second ? 2 : 1);
  if (max_length > 0 && static_cast<size_t>(max_length) <= around) {
    fail(ErrorCode::kInvalidArgument,
         "[tokenizer] max_length is {}, but the special tokens around a text are {} already", max_length,
         around);
  }
  EncoderInput input;
  input.full_length = static_cast<int64_t>(around + texts[0].size() + texts[1].size());
  if (max_length > 0 && input.full_length > max_length) {
    const size_t room = static_cast<size_t>(max_length) - around;
    const bool is_first_longer = texts[0].size() > texts[1].size();
    size_t shorter = texts[is_first_longer].size();
    if (2 * shorter > room) shorter = room / 2;
    texts[is_first_longer].resize(shorter);
    texts[!is_first_longer].resize(room - shorter);
  }
  for (const PostProcessor::Piece& piece : pieces) {
    if (piece.id >= 0) {
      input.ids.push_back(piece.id);
    } else {
      const std::vector<int32_t>& ids = texts[piece.id == PostProcessor::kSecond];
      input.ids.insert(input.ids.end(), ids.begin(), ids.end());
    }
    input.types.resize(input.ids.size(), piece.type);
  }
  return input;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  DecoderRun run(state_->decoder);
  for (int32_t id : ids) {
    if (const std::string* text = text_to_decode(*state_, id, options)) run.push(*text);
  }
  run.finish();
  return run.take();
}

std::string Tokenizer::token(int32_t id) const {
  const std::string* text = state_->text(id);
  return text == nullptr ? std::string() : *text;
}

std::optional<int32_t> Tokenizer::find_token(std::string_view token) const {
  const int32_t id = state_->find(token);
  return id < 0 ? std::nullopt : std::optional(id);
}

bool Tokenizer::is_special(int32_t id) const {
  const std::string* text = state_->text(id);
  return text != nullptr && state_->added.is_special(*text);
}

int32_t Tokenizer::vocab_size() const { return state_->end_id; }
std::optional<int32_t> Tokenizer::bos_id() const { return state_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return state_->eos; }
std::optional<int32_t> Tokenizer::pad_id() const { return state_->pad; }
std::optional<int32_t> Tokenizer::unk_id() const { return state_->unk; }

struct StreamDecoder::State {
  State(std::shared_ptr<const Tokenizer::State> state, const DecodeOptions& decode_options)
      : tokenizer(std::move(state)), options(decode_options), run(tokenizer->decoder) {}
  std::shared_ptr<const Tokenizer::State> tokenizer;
  DecodeOptions options;
  DecoderRun run;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, const DecodeOptions& options)
    : state_(std::make_unique<State>(tokenizer.state_, options)) {}

StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(int32_t id) {
  if (const std::string* text = text_to_decode(*state_->tokenizer, id, state_->options))
    state_->run.push(*text);
  return state_->run.take();
}

std::string StreamDecoder::finish() {
  state_->run.finish();
  return state_->run.take();
}

}  // namespace lowbit
