// espalier continual: a sequence of tasks into one network, or one more task into a packed network.
#include <chrono>
#include <ctime>
#include <filesystem>

#include "commands.h"
#include "espalier/continual/learner.h"
#include "espalier/core/error.h"
#include "espalier/train/environment.h"
#include "espalier/train/run_directory.h"
#include "run_commands.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;
using train::Json;
using train::RunConfig;

struct ContinualArguments {
  ConfigArguments config;
  std::string run_dir, resume, add_task, out, task_data;
  std::vector<std::string> allow_change;
  bool overwrite = false, json = false;
};

/// Redrawn ten times a second on a terminal; elsewhere a message every half minute.
class ProgressLine {
 public:
  explicit ProgressLine(Console& console) : console_(console) {}
  ~ProgressLine() { console_.progress(""); }
  void operator()(const continual::Progress& p) {
    const auto now = std::chrono::steady_clock::now();
    if (now - shown_ < std::chrono::milliseconds(console_.live() ? 100 : 30000)) return;
    shown_ = now;
    const std::string line =
        fmt::format("task {}/{}  {} step {}/{}  loss {:.4f}  acc {:.4f}", p.task, p.tasks,
                    p.retraining ? "retraining" : "training", p.step, p.total_steps, p.loss, p.accuracy);
    if (console_.live())
      console_.progress(line);
    else
      console_.message(LogLevel::info, line);
  }

 private:
  Console& console_;
  std::chrono::steady_clock::time_point shown_ = std::chrono::steady_clock::now();
};

std::string number_or_reason(const Json& s, const char* name) {
  if (!s.at(name).is_null()) return fmt::format("{:.4f}", s.at(name).get<double>());
  return fmt::format("not defined ({})", s.at("undefined").value(name, ""));
}

/// For people: the tasks, what each has cost, and the metrics.
std::string report(const Json& s) {
  std::vector<std::vector<std::string>> rows = {{"task", "test accuracy", "weights", "new", "reused", ""}};
  const Json& capacity = s.at("capacity");
  for (const Json& task : s.at("per_task")) {
    const auto t = task.at("task").get<std::size_t>() - 1;
    const bool counted = t < capacity.at("tasks").size() && capacity.at("weights").get<std::int64_t>() > 0;
    const auto count = [&](const char* key) {
      return counted ? fmt::format("{}", capacity.at("tasks")[t].at(key).get<std::int64_t>()) : std::string("-");
    };
    rows.push_back(
        {fmt::format("{}", t + 1),
         task.at("test_accuracy").is_null() ? "-" : fmt::format("{:.4f}", task.at("test_accuracy").get<double>()),
         count("kept"), count("new"), count("reused"), task.at("name").get<std::string>()});
  }
  std::string text = columns(rows);
  text += fmt::format("\naverage accuracy   {}\nforgetting         {}\nbackward transfer  {}\nforward transfer   {}\n",
                      number_or_reason(s, "average_accuracy"), number_or_reason(s, "forgetting"),
                      number_or_reason(s, "backward_transfer"), number_or_reason(s, "forward_transfer"));
  text += fmt::format("capacity used      {:.4f} ({} of {} weights, {} of them by more than one task, {} free)\n",
                      s.at("capacity_used").get<double>(), capacity.at("used").get<std::int64_t>(),
                      capacity.at("weights").get<std::int64_t>(), capacity.at("shared").get<std::int64_t>(),
                      capacity.at("free").get<std::int64_t>());
  return text;
}

void show(const ContinualArguments& a, Context& context, const Json& summary) {
  context.console.print(a.json ? train::to_json_text(summary) : report(summary));
}

int add(const ContinualArguments& a, Context& context) {
  ESPALIER_CHECK(
      a.config.file.empty() && a.config.preset.empty() && a.run_dir.empty() && a.resume.empty(), ErrorKind::usage,
      "--add-task takes everything from the packed file: leave CONFIG, --preset, --run-dir and --resume out, "
      "and change single keys with --set");
  continual::Pack pack = continual::load_pack(a.add_task);
  RunConfig config = pack.config;
  if (a.config.overrides()) {
    train::ConfigSources from = sources(a.config, context);
    from.environment.clear();
    from.file = a.add_task;
    from.text = train::to_toml(pack.config);
    config = train::load_config(from);
  }
  set_threads(static_cast<int>(config.run.threads));
  continual::TaskData data;
  const continual::TaskSource source =
      a.task_data.empty() ? continual::next_source(pack, config, data) : continual::task_of_data(config, a.task_data);
  const fs::path out = a.out.empty() ? a.add_task : a.out;
  log_info(fmt::format("{}: {} tasks; learning {}", a.add_task, pack.tasks.size(), source.text()));
  ProgressLine line(context.console);
  continual::Hooks hooks;
  hooks.progress = [&](const continual::Progress& p) { line(p); };
  hooks.stop = stop_on_signals();
  const Json summary = continual::add_task(pack, config, source, hooks);
  context.console.progress("");
  continual::save_pack(out, pack);
  log_info(fmt::format("{}: {} tasks", out.string(), pack.tasks.size()));
  show(a, context, summary);
  return 0;
}

