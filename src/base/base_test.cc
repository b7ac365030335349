#include "base/cpu.h"
#include "base/fail.h"
#include "base/fields.h"
#include "base/files.h"
#include "base/json.h"
#include "base/threads.h"

#include <atomic>
#include <filesystem>
#include <gtest/gtest.h>

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
