// nf4, fp4 and int8 in the dialect bitsandbytes, beside what bitsandbytes itself wrote, and int8 in the
// dialect compressed-tensors.
#include "checkpoint/checkpoint.h"
#include "io/safetensors.h"
#include "lowbit/convert.h"
#include "lowbit/quantize.h"
#include "quantize/test_problem.h"
#include "support.h"

#include <cstring>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

QuantizeOptions options_of(const std::string& format, bool use_double_quant = false) {
  QuantizeOptions options;
  options.method = "rtn";
  options.format = format;
  options.dialect = "bitsandbytes";
  options.bnb_4bit_use_double_quant = use_double_quant;
  options.threads = 2;
  return options;
}

std::map<std::string, Tensor> tensors_of(const fs::path& folder) {
  std::map<std::string, Tensor> tensors;
  for (const NamedTensor& named : open_safetensors(folder / "model.safetensors").tensors)
    tensors.emplace(named.name, named.tensor);
  return tensors;
}

// bitsandbytes takes the mean of nested scales in F32, and the state's offset is printed: these may differ.
TEST(RoundedModel, HasTheBytesOfBitsandbytes) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  TemporaryFolder folder;
  const fs::path source = folder.path() / "bf16";
  const fs::path half = folder.path() / "fp16";
  convert(material / "model-tinystories-656k-llama", source, {.to = "bfloat16"});
  convert(material / "model-tinystories-656k-llama", half, {.to = "float16"});
  struct Case {
    const char* peer;
    const char* format;
    bool is_nested;
    double bits;
  };
  // Small matrices: codebooks weigh, and scales of rows.
  for (const Case& c : {Case{"tiny-nf4", "nf4", false, 4.6},
                        {"tiny-nf4-dq", "nf4", true, 4.3},
                        {"tiny-int8", "int8", false, 8.2}}) {
    SCOPED_TRACE(c.peer);
    const fs::path out = folder.path() / c.peer, peer = material / "peers" / "bnb" / c.peer;
    const bool is_int8 = c.format == std::string("int8");
    QuantizeOptions options = options_of(c.format, c.is_nested);
    if (c.is_nested) options.compat = "bitsandbytes-cpu";
    const QuantizeResult result = quantize(is_int8 ? half : source, out, options);
    EXPECT_EQ(result.modules.size(), 14u);
    EXPECT_NEAR(result.bits_per_weight, c.bits, 0.2);
    const auto ours = tensors_of(out), theirs = tensors_of(peer);
    ASSERT_EQ(ours.size(), theirs.size());
    for (const auto& [name, expected] : theirs) {
      // The source names the matrix that is embedding and head after the head.
      const auto found = ours.find(name == "model.embed_tokens.weight" ? "lm_head.weight" : name);
      ASSERT_NE(found, ours.end()) << name;
      ASSERT_EQ(found->second.dtype(), expected.dtype()) << name;
      const bool may_differ =
          c.is_nested && (name.ends_with(".nested_absmax") || name.find(".quant_state.") != name.npos);
      if (may_differ) continue;
      EXPECT_TRUE(same_bytes(found->second, expected)) << name;
    }
    const Json config = read_checkpoint(out).quantization->config;
    EXPECT_EQ(config.dump(), read_checkpoint(peer).quantization->config.dump());
  }
}

