#include "quantize/settings.h"

#include "base/fail.h"
#include "base/fields.h"
#include "checkpoint/dynamic_rules.h"
#include "format/affine.h"

#include <algorithm>
#include <charconv>

namespace lowbit {
namespace {

constexpr std::string_view kActivations = "activations";
constexpr std::string_view kAffineKeys[] = {"bits", "group_size", "sym"};
constexpr std::string_view kGptqKeys[] = {"damp_percent", "desc_act", "static_groups", "act_group_aware",
                                          "mse"};

template <size_t n>
bool contains(const std::string_view (&list)[n], std::string_view key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

Json parse_value(std::string_view text, std::string_view rule) {
  if (text == "true" || text == "True") return Json(true);
  if (text == "false" || text == "False") return Json(false);
  int64_t whole = 0;
  const char* end = text.data() + text.size();
  if (auto [stop, error] = std::from_chars(text.data(), end, whole); error == std::errc() && stop == end)
    return Json(whole);
  double number = 0;
  if (auto [stop, error] = std::from_chars(text.data(), end, number); error == std::errc() && stop == end)
    return Json(number);
  fail(ErrorCode::kInvalidArgument, "dynamic rule \"{}\": \"{}\" is neither a number nor true or false", rule,
       text);
}

Json parse_overrides(std::string_view text, std::string_view rule) {
  Json overrides = Json::object();
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view pair = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t colon = pair.find(':');
    const std::string_view key = pair.substr(0, colon);
    const bool is_known = contains(kAffineKeys, key) || contains(kGptqKeys, key) || key == kActivations;
    if (colon == std::string_view::npos || !is_known) {
      fail(ErrorCode::kInvalidArgument,
           "dynamic rule \"{}\": \"{}\" is no override; expected key:value with a key of bits, group_size, "
           "sym, damp_percent, desc_act, static_groups, act_group_aware, mse, activations",
           rule, pair);
    }
    if (key == kActivations) {
      const std::string_view value = pair.substr(colon + 1);
      if (value != "none") {
        fail(ErrorCode::kInvalidArgument, "dynamic rule \"{}\": activations is \"{}\", expected none", rule,
             value);
      }
      overrides.set(key, value);
      continue;
    }
    overrides.set(key, parse_value(pair.substr(colon + 1), rule));
  }
  return overrides;
}

void apply(const Json& overrides, const QuantizeOptions& options, ModuleSettings& settings) {
  const std::string where = "the dynamic rule for " + settings.module;
  Json affine = Json::object(), gptq = Json::object();
  for (const auto& [key, value] : overrides.as_object()) {
    if (key != kActivations) {
      (contains(kAffineKeys, key) ? affine : gptq).set(key, value);
      continue;
    }
    if (options.dialect != "compressed-tensors" || options.activations == "none") {
      fail(ErrorCode::kInvalidArgument,
           "{} sets activations, which goes with dialect compressed-tensors and inputs in int8, not with {} "
           "and activations {}",
           where, options.dialect, options.activations);
    }
    settings.rounds_inputs = false;
  }
  if (options.format != "affine") {
    for (const auto& [key, value] : affine.as_object()) {
      if (key == "group_size" && options.dialect == "lowbit") continue;
      fail(ErrorCode::kInvalidArgument, "{} sets {}, which is the same for all modules with format {}", where,
           key, options.format);
    }
  }
  if (options.dialect == "compressed-tensors" && affine.size() > 0) {
    fail(ErrorCode::kInvalidArgument,
         "{} sets {}, but lowbit writes compressed-tensors with one scheme for all modules; dialect gptq "
         "takes "
         "several",
         where, affine.as_object()[0].first);
  }
  fields_from_json(option_fields(settings.affine), affine, where);
  fields_from_json(option_fields(settings.gptq), gptq, where);
  AffineOptions checked = settings.affine;
  if (options.format != "affine") checked.bits = AffineOptions{}.bits;  // which no rule has set
  validate(checked);
  if (!(settings.gptq.damp_percent > 0 && settings.gptq.damp_percent < 1)) {
    fail(ErrorCode::kInvalidArgument, "{}: damp_percent is {}, expected a number between 0 and 1", where,
         settings.gptq.damp_percent);
  }
  if (options.dialect != "gptq" && settings.gptq.desc_act && !settings.gptq.static_groups) {
    fail(ErrorCode::kInvalidArgument,
         "{} sets desc_act without static_groups, but dialect {} cannot store the order of columns", where,
         options.dialect);
  }
  if (settings.gptq.desc_act) settings.gptq.act_group_aware = false;
}

bool same_layout(const ModuleSettings& a, const ModuleSettings& b) {
  if (a.is_quantized != b.is_quantized) return false;
  if (!a.is_quantized) return true;
  return a.affine.bits == b.affine.bits && a.affine.group_size == b.affine.group_size &&
         a.affine.sym == b.affine.sym && a.rounds_inputs == b.rounds_inputs &&
         a.gptq.desc_act == b.gptq.desc_act && a.gptq.static_groups == b.gptq.static_groups;
}

// "model.layers.3.self_attn.q_proj" and the stage "qkv" -> "model.layers.3.self_attn.qkv_proj", the name
// under which vLLM and SGLang look up rules for their fused layers.
std::string fused_name(const std::string& module, std::string_view stage) {
  return fmt::format("{}.{}_proj", module.substr(0, module.rfind('.')), stage);
}

std::string escaped(std::string_view text) {
  std::string pattern;
  for (char c : text) {
    if (c == '.') pattern += '\\';
    pattern += c;
  }
  return pattern;
}

class Resolver {
 public:
  Resolver(const QuantizeOptions& options, QuantizationSettings& result)
      : options_(options),
        result_(result),
        dynamic_(parse_dynamic_rules(options.dynamic)),
        rules_(dynamic_, "dynamic") {
    for (const auto& [pattern, overrides] : dynamic_.as_object()) {
      ModuleSettings probe = settings_of(pattern, 1, 1);
      apply(overrides, options, probe);  // so that values are checked even when nothing matches
      Json alone = Json::object();
      alone.set(pattern, overrides);
      reach_.push_back({pattern, DynamicRules(alone, "dynamic"), false});
    }
  }