int run(const ContinualArguments& a, Context& context) {
  if (!a.add_task.empty()) return add(a, context);
  ESPALIER_CHECK(a.out.empty() && a.task_data.empty(), ErrorKind::usage,
                 "--out and --task-data belong to --add-task PACK; a sequence goes to --run-dir");
  ESPALIER_CHECK(a.resume.empty() || a.run_dir.empty() || a.resume == a.run_dir, ErrorKind::usage,
                 "--run-dir {} and --resume {}: a run goes on in its own directory; give --resume alone", a.run_dir,
                 a.resume);
  ESPALIER_CHECK(!a.overwrite || a.resume.empty(), ErrorKind::usage, "--overwrite and --resume exclude each other");
  const bool resume = !a.resume.empty() && fs::exists(fs::path(a.resume) / "config.toml");
  ESPALIER_CHECK(resume || a.resume.empty() || a.config.given(), ErrorKind::usage,
                 "{}: no run to resume (no config.toml there); with a configuration or --preset it would be started",
                 a.resume);
  const RunConfig config =
      resume ? resumed_config(a.config, a.allow_change, context, a.resume) : load(a.config, context);
  ESPALIER_CHECK(config.continual.sequence != "none", ErrorKind::usage,
                 "[continual].sequence is \"none\": there is no sequence of tasks in this configuration; set "
                 "continual.sequence to permuted, rotated, split or datasets, or run it with espalier train");
  set_threads(static_cast<int>(config.run.threads));
  const std::string text = train::to_toml(config);
  const auto directory_of = [&]() -> train::RunDirectory {
    if (resume) return train::RunDirectory::open(a.resume);
    const std::string named = a.run_dir.empty() ? a.resume : a.run_dir;
    const fs::path path = named.empty() ? train::default_run_path("runs", config.run.name, config.model.name,
                                                                  config.continual.method, text, std::time(nullptr))
                                        : fs::path(named);
    Json env = to_json(environment());
    env["seed"] = config.run.seed;
    return train::RunDirectory::create(path, {text, input_text(a.config), command_line(), env}, a.overwrite);
  };
  train::RunDirectory directory = directory_of();
  context.console.log_to(directory.log());
  if (resume) {
    if (finished(directory.path()) && text == read_text(directory.config())) {
      log_info(fmt::format("{}: the run is finished already", directory.path().string()));
      show(a, context, train::read_json(directory.summary()));
      return 0;
    }
    if (text != read_text(directory.config())) train::write_file_atomically(directory.config(), text);
  }
  log_info(fmt::format("run directory {}; {} threads", directory.path().string(), at::get_num_threads()));

  ProgressLine line(context.console);
  continual::Hooks hooks;
  hooks.progress = [&](const continual::Progress& p) { line(p); };
  hooks.stop = stop_on_signals();
  const train::TrainResult result = continual::learn(config, directory, hooks);
  context.console.progress("");
  if (result.outcome == train::Outcome::stopped) {
    log_info(
        fmt::format("stopped by a signal at step {}, checkpoint written; go on with: espalier continual --resume {}",
                    result.summary.at("steps").get<std::int64_t>(), directory.path().string()));
    if (a.json) context.console.print(train::to_json_text(result.summary));
    return kStoppedBySignal;
  }
  log_info(fmt::format("packed network: {}", continual::pack_path(directory)));
  show(a, context, result.summary);
  return 0;
}

}  // namespace

void add_continual_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<ContinualArguments>();
  CLI::App* command = app.add_subcommand("continual", "Learn a sequence of tasks into one network, without forgetting");
  add_config_arguments(*command, a->config);
  command->add_option("--run-dir", a->run_dir, "where the run is written; otherwise a new folder under runs/")
      ->option_text("DIR");
  command
      ->add_option(
          "--resume", a->resume,
          "go on with the run in DIR, to the same bits as if it had never stopped; with a configuration, start "
          "it there if there is none yet")
      ->option_text("DIR");
  add_allow_change(*command, a->allow_change);
  command
      ->add_option("--add-task", a->add_task,
                   "learn one more task, the next of its sequence, into this packed file; --set changes keys")
      ->option_text("PACK");
  command->add_option("--task-data", a->task_data, "with --add-task: the task is this data set as it is")
      ->option_text("NAME");
  command->add_option("--out", a->out, "with --add-task: write here instead of over PACK")->option_text("FILE");
  command->add_flag("--overwrite", a->overwrite, "remove the run that is in the directory first");
  command->add_flag("--json", a->json, "print summary.json on standard output");
  command->footer(
      "The run directory gets pack.safetensors: all tasks in one file, for espalier eval PACK --task N.\n"
      "Examples:\n"
      "  espalier continual --preset epn-permuted-mnist-3 --data-root DIR\n"
      "  espalier continual --preset epn-permuted-mnist-10 --set continual.method=packnet --run-dir runs/packnet\n"
      "  espalier continual --resume runs/packnet\n"
      "  espalier continual --add-task runs/epn/pack.safetensors\n"
      "  espalier continual --add-task pack.safetensors --task-data fashion-mnist --out more.safetensors");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
