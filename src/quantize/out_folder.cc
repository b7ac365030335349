#include "quantize/out_folder.h"

#include "base/fail.h"

#include <algorithm>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

bool lies_in(const fs::path& inner, const fs::path& outer) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

}  // namespace

fs::path normal_out(const fs::path& out) {
  const fs::path normal = out.lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

fs::path partial_folder(const fs::path& out) {
  fs::path partial = normal_out(out);
  partial += ".partial";
  return partial;
}

void check_out_folder(const fs::path& model, const fs::path& given, bool overwrite) {
  if (given.empty()) fail(ErrorCode::kInvalidArgument, "no output folder was given");
  const fs::path out = normal_out(given);
  std::error_code error;
  const fs::path source = fs::weakly_canonical(model, error), target = fs::weakly_canonical(out, error);
  if (lies_in(source, target) || lies_in(target, source)) {
    fail(ErrorCode::kInvalidArgument,
         "the output folder {} and the model {} overlap: choose another output folder", out.string(),
         model.string());
  }
  if (!fs::exists(out)) return;
  if (!fs::is_directory(out))
    fail(ErrorCode::kInvalidArgument, "{} exists and is not a folder", out.string());
  if (!overwrite) {
    fail(ErrorCode::kInvalidArgument,
         "{} exists already: give --overwrite to replace it, or choose another folder", out.string());
  }
}

}  // namespace lowbit
