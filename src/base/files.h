// Files: whole-file reads with a size cap, read-only mappings, and writes that are complete or absent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace lowbit {

// Throws kNotFound, or kInvalidArgument when the file is larger than max_bytes.
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes = uint64_t{1} << 30);

// A read-only mapping of a whole file. Views of it stay valid while any shared_ptr to it lives.
class MappedFile {
 public:
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // Tells the kernel that these pages will not be needed soon; they are read again on the next touch.
  void release(size_t offset, size_t length) const;

 private:
  MappedFile() = default;
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Writes `path` through a temporary sibling: write, fsync, rename, fsync of the folder. Nothing is left
// behind when it throws (kOutOfMemory when the disk is full).
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

// A file that grows by appending and becomes visible under `path` only at commit().
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();  // removes the temporary when commit() was not reached
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(const void* data, size_t size);
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  int descriptor_ = -1;
  uint64_t written_ = 0, begun_ = 0;  // bytes; the disk was told to write so many
};

// fsync of a folder, so that renames inside it survive a power cut.
void sync_folder(const std::filesystem::path& folder);

}  // namespace lowbit
