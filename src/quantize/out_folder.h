// Where the result may be put.
#pragma once

#include <filesystem>

namespace lowbit {

// `out` without a slash at its end, so that siblings can be named after it.
std::filesystem::path normal_out(const std::filesystem::path& out);

// OUT.partial
std::filesystem::path partial_folder(const std::filesystem::path& out);

// kInvalidArgument: out is the model, holds it or lies inside of it; out exists and may not be replaced, or
// is a file.
void check_out_folder(const std::filesystem::path& model, const std::filesystem::path& out, bool overwrite);

}  // namespace lowbit
