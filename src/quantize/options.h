// The options of quantize, checked at the door and settled: what --compat implies is filled in.
#pragma once

#include "base/json.h"
#include "format/nested_scales.h"
#include "format/weight.h"
#include "lowbit/fields.h"
#include "lowbit/quantize.h"

#include <optional>

namespace lowbit {

// kInvalidArgument names the option, its value and what was expected. Whether calibration data are there is
// asked by require_calibration, because a plan may be made without.
void validate(const QuantizeOptions& options);

// gptq without data is an error that names --method rtn; inputs that are to be observed without data, too.
void require_calibration(const QuantizeOptions& options);

// Whether a pass over calibration data looks at the inputs of the layers: for their ranges, or to smooth
// them.
bool observes_inputs(const QuantizeOptions& options);

// The option that keeps the run on the CPU, with its value, or empty: for choose_device.
std::string cpu_only_option(const QuantizeOptions& options);

// Of dialect bitsandbytes: what the bytes of 4-bit codes are called.
DType bnb_quant_storage(const QuantizeOptions& options);
// How scales are encoded themselves; nothing where they are not.
std::optional<NestedRounding> nested_rounding(const QuantizeOptions& options);

// What products of the result do with their inputs, but for modules that `dynamic` takes out.
ActivationFormat input_format(const QuantizeOptions& options);

// Whether a matrix goes from the source to the file at once: quantize_rounded.
bool is_rounded(const QuantizeOptions& options);

// The options that really hold. dialect "auto" becomes one. compat "autogptq" sets damp_percent 0.01 (unless
// it was changed), no clip search, no group-aware order and group parameters without a block's own updates.
// Formats with bits of their own set affine.bits, dialects with groups of their own affine.group_size.
QuantizeOptions settled(const QuantizeOptions& options);

// All options as one object, in the words of the command line; `calibration.data` as text.
Json options_json(const QuantizeOptions& options);

}  // namespace lowbit
