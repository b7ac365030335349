#include "base/staged_copies.h"

#include "base/fail.h"

#include <algorithm>
#include <cstring>

namespace lowbit {
namespace {

constexpr size_t kBuffers = 4, kBufferBytes = size_t{16} << 20;
constexpr size_t kPiece = size_t{512} << 10;  // that a thread copies at a time
constexpr size_t kAlignment = 256;

}  // namespace

StagedCopies::StagedCopies(GpuQueue& queue, const ThreadPool& threads) : queue_(queue), threads_(threads) {
  try {
    ring_.emplace(kBuffers * kBufferBytes);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    return;
  }
  for (size_t i = 0; i < kBuffers; ++i) sent_.push_back(std::make_unique<GpuEvent>(queue));
}

StagedCopies::~StagedCopies() {
  // The ring must not go while it is read. What failed is told to whoever waits next.
  try {
    queue_.wait("copying to the GPU");
  } catch (const Error&) {
  }
}

void StagedCopies::next_buffer() {
  sent_[buffer_]->record();
  buffer_ = (buffer_ + 1) % kBuffers;
  used_ = 0;
  sent_[buffer_]->wait("copying to the GPU");
}

void StagedCopies::copy_in(void* to_gpu, const void* from, size_t bytes) {
  if (!ring_) {
    queue_.copy_in(to_gpu, from, bytes);
    return;
  }
  char* to = static_cast<char*>(to_gpu);
  const char* source = static_cast<const char*>(from);
  while (bytes > 0) {
    if (used_ == kBufferBytes) next_buffer();
    const size_t count = std::min(bytes, kBufferBytes - used_);
    char* const staged = ring_->as<char>() + buffer_ * kBufferBytes + used_;
    const auto pieces = static_cast<int64_t>((count + kPiece - 1) / kPiece);
    threads_.parallel_for(pieces, 1, [&](int64_t first, int64_t last, int) {
      const size_t begin = static_cast<size_t>(first) * kPiece,
                   end = std::min(count, static_cast<size_t>(last) * kPiece);
      std::memcpy(staged + begin, source + begin, end - begin);
    });
    queue_.queue_copy_in(to, staged, count);
    used_ = std::min(kBufferBytes, (used_ + count + kAlignment - 1) / kAlignment * kAlignment);
    to += count;
    source += count;
    bytes -= count;
  }
}

}  // namespace lowbit
