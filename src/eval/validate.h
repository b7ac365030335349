// Options of this room, checked once at the door. kInvalidArgument names the option, its value and what is
// expected.
#pragma once

#include "lowbit/evaluate.h"
#include "lowbit/fields.h"

namespace lowbit {

void validate(const ClassifyOptions& options);
void validate(const PerplexityOptions& options);
void validate(const DivergenceOptions& options);
void validate(const EmbeddingsOptions& options);

}  // namespace lowbit
