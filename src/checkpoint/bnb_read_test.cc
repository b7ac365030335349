#include "base/files.h"
#include "base/sha256.h"
#include "checkpoint/bnb.h"
#include "format/codebook.h"
#include "format/nested_scales.h"
#include "support.h"
#include "tensor/half.h"

#include <cmath>
#include <cstring>
#include <fstream>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

Tensor dense_of(const Weight& weight) {
  return std::holds_alternative<Tensor>(weight) ? converted(std::get<Tensor>(weight), DType::kF32)
                                                : dequantized(std::get<QuantizedTensor>(weight));
}

// The goldens were made by reading the files plainly in Python (material/peers/README.md).
TEST(BnbRead, EveryPeerFileOfFourBitsDecodesToItsGolden) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  int folders = 0, matrices = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(material / "peers" / "bnb")) {
    const std::string folder = entry.path().filename().string();
    if (folder == "raw" || folder.ends_with("int8")) continue;
    SCOPED_TRACE(folder);
    const Checkpoint checkpoint = read_checkpoint(entry.path());
    const Json golden =
        parse_json(read_file(entry.path() / "golden.json"), "golden.json", {.allow_nan = true});
    ASSERT_TRUE(checkpoint.quantization.has_value());
    EXPECT_EQ(checkpoint.quantization->dialect, "bitsandbytes");
    for (const auto& [name, hash] : golden.get("dequant_weight_sha256_f32").as_object()) {
      const auto weight = checkpoint.weights.find(name);
      ASSERT_NE(weight, checkpoint.weights.end()) << name;
      const Tensor dense = dense_of(weight->second);
      Sha256 sum;
      sum.append(dense.bytes(), dense.byte_count());
      EXPECT_EQ(sum.finish(), hash.as_string()) << name;
      matrices += std::holds_alternative<QuantizedTensor>(weight->second);
    }
    for (const auto& [name, weight] : checkpoint.weights)
      EXPECT_TRUE(std::holds_alternative<QuantizedTensor>(weight) ||
                  is_floating(std::get<Tensor>(weight).dtype()))
          << name;
    ++folders;
  }
  EXPECT_GE(folders, 8);
  EXPECT_GE(matrices, 8 * 8);
}

std::map<std::string, Tensor> tensors_of(const fs::path& path) {
  std::map<std::string, Tensor> tensors;
  for (const NamedTensor& named : open_safetensors(path).tensors) tensors.emplace(named.name, named.tensor);
  return tensors;
}

// "normal_48x64.fp32.nf4.bs64.plain.packed" and what belongs to it.
struct RawCase {
  std::string prefix;  // "normal_48x64.fp32.nf4.bs64.plain"
  Format format;
  size_t group_size;
  std::vector<float> input;
};
std::vector<RawCase> raw_cases(const std::map<std::string, Tensor>& tensors, const std::string& ending) {
  std::vector<RawCase> cases;
  for (const auto& [name, packed] : tensors) {
    if (!name.ends_with(ending + ".packed")) continue;
    RawCase found{.prefix = name.substr(0, name.size() - 7)};
    const size_t type = name.find(".nf4.bs") != name.npos ? name.find(".nf4.bs") : name.find(".fp4.bs");
    found.format = name.substr(type + 1, 3) == "nf4" ? Format::kNf4 : Format::kFp4;
    found.group_size = std::stoul(name.substr(type + 7));
    const Tensor values = converted(tensors.at(name.substr(0, type) + ".input"), DType::kF32);
    const float* data = values.data<float>();
    found.input.assign(data, data + values.element_count());
    cases.push_back(std::move(found));
  }
  return cases;
}

struct Encoded {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};
Encoded encoded(const RawCase& c) {
  Encoded result{std::vector<uint8_t>(c.input.size() + c.input.size() % 2), {}};
  for (size_t first = 0; first < c.input.size(); first += c.group_size) {
    const size_t count = std::min(c.group_size, c.input.size() - first);
    result.scales.push_back(encode_group(levels_of(c.format), std::span(c.input).subspan(first, count),
                                         result.codes.data() + first, 1));
  }
  if (c.input.size() % 2) result.codes.back() = levels_of(c.format).code_of_zero;
  return result;
}

