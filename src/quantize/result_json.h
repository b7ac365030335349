// quantize_report.json: how a model was made, module by module, and what can run it.
#pragma once

#include "base/json.h"
#include "quantize/calibration.h"
#include "quantize/output.h"

namespace lowbit {

// calibration: null when there was none. verdict: of the check, empty when it did not run.
Json result_json(const QuantizeResult& result, const QuantizeOptions& options,
                 const QuantizationSettings& settings, const Calibration* calibration,
                 const std::string& verdict);

Json engines_json(const std::vector<EngineVerdict>& engines);
Json strings_json(const std::vector<std::string>& strings);

}  // namespace lowbit
