#include "io/shards.h"

#include "base/fail.h"
#include "base/json.h"

#include <algorithm>
#include <functional>
#include <unordered_map>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxShards = 10'000;
constexpr std::string_view kIndexEnding = ".safetensors.index.json";

bool ends_with(std::string_view text, std::string_view ending) {
  return text.size() >= ending.size() && text.substr(text.size() - ending.size()) == ending;
}

void add_file(TensorFolder& folder, SafetensorsFile file) {
  for (const NamedTensor& named : file.tensors) {
    if (!folder.tensors.emplace(named.name, named.tensor).second) {
      fail(ErrorCode::kCorruptFile,
           "[safetensors] the tensor \"{}\" stands in {} and in another shard as well", named.name,
           file.path.string());
    }
  }
  folder.file_bytes += file.file_bytes;
  folder.files.push_back(std::move(file));
}

TensorFolder open_shards(const fs::path& folder, const fs::path& index) {
  TensorFolder result;
  const std::string where = index.string();
  for (const auto& [name, tensors] : parse_shard_index(read_file(index, kMaxIndexBytes), where)) {
    fs::path path;
    try {
      path = file_inside(folder, name);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kNotFound) throw;
      fail(ErrorCode::kNotFound, "{} names the shard {}, which is not there: the download is incomplete",
           where, name);
    }
    SafetensorsFile file = open_safetensors(path);
    std::vector<std::string_view> listed(tensors.begin(), tensors.end());
    std::vector<std::string_view> found;
    for (const NamedTensor& named : file.tensors) found.push_back(named.name);
    std::sort(listed.begin(), listed.end());
    std::sort(found.begin(), found.end());
    for (std::string_view tensor : listed) {
      if (!std::binary_search(found.begin(), found.end(), tensor)) {
        fail(ErrorCode::kCorruptFile, "{} says that {} holds the tensor \"{}\", but it does not", where, name,
             tensor);
      }
    }
    for (std::string_view tensor : found) {
      if (!std::binary_search(listed.begin(), listed.end(), tensor)) {
        fail(ErrorCode::kCorruptFile, "{} holds the tensor \"{}\", which {} does not list for it", name,
             tensor, where);
      }
    }
    add_file(result, std::move(file));
  }
  return result;
}

TensorFolder open_single(const fs::path& path) {
  TensorFolder result;
  add_file(result, open_safetensors(path));
  return result;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < 5; ++i) text += (i ? ", " : "") + names[i];
  return names.size() > 5 ? text + ", ..." : text;
}

}  // namespace

fs::path file_inside(const fs::path& folder, const std::string& name) {
  const fs::path path = folder / name;
  std::error_code error;
  if (!fs::exists(path, error)) {
    fail(ErrorCode::kNotFound, "{} is not there", path.string());
  }
  const fs::path home = fs::canonical(folder, error), target = fs::canonical(path, error);
  if (!error) {
    const fs::path parent = target.parent_path();
    if (parent == home) return path;
    if (home.parent_path().filename() == "snapshots" && parent == home.parent_path().parent_path() / "blobs")
      return path;
  }
  fail(ErrorCode::kCorruptFile,
       "{} is a link that leads out of its folder, to {}; only files of the model's own folder are "
       "read: copy the file there",
       path.string(), target.string());
}

std::vector<std::pair<std::string, std::vector<std::string>>> parse_shard_index(std::string_view text,
                                                                                std::string_view where) {
  const Json index = parse_json(text, where);
  const Json* map = index.find("weight_map");
  if (!map || !map->is_object()) {
    fail(ErrorCode::kCorruptFile,
         "{}: there is no object \"weight_map\", which names the shard of each tensor", where);
  }
  if (map->size() == 0) fail(ErrorCode::kCorruptFile, "{}: weight_map is empty", where);
  std::vector<std::pair<std::string, std::vector<std::string>>> shards;
  std::unordered_map<std::string_view, size_t> places;
  for (const auto& [tensor, file] : map->as_object()) {
    if (!file.is_string()) {
      fail(ErrorCode::kCorruptFile, "{}: the shard of \"{}\" is {}, expected a file name", where,
           tensor.substr(0, 200), file.type_name());
    }
    const std::string& name = file.as_string();
    auto place = places.find(name);
    if (place == places.end()) {
      if (name.empty() || name == "." || name == ".." ||
          name.find_first_of(std::string_view("/\\\0", 3)) != name.npos) {
        fail(ErrorCode::kCorruptFile,
             "{}: \"{}\" is no plain file name; a shard must lie in the folder of its index", where,
             name.substr(0, 200));
      }
      if (!ends_with(name, ".safetensors")) {
        if (is_pickle_name(name)) refuse_pickle(name);
        fail(ErrorCode::kCorruptFile, "{}: the shard \"{}\" is not a .safetensors file", where,
             name.substr(0, 200));
      }
      if (shards.size() == kMaxShards)
        fail(ErrorCode::kUnsupported, "{}: more than {} shards", where, kMaxShards);
      place = places.emplace(name, shards.size()).first;
      shards.push_back({name, {}});
    }
    shards[place->second].second.push_back(tensor);
  }
  return shards;
}