// Against bitsandbytes 0.50.2 on the CPU: scales and codes to the byte. It divides by the scale of a last
// group that is short, where others multiply with the reciprocal: a code may then fall to the other side of a
// middle. A tie of fp4 below 0 goes to the lower value there, and to the smaller magnitude on CUDA and here.
TEST(BnbRead, RawTensorsAreEncodedToTheByte) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const auto tensors = tensors_of(material / "peers" / "bnb" / "raw" / "quantize_4bit.safetensors");
  const std::vector<RawCase> cases = raw_cases(tensors, "plain");
  EXPECT_GE(cases.size(), 70u);
  int64_t different = 0, all = 0;
  for (const RawCase& c : cases) {
    SCOPED_TRACE(c.prefix);
    const Encoded ours = encoded(c);
    const Tensor &absmax = tensors.at(c.prefix + ".absmax"), &packed = tensors.at(c.prefix + ".packed");
    ASSERT_EQ(static_cast<size_t>(absmax.element_count()), ours.scales.size());
    EXPECT_EQ(std::memcmp(absmax.bytes(), ours.scales.data(), absmax.byte_count()), 0);
    ASSERT_EQ(packed.byte_count() * 2, ours.codes.size());
    const auto* bytes = static_cast<const uint8_t*>(packed.bytes());
    for (size_t i = 0; i < ours.codes.size(); ++i, ++all) {
      const int theirs = i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15;
      const Codebook codebook = codebook_of(c.format);
      if (codebook[static_cast<size_t>(theirs)] == codebook[ours.codes[i]]) {
        // There the two zeros of fp4 stand in the order of a sort: 0 for what is below 0, 8 for what is
        // above.
        EXPECT_TRUE(theirs == ours.codes[i] || c.format == Format::kFp4) << i;
        continue;
      }
      ++different;
      if (i >= c.input.size()) continue;
      // The two values are as near as floats tell.
      const float x = c.input[i] / ours.scales[i / c.group_size];
      EXPECT_NEAR(std::abs(codebook[static_cast<size_t>(theirs)] - x), std::abs(codebook[ours.codes[i]] - x),
                  1e-6)
          << i;
    }
  }
  EXPECT_LE(different, 40) << "of " << all;
}

TEST(BnbRead, RawTensorsAreDecodedToTheBit) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const auto tensors = tensors_of(material / "peers" / "bnb" / "raw" / "quantize_4bit.safetensors");
  int found = 0;
  for (const char* ending : {"plain", "dq"}) {
    for (const RawCase& c : raw_cases(tensors, ending)) {
      const auto expected = tensors.find(c.prefix + ".dequant");
      if (expected == tensors.end() || expected->second.dtype() != DType::kF32) continue;
      SCOPED_TRACE(c.prefix);
      std::vector<float> scales((c.input.size() + c.group_size - 1) / c.group_size);
      if (std::string(ending) == "plain") {
        std::memcpy(scales.data(), tensors.at(c.prefix + ".absmax").bytes(), scales.size() * 4);
      } else {
        const Tensor &codes = tensors.at(c.prefix + ".absmax_u8"),
                     &outer = tensors.at(c.prefix + ".nested_absmax");
        const auto* first = static_cast<const uint8_t*>(codes.bytes());
        NestedScales nested{{first, first + scales.size()}, {}, dynamic_map_signed(), 0};
        nested.outer_scales.assign(outer.data<float>(), outer.data<float>() + outer.element_count());
        nested.offset = tensors.at(c.prefix + ".offset").data<float>()[0];
        scales = unnested(nested);
      }
      const auto* bytes = static_cast<const uint8_t*>(tensors.at(c.prefix + ".packed").bytes());
      int wrong = 0;
      for (size_t i = 0; i < c.input.size(); ++i) {
        const int code = i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15;
        wrong += decode_code(codebook_of(c.format), code, scales[i / c.group_size]) !=
                 expected->second.data<float>()[i];
      }
      EXPECT_EQ(wrong, 0);
      ++found;
    }
  }
  EXPECT_GE(found, 20);
}

