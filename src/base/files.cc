#include "base/files.h"

#include "base/fail.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_errno(const char* action, const fs::path& path, int error) {
  ErrorCode code = ErrorCode::kInvalidArgument;
  if (error == ENOENT) code = ErrorCode::kNotFound;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG || error == ENOMEM) code = ErrorCode::kOutOfMemory;
  fail(code, "cannot {} {}: {}", action, path.string(), std::strerror(error));
}

struct Descriptor {
  int value = -1;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

uint64_t open_regular(const fs::path& path, Descriptor& file) {
  file.value = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file.value < 0) fail_errno("open", path, errno);
  struct stat status;
  if (::fstat(file.value, &status) != 0) fail_errno("stat", path, errno);
  if (!S_ISREG(status.st_mode)) {
    fail(ErrorCode::kInvalidArgument, "cannot read {}: it is not a regular file", path.string());
  }
  return static_cast<uint64_t>(status.st_size);
}

}  // namespace

std::string read_file(const fs::path& path, uint64_t max_bytes) {
  Descriptor file;
  const uint64_t size = open_regular(path, file);
  if (size > max_bytes) {
    fail(ErrorCode::kInvalidArgument, "{} has {} bytes; at most {} are read from such a file", path.string(),
         size, max_bytes);
  }
  std::string content(size, '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t count = ::read(file.value, content.data() + done, content.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno("read", path, errno);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  content.resize(done);
  return content;
}

std::shared_ptr<const MappedFile> MappedFile::open(const fs::path& path) {
  Descriptor file;
  const uint64_t size = open_regular(path, file);
  std::shared_ptr<MappedFile> mapped(new MappedFile);
  mapped->path_ = path;
  mapped->size_ = size;
  if (size > 0) {
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.value, 0);
    if (data == MAP_FAILED) fail_errno("map", path, errno);
    mapped->data_ = static_cast<const std::byte*>(data);
  }
  return mapped;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(size_t offset, size_t length) const {
  if (!data_ || offset >= size_) return;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = std::min(offset + length, size_) / page * page;
  if (end > begin) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  temporary_ = path_;
  temporary_ += fmt::format(".tmp{}", ::getpid());
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail_errno("create", temporary_, errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
  }
}

// The disk begins with each piece at once, so that little is left to wait for in commit(). That it cannot is
// no error: commit() writes what is left.
void AtomicFile::append(const void* data, size_t size) {
  constexpr size_t kPiece = size_t{8} << 20;
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = ::write(descriptor_, bytes, std::min(size, kPiece));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno("write", path_, errno);
    bytes += count;
    size -= static_cast<size_t>(count);
    written_ += static_cast<uint64_t>(count);
    if (written_ - begun_ < kPiece) continue;
    ::sync_file_range(descriptor_, static_cast<off64_t>(begun_), static_cast<off64_t>(written_ - begun_),
                      SYNC_FILE_RANGE_WRITE);
    begun_ = written_;
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail_errno("write", path_, errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_errno("rename to", path_, errno);
  ::close(descriptor_);
  descriptor_ = -1;
  sync_folder(path_.has_parent_path() ? path_.parent_path() : fs::path("."));
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  AtomicFile file(path);
  file.append(content.data(), content.size());
  file.commit();
}

void sync_folder(const fs::path& folder) {
  Descriptor handle{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (handle.value >= 0) ::fsync(handle.value);
}

}  // namespace lowbit
