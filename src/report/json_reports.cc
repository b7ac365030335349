#include "lowbit/report.h"
#include "report/json_text.h"
#include "report/text_table.h"

#include <algorithm>
#include <fmt/format.h>

namespace lowbit {
namespace {

std::string section(std::string_view title, const std::string& body) {
  return body.empty() ? "" : fmt::format("\n{}\n{}", title, body);
}

// Strings of an array, one line each.
std::string lines_of(const Json& object, std::string_view key, std::string_view label) {
  std::string out;
  for (const Json& line : array_of(object, key)) out += wrapped(label, text_of(&line));
  return out;
}

// A "reasons" member may be a string, strings, or objects with bytes and a reason.
std::string waste_text(const Json& object) {
  for (std::string_view key : {"waste", "waste_reasons"}) {
    if (std::string table = objects_table(object, key, {"bytes", "reason", "what"}); !table.empty())
      return table;
    if (std::string lines = lines_of(object, key, " "); !lines.empty()) return lines;
  }
  return "";
}

// The modules of a plan, those of all layers that get the same treatment on one line.
std::string plan_modules(const Json& plan) {
  std::vector<std::pair<std::vector<std::string>, int>> lines;  // cells, how many modules
  for (const Json& module : array_of(plan, "modules")) {
    if (!module.is_object()) continue;
    std::vector<std::string> cells = {
        layer_pattern(text_of(module, "module")),
        text_of(module, "method"),
        text_of(module, "bits"),
        text_of(module, "group_size"),
        fmt::format("{} x {}", text_of(module, "out_features"), text_of(module, "in_features")),
        module.find("reason") ? text_of(module, "reason") : ""};
    const auto same =
        std::find_if(lines.begin(), lines.end(), [&](const auto& line) { return line.first == cells; });
    if (same != lines.end()) {
      ++same->second;
    } else {
      lines.emplace_back(std::move(cells), 1);
    }
  }
  if (lines.empty()) return "";
  TextTable table;
  table.align_left(2);
  table.add({"module", "n", "method", "bits", "group", "out x in"});
  table.add_rule();
  std::string reasons;
  for (auto& [cells, count] : lines) {
    if (!cells.back().empty()) reasons += wrapped(cells[0] + ":", cells.back());
    cells.pop_back();
    cells.insert(cells.begin() + 1, std::to_string(count));
    table.add(cells);
  }
  return table.text() + reasons;
}

// An object of byte counts, its members with units.
std::string bytes_table(const Json& object, std::string_view key) {
  const Json* counts = object.find(key);
  if (!counts || !counts->is_object()) return "";
  TextTable table;
  for (const auto& [name, count] : counts->as_object()) {
    table.add({name, count.is_number() ? bytes_of(*counts, name) : text_of(&count)});
  }
  return table.text();
}

// What estimate_memory found.
std::string memory_text(const Json& object) {
  const Json* memory = object.find("memory");
  if (!memory || !memory->is_object()) return "";
  std::string out = section("Memory of the weights",
                            remaining_text(*memory, {"parameters", "run_unknown", "train_unknown"}));
  const auto reason = [&](std::string_view key) {
    const Json* why = memory->find(key);
    return why && why->is_string() ? wrapped("unknown:", text_of(why)) : std::string();
  };
  out += section("Memory to run on the CPU (estimated, with the weights)",
                 members_text(*memory, "run") + reason("run_unknown"));
  out += section("Memory to train all parameters with Adam (estimated, without activations)",
                 objects_table(*memory, "train",
                               {"dtype", "weight_bytes", "gradient_bytes", "adam_bytes", "total_bytes",
                                "adam_8bit_bytes", "total_8bit_bytes"}) +
                     reason("train_unknown"));
  return out + lines_of(*memory, "notes", "note:");
}

}  // namespace

std::string inspection_text(std::string_view inspect_json) {
  const Json json = parse_json(inspect_json, "inspection");
  TextTable table;
  table.align_left(1);
  const auto add = [&](std::string_view key, const char* name) {
    if (const Json* value = json.find(key); value && !value->is_null()) table.add({name, text_of(value)});
  };
  add("path", "path");
  add("architecture", "architecture");
  add("model_type", "model type");
  add("parameters", "parameters");
  if (json.find("bytes"))
    table.add({"bytes", fmt::format("{}  ({})", text_of(json, "bytes"), bytes_of(json, "bytes"))});
  add("bits_per_weight", "bits per weight");
  add("format", "format");
  add("dialect", "dialect");
  add("declared_version", "declared version");
  add("found_version", "version by value");
  add("group_order", "group order");
  add("ties", "ties");
  if (json.find("waste_bytes")) table.add({"waste", bytes_of(json, "waste_bytes")});
  add("chat_template_sha256", "chat template");
  std::string out = table.text();
  out += section("Where the bytes are",
                 objects_table(json, "components", {"component", "parameters", "bytes", "dtype"}));
  out += section(
      "Data types",
      objects_table(json, "dtypes", {"kind", "component", "dtype", "tensors", "parameters", "bytes"}));
  out += section("Numbers (codes count steps of their group's scale)",
                 objects_table(json, "number_formats",
                               {"dtype", "tensors", "parameters", "bytes", "lowest", "largest",
                                "smallest_normal", "step_at_one"}));
  out += memory_text(json);
  out += section("Quantized modules",
                 objects_table(json, "quantized_modules", {"modules", "bits", "group_size"}));
  out += section("Waste", waste_text(json));
  out += section("Files", objects_table(json, "files", {"name", "tensors", "bytes", "header_bytes"}));
  out += section("Which engines can run it", objects_table(json, "engines", {"engine", "verdict", "reason"}));
  out += section("Also", remaining_text(json, {"path", "architecture", "model_type", "parameters", "bytes",
                                               "bits_per_weight", "format", "dialect", "declared_version",
                                               "found_version", "group_order", "ties", "waste_bytes",
                                               "chat_template_sha256"}));
  out += lines_of(json, "notes", "note:");
  out += lines_of(json, "warnings", "warning:");
  return out;
}

std::string tensor_text(std::string_view tensor_json) {
  const Json json = parse_json(tensor_json, "tensor");
  TextTable table;
  table.align_left(1);
  for (const auto& [key, value] : json.as_object()) {
    table.add({key, key == "bytes" ? bytes_of(json, key) : text_of(&value)});
  }
  return table.text();
}

std::string plan_text(std::string_view plan_json) {
  const Json json = parse_json(plan_json, "plan");
  std::string out = plan_modules(json);
  out += section("Bytes of the result", bytes_table(json, "bytes_by_component"));
  out += section("Memory by phase", bytes_table(json, "memory_by_phase"));
  out += section("GPU memory (bytes)", members_text(json, "gpu_memory"));
  out += section("What it takes", remaining_text(json, {"feasible", "estimated_seconds"}));
  if (const double seconds = number_of(json, "estimated_seconds", -1); seconds >= 0) {
    out += fmt::format("time, estimated from one layer and small matrices run here: {}\n",
                       seconds_text(seconds));
  }
  out += section("Calibration", members_text(json, "calibration"));
  out += section("Which engines can run the result",
                 objects_table(json, "engines", {"engine", "verdict", "reason"}));
  if (const Json* feasible = json.find("feasible"); feasible && feasible->is_bool()) {
    out += feasible->as_bool() ? "\nIt can finish.\n" : "\nIt CANNOT finish:\n";
  }
  out += lines_of(json, "reasons", "  -");
  out += lines_of(json, "warnings", "warning:");
  return out;
}

bool plan_is_feasible(std::string_view plan_json) {
  const Json json = parse_json(plan_json, "plan");
  const Json* feasible = json.find("feasible");
  return feasible && feasible->is_bool() && feasible->as_bool();
}

std::string doctor_text(std::string_view doctor_json) {
  const Json json = parse_json(doctor_json, "doctor");
  std::string out = remaining_text(json, {});
  out +=
      section("Instruction sets", objects_table(json, "instruction_sets", {"name", "available", "reason"}));
  out += section("CUDA", members_text(json, "cuda"));
  out +=
      section("GPUs", objects_table(json, "gpus",
                                    {"device", "name", "compute_capability", "memory_bytes",
                                     "multiprocessors", "copy_gbps", "read_gbps", "bf16_tflops", "problem"}));
  out +=
      section("Measured limits (gbps: 10^9 bytes per second read; gflops, gops: 10^9 operations per second)",
              members_text(json, "limits"));
  out += section("Kernels",
                 objects_table(json, "kernels", {"op", "kernel", "available", "chosen", "requirement"}));
  out +=
      section("GPU kernels", objects_table(json, "gpu_kernels", {"op", "kernel", "available", "used_for"}));
  out += lines_of(json, "notes", "note:");
  out += lines_of(json, "warnings", "warning:");
  return out;
}

}  // namespace lowbit
