// espalier compare: one table of many runs, those that differ only by their seed in one row.
#include <filesystem>

#include "commands.h"
#include "comparison.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/report/compare.h"
#include "espalier/train/json.h"

namespace espalier::cli {
namespace {

constexpr std::size_t kMaxLeftOut = 10;  // said one by one

struct CompareArguments {
  std::vector<std::string> runs;
  report::CompareOptions options;
  std::string spread = "deviation", format = "text";
  bool json = false;
};

void say_left_out(const report::Comparison& comparison) {
  for (std::size_t i = 0; i < comparison.left_out.size(); ++i) {
    if (i == kMaxLeftOut && comparison.left_out.size() > kMaxLeftOut + 1) {
      log_warning(fmt::format("and {} runs more are left out", comparison.left_out.size() - i));
      return;
    }
    log_warning(fmt::format("{}: left out: {}", comparison.left_out[i].run.string(), comparison.left_out[i].reason));
  }
}

int run(const CompareArguments& arguments, Context& context) {
  std::vector<std::filesystem::path> paths(arguments.runs.begin(), arguments.runs.end());
  const auto runs = report::read_runs(paths);
  const report::Comparison comparison = report::compare(runs, arguments.options);
  say_left_out(comparison);
  const report::Spread spread = arguments.spread == "deviation" ? report::Spread::deviation
                                : arguments.spread == "ci95"    ? report::Spread::ci95
                                                                : report::Spread::range;
  const std::string format = arguments.json ? "json" : arguments.format;
  if (format == "json") {
    context.console.print(train::to_json_text(report::to_json(comparison)));
    return 0;
  }
  ESPALIER_CHECK(!comparison.groups.empty(), ErrorKind::data, "none of {} runs is finished and meets the filters",
                 runs.size());
  context.console.print(format == "csv"        ? report::to_csv(comparison)
                        : format == "markdown" ? report::to_markdown(comparison, spread)
                                               : report::to_text(comparison, spread));
  return 0;
}

}  // namespace

std::string comparison_table(const std::filesystem::path& sweep) {
  const report::Comparison comparison = report::compare(report::read_runs({sweep}), {});
  say_left_out(comparison);
  return comparison.groups.empty() ? "" : report::to_text(comparison, report::Spread::deviation);
}

void add_compare_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<CompareArguments>();
  CLI::App* command = app.add_subcommand("compare", "One table of many runs: mean, spread and number of seeds");
  command->add_option("RUN", a->runs, "run directories, sweeps, or directories of runs")
      ->required()
      ->option_text("...");
  command
      ->add_option(
          "--by", a->options.by,
          "fields that make a group, e.g. method,sparsity; otherwise runs that differ only by their seed are one")
      ->delimiter(',')
      ->option_text("FIELD,...");
  command->add_flag("--each", a->options.each, "one row a run");
  command
      ->add_option("--filter", a->options.filters,
                   "only runs with FIELD=VALUE, or with !=, <, <=, >, >=; may be repeated, all must hold")
      ->type_size(1)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->option_text("FIELD=VALUE");
  command->add_option("--fields", a->options.fields, "results to show, e.g. test_accuracy,nnz")
      ->delimiter(',')
      ->option_text("FIELD,...");
  command->add_option("--sort", a->options.sort, "order of the rows; a result goes by its mean")->option_text("FIELD");
  command->add_flag("--descending", a->options.descending, "with --sort: the largest first")->needs("--sort");
  command
      ->add_option("--spread", a->spread,
                   "after ±: deviation (of a sample, n - 1), ci95 (half the 95 % confidence interval of the mean, "
                   "Student's t); or range")
      ->check(CLI::IsMember({"deviation", "ci95", "range"}))
      ->option_text("NAME");
  command->add_option("--format", a->format, "text, csv, json, markdown; csv and json have every statistic")
      ->check(CLI::IsMember({"text", "csv", "json", "markdown"}))
      ->option_text("NAME");
  command->add_flag("--json", a->json, "the same as --format json");
  command->footer(
      "A field is a result (test_accuracy), a key of the configuration (reparam.alpha), or its last word (alpha).\n"
      "Runs that are not finished or damaged are named and left out.\n"
      "Examples:\n"
      "  espalier compare runs/*\n"
      "  espalier compare runs/my-sweep --sort test_accuracy --descending --spread ci95\n"
      "  espalier compare runs/* --filter method=rigl --filter 'sparsity>=0.9' --by sparsity.sparsity --format csv");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
