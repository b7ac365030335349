// Where the time of a run goes: at each moment one phase is on the clock.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lowbit {

class Phases {
 public:
  explicit Phases(std::string_view first) { enter(first); }
  // What comes now; what is queued on a GPU must be waited for before.
  void enter(std::string_view phase) {
    const auto now = std::chrono::steady_clock::now();
    if (!current_.empty()) of(current_) += std::chrono::duration<double>(now - since_).count();
    current_ = phase;
    since_ = now;
  }
  // In the order in which they came first.
  const std::vector<std::pair<std::string, double>>& seconds() const { return seconds_; }

 private:
  double& of(const std::string& phase) {
    for (auto& [name, seconds] : seconds_) {
      if (name == phase) return seconds;
    }
    return seconds_.emplace_back(phase, 0.0).second;
  }

  std::string current_;
  std::chrono::steady_clock::time_point since_;
  std::vector<std::pair<std::string, double>> seconds_;
};

}  // namespace lowbit
