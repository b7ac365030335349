// What a model folder or a safetensors file is, every byte accounted for. Nothing is loaded or run.
#pragma once

#include <filesystem>
#include <string>

namespace lowbit {

// A JSON object: architecture, parameters (a tied head counts once), bytes (files), bits_per_weight (tensor
// bytes over parameters, both of the whole model), bits_per_quantized_weight (codes, scales, zeros and g_idx
// over quantized parameters), format, dialect, components [{component, parameters, bytes, codes_bytes, ...}]
// that sum to the files' bytes (headers included), dtypes [{kind, dtype, tensors, parameters, bytes}],
// number_formats [{dtype, tensors, parameters, bytes, lowest, largest, smallest_normal, step_at_one}] (packed
// codes are a format of their own, "4-bit codes", in steps of their scale), ties, waste [{reason, bytes}],
// waste_bytes, bytes_without_waste, group_order, declared_version, found_version, quantized_modules, engines
// [{engine, verdict, reason}], chat_template_sha256, files, notes, warnings. `path`: a folder or a single
// .safetensors file. A folder of a dialect that lowbit does not read is described by its tensors alone, with
// a warning. Errors: kNotFound, kCorruptFile, kUnsupported (pickle).
std::string inspect_json(const std::filesystem::path& path);

// Statistics of one tensor: dtype, shape, bytes, elements, min, max, mean, standard_deviation, zeros,
// non_finite, nan, infinite, first_values. The name is one of the file, or "<module>.weight" of a quantized
// module: then of the values that its codes stand for. kNotFound says which names are similar.
std::string inspect_tensor_json(const std::filesystem::path& path, const std::string& tensor_name);

}  // namespace lowbit
