#include "io/shards.h"

#include "base/json.h"
#include "support.h"

#include <fstream>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::TemporaryFolder;

std::vector<NamedTensor> tensors(int count, int64_t floats) {
  std::vector<NamedTensor> result;
  for (int i = 0; i < count; ++i) {
    Tensor tensor = Tensor::zeros(DType::kF32, {floats});
    tensor.mutable_data<float>()[0] = static_cast<float>(i);
    result.push_back({fmt::format("t{}", i), tensor});
  }
  return result;
}

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

void expect_refusal(ErrorCode code, const fs::path& folder, const std::string& part) {
  const std::string message = error_of(code, [&] { open_tensor_folder(folder); });
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

// Two shards with t0, t1 and t2, t3 and their index.
struct Sharded {
  TemporaryFolder folder;
  fs::path path = folder.path();
  fs::path index = path / "model.safetensors.index.json";
  Sharded() { write_tensor_folder(path, "model", tensors(4, 100), 800); }
  void point(const std::string& tensor, const std::string& shard) {
    Json json = parse_json(read_file(index), "index");
    json.find("weight_map")->set(tensor, shard);
    write_text(index, json.dump());
  }
};

TEST(Shards, WrittenShardsAreReadBack) {
  Sharded model;
  EXPECT_TRUE(fs::exists(model.path / "model-00001-of-00002.safetensors"));
  const TensorFolder read = open_tensor_folder(model.path);
  EXPECT_EQ(read.files.size(), 2u);
  ASSERT_EQ(read.tensors.size(), 4u);
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(read.tensors.at(fmt::format("t{}", i)).data<float>()[0], static_cast<float>(i));
  EXPECT_EQ(parse_json(read_file(model.index), "index").get("metadata").get("total_size").as_integer(), 1600);
  uint64_t bytes = 0;
  for (const SafetensorsFile& file : read.files) bytes += fs::file_size(file.path);
  EXPECT_EQ(read.file_bytes, bytes);
}

TEST(Shards, ATensorIsNeverSplitAndNoLimitMeansOneFile) {
  TemporaryFolder folder;
  EXPECT_EQ(write_tensor_folder(folder.path(), "big", tensors(3, 100), 1).size(),
            4u);                                                  // three shards and the index
  EXPECT_EQ(open_tensor_folder(folder.path()).files.size(), 3u);  // the only index, under another name
  EXPECT_EQ(open_tensor_folder(folder.path(), "big").files.size(), 3u);
  TemporaryFolder other;
  EXPECT_EQ(write_tensor_folder(other.path(), "model", tensors(3, 100), 0),
            std::vector<std::string>{"model.safetensors"});
  EXPECT_EQ(write_tensor_folder(other.path(), "model", tensors(3, 100), 1200).size(), 1u);
}

TEST(Shards, ShardNamesThatLeaveTheFolderAreRefused) {
  for (const char* name :
       {"../../etc/x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", "a\\b.safetensors"}) {
    Sharded model;
    model.point("t0", name);
    expect_refusal(ErrorCode::kCorruptFile, model.path, "is no plain file name");
  }
  Sharded model;
  model.point("t0", "config.json");
  expect_refusal(ErrorCode::kCorruptFile, model.path, "not a .safetensors file");
}

TEST(Shards, LinksOutOfTheFolderAreRefusedButNotThoseOfTheHubCache) {
  Sharded model;
  TemporaryFolder elsewhere;
  const char* shard = "model-00002-of-00002.safetensors";
  fs::rename(model.path / shard, elsewhere.path() / shard);
  fs::create_symlink(elsewhere.path() / shard, model.path / shard);
  expect_refusal(ErrorCode::kCorruptFile, model.path, "leads out of its folder");

  TemporaryFolder cache;
  fs::create_directories(cache.path() / "snapshots" / "abc");
  fs::create_directories(cache.path() / "blobs");
  const fs::path snapshot = cache.path() / "snapshots" / "abc";
  write_tensor_folder(snapshot, "model", tensors(4, 100), 800);
  fs::rename(snapshot / shard, cache.path() / "blobs" / "0123");
  fs::create_symlink("../../blobs/0123", snapshot / shard);
  EXPECT_EQ(open_tensor_folder(snapshot).tensors.size(), 4u);
}

TEST(Shards, IndexAndShardsMustAgree) {
  {
    Sharded model;
    model.point("t0", "model-00002-of-00002.safetensors");
    expect_refusal(ErrorCode::kCorruptFile, model.path, "tensor \"t0\"");
  }
  {
    Sharded model;
    model.point("ghost", "model-00001-of-00002.safetensors");
    expect_refusal(ErrorCode::kCorruptFile, model.path, "holds the tensor \"ghost\", but it does not");
  }
  {
    Sharded model;
    Json json = parse_json(read_file(model.index), "index");
    json.find("weight_map")->erase("t3");
    write_text(model.index, json.dump());
    expect_refusal(ErrorCode::kCorruptFile, model.path, "holds the tensor \"t3\", which");
  }
  {
    Sharded model;
    fs::remove(model.path / "model-00002-of-00002.safetensors");
    expect_refusal(ErrorCode::kNotFound, model.path, "model-00002-of-00002.safetensors, which is not there");
  }
  {
    Sharded model;  // a tensor in two shards: the index can list it for one of them only
    write_safetensors(model.path / "model-00002-of-00002.safetensors", tensors(4, 100));
    expect_refusal(ErrorCode::kCorruptFile, model.path, "does not list for it");
  }
}

TEST(Shards, AnIndexThatIsNoneIsRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {"{", "not valid JSON"},
      {"[]", "weight_map"},
      {R"({"weight_map":[]})", "weight_map"},
      {R"({"weight_map":{}})", "weight_map is empty"},
      {R"({"weight_map":{"a":1}})", "expected a file name"},
      {R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})", "appears twice"}};
  for (const auto& [text, part] : cases) {
    const std::string message =
        error_of(ErrorCode::kCorruptFile, [&, text = text] { parse_shard_index(text, "index.json"); });
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  error_of(ErrorCode::kUnsupported,
           [] { parse_shard_index(R"({"weight_map":{"a":"pytorch_model.bin"}})", "i"); });
}

TEST(Shards, TheFileOfAFolderIsFoundOrTheMessageSaysWhatIsThere) {
  {
    TemporaryFolder folder;
    write_safetensors(folder.path() / "gptq_model-4bit-128g.safetensors", tensors(1, 1));
    EXPECT_EQ(open_tensor_folder(folder.path()).tensors.size(), 1u);
    EXPECT_EQ(open_tensor_folder(folder.path(), "gptq_model-4bit-128g").tensors.size(), 1u);
    error_of(ErrorCode::kNotFound, [&] { open_tensor_folder(folder.path(), "other"); });
    error_of(ErrorCode::kCorruptFile, [&] { open_tensor_folder(folder.path(), "../other"); });
    write_safetensors(folder.path() / "second.safetensors", tensors(1, 1));
    expect_refusal(ErrorCode::kInvalidArgument, folder.path(), "second.safetensors");
  }
  {
    TemporaryFolder folder;
    expect_refusal(ErrorCode::kNotFound, folder.path(), "model.safetensors");
    write_text(folder.path() / "pytorch_model.bin", "x");
    expect_refusal(ErrorCode::kUnsupported, folder.path(), "torch.load('pytorch_model.bin'");
  }
  {
    TemporaryFolder folder;
    write_safetensors(folder.path() / "adapter_model.safetensors", tensors(1, 1));
    expect_refusal(ErrorCode::kUnsupported, folder.path(), "adapter");
  }
  error_of(ErrorCode::kNotFound, [] { open_tensor_folder("/nonexistent/model"); });
}

}  // namespace
}  // namespace lowbit
