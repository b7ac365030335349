// tokenizer.json and its companions to a Tokenizer::State, deciding as HF tokenizers and transformers 5 do.
#include "base/fail.h"
#include "text/tokenizer_state.h"

#include <algorithm>

namespace lowbit {
namespace {

// Runs `body`; an error that it throws is given the place it came from.
template <class Body>
auto at_place(std::string_view where, std::string_view part, Body body) {
  try {
    return body();
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}: {}", where, part, error.what()));
  }
}

bool is_given(const Json* json) { return json != nullptr && !json->is_null(); }

// A special token of a config: "text" or {"content": "text", ...}. Empty when absent or null.
std::string token_of(const Json* json) {
  if (!is_given(json)) return "";
  if (json->is_object()) return json->get("content").as_string();
  return json->is_string() ? json->as_string() : "";
}

class Reader {
 public:
  Reader(const Json& config, const Json& special_tokens_map, std::string_view where)
      : config_(config),
        map_(special_tokens_map),
        where_(where),
        state_(std::make_shared<Tokenizer::State>()) {}

  std::shared_ptr<const Tokenizer::State> read(Json& tokenizer) {
    Tokenizer::State& state = *state_;
    const auto part = [&](const char* key) { return static_cast<const Json&>(tokenizer).find(key); };
    Json* model = tokenizer.find("model");
    if (model == nullptr || !model->is_object()) {
      fail(ErrorCode::kCorruptFile, "{}: there is no \"model\" object: this is not a tokenizer.json", where_);
    }
    at_place(where_, "model", [&] { state.model = TokenizerModel::from_json(*model); });
    at_place(where_, "normalizer", [&] { state.normalizer = Normalizer::from_json(part("normalizer")); });
    at_place(where_, "pre_tokenizer",
             [&] { state.pre_tokenizer = PreTokenizer::from_json(part("pre_tokenizer")); });
    at_place(where_, "decoder", [&] { state.decoder = Decoder::from_json(part("decoder")); });
    at_place(where_, "added_tokens", [&] { read_added_tokens(part("added_tokens")); });
    at_place(where_, "tokenizer_config", [&] { read_config_tokens(); });
    state.added.prepare(state.normalizer);
    state.end_id = state.model->vocabulary().end_id();
    if (!state.added_texts.empty())
      state.end_id = std::max(state.end_id, state.added_texts.rbegin()->first + 1);
    at_place(where_, "post_processor",
             [&] { state.post_processor = PostProcessor::from_json(part("post_processor"), state.end_id); });
    at_place(where_, "tokenizer_config", [&] { read_named_tokens(part("post_processor")); });
    return state_;
  }

 private:
  // The id that a new token gets: HF tokenizers does not look at the one in the file.
  int32_t next_id() const {
    const auto size = static_cast<int32_t>(state_->model->vocabulary().size());
    if (state_->added_texts.empty()) return size;
    const int32_t last = largest_added_;
    return last >= size || size == 0 ? last + 1 : size;
  }

  void add(const AddedToken& token, int32_t id) {
    state_->added.add(token, id);
    state_->added_texts[id] = token.content;
    state_->added_ids[token.content] = id;
    largest_added_ = std::max(largest_added_, id);
  }

  bool has(const AddedToken& token) const {
    const int32_t id = state_->find(token.content);
    const AddedToken* known = id < 0 ? nullptr : state_->added.find(id);
    return known != nullptr && *known == token;
  }

  void read_added_tokens(const Json* list) {
    if (!is_given(list)) return;
    for (const Json& json : list->as_array()) {
      const AddedToken token = AddedToken::from_json(json);
      if (token.content.empty() || has(token)) continue;  // as HF tokenizers: without effect
      const int64_t written = json.get("id").as_integer();
      const int32_t known = state_->find(token.content);
      const int32_t id = known >= 0 ? known : next_id();
      if (written != id) {
        fail(ErrorCode::kCorruptFile,
             "the added token \"{}\" has id {}, but {} gives it id {}: the file was edited, or tokens are "
             "missing or swapped",
             token.content.substr(0, 100), written,
             known >= 0 ? "its place in the vocabulary" : "the number of tokens before it", id);
      }
      add(token, id);
    }
  }

