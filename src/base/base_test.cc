#include "base/cpu.h"
#include "base/fail.h"
#include "base/fields.h"
#include "base/files.h"
#include "base/gpu.h"
#include "base/json.h"
#include "base/threads.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <gtest/gtest.h>
#include <set>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

template <class Body>
std::string message_of(ErrorCode code, Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST(Json, ReadsWhatItWrites) {
  const char* text = R"({"a": [1, -2, 3.5, true, null], "b": {"c": "x\n\"é"}, "empty": [], "none": {}})";
  const Json json = parse_json(text, "test");
  EXPECT_EQ(json.get("a").as_array()[1].as_integer(), -2);
  EXPECT_EQ(json.get("b").get("c").as_string(), "x\n\"é");
  EXPECT_EQ(parse_json(json.dump(), "again"), json);
  EXPECT_EQ(parse_json(json.dump(2), "again"), json);
}

TEST(Json, RefusesDuplicateKeysDepthAndGarbage) {
  EXPECT_NE(
      message_of(ErrorCode::kCorruptFile, [] { parse_json(R"({"k":1,"k":2})", "f.json"); }).find("\"k\""),
      std::string::npos);
  message_of(ErrorCode::kCorruptFile, [] { parse_json(std::string(100, '['), "f"); });
  message_of(ErrorCode::kCorruptFile, [] { parse_json(std::string(100000, '['), "f"); });
  message_of(ErrorCode::kCorruptFile, [] { parse_json("{\"a\":\"\xff\"}", "f"); });
  message_of(ErrorCode::kCorruptFile, [] { parse_json("{} x", "f"); });
  message_of(ErrorCode::kCorruptFile, [] { parse_json("", "f"); });
  message_of(ErrorCode::kCorruptFile, [] { parse_json("{\"a\":NaN}", "f"); });
  EXPECT_TRUE(parse_json("{\"a\":NaN, \"b\":\"NaN\"}", "f", {.allow_nan = true}).get("a").is_null());
}

TEST(Json, TypeErrorsSayBothTypes) {
  const std::string message = message_of(
      ErrorCode::kCorruptFile, [] { parse_json(R"({"bits":"four"})", "f").get("bits").as_integer(); });
  EXPECT_EQ(message, "expected an integer, found a string");
}

TEST(Json, EveryAccessOfAnotherTypeSaysBothTypes) {
  const Json values[] = {Json(), Json(true), Json(1), Json(0.5), Json("s"), Json::array(), Json::object()};
  std::set<std::string> types;
  for (const Json& value : values) {
    types.insert(value.type_name());
    auto refused = [&](bool fits, auto access) {
      if (fits) return access();
      EXPECT_NE(message_of(ErrorCode::kCorruptFile, access).find(value.type_name()), std::string::npos);
    };
    refused(value.is_bool(), [&] { value.as_bool(); });
    refused(value.is_integer(), [&] { value.as_integer(); });  // 0.5 has a fraction
    refused(value.is_number(), [&] { value.as_number(); });
    refused(value.is_string(), [&] { value.as_string(); });
    refused(value.is_array(), [&] { value.as_array(); });
    refused(value.is_object(), [&] { value.as_object(); });
    EXPECT_EQ(value.find("k"), nullptr);
    message_of(ErrorCode::kCorruptFile, [&] { value.get("k"); });
  }
  EXPECT_GE(types.size(), 6u);
}

