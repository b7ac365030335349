// OUT.partial: the finished layers of a run, so that a killed or failed one goes on where it was.
//
//   OUT.partial/lock                    held while a run is at work
//   OUT.partial/state.json              the run's fingerprint
//   OUT.partial/layer-00003.safetensors codes, scales, ... of one layer; its reports in the metadata
//   OUT.partial/checkpoint/             the result, while it is written; renamed to OUT
//
// Every file is complete or absent.
#pragma once

#include "base/json.h"
#include "format/weight.h"
#include "lowbit/quantize.h"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lowbit {

// A linear that was quantized. Left dense: not in the list.
struct FinishedModule {
  std::string module;
  QuantizedTensor weight;
};

struct FinishedLayer {
  std::vector<FinishedModule> modules;
  std::vector<ModuleReport> reports;
};

class WorkFolder {
 public:
  // Locks `partial` and keeps its layers when the fingerprint is the same and `resume` is wanted; otherwise
  // it starts empty. kInvalidArgument when another run holds the lock.
  WorkFolder(std::filesystem::path partial, const Json& fingerprint, bool resume);
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  // Why earlier layers were not taken up ("options.bits differs"); empty when there were none or they were.
  const std::string& fresh_reason() const { return fresh_reason_; }

  // A finished layer with weights mapped from its file. A file that is damaged counts as not finished.
  std::optional<FinishedLayer> load(int64_t layer) const;
  // Writes it and returns it mapped, so that its heap memory can go.
  FinishedLayer save(int64_t layer, const FinishedLayer& finished) const;

  // The empty folder in which the checkpoint is written.
  std::filesystem::path make_checkpoint_folder() const;
  // Puts the checkpoint in place of `out` and removes the rest.
  void publish(const std::filesystem::path& out);

 private:
  std::filesystem::path layer_file(int64_t layer) const;

  std::filesystem::path folder_;
  std::string fresh_reason_;
  int lock_ = -1;
};

Json to_json(const ModuleReport& report);
ModuleReport module_report_from_json(const Json& json);

}  // namespace lowbit