TEST(RoundedModel, ReadsAsItWasRoundedForAnyNumberOfThreads) {
  TemporaryFolder folder;
  write_tiny_model(folder.path() / "model", {});
  for (const std::string format : {"nf4", "fp4", "int8", "int8 compressed", "int8 packed"}) {
    for (const bool is_nested : {false, true}) {
      if (is_nested && format.starts_with("int8")) continue;
      SCOPED_TRACE(format);
      QuantizeOptions options = options_of(format.substr(0, format.find(' ')), is_nested);
      if (format.find(' ') != format.npos) options.dialect = "compressed-tensors";
      if (format == "int8 compressed") options.activations = "int8-dynamic";
      options.overwrite = true;
      const QuantizeResult result = quantize(folder.path() / "model", folder.path() / "out", options);
      const std::string bytes = read_file(folder.path() / "out" / "model.safetensors");
      options.threads = 1;
      quantize(folder.path() / "model", folder.path() / "out", options);
      EXPECT_TRUE(read_file(folder.path() / "out" / "model.safetensors") == bytes);
      EXPECT_FALSE(fs::exists(folder.path() / "out.partial"));
      const Checkpoint source = read_checkpoint(folder.path() / "model"),
                       made = read_checkpoint(folder.path() / "out");
      for (const ModuleReport& module : result.modules) {
        const Tensor dense =
            converted(std::get<Tensor>(source.weights.at(module.module + ".weight")), DType::kF32);
        const auto& weight = std::get<QuantizedTensor>(made.weights.at(module.module + ".weight"));
        const bool has_int8_inputs = format == "int8" || format == "int8 compressed";
        EXPECT_EQ(weight.activations,
                  has_int8_inputs ? ActivationFormat::kInt8Dynamic : ActivationFormat::kNone);
        EXPECT_EQ(weight.outlier_threshold, format == "int8" ? 6 : 0);
        const Tensor rounded = dequantized(weight);
        double error = 0, size = 0;
        for (int64_t i = 0; i < dense.element_count(); ++i) {
          error += std::pow(double{dense.data<float>()[i]} - rounded.data<float>()[i], 2);
          size += std::pow(dense.data<float>()[i], 2);
        }
        EXPECT_NEAR(std::sqrt(error / size) / module.relative_error, 1, is_nested ? 0.02 : 1e-5)
            << module.module;
      }
    }
  }
}

TEST(RoundedModel, WhatDoesNotGoTogetherIsRefused) {
  auto refusal = [](const QuantizeOptions& options) {
    return error_of(ErrorCode::kInvalidArgument, [&] { quantize("model", "out", options); });
  };
  QuantizeOptions options = options_of("nf4");
  options.dialect = "gptq";
  EXPECT_NE(refusal(options).find("bitsandbytes"), std::string::npos);
  options = options_of("nf4");
  options.method = "gptq";
  EXPECT_NE(refusal(options).find("calibration"), std::string::npos);
  options.gptq.desc_act = true;
  EXPECT_NE(refusal(options).find("static_groups"), std::string::npos);
  options = options_of("nf4");
  options.affine.bits = 8;
  EXPECT_NE(refusal(options).find("always has 4"), std::string::npos);
  options = options_of("nf4");
  options.affine.group_size = 32;
  EXPECT_NE(refusal(options).find("always has 64"), std::string::npos);
  options = options_of("nf4");
  options.affine.sym = false;
  EXPECT_NE(refusal(options).find("sym"), std::string::npos);
  options = options_of("nf4");
  options.log_base = 3;
  EXPECT_NE(refusal(options).find("log_base"), std::string::npos);
  options = options_of("log2");
  EXPECT_NE(refusal(options).find("lowbit"), std::string::npos);
  options.dialect = "lowbit";
  options.affine.bits = 2;
  EXPECT_NE(refusal(options).find("3 to 8"), std::string::npos);
  options = options_of("affine");
  options.dialect = "lowbit";
  EXPECT_NE(refusal(options).find("gptq"), std::string::npos);
  options = options_of("fp8");
  options.dialect = "lowbit";
  options.checkpoint_format = "gptq_v2";
  EXPECT_NE(refusal(options).find("checkpoint_format"), std::string::npos);
  options = options_of("nf4");
  options.calibration.data = "data.jsonl";
  EXPECT_NE(refusal(options).find("calibration"), std::string::npos);
  options = options_of("int8");
  options.activations = "none";
  EXPECT_NE(refusal(options).find("compressed-tensors"), std::string::npos);
  options = options_of("nf4");
  options.activations = "int8-dynamic";
  EXPECT_NE(refusal(options).find("int8"), std::string::npos);
  options = options_of("nf4");
  options.dialect = "compressed-tensors";
  EXPECT_NE(refusal(options).find("compressed-tensors cannot spell format nf4"), std::string::npos);
  options = options_of("int8");
  for (const float bad : {-1.0f, NAN, INFINITY}) {
    options.llm_int8_threshold = bad;
    EXPECT_NE(refusal(options).find("llm_int8_threshold"), std::string::npos);
  }
  options = options_of("int8");
  options.dialect = "compressed-tensors";
  options.llm_int8_threshold = 3;
  EXPECT_NE(refusal(options).find("llm_int8_threshold"), std::string::npos);
  options = options_of("int8");
  options.bnb_4bit_compute_dtype = "float16";
  EXPECT_NE(refusal(options).find("bnb_4bit_compute_dtype is about nf4 and fp4"), std::string::npos);
  options = options_of("nf4");
  options.bnb_4bit_quant_storage = "int4";
  EXPECT_NE(refusal(options).find("expected uint8, bfloat16"), std::string::npos);
  options = {};
  options.method = "rtn";
  options.bnb_4bit_use_double_quant = true;
  EXPECT_NE(refusal(options).find("bnb_4bit_use_double_quant"), std::string::npos);
}