// Given its offset and the scales beside them, as it has them without double quantization.
TEST(BnbRead, NestedCodesAreThoseOfItsCpuTable) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const auto tensors = tensors_of(material / "peers" / "bnb" / "raw" / "quantize_4bit.safetensors");
  int64_t found = 0;
  for (const auto& [name, codes] : tensors) {
    const std::string ending = ".dq.absmax_u8";
    if (!name.ends_with(ending)) continue;
    const std::string prefix = name.substr(0, name.size() - ending.size());
    const auto plain = tensors.find(prefix + ".plain.absmax");
    if (plain == tensors.end()) continue;
    SCOPED_TRACE(prefix);
    std::vector<float> scales(static_cast<size_t>(plain->second.element_count()));
    std::memcpy(scales.data(), plain->second.bytes(), plain->second.byte_count());
    const float offset = tensors.at(prefix + ".dq.offset").data<float>()[0];
    const NestedScales ours = nested(scales, offset, NestedRounding::kCpuTable);
    const Tensor& outer = tensors.at(prefix + ".dq.nested_absmax");
    ASSERT_EQ(codes.byte_count(), ours.codes.size());
    EXPECT_EQ(std::memcmp(codes.bytes(), ours.codes.data(), ours.codes.size()), 0);
    EXPECT_EQ(std::memcmp(outer.bytes(), ours.outer_scales.data(), outer.byte_count()), 0);
    EXPECT_NEAR(mean_of(scales), offset, 2e-7f * std::abs(offset));
    ++found;
  }
  EXPECT_GE(found, 60);
  // Those have few scales. Blocks of 256 by the signed map are the same with offset 0.
  int64_t blocks = 0, different = 0;
  const auto blockwise = tensors_of(material / "peers" / "bnb" / "raw" / "quantize_blockwise.safetensors");
  for (const auto& [name, codes] : blockwise) {
    const std::string ending = ".fp32.signed.bs256.q";
    if (!name.ends_with(ending)) continue;
    SCOPED_TRACE(name);
    const Tensor& input = blockwise.at(name.substr(0, name.size() - 8) + ".input");
    const std::span<const float> values(input.data<float>(), static_cast<size_t>(input.element_count()));
    const NestedScales ours = nested(values, 0, NestedRounding::kCpuTable), nearest = nested(values, 0);
    EXPECT_EQ(std::memcmp(codes.bytes(), ours.codes.data(), ours.codes.size()), 0);
    for (size_t i = 0; i < values.size(); ++i) different += ours.codes[i] != nearest.codes[i];
    ++blocks;
  }
  EXPECT_GE(blocks, 3);
  EXPECT_GT(different, 0);
  const std::vector<float> scales = {-1, 0, 1};
  EXPECT_EQ(nested(scales, 0, NestedRounding::kCpuTable).codes[1], 131);
  EXPECT_EQ(nested(scales, 0).codes[1], 127);
}

// True nearest entries of the dynamic maps (.q_exact; .q is the CPU library's, which rounds through a table).
TEST(BnbRead, DynamicMapsGiveTheNearestEntries) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const fs::path raw = material / "peers" / "bnb" / "raw";
  const auto maps = tensors_of(raw / "maps.safetensors");
  EXPECT_EQ(std::memcmp(maps.at("dynamic_signed").bytes(), dynamic_map_signed().data(), 1024), 0);
  EXPECT_EQ(std::memcmp(maps.at("dynamic_unsigned").bytes(), dynamic_map_unsigned().data(), 1024), 0);
  const auto ties = tensors_of(raw / "quantize_blockwise_ties.safetensors");
  for (const bool is_signed : {true, false}) {
    const std::string name = is_signed ? "signed" : "unsigned";
    const DynamicMap& map = is_signed ? dynamic_map_signed() : dynamic_map_unsigned();
    const float factor = 1 / ties.at(name + ".absmax").data<float>()[0];
    const Tensor &input = ties.at(name + ".input"), &codes = ties.at(name + ".q_exact");
    int different = 0;
    for (int64_t i = 0; i < input.element_count(); ++i) {
      const float x = input.data<float>()[i] * factor;
      const auto ours = static_cast<size_t>(nearest_entry(map, x)), theirs = size_t{codes.data<uint8_t>()[i]};
      different += ours != theirs;
      EXPECT_NEAR(std::abs(map[ours] - x), std::abs(map[theirs] - x), 1e-7) << i;
    }
    EXPECT_LE(different, 40) << name;
  }
}

