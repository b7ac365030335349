#include "command.h"
#include "lowbit/evaluate.h"
#include "lowbit/fields.h"
#include "lowbit/report.h"
#include "lowbit/version.h"
#include "options.h"
#include "paths.h"
#include "terminal.h"

#include <CLI/CLI.hpp>
#include <memory>

namespace lowbit::cli {
namespace {

struct Arguments {
  std::string model, reference, data, text, predictions;
  RuntimeOptions runtime;
  ClassifyOptions classify;
  PerplexityOptions perplexity;
  DivergenceOptions divergence;
  EmbeddingsOptions embeddings;
  Common common;
};

// A batch: sequences, and tokens of each.
LanguageModel load(Arguments& arguments, const std::string& model, int64_t batch, int64_t length,
                   const Log& log) {
  arguments.runtime.threads = arguments.common.threads;
  if (arguments.runtime.kv_cache_tokens == 0) arguments.runtime.kv_cache_tokens = cache_tokens(batch, length);
  return LanguageModel::load(model, arguments.runtime, log);
}

// What a model is compared with is loaded as it stands, whatever is done to the model while it is loaded.
LanguageModel load_reference(const Arguments& arguments, int64_t batch, int64_t length, const Log& log) {
  Arguments plain = arguments;
  plain.runtime.load_in_4bit = plain.runtime.load_in_8bit = plain.runtime.bnb_4bit_use_double_quant = false;
  plain.runtime.bnb_4bit_compute_dtype = RuntimeOptions{}.bnb_4bit_compute_dtype;
  plain.runtime.llm_int8_threshold = RuntimeOptions{}.llm_int8_threshold;
  plain.runtime.llm_int8_skip_modules.clear();
  return load(plain, arguments.reference, batch, length, log);
}

int run_classify(Arguments& arguments) {
  require_model(arguments.model);
  require_file(arguments.data, "--data");
  if (!arguments.predictions.empty()) require_parent(arguments.predictions, "--predictions");
  arguments.classify.predictions = arguments.predictions;
  set_on_interrupt(OnInterrupt::kFlag);
  const Log log = progress_log();
  const LanguageModel model =
      load(arguments, arguments.model, arguments.classify.batch_size, kUsualPrompt, log);
  if (model.task() != "text-generation") {
    const SequenceClassifyResult result = classify_sequences(model, arguments.data, arguments.classify, log);
    print_line(arguments.common.json ? to_json(result) : sequence_classification_text(result));
    return kOk;
  }
  const ClassifyResult result = classify(model, arguments.data, arguments.classify, log);
  print_line(arguments.common.json ? to_json(result) : classification_text(result));
  return kOk;
}

int run_perplexity(Arguments& arguments) {
  require_model(arguments.model);
  require_file(arguments.text, "--text");
  set_on_interrupt(OnInterrupt::kFlag);
  const Log log = progress_log();
  const PerplexityOptions& options = arguments.perplexity;
  const LanguageModel model = load(arguments, arguments.model, options.batch_size, options.context, log);
  const PerplexityResult result = perplexity(model, arguments.text, options, log);
  print_line(arguments.common.json ? to_json(result) : perplexity_text(result));
  return kOk;
}

int run_divergence(Arguments& arguments) {
  require_model(arguments.model);
  require_model(arguments.reference);
  require_file(arguments.text, "--text");
  set_on_interrupt(OnInterrupt::kFlag);
  const Log log = progress_log();
  const DivergenceOptions& options = arguments.divergence;
  const LanguageModel model = load(arguments, arguments.model, options.batch_size, options.context, log),
                      reference = load_reference(arguments, options.batch_size, options.context, log);
  const DivergenceResult result = divergence(model, reference, arguments.text, options, log);
  print_line(arguments.common.json ? to_json(result) : divergence_text(result));
  return kOk;
}

int run_embeddings(Arguments& arguments) {
  require_model(arguments.model);
  require_model(arguments.reference);
  require_file(arguments.text, "--text");
  set_on_interrupt(OnInterrupt::kFlag);
  const Log log = progress_log();
  const EmbeddingsOptions& options = arguments.embeddings;
  const LanguageModel model = load(arguments, arguments.model, options.embed.batch_size, kUsualPrompt, log),
                      reference = load_reference(arguments, options.embed.batch_size, kUsualPrompt, log);
  const EmbeddingsResult result = compare_embeddings(model, reference, arguments.text, options, log);
  print_line(arguments.common.json ? to_json(result) : embeddings_text(result));
  return kOk;
}

void add_model(CLI::App& command, Arguments& arguments) {
  command.add_option("MODEL", arguments.model, "the model's folder, quantized or not")->required();
}

void finish(CLI::App& command, const std::shared_ptr<Arguments>& arguments, Run& run,
            int (*body)(Arguments&)) {
  add_fields(command, option_fields(arguments->runtime), "Runtime", {"threads"});
  add_common(command, arguments->common);
  command.callback([arguments, &run, body] { run = [arguments, body] { return body(*arguments); }; });
}

}  // namespace

void add_eval(CLI::App& app, Run& run) {
  CLI::App& eval =
      add_command(app, "eval", "Say what a model is worth: on your own task, on a text, against its source",
                  "  lowbit eval classify qwen2-int4 --data test.jsonl\n"
                  "  asks for every dialogue of test.jsonl and counts the answers;\n"
                  "  `lowbit eval classify --help` says more.");
  eval.require_subcommand(1);
  eval.set_version_flag("--version", std::string("lowbit ") + version(), "print the version");

  auto arguments = std::make_shared<Arguments>();
  CLI::App& classify_command = add_command(
      eval, "classify", "Labels of your own examples: counts, precision, recall, F1 with their intervals",
      "  lowbit eval classify qwen2-int4 --data test.jsonl --predictions out.jsonl\n"
      "  asks each dialogue of test.jsonl, reads {\"is_fraud\": true} or a bare label\n"
      "  from the greedy answer, compares it with the label of the file, and writes\n"
      "  every answer to out.jsonl.\n"
      "  lowbit eval classify bert-int4 --data test.jsonl --label-key label\n"
      "  runs an encoder with a classification head on {\"text\": ..., \"label\": ...}.");
  add_model(classify_command, *arguments);
  classify_command
      .add_option("--data", arguments->data, "dialogues, or texts for an encoder, with labels, as JSONL")
      ->required()
      ->type_name("FILE");
  classify_command
      .add_option("--predictions", arguments->predictions,
                  "write id, truth, prediction and answer of each as JSONL")
      ->type_name("FILE");
  add_fields(classify_command, option_fields(arguments->classify), "Classification");
  finish(classify_command, arguments, run, run_classify);

  arguments = std::make_shared<Arguments>();
  CLI::App& perplexity_command =
      add_command(eval, "perplexity", "How well a model foresees a text; the protocol is part of the figure",
                  "  lowbit eval perplexity qwen2-int4 --text wiki.test.raw --context 2048\n"
                  "  scores consecutive windows of 2048 ids, as the GPTQ paper and most tables do.");
  add_model(perplexity_command, *arguments);
  perplexity_command.add_option("--text", arguments->text, "a plain text, or JSONL with \"text\"")
      ->required()
      ->type_name("FILE");
  add_fields(perplexity_command, option_fields(arguments->perplexity), "Perplexity");
  finish(perplexity_command, arguments, run, run_perplexity);

  arguments = std::make_shared<Arguments>();
  CLI::App& divergence_command =
      add_command(eval, "divergence",
                  "How far a model's next-token distributions are from those of the model it was made from",
                  "  lowbit eval divergence qwen2-int4 --reference qwen2 --text wiki.test.raw\n"
                  "  runs both models side by side and prints mean and tail KL, and how often they\n"
                  "  agree on the most likely token.");
  add_model(divergence_command, *arguments);
  divergence_command
      .add_option("--reference", arguments->reference, "the folder of the model it was made from")
      ->required()
      ->type_name("FOLDER");
  divergence_command.add_option("--text", arguments->text, "a plain text, or JSONL with \"text\"")
      ->required()
      ->type_name("FILE");
  add_fields(divergence_command, option_fields(arguments->divergence), "Divergence");
  finish(divergence_command, arguments, run, run_divergence);

  arguments = std::make_shared<Arguments>();
  CLI::App& embeddings_command = add_command(
      eval, "embeddings", "How far an encoder's embeddings are from those of the model it was made from",
      "  lowbit eval embeddings minilm-int4 --reference minilm --text sentences.txt\n"
      "  embeds every line with both, and prints mean, lowest and quantiles of\n"
      "  the cosines.");
  add_model(embeddings_command, *arguments);
  embeddings_command
      .add_option("--reference", arguments->reference,
                  "the folder of the model it was made from, which says how texts are read and pooled")
      ->required()
      ->type_name("FOLDER");
  embeddings_command.add_option("--text", arguments->text, "one text a line, or JSONL with \"text\"")
      ->required()
      ->type_name("FILE");
  add_fields(embeddings_command, option_fields(arguments->embeddings), "Embeddings");
  add_fields(embeddings_command, option_fields(arguments->embeddings.embed), "Embeddings");
  finish(embeddings_command, arguments, run, run_embeddings);
}

}  // namespace lowbit::cli
