// What the tensors of a model add up to: parameters, bytes, data types, and bytes that a loaded model does
// without.
#pragma once

#include "checkpoint/inspect_source.h"

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

struct ComponentBytes {
  int64_t parameters = 0;
  std::map<std::string_view, uint64_t> bytes;  // by kind: codes, zeros, scales, g_idx, codebook, dense
  uint64_t total() const;
};

struct Waste {
  uint64_t head = 0, biases = 0, g_idx = 0, buffers = 0;
};

struct TypeCount {
  int64_t tensors = 0, parameters = 0;
  uint64_t bytes = 0;
  void add(const TypeCount& other);
};

// Parameters are what the model computes with: the elements of dense tensors, and of quantized weights as
// many as their codes stand for, however they are packed. A head that is tied to the embedding counts once,
// in the file or not.
struct Summary {
  std::set<std::string, std::less<>> modules;  // quantized ones
  std::map<std::string_view, ComponentBytes> components;
  std::map<std::pair<std::string, std::string>, TypeCount> dtypes;  // component or part of a module, dtype
  std::map<std::string, TypeCount> number_formats;                  // "BF16", "4-bit codes", ...
  std::vector<int64_t> weight_sizes;  // parameters of each weight, bias and norm
  Waste waste;
  int64_t parameters = 0, quantized_parameters = 0;
  int64_t tied_parameters = 0;  // of a head that is the embedding: not counted again
  uint64_t tensor_bytes = 0, quantized_bytes = 0, header_bytes = 0;
  // False where tensors are packed in a dialect that lowbit does not read: then only dense ones are counted.
  bool knows_all_parameters = true;

  // Of the tensors that a loaded model keeps, in the data types of the file.
  uint64_t kept_bytes() const { return tensor_bytes - waste.head - waste.biases - waste.buffers; }
};

Summary summarize(const InspectSource& source);

}  // namespace lowbit
