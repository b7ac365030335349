#include "io/safetensors.h"

#include "base/fail.h"
#include "base/json.h"
#include "io/safetensors_header.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <unordered_set>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kLengthField = 8;

bool is_aligned(const void* address, size_t size) { return reinterpret_cast<uintptr_t>(address) % size == 0; }

uint64_t little_endian_64(std::span<const std::byte> bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value |= uint64_t{std::to_integer<uint8_t>(bytes[i])} << (8 * i);
  return value;
}

// Torch saves a zip archive since 2020, and a bare pickle (protocol 2: 0x80 0x02) before.
bool looks_like_pickle(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 &&
         (std::memcmp(bytes.data(), "PK\x03\x04", 4) == 0 || std::memcmp(bytes.data(), "\x80\x02", 2) == 0) &&
         little_endian_64(bytes) > kMaxSafetensorsHeader;
}

// The data begins at a multiple of this, a cache line: vector loads of mapped weights then cross no line.
constexpr uint64_t kAlignment = 64;

// The order of the data: as given, but tensors of whole cache lines first, so that each begins at one; and
// then larger elements first, when the others would be misaligned for their types.
std::vector<const NamedTensor*> layout_order(const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& named : tensors) order.push_back(&named);
  const auto rest = std::stable_partition(order.begin(), order.end(), [](const NamedTensor* named) {
    return named->tensor.byte_count() % kAlignment == 0;
  });
  uint64_t offset = 0;
  bool is_fine = true;
  for (auto named = rest; named != order.end(); ++named) {
    is_fine = is_fine && offset % dtype_size((*named)->tensor.dtype()) == 0;
    offset += (*named)->tensor.byte_count();
  }
  if (!is_fine) {
    std::stable_sort(rest, order.end(), [](const NamedTensor* a, const NamedTensor* b) {
      return dtype_size(a->tensor.dtype()) > dtype_size(b->tensor.dtype());
    });
  }
  return order;
}

std::string header_text(const std::vector<const NamedTensor*>& order,
                        std::vector<std::pair<std::string, std::string>> metadata, const fs::path& path) {
  Json::Object notes;
  for (auto& [key, value] : metadata) {
    if (key != "format") notes.emplace_back(key, std::move(value));
  }
  notes.emplace_back("format", "pt");  // transformers refuses a file without it
  Json::Object header;
  header.reserve(order.size() + 1);
  header.emplace_back("__metadata__", std::move(notes));
  std::unordered_set<std::string_view> names;
  uint64_t offset = 0;
  for (const NamedTensor* named : order) {
    if (!names.insert(named->name).second || named->name == "__metadata__") {
      fail(ErrorCode::kInvalidArgument, "cannot write {}: the tensor name \"{}\" is taken", path.string(),
           named->name);
    }
    const Tensor& tensor = named->tensor;
    Json::Array shape(tensor.shape().begin(), tensor.shape().end());
    const uint64_t end = offset + tensor.byte_count();
    header.emplace_back(named->name, Json::Object{{"dtype", dtype_name(tensor.dtype())},
                                                  {"shape", std::move(shape)},
                                                  {"data_offsets", Json::Array{offset, end}}});
    offset = end;
  }
  std::string text = Json(std::move(header)).dump();
  const size_t begin = kLengthField + text.size();
  text.append((kAlignment - begin % kAlignment) % kAlignment, ' ');
  if (text.size() > kMaxSafetensorsHeader) {
    fail(ErrorCode::kInvalidArgument,
         "cannot write {}: its header would have {} bytes, at most {} may be used; use shards", path.string(),
         text.size(), kMaxSafetensorsHeader);
  }
  return text;
}

}  // namespace

bool is_pickle_name(const fs::path& path) {
  const std::string extension = path.extension().string();
  for (const char* pickle : {".bin", ".pt", ".pth", ".ckpt", ".pkl"}) {
    if (extension == pickle) return true;
  }
  return false;
}