// A folder with one matrix [16, 72]: its groups do not fit its rows.
struct BnbFolder {
  testing::TemporaryFolder folder;
  std::string state =
      R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [16, 72], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5})";
  std::string config =
      R"({"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}})";
  std::map<std::string, Tensor> tensors;

  BnbFolder() {
    Tensor codes = Tensor::allocate(DType::kU8, {16 * 72 / 2, 1}), absmax = Tensor::zeros(DType::kU8, {18}),
           outer = Tensor::allocate(DType::kF32, {1}), map = Tensor::allocate(DType::kF32, {256}),
           codebook = Tensor::allocate(DType::kF32, {16});
    for (int i = 0; i < 16 * 72 / 2; ++i) codes.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(i * 37);
    for (int i = 0; i < 18; ++i) absmax.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(120 + i);
    outer.mutable_data<float>()[0] = 0.25f;
    std::memcpy(map.mutable_bytes(), dynamic_map_signed().data(), 1024);
    std::memcpy(codebook.mutable_bytes(), codebook_of(Format::kNf4).data(), 64);
    tensors = {{"m.weight", codes},
               {"m.weight.absmax", absmax},
               {"m.weight.nested_absmax", outer},
               {"m.weight.nested_quant_map", map},
               {"m.weight.quant_map", codebook}};
  }
  Checkpoint read() {
    std::vector<NamedTensor> all;
    for (const auto& [name, tensor] : tensors) all.push_back({name, tensor});
    Tensor text = Tensor::allocate(DType::kU8, {static_cast<int64_t>(state.size())});
    std::memcpy(text.mutable_bytes(), state.data(), state.size());
    all.push_back({"m.weight.quant_state.bitsandbytes__nf4", text});
    write_safetensors(folder.path() / "model.safetensors", all);
    write_file_atomically(folder.path() / "config.json", config);
    return read_checkpoint(folder.path());
  }
  std::string refusal(ErrorCode code = ErrorCode::kCorruptFile) {
    return testing::error_of(code, [&] { read(); });
  }
};

TEST(BnbRead, GroupsThatCrossRowsRepeatTheirScales) {
  BnbFolder folder;
  const Checkpoint checkpoint = folder.read();
  EXPECT_EQ(checkpoint.weights.size(), 1u);
  const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
  EXPECT_EQ(weight.group_size, 8);  // gcd(72, 64)
  const Tensor dense = dequantized(weight);
  const auto* bytes = folder.tensors.at("m.weight").data<uint8_t>();
  for (int64_t i = 0; i < 16 * 72; ++i) {
    const int code = i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15;
    const float scale = dynamic_map_signed()[static_cast<size_t>(120 + i / 64)] * 0.25f + 0.5f;
    ASSERT_EQ(dense.data<float>()[i], codebook_of(Format::kNf4)[static_cast<size_t>(code)] * scale) << i;
  }
}

