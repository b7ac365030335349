// One list of fields per options struct feeds the command line, JSON, the report and the Python keywords.
// A field is a name (snake_case, the ecosystem's word), a pointer to the member, and one sentence of help
// with unit and range. The default is the member's own.
#pragma once

#include "lowbit/bytes.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace lowbit {

struct Field {
  std::string_view name;
  std::variant<bool*, int*, int64_t*, uint64_t*, float*, double*, std::string*, std::vector<std::string>*,
               std::vector<int64_t>*, std::optional<bool>*, Bytes*>
      value;
  std::string_view help;
};

using Fields = std::vector<Field>;

struct AffineOptions;
struct GptqOptions;
struct InputOptions;
struct CalibrationOptions;
struct QuantizeOptions;
struct RuntimeOptions;
struct GenerateOptions;
struct EmbedOptions;
struct ClassifyOptions;
struct PerplexityOptions;
struct DivergenceOptions;
struct BenchOptions;
struct EmbeddingsOptions;
struct MemoryEstimateOptions;
struct ExplainOptions;

Fields option_fields(AffineOptions& options);
Fields option_fields(GptqOptions& options);
Fields option_fields(InputOptions& options);
Fields option_fields(CalibrationOptions& options);  // all but `data`, which is a path
Fields option_fields(
    QuantizeOptions& options);  // its own members; affine, inputs, gptq, calibration have lists of their own
Fields option_fields(RuntimeOptions& options);
Fields option_fields(GenerateOptions& options);
Fields option_fields(EmbedOptions& options);
Fields option_fields(ClassifyOptions& options);
Fields option_fields(PerplexityOptions& options);
Fields option_fields(DivergenceOptions& options);
Fields option_fields(BenchOptions& options);
Fields option_fields(EmbeddingsOptions& options);  // those of `embed` have a list of their own
Fields option_fields(MemoryEstimateOptions& options);
Fields option_fields(ExplainOptions& options);  // but `format` and `affine`

}  // namespace lowbit
