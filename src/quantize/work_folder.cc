#include "quantize/work_folder.h"

#include "base/fail.h"
#include "base/files.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "io/safetensors.h"
#include "quantize/fingerprint.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail(ErrorCode::kInvalidArgument, "cannot remove {}: {}", path.string(), error.message());
}

void move_folder(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error)
    fail(ErrorCode::kInvalidArgument, "cannot rename {} to {}: {}", from.string(), to.string(),
         error.message());
}

Json module_json(const FinishedModule& module) {
  Json json = Json::object();
  json.set("module", module.module);
  json.set("format", format_name(module.weight.format));
  json.set("bits", module.weight.bits);
  json.set("group_size", module.weight.group_size);
  json.set("out_features", module.weight.out_features);
  json.set("in_features", module.weight.in_features);
  return json;
}

void add_tensor(std::vector<NamedTensor>& tensors, const std::string& name, const Tensor& tensor) {
  if (!tensor.empty()) tensors.push_back({name, tensor});
}

Tensor take_tensor(const SafetensorsFile& file, const std::string& name, DType dtype, const Shape& shape,
                   bool needed) {
  for (const NamedTensor& entry : file.tensors) {
    if (entry.name != name) continue;
    if (entry.tensor.dtype() != dtype || entry.tensor.shape() != shape) {
      fail(ErrorCode::kCorruptFile, "{}: {} is {} {}, expected {} {}", file.path.string(), name,
           dtype_name(entry.tensor.dtype()), shape_text(entry.tensor.shape()), dtype_name(dtype),
           shape_text(shape));
    }
    return entry.tensor;
  }
  if (needed) fail(ErrorCode::kCorruptFile, "{}: {} is missing", file.path.string(), name);
  return {};
}

FinishedModule read_module(const SafetensorsFile& file, const Json& json) {
  FinishedModule module{json.get("module").as_string(), {}};
  QuantizedTensor& weight = module.weight;
  const std::optional<Format> format = find_format(json.get("format").as_string());
  weight.format = format.value_or(Format::kAffine);
  weight.bits = static_cast<int>(json.get("bits").as_integer());
  weight.group_size = json.get("group_size").as_integer();
  weight.out_features = json.get("out_features").as_integer();
  weight.in_features = json.get("in_features").as_integer();
  if (!format || !(weight.bits >= 2 && weight.bits <= 8) || weight.group_size < 1 ||
      weight.out_features < 1 || weight.in_features < 1) {
    fail(ErrorCode::kCorruptFile, "{}: {} has sizes that cannot be", file.path.string(), module.module);
  }
  const int64_t out = weight.out_features, in = weight.in_features;
  weight.codes =
      take_tensor(file, module.module + ".codes", DType::kI32, {packed_words(in, weight.bits), out}, true);
  weight.scales =
      take_tensor(file, module.module + ".scales", has_codebook(weight.format) ? DType::kF32 : DType::kF16,
                  {weight.groups(), out}, true);
  if (weight.format == Format::kLog2) {
    weight.codebook =
        take_tensor(file, module.module + ".codebook", DType::kF32, {codebook_entries(weight.bits)}, true);
  }
  weight.zero_points =
      take_tensor(file, module.module + ".zero_points", DType::kU8, {weight.groups(), out}, false);
  weight.column_order = take_tensor(file, module.module + ".column_order", DType::kI32, {in}, false);
  return module;
}

FinishedLayer read_layer(const fs::path& path) {
  const SafetensorsFile file = open_safetensors(path);
  FinishedLayer layer;
  for (const auto& [key, text] : file.metadata) {
    if (key == "modules") {
      const Json json = parse_json(text, path.string());
      for (const Json& module : json.as_array()) layer.modules.push_back(read_module(file, module));
    } else if (key == "reports") {
      const Json json = parse_json(text, path.string());
      for (const Json& report : json.as_array()) layer.reports.push_back(module_report_from_json(report));
    }
  }
  if (layer.reports.empty()) fail(ErrorCode::kCorruptFile, "{} has no reports", path.string());
  return layer;
}

}  // namespace

