// Whole models in a codebook's format (nf4, fp4), rounded without data and written in the dialect
// bitsandbytes. A matrix at a time goes from the mapped source to the file.
#pragma once

#include "lowbit/quantize.h"

namespace lowbit {

// Options are valid, and format is nf4 or fp4.
QuantizeResult quantize_to_codebook(const std::filesystem::path& model, const std::filesystem::path& out,
                                    const QuantizeOptions& options, const Log& log);

}  // namespace lowbit
