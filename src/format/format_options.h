// What options of all formats mean for one of them.
#pragma once

#include "format/weight.h"
#include "lowbit/format.h"

namespace lowbit {

// kInvalidArgument: a value out of range; bits other than those that the format always has (the default is
// passed over), sym off or log_base where they are about another format.
void validate(Format format, const AffineOptions& affine, float log_base);

}  // namespace lowbit
