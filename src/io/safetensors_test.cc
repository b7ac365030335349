#include "io/safetensors.h"

#include "base/json.h"
#include "io/safetensors_header.h"
#include "support.h"

#include <cstring>
#include <ctime>
#include <fstream>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::TemporaryFolder;

std::string file_bytes(const std::string& header, size_t data_bytes) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(uint64_t{header.size()} >> (8 * i));
  return bytes + header + std::string(data_bytes, '\x01');
}

SafetensorsFile parse(const std::string& bytes) {
  auto owner = std::make_shared<std::vector<std::byte>>(bytes.size() + 8);
  std::memcpy(owner->data(), bytes.data(), bytes.size());
  return parse_safetensors(owner, {owner->data(), bytes.size()}, "x.safetensors");
}

void expect_refusal(ErrorCode code, const std::string& bytes, const std::string& part) {
  const std::string message = error_of(code, [&] { parse(bytes); });
  EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_NE(message.find("x.safetensors"), std::string::npos) << message;
}

void expect_corrupt(const std::string& header, size_t data_bytes, const std::string& part) {
  SCOPED_TRACE(header.substr(0, 200));
  expect_refusal(ErrorCode::kCorruptFile, file_bytes(header, data_bytes), part);
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  const SafetensorsFile file = parse(file_bytes(
      R"({"b":{"dtype":"U8","shape":[2,2],"data_offsets":[4,8]},"__metadata__":{"k":"v"},)"
      R"("a":{"shape":[],"data_offsets":[0,4],"dtype":"F32"},"none":{"dtype":"I64","shape":[0,7],"data_offsets":[8,8]}}   )",
      8));
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].name, "a");
  EXPECT_EQ(file.tensors[0].tensor.shape(), Shape{});
  EXPECT_EQ(file.tensors[1].tensor.shape(), (Shape{2, 2}));
  EXPECT_EQ(file.tensors[2].tensor.byte_count(), 0u);
  EXPECT_EQ(file.metadata, (std::vector<std::pair<std::string, std::string>>{{"k", "v"}}));
  EXPECT_EQ(file.file_bytes - file.header_bytes, 8u);
}

TEST(Safetensors, AFileWithoutTensorsIsAFile) { EXPECT_TRUE(parse(file_bytes("{}", 0)).tensors.empty()); }

TEST(Safetensors, MisalignedTensorsAreCopiedAndRead) {
  for (size_t pad = 0; pad < 8; ++pad) {
    const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                               R"("b":{"dtype":"I32","shape":[2],"data_offsets":[1,9]}})" +
                               std::string(pad, ' ');
    const SafetensorsFile file = parse(file_bytes(header, 9));
    EXPECT_EQ(file.tensors[1].tensor.data<int32_t>()[1], 0x01010101);
  }
}

TEST(Safetensors, HeaderLengthIsChecked) {
  expect_refusal(ErrorCode::kCorruptFile, "", "at least 8");
  expect_refusal(ErrorCode::kCorruptFile, "abc", "3 bytes");
  expect_refusal(ErrorCode::kCorruptFile, std::string("\0\0\0\0\0\0\0\x80", 8) + "{}", "9223372036854775808");
  expect_refusal(ErrorCode::kCorruptFile, std::string("\xff\xff\xff\xff\xff\xff\xff\xff", 8) + "{}",
                 "18446744073709551615");
  expect_refusal(ErrorCode::kCorruptFile, std::string("\x01\xe1\xf5\x05\0\0\0\0", 8) + "{}", "100000001");
  expect_refusal(ErrorCode::kCorruptFile, std::string("\x40\0\0\0\0\0\0\0", 8) + "{}",
                 "its header has 64 bytes, only 2 follow");
  expect_refusal(ErrorCode::kCorruptFile, std::string(8, '\0'), "does not begin");
}

TEST(Safetensors, OnlyJsonThatBeginsWithABraceAndEndsInSpacesIsAHeader) {
  expect_corrupt(" {}", 0, "does not begin with '{'");
  expect_corrupt("\xef\xbb\xbf{}", 0, "does not begin with '{'");
  expect_corrupt("[]", 0, "does not begin with '{'");
  expect_corrupt("{}\n", 0, "does not end");
  expect_corrupt(std::string("{}\0", 3), 0, "does not end");
  expect_corrupt("{} {}", 0, "JSON");
  expect_corrupt("{\"a\":}", 0, "JSON");
  expect_corrupt("{\"\xff\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "UTF-8");
  expect_corrupt("{\"a\":" + std::string(100000, '[') + "}", 0, "an array");
  expect_corrupt("{\"a\":" + std::string(100000, '{') + "}", 0, "");
}

TEST(Safetensors, DuplicatesAreRefused) {
  const std::string entry = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  expect_corrupt("{" + entry + "," + entry + "}", 0, "\"a\" appears twice");
  expect_corrupt(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "\"k\" appears twice");
  expect_corrupt(R"({"__metadata__":{},"__metadata__":{}})", 0, "appears twice");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[0],"shape":[0],"data_offsets":[0,0]}})", 0, "appears twice");
}