void refuse_pickle(const fs::path& path) {
  fail(ErrorCode::kUnsupported,
       "{} is a pickle, which can run code when it is read; lowbit reads safetensors only. Convert a file "
       "that you trust: "
       "python -c \"import torch, safetensors.torch as s; d = torch.load('{}', map_location='cpu', "
       "weights_only=True); "
       "s.save_file({{k: v.clone().contiguous() for k, v in d.items()}}, 'model.safetensors', "
       "metadata={{'format': 'pt'}})\"",
       path.string(), path.filename().string());
}

SafetensorsFile parse_safetensors(std::shared_ptr<const void> owner, std::span<const std::byte> bytes,
                                  const fs::path& name) {
  const std::string where = "[safetensors] " + name.string();
  if (bytes.size() < kLengthField) {
    fail(ErrorCode::kCorruptFile, "{}: the file has {} bytes, at least 8 are needed for the header length",
         where, bytes.size());
  }
  if (looks_like_pickle(bytes)) refuse_pickle(name);
  const uint64_t length = little_endian_64(bytes);
  if (length > kMaxSafetensorsHeader) {
    fail(ErrorCode::kCorruptFile,
         "{}: the header length is {}, at most {} is allowed: this is not a safetensors file", where, length,
         kMaxSafetensorsHeader);
  }
  if (length > bytes.size() - kLengthField) {
    fail(ErrorCode::kCorruptFile,
         "{}: the file is truncated: its header has {} bytes, only {} follow; download it again", where,
         length, bytes.size() - kLengthField);
  }
  const std::span<const std::byte> buffer = bytes.subspan(kLengthField + length);
  const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + kLengthField, length);
  SafetensorsHeader header = parse_safetensors_header(json, buffer.size(), where);

  SafetensorsFile file;
  file.path = name;
  file.metadata = std::move(header.metadata);
  file.file_bytes = bytes.size();
  file.header_bytes = kLengthField + length;
  file.tensors.reserve(header.entries.size());
  for (SafetensorsEntry& entry : header.entries) {
    const std::byte* data = buffer.data() + entry.begin;
    Tensor tensor;
    if (entry.end == entry.begin) {
      tensor = Tensor::allocate(entry.dtype, std::move(entry.shape));
    } else if (is_aligned(data, dtype_size(entry.dtype))) {
      tensor = Tensor::borrow(owner, data, entry.dtype, std::move(entry.shape));
    } else {
      tensor = Tensor::allocate(entry.dtype, std::move(entry.shape));
      std::memcpy(tensor.mutable_bytes(), data, entry.end - entry.begin);
    }
    file.tensors.push_back({std::move(entry.name), std::move(tensor)});
  }
  return file;
}

SafetensorsFile open_safetensors(const fs::path& path) {
  if (is_pickle_name(path)) refuse_pickle(path);
  std::shared_ptr<const MappedFile> mapped = MappedFile::open(path);
  SafetensorsFile file = parse_safetensors(mapped, mapped->bytes(), path);
  file.file = std::move(mapped);
  return file;
}

void write_safetensors(const fs::path& path, const std::vector<NamedTensor>& tensors,
                       std::vector<std::pair<std::string, std::string>> metadata) {
  const std::vector<const NamedTensor*> order = layout_order(tensors);
  const std::string header = header_text(order, std::move(metadata), path);
  uint8_t length[kLengthField];
  for (size_t i = 0; i < kLengthField; ++i)
    length[i] = static_cast<uint8_t>(uint64_t{header.size()} >> (8 * i));

  AtomicFile file(path);
  file.append(length, sizeof length);
  file.append(header.data(), header.size());
  for (const NamedTensor* named : order) {
    const Tensor tensor = named->make ? named->make() : named->tensor;
    if (tensor.byte_count() != named->tensor.byte_count()) {
      fail(ErrorCode::kInternal, "{}: {} bytes were made, {} announced", named->name, tensor.byte_count(),
           named->tensor.byte_count());
    }
    file.append(tensor.bytes(), tensor.byte_count());
  }
  file.commit();
}

}  // namespace lowbit