// Groups that do not divide a row, nor the matrix: where rows have no whole words in common, it is dense.
TEST(BnbRead, GroupsOfAnySizeDecode) {
  for (const int64_t size : {7, 48, 72, 100, 5000}) {
    SCOPED_TRACE(size);
    const int64_t groups = (16 * 72 + size - 1) / size;
    BnbFolder folder;
    folder.state.replace(folder.state.find("64"), 2, std::to_string(size));
    Tensor absmax = Tensor::zeros(DType::kU8, {groups});
    for (int64_t i = 0; i < groups; ++i)
      absmax.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(130 + i % 100);
    folder.tensors["m.weight.absmax"] = absmax;
    const Checkpoint checkpoint = folder.read();
    const Weight& weight = checkpoint.weights.at("m.weight");
    EXPECT_EQ(std::holds_alternative<QuantizedTensor>(weight), size == 48 || size == 72 || size == 5000);
    EXPECT_EQ(checkpoint.notes.size(), std::holds_alternative<QuantizedTensor>(weight) ? 0u : 1u);
    const Tensor dense = std::holds_alternative<QuantizedTensor>(weight)
                             ? dequantized(std::get<QuantizedTensor>(weight))
                             : std::get<Tensor>(weight);
    const auto* bytes = folder.tensors.at("m.weight").data<uint8_t>();
    for (int64_t i = 0; i < 16 * 72; ++i) {
      const int code = i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15;
      const float scale = dynamic_map_signed()[static_cast<size_t>(130 + i / size % 100)] * 0.25f + 0.5f;
      ASSERT_EQ(dense.data<float>()[i], codebook_of(Format::kNf4)[static_cast<size_t>(code)] * scale) << i;
    }
  }
}

TEST(BnbRead, BrokenFilesAreRefusedByTheNameOfTheTensor) {
  auto expect = [](const std::string& message, std::initializer_list<const char*> parts) {
    for (const char* part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks " << part;
  };
  for (const char* name : {"m.weight.absmax", "m.weight.nested_absmax", "m.weight.nested_quant_map",
                           "m.weight.quant_map", "m.weight"}) {
    BnbFolder folder;
    folder.tensors.erase(name);
    expect(folder.refusal(), {name, "missing"});
  }
  {
    BnbFolder folder;
    folder.tensors["m.weight.absmax"] = Tensor::zeros(DType::kU8, {17});
    expect(folder.refusal(), {"m.weight.absmax", "17", "18"});
    folder.tensors["m.weight.absmax"] = Tensor::zeros(DType::kF32, {18});
    expect(folder.refusal(), {"m.weight.absmax", "F32", "U8"});
  }
  {
    BnbFolder folder;
    folder.tensors["m.weight"] = Tensor::zeros(DType::kU8, {575, 1});
    expect(folder.refusal(), {"m.weight", "575", "576"});
  }
  {
    BnbFolder folder;
    folder.tensors["m.weight.nested_absmax"].mutable_data<float>()[0] = INFINITY;
    expect(folder.refusal(), {"m.weight.absmax", "not finite"});
  }
  {
    BnbFolder folder;
    folder.tensors["m.weight.quant_map"].mutable_data<float>()[3] = 0.5f;
    expect(folder.refusal(ErrorCode::kUnsupported), {"m.weight.quant_map", "value 3"});
  }
  for (const auto& [from, to, part] :
       std::initializer_list<std::tuple<const char*, const char*, const char*>>{
           {"[16, 72]", "[16]", "shape"},
           {"[16, 72]", "[-16, 72]", "shape"},
           {"[16, 72]", "[2147483648, 72]", "shape"},
           {"64", "0", "blocksize"},
           {"\"nf4\"", "\"fp4\"", "quant_type"},
           {"0.5", "\"a\"", "nested_offset"},
           {", \"nested_offset\": 0.5", "", "nested_offset"},
           {"\"nested_blocksize\": 256, ", "", "nested_blocksize"},
           {", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.5", "",
            "absmax is U8"},
           {"{", "[", "quant_state"}}) {
    BnbFolder folder;
    folder.state.replace(folder.state.find(from), std::string(from).size(), to);
    expect(folder.refusal(), {"m.weight", part});
  }
  for (const auto& [from, to, part] :
       std::initializer_list<std::tuple<const char*, const char*, const char*>>{
           {"\"bnb_4bit_quant_type\": \"nf4\"", "\"bnb_4bit_quant_type\": \"fp4\"", "fp4"},
           {"\"nf4\"", "\"af4\"", "af4"},
           {"true", "1", "load_in_4bit"},
           {"true", "true, \"load_in_8bit\": true", "both"}}) {
    BnbFolder folder;
    folder.config.replace(folder.config.find(from), std::string(from).size(), to);
    expect(folder.refusal(), {part});
  }
}

}  // namespace
}  // namespace lowbit