TEST(Safetensors, MetadataHoldsStringsOnly) {
  expect_corrupt(R"({"__metadata__":{"k":1}})", 0, "__metadata__ \"k\" is the number 1");
  expect_corrupt(R"({"__metadata__":{"k":null}})", 0, "expected a string");
  expect_corrupt(R"({"__metadata__":{"k":{}}})", 0, "expected a string");
  expect_corrupt(R"({"__metadata__":[]})", 0, "an array");
}

TEST(Safetensors, EntriesHaveExactlyTheirThreeKeys) {
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[0]}})", 0, "only 2");
  expect_corrupt(R"({"a":{}})", 0, "only 0");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})", 0, "unknown key \"x\"");
  expect_corrupt(R"({"a":7})", 0, "the number 7");
  expect_corrupt(R"({"a":{"dtype":7,"shape":[0],"data_offsets":[0,0]}})", 0, "expected a string");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":"0","data_offsets":[0,0]}})", 0, "a string");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}})", 0, "1 numbers, expected 2");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}})", 0, "the number 0");
}

TEST(Safetensors, OnlyPlainIntegersAreSizes) {
  for (const char* number :
       {"1.0", "-1", "1e0", "1E2", "18446744073709551616", "99999999999999999999", "true", "\"1\"", "null"}) {
    expect_corrupt(fmt::format(R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}}}})", number), 1,
                   "shape");
    expect_corrupt(fmt::format(R"({{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,{}]}}}})", number), 1,
                   "data_offsets");
  }
}

TEST(Safetensors, SizesThatOverflowAreRefused) {
  expect_corrupt(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", 4, "2^63");
  expect_corrupt(R"({"a":{"dtype":"F64","shape":[1152921504606846976],"data_offsets":[0,0]}})", 0, "2^63");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551615,3]}})", 4,
                 "needs 4 bytes");
}

TEST(Safetensors, OffsetsCoverTheDataWithoutHolesOrOverlaps) {
  auto two = [](int a, int b, int c, int d) {
    return fmt::format(
        R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},"b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
        b - a, a, b, d - c, c, d);
  };
  EXPECT_EQ(parse(file_bytes(two(0, 4, 4, 8), 8)).tensors.size(), 2u);
  expect_corrupt(two(0, 4, 3, 7), 7, "begins at byte 3 of the data, expected 4");
  expect_corrupt(two(0, 4, 5, 8), 8, "begins at byte 5 of the data, expected 4");
  expect_corrupt(two(1, 4, 4, 8), 8, "begins at byte 1 of the data, expected 0");
  expect_corrupt(two(0, 4, 0, 4), 4, "begins at byte 0 of the data, expected 4");
  expect_corrupt(two(0, 4, 4, 8), 9, "1 bytes follow the last tensor");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4, "needs 4 bytes");
  expect_corrupt(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "needs 8 bytes");
}

TEST(Safetensors, ATruncatedDownloadNamesBothSizes) {
  expect_corrupt(R"({"a":{"dtype":"F32","shape":[256],"data_offsets":[0,1024]}})", 1000,
                 "promises 1024 bytes of tensors, 1000");
}

TEST(Safetensors, UnknownTypesAreRefusedByName) {
  for (const char* dtype : {"F8_E5M2", "F4", "C64", "bf16", ""}) {
    expect_refusal(
        ErrorCode::kUnsupported,
        file_bytes(fmt::format(R"({{"w":{{"dtype":"{}","shape":[1],"data_offsets":[0,1]}}}})", dtype), 1),
        fmt::format("tensor \"w\" has the dtype \"{}\"", dtype));
  }
}

TEST(Safetensors, RankAndCountHaveLimits) {
  std::string ones = "1";
  for (int i = 0; i < 16; ++i) ones += ",1";
  expect_refusal(ErrorCode::kUnsupported,
                 file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":[" + ones + "],\"data_offsets\":[0,1]}}", 1),
                 "dimensions");
}

TEST(Safetensors, AHundredThousandTensorsAreReadInTime) {
  std::string header = "{";
  for (int i = 0; i < 100000; ++i) {
    header += fmt::format(R"({}"tensor.{}":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}})",
                          i ? "," : "", i, i, i + 1);
  }
  const std::string bytes = file_bytes(header + "}", 100000);
  const std::clock_t start = std::clock();
  EXPECT_EQ(parse(bytes).tensors.size(), 100000u);
  // Processor seconds, so that a busy machine does not fail it; a quadratic search takes minutes.
  EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 5.0);
  for (int i = 100000; i <= 200000; ++i) {
    header += fmt::format(R"(,"tensor.{}":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}})", i, i, i + 1);
  }
  expect_refusal(ErrorCode::kUnsupported, file_bytes(header + "}", 200001), "more than 200000 tensors");
}