  ModuleSettings module(const std::string& name, const Weight& weight) {
    ModuleSettings settings = settings_of(name, out_features(weight), in_features(weight));
    for (Reach& rule : reach_) {
      const DynamicRules::Match alone = rule.rules.match(name);
      rule.matches = rule.matches || alone.is_excluded || alone.overrides;
    }
    const DynamicRules::Match match = rules_.match(name);
    if (match.is_excluded) {
      settings.is_quantized = false;
      settings.reason = "a dynamic rule leaves it unquantized";
    } else if (match.overrides) {
      apply(*match.overrides, options_, settings);
    }
    return settings;
  }

  // Warns when a unit is divided, and adds rules for the fused names that the user's patterns do not reach.
  void check_unit(const Stage& stage, const std::vector<ModuleSettings>& linears) {
    if (stage.linears.size() < 2 || rules_.empty()) return;
    const ModuleSettings& first = linears[static_cast<size_t>(stage.linears[0])];
    std::string names;
    bool same = true;
    for (int index : stage.linears) {
      const ModuleSettings& member = linears[static_cast<size_t>(index)];
      names += fmt::format("{}{}", names.empty() ? "" : ", ", member.module);
      same = same && same_layout(first, member);
    }
    if (!same) {
      result_.warnings.push_back(
          fmt::format("dynamic rules treat {} differently: vLLM and SGLang fuse them into one layer and will "
                      "refuse the checkpoint",
                      names));
      return;
    }
    const std::string fused = fused_name(first.module, stage.name);
    ModuleSettings as_fused = first;
    as_fused.is_quantized = true;
    as_fused.affine = options_.affine;
    as_fused.rounds_inputs = rounds_inputs();
    const DynamicRules::Match match = rules_.match(fused);
    if (match.is_excluded) as_fused.is_quantized = false;
    if (match.overrides) apply(*match.overrides, options_, as_fused);
    if (same_layout(first, as_fused)) return;
    Json overrides = Json::object();
    std::string prefix = "-:";
    if (first.is_quantized) {
      prefix = "+:";
      overrides.set("bits", first.affine.bits);
      overrides.set("group_size", first.affine.group_size);
      overrides.set("sym", first.affine.sym);
    }
    fused_rules_.emplace_back(prefix + "^" + escaped(fused) + "$", overrides);
  }

  void warn_of_idle_rules() {
    for (const Reach& rule : reach_) {
      if (rule.matches) continue;
      result_.warnings.push_back(fmt::format("the dynamic rule \"{}\" matches no module; names are like {}",
                                             rule.pattern, result_.layers.at(0).at(0).module));
    }
  }

  Json dynamic() const {
    if (rules_.empty()) return Json();
    Json object = Json::object();
    for (const auto& [pattern, overrides] : fused_rules_) object.set(pattern, overrides);
    for (const auto& [pattern, overrides] : dynamic_.as_object()) object.set(pattern, overrides);
    return object;
  }

