#include <fmt/format.h>

#include "lowbit/report.h"
#include "report/json_text.h"
#include "report/text_table.h"

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
    if (std::string table = objects_table(object, key, {"bytes", "reason", "what"}); !table.empty()) return table;
    if (std::string lines = lines_of(object, key, " "); !lines.empty()) return lines;
  }
  return "";
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
  if (json.find("bytes")) table.add({"bytes", fmt::format("{}  ({})", text_of(json, "bytes"), bytes_of(json, "bytes"))});
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
  out += section("Where the bytes are", objects_table(json, "components", {"component", "parameters", "bytes", "dtype"}));
  out += section("Data types", objects_table(json, "dtypes", {"kind", "component", "dtype", "tensors", "parameters", "bytes"}));
  out += section("Waste", waste_text(json));
  out += section("Which engines can run it", objects_table(json, "engines", {"engine", "verdict", "reason"}));
  out += section("Also", remaining_text(json, {"path", "architecture", "model_type", "parameters", "bytes", "bits_per_weight",
                                               "format", "dialect", "declared_version", "found_version", "group_order", "ties",
                                               "waste_bytes", "chat_template_sha256"}));
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
  std::string out = objects_table(json, "modules", {"module", "count", "method", "bits", "group_size", "bytes", "reason", "note"});
  out += section("Bytes of the result", objects_table(json, "components", {"component", "parameters", "source_bytes", "bytes"}));
  out += section("What it takes", remaining_text(json, {"feasible"}));
  const Json* feasible = json.find("feasible");
  if (feasible && feasible->is_bool()) {
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
  out += section("Instruction sets", objects_table(json, "instruction_sets", {"name", "available", "reason"}));
  if (const Json* memory = json.find("memory"); memory && memory->is_object()) {
    out += section("Memory", remaining_text(*memory, {}));
  }
  if (const Json* limits = json.find("limits"); limits && limits->is_object()) {
    out += section("Measured limits (gbps: 10^9 bytes per second read; gflops, gops: 10^9 operations per second)",
                   remaining_text(*limits, {}));
  }
  out += section("Kernels", objects_table(json, "kernels", {"op", "kernel", "available", "chosen", "requirement"}));
  out += lines_of(json, "notes", "note:");
  out += lines_of(json, "warnings", "warning:");
  return out;
}

}  // namespace lowbit
