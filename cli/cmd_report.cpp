// espalier report: runs as one page of figures, or single figures as files.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "commands.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/core/version.h"
#include "espalier/report/page.h"
#include "espalier/train/durable_file.h"

namespace espalier::cli {
namespace {

namespace fs = std::filesystem;

struct ReportArguments {
  std::vector<std::string> runs, baseline, figures;
  std::string out, format = "html", axis = "auto";
  bool each = false, list = false;
};

bool is_command(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::string folders = path == nullptr ? "" : path;
  for (std::size_t begin = 0; begin <= folders.size();) {
    const std::size_t end = std::min(folders.find(':', begin), folders.size());
    if (::access((fs::path(folders.substr(begin, end - begin)) / name).c_str(), X_OK) == 0) return true;
    begin = end + 1;
  }
  return false;
}

std::string quoted(const fs::path& path) {
  std::string out = "'";
  for (const char c : path.string()) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

/// A folder of its own, gone at the end.
class Scratch {
 public:
  Scratch() {
    std::string pattern = (fs::temp_directory_path() / "espalier-report-XXXXXX").string();
    ESPALIER_CHECK(::mkdtemp(pattern.data()) != nullptr, ErrorKind::failed, "{}: cannot make a temporary folder",
                   pattern);
    path_ = pattern;
  }
  ~Scratch() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void write(const fs::path& path, const std::string& content) {
  std::error_code error;
  if (!path.parent_path().empty()) fs::create_directories(path.parent_path(), error);
  train::write_file_atomically(path, content);
}

/// The end of what a program said, in one line.
std::string said_in(const fs::path& log) {
  std::string text = train::read_file(log);
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.size() > 300 ? "… " + text.substr(text.size() - 300) : text;
}

/// Vega's own renderer, in node.
void draw(const report::Figure& figure, const fs::path& svg, const fs::path& scratch) {
  std::ofstream(scratch / "spec.json") << report::vega_lite(figure).dump(-1, ' ', false,
                                                                         report::Json::error_handler_t::replace);
  const std::string command = fmt::format("cd {} && node render.cjs spec.json out.svg >log.txt 2>&1", quoted(scratch));
  ESPALIER_CHECK(std::system(command.c_str()) == 0, ErrorKind::failed, "figure {}: node could not draw it: {}",
                 figure.id, said_in(scratch / "log.txt"));
  write(svg, train::read_file(scratch / "out.svg"));
}

void rasterise(const fs::path& svg, const fs::path& png, const fs::path& scratch) {
  const fs::path log = scratch / "log.txt", part = scratch / "out.png";
  const std::string command =
      fmt::format("rsvg-convert --zoom 2 --output {} {} >{} 2>&1", quoted(part), quoted(svg), quoted(log));
  ESPALIER_CHECK(std::system(command.c_str()) == 0, ErrorKind::failed, "{}: rsvg-convert failed: {}", svg.string(),
                 said_in(log));
  write(png, train::read_file(part));
}

/// Single figures. Returns what was written.
std::vector<fs::path> write_figures(const ReportArguments& a, const std::vector<report::Figure>& figures) {
  const bool drawn = a.format != "json";
  if (drawn) {
    ESPALIER_CHECK(
        report::can_draw(), ErrorKind::failed,
        "this program was built without Vega, which draws: run scripts/bootstrap with a network and build again");
    ESPALIER_CHECK(is_command("node"), ErrorKind::failed,
                   "--format {} needs node (Debian: apt-get install nodejs); --format html and json do not", a.format);
    ESPALIER_CHECK(a.format != "png" || is_command("rsvg-convert"), ErrorKind::failed,
                   "--format png needs rsvg-convert (Debian: apt-get install librsvg2-bin); --format svg does not");
  }
  // "-o loss.svg" for one figure, a folder otherwise.
  const fs::path given = a.out.empty() ? fs::path("figures") : fs::path(a.out);
  const bool one_file = figures.size() == 1 && given.extension() == "." + a.format;
  ESPALIER_CHECK(one_file || given.extension() != "." + a.format, ErrorKind::usage,
                 "-o {} is one file, but there are {} figures: choose one with --figure, or give a folder", a.out,
                 figures.size());
  std::optional<Scratch> scratch;
  if (drawn) {
    scratch.emplace();
    for (const auto& [name, content] : report::renderer_files()) {
      const fs::path file = scratch->path() / name;
      fs::create_directories(file.parent_path());
      std::ofstream(file, std::ios::binary) << content;
    }
  }
  std::vector<fs::path> written;
  for (const report::Figure& figure : figures) {
    const fs::path file = one_file ? given : given / (figure.id + "." + a.format);
    if (a.format == "json") {
      write(file, report::vega_lite(figure).dump(1, ' ', false, report::Json::error_handler_t::replace) + "\n");
    } else if (a.format == "svg") {
      draw(figure, file, scratch->path());
    } else {
      draw(figure, scratch->path() / "figure.svg", scratch->path());
      rasterise(scratch->path() / "figure.svg", file, scratch->path());
    }
    written.push_back(file);
  }
  return written;
}

std::vector<report::Figure> chosen(const std::vector<report::Figure>& all, const std::vector<std::string>& ids) {
  if (ids.empty()) return all;
  std::vector<std::string> known;
  for (const report::Figure& f : all) known.push_back(f.id);
  std::vector<report::Figure> out;
  for (const std::string& id : ids) {
    const auto at = std::find(known.begin(), known.end(), id);
    ESPALIER_CHECK(at != known.end(), ErrorKind::usage, "--figure {}: these runs have no such figure.{} They have: {}",
                   id, suggestion(id, known), fmt::join(known, ", "));
    out.push_back(all[static_cast<std::size_t>(at - known.begin())]);
  }
  return out;
}

int run(const ReportArguments& a, Context& context) {
  std::vector<report::Run> runs;
  std::vector<fs::path> seen;
  std::size_t baselines = 0;
  const auto add = [&](const std::string& path) {
    for (const fs::path& found : report::find_runs(path)) {
      std::error_code error;
      const fs::path whole = fs::weakly_canonical(found, error);
      if (std::find(seen.begin(), seen.end(), whole) != seen.end()) continue;  // runs/* and runs/a
      seen.push_back(whole);
      runs.push_back(report::read_run(found));
    }
  };
  for (const std::string& path : a.runs) add(path);
  baselines = runs.size();
  for (const std::string& path : a.baseline) add(path);
  ESPALIER_CHECK(a.baseline.empty() || runs.size() > baselines, ErrorKind::usage,
                 "--baseline {}: is among the runs already; name it in one place", a.baseline.front());

  std::vector<report::RunGroup> groups = report::group_runs(runs, a.each);
  for (report::RunGroup& g : groups) {
    g.baseline = std::any_of(g.runs.begin(), g.runs.end(), [&](std::size_t r) { return r >= baselines; });
    if (g.baseline) g.label = "baseline: " + g.label;
  }
  report::FigureOptions options;
  using Axis = report::FigureOptions::Axis;
  options.axis = a.axis == "step" ? Axis::step : a.axis == "epoch" ? Axis::epoch : Axis::automatic;
  if (options.axis == Axis::epoch) {
    for (const report::Run& r : runs) {
      ESPALIER_CHECK(r.steps_per_epoch > 0, ErrorKind::usage,
                     "--x epoch: {} does not tell how many steps an epoch has; use --x step", r.path.string());
    }
  }
  const std::vector<report::Figure> figures = chosen(report::make_figures(runs, groups, options), a.figures);
  if (a.list) {
    std::vector<std::vector<std::string>> rows;
    for (const report::Figure& f : figures) rows.push_back({f.id, f.title});
    context.console.print(columns(rows));
    return 0;
  }
  if (a.format != "html") {
    std::string text;
    for (const fs::path& file : write_figures(a, figures)) text += file.string() + "\n";
    context.console.print(text);
    return 0;
  }
  if (!report::can_draw()) {
    log_warning(
        "this program was built without Vega: the page has tables and no drawings. scripts/bootstrap with a network, "
        "then build again");
  }
  const std::string program = fmt::format("espalier {}", version());
  const fs::path file = fs::is_directory(a.out)                              ? fs::path(a.out) / "report.html"
                        : !a.out.empty()                                     ? fs::path(a.out)
                        : runs.size() == 1 && fs::is_directory(runs[0].path) ? runs[0].path / "report.html"
                                                                             : fs::path("report.html");
  write(file, report::make_page(runs, groups, figures, program));
  context.console.print(file.string() + "\n");
  return 0;
}

}  // namespace

void add_report_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<ReportArguments>();
  CLI::App* command = app.add_subcommand("report", "Show runs as one page of figures and tables that opens offline");
  command
      ->add_option(
          "RUN", a->runs,
          "run directories; folders of run directories; files that espalier init --json printed. Runs that differ in "
          "nothing but their seed are drawn as one, with confidence intervals")
      ->required()
      ->option_text("");
  command
      ->add_option("-o,--out", a->out,
                   "the page, or a folder for it (default: report.html in the run, or here for several runs); with "
                   "another format "
                   "a folder, or "
                   "the file of the one figure")
      ->option_text("PATH");
  command->add_option("--baseline", a->baseline, "a run to compare with, for instance the dense one; may be repeated")
      ->type_size(1)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->option_text("RUN");
  command
      ->add_option("--format", a->format,
                   "html: one page. svg, png, json: a file for each figure (svg and png need node; json is Vega-Lite)")
      ->check(CLI::IsMember({"html", "svg", "png", "json"}))
      ->option_text("FORMAT");
  command->add_option("--figure", a->figures, "only these figures")->delimiter(',')->option_text("ID,...");
  command->add_flag("--list", a->list, "print the figures that these runs have, and draw nothing");
  command
      ->add_option("--x", a->axis, "what curves are drawn over: step, epoch (default: epochs where all runs tell them)")
      ->check(CLI::IsMember({"auto", "step", "epoch"}))
      ->option_text("AXIS");
  command->add_flag("--each", a->each, "every run on its own, named after its folder: no means over seeds");
  command->footer(
      "Examples:\n"
      "  espalier report runs/mine\n"
      "  espalier report runs/rigl-* runs/set-* --baseline runs/dense -o report.html\n"
      "  espalier report runs/mine --format svg --figure weights,loss -o figures");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
