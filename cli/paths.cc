#include "paths.h"

#include "lowbit/error.h"
#include "terminal.h"

#include <fmt/format.h>
#include <fstream>

namespace lowbit::cli {
namespace fs = std::filesystem;

void require_model(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    throw Error(
        ErrorCode::kNotFound,
        fmt::format("there is no folder {}: give a local folder in the Hugging Face layout (config.json, "
                    "tokenizer.json, *.safetensors); lowbit never downloads",
                    path.string()));
  }
  if (!fs::is_directory(path, ignored)) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("{} is a file; a model is a folder with config.json, tokenizer.json and *.safetensors",
                    path.string()));
  }
  if (!fs::is_regular_file(path / "config.json", ignored)) {
    throw Error(ErrorCode::kNotFound,
                fmt::format("the folder {} has no config.json, so it is not a model in the Hugging Face "
                            "layout",
                            path.string()));
  }
}

void require_file(const fs::path& path, const std::string& option) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    throw Error(ErrorCode::kNotFound, fmt::format("{}: there is no file {}", option, path.string()));
  }
  if (fs::is_directory(path, ignored)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: {} is a folder, a file is expected", option, path.string()));
  }
}

void require_parent(const fs::path& path, const std::string& option) {
  if (path.filename().empty() && path.parent_path().empty()) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: the path is empty", option));
  }
  // "out/" names the folder out.
  const fs::path named = path.filename().empty() ? path.parent_path() : path;
  const fs::path parent = named.has_parent_path() ? named.parent_path() : fs::path(".");
  std::error_code ignored;
  if (!fs::is_directory(parent, ignored)) {
    throw Error(ErrorCode::kNotFound, fmt::format("{}: {} cannot be made, there is no folder {}", option,
                                                  path.string(), parent.string()));
  }
}

std::string read_text(const fs::path& path, const std::string& option) {
  if (path == "-") return read_stdin();
  require_file(path, option);
  constexpr uintmax_t kMost = uintmax_t{64} << 20;
  if (fs::file_size(path) > kMost) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: {} is larger than 64 MiB", option, path.string()));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw Error(ErrorCode::kNotFound, fmt::format("{}: {} cannot be read", option, path.string()));
  return text;
}

std::string name_of(const fs::path& folder) {
  const fs::path path = folder.lexically_normal();
  const fs::path name = path.has_filename() ? path.filename() : path.parent_path().filename();
  return name.empty() ? folder.string() : name.string();
}

uint64_t safetensors_bytes(const fs::path& folder) {
  uint64_t bytes = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().extension() == ".safetensors") bytes += entry.file_size();
  }
  return bytes;
}

}  // namespace lowbit::cli
