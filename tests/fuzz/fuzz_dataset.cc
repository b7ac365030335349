// Bytes of a JSONL file (a leading 'T' makes them plain text): reading ends in examples or in a
// lowbit::Error.
#include "lowbit/dataset.h"
#include "lowbit/error.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const bool is_text = !input.empty() && input[0] == 'T';
  try {
    lowbit::DatasetOptions options;
    options.label_key = "label";
    const auto dataset = lowbit::parse_dataset(
        input, is_text ? lowbit::DatasetSyntax::kPlainText : lowbit::DatasetSyntax::kJson, "fuzz", options);
    if (dataset.examples.empty()) std::abort();
  } catch (const lowbit::Error& error) {
    if (error.code() == lowbit::ErrorCode::kInternal) std::abort();
  }
  return 0;
}