TEST(Json, NumbersKeepTheirTypeAndEditsTheirOrder) {
  const Json numbers = parse_json("[9223372036854775807, 9223372036854775808, 3.0, 1e300, -0.5]", "t");
  EXPECT_EQ(numbers.as_array()[0].as_integer(), INT64_MAX);
  EXPECT_FALSE(numbers.as_array()[1].is_integer());
  EXPECT_EQ(numbers.as_array()[2].as_integer(), 3);
  message_of(ErrorCode::kCorruptFile, [&] { numbers.as_array()[3].as_integer(); });
  EXPECT_EQ(parse_json(numbers.dump(), "again"), numbers);
  EXPECT_EQ(Json(uint64_t{1} << 63).as_number(), 0x1p63);
  EXPECT_EQ(Json(HUGE_VAL).dump(), "null");
  Json object = parse_json(R"({"a": 1, "b": 2, "c": 3})", "t");
  object.set("b", "x");
  object.set("d", Json());
  EXPECT_TRUE(object.erase("a"));
  EXPECT_FALSE(object.erase("a"));
  EXPECT_EQ(object.dump(), R"({"b": "x", "c": 3, "d": null})");
}

TEST(ThreadPool, CallsMeanwhileOnceBeforeItsOwnFirstRange) {
  for (int threads : {1, 2, 3}) {
    const ThreadPool pool(threads);
    for (int64_t count : {0, 1, 2, 7, 100}) {
      int calls = 0;
      bool is_first_late = false;
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      pool.parallel_for(
          count, 1,
          [&](int64_t begin, int64_t, int worker) {
            ++seen[static_cast<size_t>(begin)];
            if (worker == 0 && calls == 0) is_first_late = true;
          },
          [&] { ++calls; });
      EXPECT_EQ(calls, 1);
      EXPECT_FALSE(is_first_late);
      for (const std::atomic<int>& times : seen) EXPECT_EQ(times, 1);
    }
  }
}

TEST(ThreadPool, CoversEveryIndexOnceAndCarriesTheFirstException) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (int64_t count : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
      pool.parallel_for(count, 3, [&](int64_t begin, int64_t end, int worker) {
        EXPECT_LT(worker, threads);
        for (int64_t i = begin; i < end; ++i) hits[static_cast<size_t>(i)]++;
      });
      for (auto& hit : hits) EXPECT_EQ(hit.load(), 1);
    }
    EXPECT_THROW(pool.parallel_for(100, 1,
                                   [](int64_t begin, int64_t, int) {
                                     if (begin == 50) throw Error(ErrorCode::kInternal, "x");
                                   }),
                 Error);
    std::atomic<int> nested{0};
    pool.parallel_for(4, 1, [&](int64_t, int64_t, int) {
      pool.parallel_for(3, 1, [&](int64_t, int64_t, int) { nested++; });
    });
    EXPECT_EQ(nested.load(), 12);
  }
}

TEST(GpuSupport, SaysWhatThereIsOrWhyNot) {
  const GpuSupport& support = gpu_support();
  bool is_usable = false;
  for (const Gpu& gpu : support.gpus) {
    is_usable = is_usable || gpu.problem.empty();
    EXPECT_GT(gpu.memory_bytes, 0u);
  }
  EXPECT_EQ(support.problem.empty(), is_usable) << support.problem;
  EXPECT_EQ(support.is_built, support.runtime_version > 0);
  EXPECT_EQ(cuda_version_text(13000), "13.0");
  EXPECT_EQ(cuda_version_text(12080), "12.8");
  EXPECT_EQ(cuda_version_text(0), "none");
}

TEST(Files, AtomicFileIsCompleteOrAbsent) {
  const fs::path folder = fs::temp_directory_path() / fs::path("lowbit_files_test");
  fs::remove_all(folder);
  fs::create_directories(folder);
  {
    AtomicFile file(folder / "a");
    file.append("half", 4);
  }
  EXPECT_TRUE(fs::is_empty(folder));
  write_file_atomically(folder / "a", "whole");
  EXPECT_EQ(read_file(folder / "a"), "whole");
  EXPECT_EQ(MappedFile::open(folder / "a")->bytes().size(), 5u);
  message_of(ErrorCode::kInvalidArgument, [&] { read_file(folder / "a", 2); });
  message_of(ErrorCode::kInvalidArgument, [&] { read_file(folder); });
  message_of(ErrorCode::kNotFound, [&] { read_file(folder / "b"); });
  message_of(ErrorCode::kNotFound, [&] { MappedFile::open(folder / "b"); });
  fs::remove_all(folder);
}