  // transformers adds what its config has and tokenizer.json has not, or has with other flags, in the order
  // of ids.
  void read_config_tokens() {
    if (const Json* decoder = config_.find("added_tokens_decoder"); is_given(decoder)) {
      std::map<int64_t, AddedToken> tokens;
      for (const auto& [key, value] : decoder->as_object()) {
        if (key.empty() || key.size() > 9 ||
            !std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; })) {
          fail(ErrorCode::kCorruptFile, "added_tokens_decoder has the key \"{}\", expected an id",
               key.substr(0, 100));
        }
        tokens[std::stol(key)] = AddedToken::from_json(value);
      }
      for (const auto& [written, token] : tokens) {
        if (token.content.empty() || has(token)) continue;
        const int32_t known = state_->find(token.content);
        const int32_t id = known >= 0 ? known : next_id();
        if (id > Vocabulary::kMaxId) fail(ErrorCode::kCorruptFile, "more than {} tokens", Vocabulary::kMaxId);
        if (id != written) {
          fail(ErrorCode::kCorruptFile,
               "added_tokens_decoder gives \"{}\" id {}, but in the tokenizer it has id {}",
               token.content.substr(0, 100), written, id);
        }
        add(token, id);
      }
    }
    for (const char* key :
         {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
      add_special(named(key));
    }
    for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
      const Json* list = config_.find(key);
      if (list == nullptr || !list->is_array()) continue;
      for (const Json& token : list->as_array()) add_special(token_of(&token));
    }
  }

  // A token of the model's vocabulary that the config calls special. Names that no vocabulary knows stay
  // text: the ids that transformers would invent for them lie outside of the model.
  void add_special(const std::string& content) {
    if (content.empty() || content.size() > TokenMatcher::kMaxContentBytes ||
        state_->added_ids.count(content) > 0)
      return;
    const int32_t id = state_->find(content);
    if (id < 0) return;
    AddedToken token;
    token.content = content;
    token.special = true;
    token.normalized = false;
    add(token, id);
  }

  std::string named(std::string_view key) const {
    const std::string token = token_of(config_.find(key));
    return config_.find(key) == nullptr ? token_of(map_.find(key)) : token;
  }

  std::optional<int32_t> named_id(std::string_view key) const {
    const int32_t id = state_->find(named(key));
    return id < 0 ? std::nullopt : std::optional(id);
  }

  void read_named_tokens(const Json* post_processor) {
    Tokenizer::State& state = *state_;
    state.bos = named_id("bos_token");
    state.eos = named_id("eos_token");
    state.pad = named_id("pad_token");
    state.unk = named_id("unk_token");
    if (!state.unk && !state.model->unk_token().empty()) state.unk = state.find(state.model->unk_token());
    // transformers builds its own post-processor where the config names these switches, or where there is
    // none.
    const Json* add_bos = config_.find("add_bos_token");
    const Json* add_eos = config_.find("add_eos_token");
    if ((add_bos == nullptr && add_eos == nullptr) && is_given(post_processor)) return;
    const auto is_on = [](const Json* json) { return json != nullptr && json->is_bool() && json->as_bool(); };
    PostProcessor& post = state.post_processor;
    post.single.clear();
    const auto around = [&](int32_t text, int32_t type, std::vector<PostProcessor::Piece>& pieces) {
      if (is_on(add_bos) && state.bos) pieces.push_back({*state.bos, type});
      pieces.push_back({text, type});
      if (is_on(add_eos) && state.eos) pieces.push_back({*state.eos, type});
    };
    around(PostProcessor::kFirst, 0, post.single);
    post.pair = post.single;
    around(PostProcessor::kSecond, 1, post.pair);
  }

  const Json& config_;
  const Json& map_;
  std::string_view where_;
  std::shared_ptr<Tokenizer::State> state_;
  int32_t largest_added_ = -1;
};

}  // namespace

int32_t Tokenizer::State::find(std::string_view token) const {
  const auto added = added_ids.find(token);
  return added != added_ids.end() ? added->second : model->vocabulary().find(token);
}

const std::string* Tokenizer::State::text(int32_t id) const {
  if (const auto added = added_texts.find(id); added != added_texts.end()) return &added->second;
  return model->vocabulary().has(id) ? &model->vocabulary().token(id) : nullptr;
}

PostProcessor PostProcessor::from_json(const Json* json, int32_t end_id) {
  PostProcessor post;
  if (is_given(json)) post.add(*json, end_id);
  return post;
}