 private:
  bool rounds_inputs() const { return options_.activations.starts_with("int8"); }
  ModuleSettings settings_of(const std::string& name, int64_t out, int64_t in) const {
    return {.module = name,
            .out_features = out,
            .in_features = in,
            .rounds_inputs = rounds_inputs(),
            .affine = options_.affine,
            .gptq = options_.gptq};
  }

  struct Reach {
    std::string pattern;
    DynamicRules rules;  // this one alone
    bool matches;
  };

  const QuantizeOptions& options_;
  QuantizationSettings& result_;
  Json dynamic_;
  DynamicRules rules_;
  std::vector<Reach> reach_;
  std::vector<std::pair<std::string, Json>> fused_rules_;
};

void require_whole_groups(const QuantizationSettings& all, std::string_view what) {
  for (const auto& layer : all.layers) {
    for (const ModuleSettings& settings : layer) {
      const int size = settings.affine.group_size;
      if (!settings.is_quantized || size < 0 || settings.in_features % size == 0) continue;
      fail(ErrorCode::kInvalidArgument, "{} has {} columns, no multiple of {}: {}", settings.module,
           settings.in_features, size, what);
    }
  }
}

}  // namespace

bool QuantizationSettings::has_quantized() const {
  for (const auto& layer : layers) {
    for (const ModuleSettings& module : layer) {
      if (module.is_quantized) return true;
    }
  }
  return head.is_quantized;
}

Json parse_dynamic_rules(const std::vector<std::string>& rules) {
  Json object = Json::object();
  for (const std::string& rule : rules) {
    std::string pattern = rule;
    Json overrides = Json::object();
    if (!rule.starts_with("-:")) {
      const size_t equals = rule.rfind('=');
      if (equals == std::string::npos || equals + 1 == rule.size()) {
        fail(ErrorCode::kInvalidArgument,
             "dynamic rule \"{}\" overrides nothing; expected \"REGEX=bits:8,group_size:64\" or \"-:REGEX\"",
             rule);
      }
      pattern = rule.substr(0, equals);
      overrides = parse_overrides(std::string_view(rule).substr(equals + 1), rule);
    }
    if (pattern.empty() || pattern == "-:" || pattern == "+:") {
      fail(ErrorCode::kInvalidArgument, "dynamic rule \"{}\" has an empty pattern", rule);
    }
    object.set(pattern, overrides);
  }
  return object;
}

QuantizationSettings resolve_settings(const Model& model, const QuantizeOptions& options) {
  QuantizationSettings result;
  Resolver resolver(options, result);
  for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
    std::vector<ModuleSettings> linears;
    for (const Linear& linear : model.block(layer).linears())
      linears.push_back(resolver.module(linear.module, linear.weight));
    for (const Stage& stage : model.block(layer).stages()) resolver.check_unit(stage, linears);
    result.layers.push_back(std::move(linears));
  }
  const HeadKind head = model.config().head_kind;
  if (options.lm_head && (head == HeadKind::kNone || head == HeadKind::kClasses)) {
    fail(ErrorCode::kInvalidArgument, "lm_head cannot be quantized: this model has {}; leave out --lm-head",
         head == HeadKind::kNone ? "no head" : "one for classes, which is small and stays dense");
  }
  if (model.has_head()) result.head = resolver.module(model.head().module, model.head().weight);
  if (!options.lm_head) {
    result.head.is_quantized = false;
    result.head.reason = model.is_tied() ? "shares its weights with the embedding"
                                         : "the head stays dense unless lm_head is set";
  } else if (model.is_tied()) {
    fail(ErrorCode::kInvalidArgument,
         "lm_head cannot be quantized: this model's head is its embedding (tie_word_embeddings), which is "
         "looked up by row "
         "and stays dense; leave out --lm-head");
  }
  if (options.dialect == "bitsandbytes" && options.method == "gptq") {
    require_whole_groups(result,
                         "a group of bitsandbytes would go on in the next row, where gptq cannot choose it; "
                         "leave the module out "
                         "with --dynamic, or use --method rtn or --dialect lowbit");
  }
  if (options.dialect == "compressed-tensors") {
    require_whole_groups(
        result,
        "compressed-tensors knows no short groups; choose a group_size that divides it, -1 for "
        "whole rows, or leave the module out with --dynamic");
  }
  resolver.warn_of_idle_rules();
  result.dynamic = resolver.dynamic();
  if (!result.has_quantized()) {
    fail(ErrorCode::kInvalidArgument, "the dynamic rules leave no module to quantize");
  }
  return result;
}

}  // namespace lowbit
