// Paths from the command line, checked before any work. Errors say what is there instead and what to give.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace lowbit::cli {

// A folder with a config.json.
void require_model(const std::filesystem::path& path);
void require_file(const std::filesystem::path& path, const std::string& option);
// A file or folder that is to be made: the folder it goes to must be there.
void require_parent(const std::filesystem::path& path, const std::string& option);
// The text of a file, or of stdin for "-". At most 64 MiB.
std::string read_text(const std::filesystem::path& path, const std::string& option);
// The last part of a path: what a table calls the model there.
std::string name_of(const std::filesystem::path& folder);
// Sum of the sizes of *.safetensors in a folder.
uint64_t safetensors_bytes(const std::filesystem::path& folder);

}  // namespace lowbit::cli