void PostProcessor::add(const Json& json, int32_t end_id) {
  const std::string& type = json.get("type").as_string();
  const auto checked = [&](const Json& id) {
    const int64_t value = id.as_integer();
    if (value < 0 || value >= end_id) {
      fail(ErrorCode::kCorruptFile, "{} adds the id {}, the vocabulary has 0 to {}", type, value, end_id - 1);
    }
    return static_cast<int32_t>(value);
  };
  if (single.size() + pair.size() > 4096)
    fail(ErrorCode::kUnsupported, "more than 4096 special tokens around a text");
  const auto type_of = [](const Json& piece) {
    const Json* given = piece.find("type_id");
    const int64_t value = given ? given->as_integer() : 0;
    if (value < 0 || value > 1 << 16)
      fail(ErrorCode::kCorruptFile, "the template has type_id {}, expected 0 to 65536", value);
    return static_cast<int32_t>(value);
  };
  if (type == "Sequence") {
    for (const Json& element : json.get("processors").as_array()) add(element, end_id);
  } else if (type == "ByteLevel") {
    // Moves offsets only.
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    const auto id_of = [&](std::string_view key) {
      const Json& pair = json.get(key);  // ["[SEP]", 102]
      if (!pair.is_array() || pair.size() != 2)
        fail(ErrorCode::kCorruptFile, "\"{}\" is not a pair of token and id", key);
      return checked(pair.as_array()[1]);
    };
    const int32_t cls = id_of("cls"), sep = id_of("sep");
    if (type == "BertProcessing") {
      wrap({{cls, 0}, {kFirst, 0}, {sep, 0}}, {{cls, 0}, {kFirst, 0}, {sep, 0}, {kSecond, 1}, {sep, 1}});
    } else {
      wrap({{cls, 0}, {kFirst, 0}, {sep, 0}},
           {{cls, 0}, {kFirst, 0}, {sep, 0}, {sep, 0}, {kSecond, 0}, {sep, 0}});
    }
  } else if (type == "TemplateProcessing") {
    const auto pieces_of = [&](std::string_view key) {
      std::vector<Piece> pieces;
      for (const Json& piece : json.get(key).as_array()) {
        if (const Json* sequence = piece.find("Sequence")) {
          pieces.push_back({sequence->get("id").as_string() == "B" ? kSecond : kFirst, type_of(*sequence)});
        } else if (const Json* special = piece.find("SpecialToken")) {
          const Json& known = json.get("special_tokens").get(special->get("id").as_string());
          for (const Json& id : known.get("ids").as_array())
            pieces.push_back({checked(id), type_of(*special)});
        } else {
          fail(ErrorCode::kUnsupported,
               "a part of the template is neither a \"Sequence\" nor a \"SpecialToken\"");
        }
      }
      return pieces;
    };
    const auto count = [](const std::vector<Piece>& pieces, int32_t text) {
      return std::count_if(pieces.begin(), pieces.end(),
                           [&](const Piece& piece) { return piece.id == text; });
    };
    const std::vector<Piece> one = pieces_of("single");
    if (count(one, kFirst) != 1 || count(one, kSecond) != 0) {
      fail(ErrorCode::kUnsupported, "the template for one text has {} texts, expected 1",
           count(one, kFirst) + count(one, kSecond));
    }
    std::vector<Piece> two;
    if (is_given(json.find("pair"))) two = pieces_of("pair");
    if (count(two, kFirst) != 1 || count(two, kSecond) != 1) two.clear();
    wrap(one, two);
  } else {
    fail(ErrorCode::kUnsupported, "the post-processor \"{}\" is not supported", type);
  }
}

// Around what processors before have put around the texts. What several of them make of a pair is not known.
void PostProcessor::wrap(const std::vector<Piece>& around_one, const std::vector<Piece>& around_two) {
  const std::vector<Piece> inner = single;
  single.clear();
  for (const Piece& piece : around_one) {
    if (piece.id != kFirst) {
      single.push_back(piece);
    } else if (inner.size() == 1) {
      single.push_back({kFirst, piece.type});
    } else {
      single.insert(single.end(), inner.begin(), inner.end());
    }
  }
  pair = inner.size() == 1 ? around_two : std::vector<Piece>();
}

std::shared_ptr<const Tokenizer::State> read_tokenizer(Json tokenizer, const Json& config,
                                                       const Json& special_tokens_map,
                                                       std::string_view where) {
  return Reader(config, special_tokens_map, where).read(tokenizer);
}

}  // namespace lowbit