// Whatever they are called, the bytes are the same.
TEST(RoundedModel, CodesAreWrittenUnderTheNameOfOtherTypes) {
  TemporaryFolder folder;
  write_tiny_model(folder.path() / "model", {.layers = 1});
  const std::string module = "model.layers.0.mlp.down_proj.weight";
  const auto made = [&](const std::string& storage) {
    QuantizeOptions options = options_of("nf4", true);
    options.bnb_4bit_quant_storage = storage;
    options.bnb_4bit_compute_dtype = "float16";
    options.overwrite = true;
    quantize(folder.path() / "model", folder.path() / "out", options);
    return read_checkpoint(folder.path() / "out");
  };
  const Checkpoint plain = made("uint8");
  const Tensor bytes = tensors_of(folder.path() / "out").at(module);
  ASSERT_EQ(bytes.dtype(), DType::kU8);
  const std::pair<const char*, DType> kinds[] = {
      {"bfloat16", DType::kBF16}, {"float16", DType::kF16}, {"float32", DType::kF32}};
  for (const auto& [storage, dtype] : kinds) {
    SCOPED_TRACE(storage);
    const Checkpoint other = made(storage);
    const Tensor codes = tensors_of(folder.path() / "out").at(module);
    EXPECT_EQ(codes.dtype(), dtype);
    EXPECT_EQ(codes.shape(), (Shape{bytes.size(0) / static_cast<int64_t>(dtype_size(dtype)), 1}));
    ASSERT_EQ(codes.byte_count(), bytes.byte_count());
    EXPECT_EQ(std::memcmp(codes.bytes(), bytes.bytes(), bytes.byte_count()), 0);
    EXPECT_EQ(other.quantization->config.get("bnb_4bit_quant_storage").as_string(), storage);
    EXPECT_EQ(other.quantization->config.get("bnb_4bit_compute_dtype").as_string(), "float16");
    EXPECT_TRUE(same_bytes(dequantized(std::get<QuantizedTensor>(other.weights.at(module))),
                           dequantized(std::get<QuantizedTensor>(plain.weights.at(module)))));
  }
}

TEST(RoundedModel, ModulesLeftAsTheyAreStandInTheConfig) {
  TemporaryFolder folder;
  write_tiny_model(folder.path() / "model", {.layers = 1});
  QuantizeOptions options = options_of("nf4");
  options.dynamic = {"-:.*o_proj"};
  quantize(folder.path() / "model", folder.path() / "out", options);
  const Checkpoint made = read_checkpoint(folder.path() / "out");
  EXPECT_EQ(made.quantization->config.get("llm_int8_skip_modules").dump(),
            R"(["model.layers.0.self_attn.o_proj", "lm_head"])");
  EXPECT_TRUE(std::holds_alternative<Tensor>(made.weights.at("model.layers.0.self_attn.o_proj.weight")));
}

}  // namespace
}  // namespace lowbit
