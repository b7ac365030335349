#include "quantize/result_json.h"

#include "lowbit/version.h"
#include "quantize/options.h"
#include "quantize/work_folder.h"

#include <algorithm>

namespace lowbit {

Json strings_json(const std::vector<std::string>& strings) {
  Json array = Json::array();
  for (const std::string& text : strings) array.push_back(Json(text));
  return array;
}

Json engines_json(const std::vector<EngineVerdict>& engines) {
  Json array = Json::array();
  for (const EngineVerdict& engine : engines) {
    Json entry = Json::object();
    entry.set("engine", engine.engine);
    entry.set("verdict", engine.verdict);
    entry.set("reason", engine.reason);
    array.push_back(entry);
  }
  return array;
}

Json result_json(const QuantizeResult& result, const QuantizeOptions& options,
                 const QuantizationSettings& settings, const Calibration* calibration,
                 const std::string& verdict) {
  Json json = Json::object();
  json.set("lowbit", version());
  json.set("seconds", result.seconds);
  Json phases = Json::object();
  for (const auto& [phase, seconds] : result.seconds_by_phase) phases.set(phase, seconds);
  json.set("seconds_by_phase", phases);
  json.set("peak_rss_bytes", result.peak_rss_bytes);
  json.set("peak_anonymous_bytes", result.peak_anonymous_bytes);
  if (result.peak_gpu_bytes > 0) json.set("peak_gpu_bytes", result.peak_gpu_bytes);
  json.set("source_bytes", result.source_bytes);
  json.set("bytes", result.bytes);
  json.set("bits_per_weight", result.bits_per_weight);
  json.set("resumed", result.resumed);
  Json check = Json::object();
  check.set("ran", result.checked);
  if (result.checked) {
    check.set("passed", result.passed);
    check.set("verdict", verdict);
    check.set("mean_kl", result.mean_kl);
    check.set("top1_agreement", result.top1_agreement);
    check.set("tokens", result.check_tokens);
    check.set("protocol",
              "KL(source || result) in nats per token over held-back calibration samples, after reloading "
              "from disk");
  }
  json.set("check", check);
  json.set("options", options_json(options));
  Json facts = calibration ? calibration->facts() : Json();
  // So that an evaluation can tell when it asks what the model was calibrated on.
  if (calibration) facts.set("dialogue_hashes", strings_json(calibration->dialogue_hashes));
  json.set("calibration", facts);
  json.set("engines",
           options.dialect == "gptq" ? engines_json(output_engines(settings, options)) : Json::array());
  json.set("warnings", strings_json(result.warnings));
  std::vector<ModuleReport> worst;
  for (const ModuleReport& report : result.modules) {
    if (report.method != "none") worst.push_back(report);
  }
  std::stable_sort(worst.begin(), worst.end(), [](const ModuleReport& a, const ModuleReport& b) {
    return a.relative_error > b.relative_error;
  });
  Json names = Json::array();
  for (size_t i = 0; i < std::min<size_t>(5, worst.size()); ++i) names.push_back(Json(worst[i].module));
  json.set("worst_modules", names);
  Json modules = Json::array();
  for (const ModuleReport& report : result.modules) modules.push_back(to_json(report));
  json.set("modules", modules);
  return json;
}

}  // namespace lowbit
