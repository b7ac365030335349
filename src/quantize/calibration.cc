#include "quantize/calibration.h"

#include "base/fail.h"
#include "lowbit/chat.h"
#include "lowbit/dataset.h"
#include "quantize/fingerprint.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <set>

namespace lowbit {
namespace {

using Ids = std::vector<int32_t>;

// splitmix64 (Steele, Lea, Flood 2014).
uint64_t next_random(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

std::vector<size_t> shuffled(size_t count, uint64_t seed) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[next_random(seed) % i]);
  return order;
}

// Example number -> ids, all of them.
class Source {
 public:
  Source(const std::filesystem::path& model, const CalibrationOptions& options)
      : data_(load_dataset(options.data)), tokenizer_(Tokenizer::load(model)) {
    if (is_chat()) template_ = std::make_unique<ChatTemplate>(ChatTemplate::load(model));
    if (data_.kind == DatasetKind::kPlainText) {
      for (const Example& example : data_.examples) {
        const Ids ids = tokenizer_.encode(example.text);
        const size_t length = static_cast<size_t>(options.max_length);
        for (size_t begin = 0; begin < ids.size(); begin += length) {
          // The rest of a text is a window only when there is no whole one.
          if (begin > 0 && begin + length > ids.size()) break;
          windows_.emplace_back(
              ids.begin() + static_cast<std::ptrdiff_t>(begin),
              ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), begin + length)));
        }
      }
    }
  }

  size_t count() const {
    return data_.kind == DatasetKind::kPlainText ? windows_.size() : data_.examples.size();
  }
  const std::vector<std::string>& warnings() const { return data_.warnings; }

  std::string kind() const {
    if (is_chat()) return "chat";
    return data_.kind == DatasetKind::kText ? "text" : "plain text";
  }

  bool is_chat() const { return data_.kind == DatasetKind::kChat; }
  std::string hash(size_t index) const { return dialogue_hash(data_.examples[index].messages); }

  Ids ids(size_t index) const {
    if (data_.kind == DatasetKind::kPlainText) return windows_[index];
    const Example& example = data_.examples[index];
    if (is_chat()) {
      ChatOptions options;
      options.add_generation_prompt = false;
      return encode_chat(tokenizer_, *template_, example.messages, options);
    }
    EncodeOptions options;
    options.add_special_tokens = true;
    return tokenizer_.encode(example.text, options);
  }

 private:
  Dataset data_;
  Tokenizer tokenizer_;
  std::unique_ptr<ChatTemplate> template_;
  std::vector<Ids> windows_;
};

}  // namespace

int64_t Calibration::longest() const {
  size_t most = 0;
  for (const Ids& ids : samples) most = std::max(most, ids.size());
  for (const Ids& ids : held_back) most = std::max(most, ids.size());
  return static_cast<int64_t>(most);
}

Json Calibration::facts() const {
  Json json = Json::object();
  json.set("kind", kind);
  json.set("examples", examples);
  json.set("samples", static_cast<int64_t>(samples.size()));
  json.set("held_back", static_cast<int64_t>(held_back.size()));
  json.set("tokens", tokens);
  json.set("tokens_hash", sequences_hash(samples));
  json.set("truncated", truncated);
  json.set("dropped", dropped);
  std::vector<int64_t> lengths;
  for (const Ids& ids : samples) lengths.push_back(static_cast<int64_t>(ids.size()));
  std::sort(lengths.begin(), lengths.end());
  Json spread = Json::object();
  for (const auto& [name, share] :
       {std::pair{"least", 0.0}, {"p25", 0.25}, {"median", 0.5}, {"p75", 0.75}, {"most", 1.0}}) {
    if (!lengths.empty())
      spread.set(name, lengths[static_cast<size_t>(share * static_cast<double>(lengths.size() - 1))]);
  }
  json.set("tokens_per_sample", spread);
  return json;
}

Calibration load_calibration(const std::filesystem::path& model, const CalibrationOptions& asked,
                             int64_t max_positions) {
  CalibrationOptions options = asked;
  Calibration result;
  if (max_positions > 1 && options.max_length > max_positions) {
    options.max_length = max_positions;
    result.warnings.push_back(
        fmt::format("max_length {} is more than the model's {} positions, which is used instead",
                    asked.max_length, max_positions));
  }
  const Source source(model, options);
  for (const std::string& warning : source.warnings()) result.warnings.push_back(warning);
  result.kind = source.kind();
  result.examples = static_cast<int64_t>(source.count());

  const size_t check = static_cast<size_t>(std::clamp<int64_t>((options.samples + 19) / 20, 2, 16));
  const size_t wanted = static_cast<size_t>(options.samples) + check;
  struct Chosen {
    size_t index;
    Ids ids;
    bool was_longer;
  };
  std::vector<Chosen> chosen;
  std::set<Ids> seen;
  for (size_t index : shuffled(source.count(), options.seed)) {
    if (chosen.size() >= wanted) break;
    Ids ids = source.ids(index);
    const bool longer = ids.size() > static_cast<size_t>(options.max_length);
    if (longer) ids.resize(static_cast<size_t>(options.max_length));
    if (ids.size() < 2 || !seen.insert(ids).second) {
      ++result.dropped;
      continue;
    }
    chosen.push_back({index, std::move(ids), longer});
  }
  if (chosen.empty()) {
    fail(ErrorCode::kInvalidArgument, "{}: none of its {} examples has two tokens or more",
         options.data.string(), result.examples);
  }
  size_t held_back = check;
  if (chosen.size() < wanted) {
    held_back = chosen.size() < 3   ? 0
                : chosen.size() < 8 ? 1
                                    : std::clamp<size_t>((chosen.size() + 19) / 20, 2, 16);
    held_back = std::max(
        held_back,
        std::min(check, chosen.size() - std::min(chosen.size(), static_cast<size_t>(options.samples))));
    result.warnings.push_back(fmt::format(
        "{} holds {} usable examples; {} were asked for, {} calibrate and {} are held back",
        options.data.string(), chosen.size(), options.samples, chosen.size() - held_back, held_back));
  }
  const size_t samples = chosen.size() - held_back;
  // In the order of the file, so that the seed does not matter when all examples are used.
  std::sort(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(samples),
            [](const Chosen& a, const Chosen& b) { return a.index < b.index; });
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (i < samples) {
      result.tokens += static_cast<int64_t>(chosen[i].ids.size());
      result.truncated += chosen[i].was_longer;
      if (source.is_chat()) result.dialogue_hashes.push_back(source.hash(chosen[i].index));
      result.samples.push_back(std::move(chosen[i].ids));
    } else {
      result.held_back.push_back(std::move(chosen[i].ids));
    }
  }
  if (result.truncated > 0) {
    result.warnings.push_back(fmt::format("{} of {} calibration samples were cut to {} tokens",
                                          result.truncated, samples, options.max_length));
  }
  return result;
}

std::string sequences_hash(const std::vector<Ids>& sequences) {
  Hash hash;
  for (const Ids& ids : sequences) {
    hash.add_number(ids.size());
    hash.add(ids.data(), ids.size() * sizeof(int32_t));
  }
  return hash.text();
}

}  // namespace lowbit