Json to_json(const ModuleReport& report) {
  Json json = Json::object();
  json.set("module", report.module);
  json.set("bits", report.bits);
  json.set("group_size", report.group_size);
  json.set("method", report.method);
  json.set("note", report.note);
  json.set("relative_error", report.relative_error);
  json.set("tokens", report.tokens);
  json.set("damp_percent", report.damp_percent);
  json.set("seconds", report.seconds);
  if (report.input) {
    json.set("input", Json::Object{{"scale", double{report.input->scale}},
                                   {"zero_point", report.input->zero_point},
                                   {"observer", report.input->observer},
                                   {"symmetric", report.input->is_symmetric},
                                   {"clipped", report.input->clipped},
                                   {"relative_error", report.input->relative_error}});
  }
  if (report.smooth_alpha) json.set("smooth_alpha", *report.smooth_alpha);
  return json;
}

ModuleReport module_report_from_json(const Json& json) {
  ModuleReport report;
  report.module = json.get("module").as_string();
  report.bits = static_cast<int>(json.get("bits").as_integer());
  report.group_size = json.get("group_size").as_integer();
  report.method = json.get("method").as_string();
  report.note = json.get("note").as_string();
  report.relative_error = json.get("relative_error").as_number();
  report.tokens = json.get("tokens").as_integer();
  report.damp_percent = json.get("damp_percent").as_number();
  report.seconds = json.get("seconds").as_number();
  return report;
}

WorkFolder::WorkFolder(fs::path partial, const Json& fingerprint, bool resume) : folder_(std::move(partial)) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) fail(ErrorCode::kInvalidArgument, "cannot create {}: {}", folder_.string(), error.message());
  const fs::path lock = folder_ / "lock";
  lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0)
    fail(ErrorCode::kInvalidArgument, "cannot create {}: {}", lock.string(), std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    lock_ = -1;
    fail(ErrorCode::kInvalidArgument,
         "{} is held by another run; wait for it or choose another output folder", lock.string());
  }
  const fs::path state = folder_ / "state.json";
  bool keep = false;
  try {
    if (fs::exists(state)) {
      const Json before = parse_json(read_file(state, 1 << 20), state.string());
      const std::string different = first_difference(before, fingerprint);
      keep = resume && different.empty();
      if (resume && !keep) fresh_reason_ = fmt::format("{} differs from the earlier run", different);
    }
  } catch (const Error& damaged) {
    fresh_reason_ = damaged.what();
  }
  if (keep) return;
  std::vector<fs::path> old;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.path().filename() != "lock") old.push_back(entry.path());
  }
  for (const fs::path& path : old) remove_tree(path);
  write_file_atomically(state, fingerprint.dump(2));
}

WorkFolder::~WorkFolder() {
  if (lock_ >= 0) ::close(lock_);
}

fs::path WorkFolder::layer_file(int64_t layer) const {
  return folder_ / fmt::format("layer-{:05}.safetensors", layer);
}

std::optional<FinishedLayer> WorkFolder::load(int64_t layer) const {
  if (!fs::exists(layer_file(layer))) return std::nullopt;
  try {
    return read_layer(layer_file(layer));
  } catch (const Error&) {
    return std::nullopt;  // it will be made again and replaced
  }
}

FinishedLayer WorkFolder::save(int64_t layer, const FinishedLayer& finished) const {
  std::vector<NamedTensor> tensors;
  Json modules = Json::array(), reports = Json::array();
  for (const FinishedModule& module : finished.modules) {
    modules.push_back(module_json(module));
    add_tensor(tensors, module.module + ".codes", module.weight.codes);
    add_tensor(tensors, module.module + ".scales", module.weight.scales);
    add_tensor(tensors, module.module + ".codebook", module.weight.codebook);
    add_tensor(tensors, module.module + ".column_order", module.weight.column_order);
    add_tensor(tensors, module.module + ".zero_points", module.weight.zero_points);
  }
  for (const ModuleReport& report : finished.reports) reports.push_back(to_json(report));
  write_safetensors(layer_file(layer), tensors, {{"modules", modules.dump()}, {"reports", reports.dump()}});
  return read_layer(layer_file(layer));
}

fs::path WorkFolder::make_checkpoint_folder() const {
  const fs::path folder = folder_ / "checkpoint";
  remove_tree(folder);
  fs::create_directories(folder);
  return folder;
}

void WorkFolder::publish(const fs::path& out) {
  const fs::path replaced = folder_ / "replaced";
  remove_tree(replaced);
  if (fs::exists(out)) move_folder(out, replaced);
  move_folder(folder_ / "checkpoint", out);
  sync_folder(out.has_parent_path() ? out.parent_path() : fs::path("."));
  remove_tree(folder_);
}

}  // namespace lowbit