TEST(Files, WhatCannotBeWrittenIsSaidAndLeavesNothing) {
  const fs::path folder = fs::temp_directory_path() / fs::path("lowbit_files_test_full");
  fs::remove_all(folder);
  fs::create_directories(folder / "taken");
  message_of(ErrorCode::kNotFound, [&] { write_file_atomically(folder / "absent" / "a", "x"); });
  // A folder stands where the file should be.
  EXPECT_NE(message_of(ErrorCode::kInvalidArgument, [&] { write_file_atomically(folder / "taken", "x"); })
                .find("taken"),
            std::string::npos);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 1);
  fs::remove_all(folder);
}

TEST(Files, ReleasedPagesAreReadAgain) {
  const fs::path path = fs::temp_directory_path() / fs::path("lowbit_files_test_pages");
  std::string content(100'000, 'x');
  content.back() = 'y';
  write_file_atomically(path, content);
  const auto mapped = MappedFile::open(path);
  for (const auto& [offset, length] :
       {std::pair<size_t, size_t>{0, 100'000}, {5000, 50'000}, {99'999, 500}}) {
    mapped->release(offset, length);
    EXPECT_EQ(std::memcmp(mapped->bytes().data(), content.data(), content.size()), 0);
  }
  mapped->release(200'000, 1);
  write_file_atomically(path, "");
  EXPECT_TRUE(MappedFile::open(path)->bytes().empty());
  EXPECT_EQ(mapped->bytes().back(), std::byte{'y'});  // the old file lives as long as its mapping
  fs::remove(path);
}

TEST(ErrorCode, NamesAreDistinct) {
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInterrupted); ++code)
    EXPECT_TRUE(names.insert(error_code_name(static_cast<ErrorCode>(code))).second);
}

TEST(Fields, RoundTripAndUnknownKey) {
  struct Options {
    int bits = 4;
    float damp = 0.05f;
    bool sym = true;
    std::string name = "x";
    std::vector<std::string> list;
    std::optional<bool> maybe;
  } options;
  auto fields = [&] {
    return Fields{{"bits", &options.bits, ""}, {"damp", &options.damp, ""}, {"sym", &options.sym, ""},
                  {"name", &options.name, ""}, {"list", &options.list, ""}, {"maybe", &options.maybe, ""}};
  };
  EXPECT_EQ(fields_to_json(fields()).dump(),
            R"({"bits": 4, "damp": 0.05, "sym": true, "name": "x", "list": [], "maybe": null})");
  fields_from_json(fields(), parse_json(R"({"bits": 3, "list": ["a"], "maybe": false})", "t"), "options");
  EXPECT_EQ(options.bits, 3);
  EXPECT_EQ(options.list, std::vector<std::string>{"a"});
  EXPECT_EQ(options.maybe, false);
  message_of(ErrorCode::kInvalidArgument,
             [&] { fields_from_json(fields(), parse_json(R"({"bit": 3})", "t"), "o"); });
  message_of(ErrorCode::kInvalidArgument,
             [&] { fields_from_json(fields(), parse_json(R"({"bits": 1e12})", "t"), "o"); });
  message_of(ErrorCode::kInvalidArgument,
             [&] { fields_from_json(fields(), parse_json(R"({"sym": 1})", "t"), "o"); });
}

TEST(Cpu, FeaturesAreConsistent) {
  const CpuFeatures& features = cpu_features();
  if (features.avx512) {
    EXPECT_TRUE(features.avx2);
  }
  EXPECT_GT(machine_memory().total_bytes, 0u);
  EXPECT_GT(process_memory().peak_rss_bytes, 0u);
}

}  // namespace
}  // namespace lowbit
