#include "format/format_options.h"

#include "base/fail.h"
#include "format/affine.h"
#include "format/codebook.h"

namespace lowbit {

void validate(Format format, const AffineOptions& affine, float log_base) {
  const std::string_view name = format_name(format);
  const AffineOptions usual;
  AffineOptions checked = affine;
  if (format == Format::kLog2) {
    validate(LogOptions{affine.bits, log_base});
  } else if (log_base != LogOptions{}.log_base) {
    fail(ErrorCode::kInvalidArgument, "log_base is about format log2, but format is {}", name);
  }
  if (format != Format::kAffine) {
    const int bits = bits_of(format).value_or(affine.bits);
    if (affine.bits != bits && affine.bits != usual.bits)
      fail(ErrorCode::kInvalidArgument, "bits is {}, but format {} always has {}", affine.bits, name, bits);
    if (!affine.sym)
      fail(ErrorCode::kInvalidArgument, "sym off is about format affine, but format is {}", name);
    checked.bits = usual.bits;
  }
  validate(checked);
}

}  // namespace lowbit