void TensorFolder::release(const void* bytes, size_t count) const {
  for (const SafetensorsFile& file : files) {
    const std::span<const std::byte> mapped = file.file->bytes();
    const auto* const first = static_cast<const std::byte*>(bytes);
    if (std::less_equal<>()(mapped.data(), first) && std::less<>()(first, mapped.data() + mapped.size()))
      file.file->release(static_cast<size_t>(first - mapped.data()), count);
  }
}

TensorFolder open_tensor_folder(const fs::path& folder, std::string_view base_name) {
  if (!fs::is_directory(folder)) fail(ErrorCode::kNotFound, "{} is not a folder", folder.string());
  const std::string base(base_name.empty() ? std::string_view("model") : base_name);
  if (base.find_first_of(std::string_view("/\\\0", 3)) != base.npos) {
    fail(ErrorCode::kCorruptFile, "\"{}\" is no plain file name; the model must lie in {}", base,
         folder.string());
  }
  if (const fs::path path = folder / (base + ".safetensors"); fs::exists(path)) return open_single(path);
  if (const fs::path path = folder / (base + std::string(kIndexEnding)); fs::exists(path))
    return open_shards(folder, path);

  std::vector<std::string> indexes, singles, pickles;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (ends_with(name, kIndexEnding)) indexes.push_back(name);
    if (ends_with(name, ".safetensors")) singles.push_back(name);
    if (is_pickle_name(name) && name != "training_args.bin") pickles.push_back(name);
  }
  std::sort(indexes.begin(), indexes.end());
  std::sort(singles.begin(), singles.end());
  std::sort(pickles.begin(), pickles.end());
  if (base_name.empty()) {
    if (indexes.size() == 1) return open_shards(folder, folder / indexes[0]);
    if (indexes.empty() && singles.size() == 1) {
      if (singles[0] == "adapter_model.safetensors") {
        fail(ErrorCode::kUnsupported, "{} holds only an adapter; merge it into its base model first",
             folder.string());
      }
      return open_single(folder / singles[0]);
    }
    if (indexes.size() + singles.size() > 1) {
      indexes.insert(indexes.end(), singles.begin(), singles.end());
      fail(ErrorCode::kInvalidArgument,
           "{} has neither model.safetensors nor model.safetensors.index.json, but several other files: {}; "
           "which one is "
           "the model cannot be told (an index of the shards may be missing)",
           folder.string(), joined(indexes));
    }
  }
  if (singles.empty() && !pickles.empty()) refuse_pickle(folder / pickles[0]);
  fail(ErrorCode::kNotFound, "{} has no {}.safetensors and no {}{}{}", folder.string(), base, base,
       kIndexEnding, singles.empty() ? "" : "; it has " + joined(singles));
}

std::vector<std::string> write_tensor_folder(const fs::path& folder, std::string_view base_name,
                                             const std::vector<NamedTensor>& tensors,
                                             uint64_t max_shard_bytes,
                                             std::vector<std::pair<std::string, std::string>> metadata) {
  std::vector<std::vector<NamedTensor>> shards(1);
  uint64_t shard_bytes = 0, total_bytes = 0;
  for (const NamedTensor& named : tensors) {
    const uint64_t bytes = named.tensor.byte_count();
    if (max_shard_bytes > 0 && !shards.back().empty() && shard_bytes + bytes > max_shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(named);
    shard_bytes += bytes;
    total_bytes += bytes;
  }
  if (shards.size() == 1) {
    const std::string name = fmt::format("{}.safetensors", base_name);
    write_safetensors(folder / name, tensors, std::move(metadata));
    return {name};
  }
  std::vector<std::string> names;
  Json::Object weight_map;
  for (size_t i = 0; i < shards.size(); ++i) {
    names.push_back(fmt::format("{}-{:05}-of-{:05}.safetensors", base_name, i + 1, shards.size()));
    write_safetensors(folder / names.back(), shards[i], metadata);
    for (const NamedTensor& named : shards[i]) weight_map.emplace_back(named.name, names.back());
  }
  const Json index(Json::Object{{"metadata", Json::Object{{"total_size", total_bytes}}},
                                {"weight_map", std::move(weight_map)}});
  names.push_back(fmt::format("{}{}", base_name, kIndexEnding));
  write_file_atomically(folder / names.back(), index.dump(2) + "\n");
  return names;
}

}  // namespace lowbit
