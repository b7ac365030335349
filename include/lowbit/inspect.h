// What a model folder or a safetensors file is, every byte accounted for. Nothing is loaded or run.
#pragma once

#include <filesystem>
#include <string>

namespace lowbit {

// A JSON object with at least: architecture, parameters, bytes (files), bits_per_weight, format, dialect,
// components [{component, parameters, bytes}] that sum to the files' bytes (headers included), dtypes, ties,
// waste_bytes with reasons, group_order, declared_version, found_version, engines [{engine, verdict, reason}],
// chat_template_sha256, notes, warnings. `path`: a folder or a single .safetensors file.
std::string inspect_json(const std::filesystem::path& path);

// Statistics of one tensor: dtype, shape, min, max, mean, standard deviation, zeros, non-finite values, first values.
std::string inspect_tensor_json(const std::filesystem::path& path, const std::string& tensor_name);

}  // namespace lowbit