TEST(Safetensors, PicklesAreRefusedWithHowToConvert) {
  TemporaryFolder folder;
  for (const char* name : {"pytorch_model.bin", "a.pt", "a.pth", "a.ckpt"}) {
    std::ofstream(folder.path() / name) << "PK\x03\x04 not to be read";
    const std::string message =
        error_of(ErrorCode::kUnsupported, [&] { open_safetensors(folder.path() / name); });
    EXPECT_NE(message.find("safetensors.torch"), std::string::npos) << message;
    EXPECT_NE(message.find(name), std::string::npos) << message;
  }
  expect_refusal(ErrorCode::kUnsupported, std::string("PK\x03\x04") + std::string(100, 'x'), "pickle");
}

std::vector<NamedTensor> some_tensors() {
  Tensor floats = Tensor::zeros(DType::kF32, {2, 3});
  floats.mutable_data<float>()[4] = 1.5f;
  Tensor bytes = Tensor::zeros(DType::kU8, {8});
  bytes.mutable_data<uint8_t>()[7] = 9;
  return {{"z", floats}, {"a", bytes}, {"scalar", Tensor::zeros(DType::kI64, {})}};
}

TEST(Safetensors, WhatIsWrittenIsRead) {
  TemporaryFolder folder;
  const fs::path path = folder.path() / "out.safetensors";
  write_safetensors(path, some_tensors(), {{"made_by", "test"}});
  const SafetensorsFile file = open_safetensors(path);
  EXPECT_EQ(file.header_bytes % 8, 0u);
  EXPECT_EQ(file.file_bytes, fs::file_size(path));
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].name, "z");  // the order given
  EXPECT_EQ(file.tensors[1].name, "a");
  EXPECT_EQ(file.tensors[0].tensor.data<float>()[4], 1.5f);
  EXPECT_EQ(file.tensors[1].tensor.data<uint8_t>()[7], 9);
  EXPECT_EQ(file.metadata,
            (std::vector<std::pair<std::string, std::string>>{{"made_by", "test"}, {"format", "pt"}}));
}

TEST(Safetensors, WritingMovesWideElementsForwardWhenTheOrderWouldMisalignThem) {
  TemporaryFolder folder;
  const fs::path path = folder.path() / "out.safetensors";
  write_safetensors(path,
                    {{"odd", Tensor::zeros(DType::kU8, {3})}, {"wide", Tensor::zeros(DType::kF64, {2})}});
  EXPECT_EQ(open_safetensors(path).tensors[0].name, "wide");
}

TEST(Safetensors, WrittenTensorsOfWholeCacheLinesBeginAtOne) {
  TemporaryFolder folder;
  const fs::path path = folder.path() / "out.safetensors";
  write_safetensors(path, {{"first", Tensor::zeros(DType::kF32, {16})},
                           {"odd", Tensor::zeros(DType::kF16, {3})},
                           {"last", Tensor::zeros(DType::kI32, {2, 16})},
                           {"byte", Tensor::zeros(DType::kU8, {1})}});
  const SafetensorsFile file = open_safetensors(path);
  std::vector<std::string> names;
  for (const NamedTensor& named : file.tensors) names.push_back(named.name);
  EXPECT_EQ(names, (std::vector<std::string>{"first", "last", "odd", "byte"}));
  EXPECT_EQ(file.header_bytes % 64, 0u);
  for (size_t i = 0; i < 3; ++i)
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file.tensors[i].tensor.bytes()) % 64, 0u);
}

TEST(Safetensors, WritingOverTheMappedSourceKeepsItsTensors) {
  TemporaryFolder folder;
  const fs::path path = folder.path() / "same.safetensors";
  write_safetensors(path, some_tensors());
  const std::string before = read_file(path);
  const SafetensorsFile source = open_safetensors(path);
  std::vector<NamedTensor> tensors = source.tensors;
  write_safetensors(path, tensors);
  EXPECT_EQ(read_file(path), before);
  EXPECT_EQ(source.tensors[0].tensor.data<float>()[4], 1.5f);
}

TEST(Safetensors, AFailedWriteLeavesTheOldFileAndNothingElse) {
  TemporaryFolder folder;
  const fs::path path = folder.path() / "out.safetensors";
  write_safetensors(path, some_tensors());
  const std::string before = read_file(path);
  std::vector<NamedTensor> twice = some_tensors();
  twice.push_back(twice[0]);
  const std::string message = error_of(ErrorCode::kInvalidArgument, [&] { write_safetensors(path, twice); });
  EXPECT_NE(message.find("\"z\" is taken"), std::string::npos) << message;
  EXPECT_EQ(read_file(path), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace lowbit
