#include "lowbit/doctor.h"

#include "command.h"
#include "lowbit/report.h"
#include "options.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <memory>

namespace lowbit::cli {

void add_doctor(CLI::App& app, Run& run) {
  CLI::App& command =
      add_command(app, "doctor", "The machine, its measured limits, the kernels that would run, and why",
                  "  lowbit doctor\n"
                  "  measures for about two seconds how fast this machine reads and multiplies,\n"
                  "  and for half a second what each GPU can do.");
  const auto common = std::make_shared<Common>();
  const auto model = std::make_shared<std::string>();
  command.add_option("MODEL", *model, "measure reading over as many bytes as this model's folder holds");
  const auto context = std::make_shared<int64_t>(0);
  command
      .add_option("--context", *context,
                  "with MODEL: and so many tokens in its cache, as decoding reads them")
      ->check(CLI::NonNegativeNumber);
  add_common(command, *common);
  command.callback([common, model, context, &run] {
    run = [common, model, context]() -> int {
      const std::string json = doctor_json(common->threads, *model, *context);
      print_line(common->json ? json : doctor_text(json));
      return kOk;
    };
  });
}

}  // namespace lowbit::cli
