/// espalier bench: sparse beside dense on this machine.
#include <algorithm>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "espalier/bench/bench.h"
#include "espalier/core/error.h"
#include "espalier/nn/models.h"
#include "espalier/train/environment.h"

namespace espalier::cli {
namespace {

using Json = nlohmann::ordered_json;

struct BenchArguments {
  std::string level, what, shapes_file, optimizer = "sgd";
  std::vector<std::string> shapes, passes, models = {"wrn-28-2"};
  std::vector<std::int64_t> batches;
  std::vector<double> sparsities = {0.8, 0.9, 0.95, 0.98, 0.99};
  std::vector<int> threads;
  double seconds = 2, min_speedup = 0;
  std::uint64_t seed = 1;
  bool json = false;
};

const std::vector<std::string> kLevels = {"kernels", "layer", "step", "model"};
/// Steps between changes of topology.
constexpr std::int64_t kRewireEvery = 100;

struct Shape {
  std::string text, where;
};

std::vector<std::int64_t> numbers(const Shape& shape, char separator, const char* example) {
  const std::string& text = shape.text;
  std::vector<std::int64_t> out;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const auto end = std::min(text.find(separator, begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const bool good = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos &&
                      std::stoll(part) > 0;
    ESPALIER_CHECK(good, ErrorKind::usage, "{}: shape \"{}\": expected positive sizes such as {}", shape.where, text,
                   example);
    out.push_back(std::stoll(part));
    begin = end + 1;
  }
  return out;
}

std::vector<Shape> shapes_of(const BenchArguments& a, const std::vector<std::string>& usual) {
  std::vector<Shape> shapes;
  for (const auto& s : a.shapes) shapes.push_back({s, "--shape"});
  if (!a.shapes_file.empty()) {
    std::ifstream in(a.shapes_file);
    ESPALIER_CHECK(in.good(), ErrorKind::usage, "--shapes {}: cannot be read", a.shapes_file);
    std::string line;
    for (int n = 1; std::getline(in, line); ++n) {
      line = line.substr(0, line.find('#'));
      line.erase(0, line.find_first_not_of(" \t"));
      line.erase(line.find_last_not_of(" \t\r") + 1);
      if (!line.empty()) shapes.push_back({line, fmt::format("{}:{}", a.shapes_file, n)});
    }
    ESPALIER_CHECK(!shapes.empty(), ErrorKind::usage, "--shapes {}: no shape in it", a.shapes_file);
  }
  if (shapes.empty()) {
    for (const auto& s : usual) shapes.push_back({s, "--shape"});
  }
  return shapes;
}

/// One thing to time.
struct Work {
  std::string name;
  std::int64_t batch;  ///< unless the command line says otherwise
  std::function<std::vector<bench::Row>(std::int64_t batch, double sparsity, int threads)> rows;
};

bool wants(const BenchArguments& a, const std::string& pass) {
  return a.passes.empty() || std::find(a.passes.begin(), a.passes.end(), pass) != a.passes.end();
}

Work linear_work(const BenchArguments& a, const Shape& shape) {
  const auto sizes = numbers(shape, 'x', "784x300 (inputs x outputs)");
  ESPALIER_CHECK(sizes.size() == 2, ErrorKind::usage, "{}: shape \"{}\": expected inputs x outputs", shape.where,
                 shape.text);
  return {shape.text, 128, [&a, sizes](std::int64_t batch, double sparsity, int threads) {
            const bench::LinearCase c{sizes[0], sizes[1], batch, sparsity, threads};
            return a.level == "kernels" ? bench::bench_linear_kernels(c, a.seconds, a.seed)
                                        : bench::bench_linear_layer(c, a.seconds, a.seed);
          }};
}

Work conv_work(const BenchArguments& a, const Shape& shape) {
  const bench::ConvCase given = bench::conv_case(shape.text, shape.where);
  return {shape.text, 64, [&a, given](std::int64_t batch, double sparsity, int threads) {
            bench::ConvCase c = given;
            c.batch = batch;
            c.sparsity = sparsity;
            c.threads = threads;
            return a.level == "kernels" ? bench::bench_conv_kernels(c, a.seconds, a.seed)
                                        : bench::bench_conv_layer(c, a.seconds, a.seed);
          }};
}

std::vector<std::int64_t> widths_of(const Shape& shape) {
  const auto widths = numbers(shape, '-', "784-300-100-10 (inputs, hidden layers, classes)");
  ESPALIER_CHECK(widths.size() >= 2, ErrorKind::usage, "{}: shape \"{}\": expected inputs, layers, classes",
                 shape.where, shape.text);
  return widths;
}

Work step_work(const BenchArguments& a, const Shape& shape) {
  const auto widths = widths_of(shape);
  return {shape.text, 128, [&a, widths](std::int64_t batch, double sparsity, int threads) {
            return bench::bench_step({widths, batch, sparsity, threads, a.optimizer, kRewireEvery}, a.seconds, a.seed);
          }};
}

Work model_work(const BenchArguments& a, const std::string& model, const Shape& shape) {
  bench::ModelCase given;
  given.model = model;
  if (model == "mlp") {
    given.widths = widths_of(shape);
  } else {
    const auto sizes = numbers(shape, 'x', "3x32x32 (channels x height x width)");
    ESPALIER_CHECK(sizes.size() == 3, ErrorKind::usage, "{}: shape \"{}\": expected channels x height x width",
                   shape.where, shape.text);
    std::copy(sizes.begin(), sizes.end(), given.image.begin());
  }
  given.optimizer = a.optimizer;
  given.rewire_every = kRewireEvery;
  given.inference = wants(a, "inference");
  given.step = wants(a, "step") || wants(a, "rewire") || wants(a, "step with rewiring");
  return {fmt::format("{} {}", model, shape.text), 64, [&a, given](std::int64_t batch, double sparsity, int threads) {
            bench::ModelCase c = given;
            c.batch = batch;
            c.sparsity = sparsity;
            c.threads = threads;
            return bench::bench_model(c, a.seconds, a.seed);
          }};
}

/// Reads everything that the command line asks for before anything is timed.
std::vector<Work> works_of(const BenchArguments& a) {
  const bool layers = a.level == "kernels" || a.level == "layer";
  const std::vector<std::string> kinds = layers              ? std::vector<std::string>{"linear", "conv2d"}
                                         : a.level == "step" ? std::vector<std::string>{"mlp"}
                                                             : std::vector<std::string>{};
  ESPALIER_CHECK(a.what.empty() || !kinds.empty(), ErrorKind::usage, "--what {}: not for \"{}\"; name a --model",
                 a.what, a.level);
  ESPALIER_CHECK(a.what.empty() || std::find(kinds.begin(), kinds.end(), a.what) != kinds.end(), ErrorKind::usage,
                 "--what {}: unknown for \"{}\". Known: {}.{}", a.what, a.level, fmt::join(kinds, ", "),
                 suggestion(a.what, kinds));
  std::vector<Work> works;
  if (a.level == "model") {
    std::vector<std::string> known;
    for (const auto& info : nn::known_models())
      if (info.name != "layers") known.push_back(info.name);
    for (const auto& model : a.models) {
      ESPALIER_CHECK(std::find(known.begin(), known.end(), model) != known.end(), ErrorKind::usage,
                     "--model {}: unknown. Known: {}.{}", model, fmt::join(known, ", "), suggestion(model, known));
      for (const Shape& s : shapes_of(a, {model == "mlp" ? "784-1024-1024-10" : "3x32x32"}))
        works.push_back(model_work(a, model, s));
    }
  } else if (a.level == "step") {
    for (const Shape& s : shapes_of(a, {"784-300-100-10", "784-1024-1024-10"})) works.push_back(step_work(a, s));
  } else if (a.what == "conv2d") {
    for (const Shape& s : shapes_of(a, {"64x64@16", "128x128@8"})) works.push_back(conv_work(a, s));
  } else {
    for (const Shape& s : shapes_of(a, {"784x300", "1024x1024"})) works.push_back(linear_work(a, s));
  }
  return works;
}

Json json_of(const bench::Row& r) {
  Json peers = Json::object();
  for (const auto& [name, us] : r.peers) peers[name] = us;
  return {{"level", r.level},
          {"what", r.what},
          {"shape", r.shape},
          {"batch", r.batch},
          {"sparsity", r.sparsity},
          {"threads", r.threads},
          {"isa", r.isa},
          {"pass", r.pass},
          {"sparse_us", r.sparse.median},
          {"sparse_us_quartiles", {r.sparse.low, r.sparse.high}},
          {"timed_runs", r.sparse.timed},
          {"dense_us", r.dense_path.empty() ? Json() : Json(r.dense_us)},
          {"dense_path", r.dense_path},
          {"speedup", r.dense_path.empty() ? Json() : Json(r.speedup())},
          {"peers_us", peers},
          {"sparse_gflops", r.sparse_gflops},
          {"dense_equivalent_gflops", r.dense_equivalent_gflops},
          {"peak_share", r.peak_share},
          {"error_of_bound", r.error}};
}

void print_table(const std::vector<bench::Row>& rows, const Context& context) {
  std::vector<std::string> beside;  // in the order of their first row
  for (const auto& r : rows)
    for (const auto& name : r.beside)
      if (std::find(beside.begin(), beside.end(), name) == beside.end()) beside.push_back(name);
  std::vector<std::vector<std::string>> table = {{"level", "what", "shape", "batch", "sparsity", "threads", "pass",
                                                  "sparse us", "quartiles", "dense us", "speed-up", "GFLOP/s",
                                                  "of peak", "fastest dense"}};
  for (const auto& name : beside) table[0].push_back(name + " us");
  for (const auto& r : rows) {
    const bool dense = !r.dense_path.empty();
    table.push_back({r.level, r.what, r.shape, fmt::format("{}", r.batch), fmt::format("{:g}", r.sparsity),
                     fmt::format("{}", r.threads), r.pass, fmt::format("{:.1f}", r.sparse.median),
                     fmt::format("{:.1f}-{:.1f}", r.sparse.low, r.sparse.high),
                     dense ? fmt::format("{:.1f}", r.dense_us) : "-", dense ? fmt::format("{:.2f}", r.speedup()) : "-",
                     fmt::format("{:.0f}", r.sparse_gflops), fmt::format("{:.0f} %", 100 * r.peak_share),
                     dense ? r.dense_path : "-"});
    for (const auto& name : beside) {
      const bool here = std::find(r.beside.begin(), r.beside.end(), name) != r.beside.end();
      table.back().push_back(here ? fmt::format("{:.1f}", r.peers.at(name)) : "-");
    }
  }
  context.console.print(columns(table));
}

int run(const BenchArguments& a, Context& context) {
  ESPALIER_CHECK(std::find(kLevels.begin(), kLevels.end(), a.level) != kLevels.end(), ErrorKind::usage,
                 "espalier bench: \"{}\": unknown. Known: {}.{}", a.level, fmt::join(kLevels, ", "),
                 suggestion(a.level, kLevels));
  const std::vector<Work> works = works_of(a);
  for (const double s : a.sparsities) {
    ESPALIER_CHECK(s >= 0 && s < 1, ErrorKind::usage, "--sparsity {}: expected a share of zeros in [0, 1)", s);
  }
  std::vector<int> threads = a.threads;
  if (threads.empty()) threads = {usable_cores()};
  std::map<int, double> peak;
  for (const int t : threads) {
    set_threads(t);
    peak[t] = bench::peak_flops(t);
  }

  std::vector<bench::Row> rows;
  Json even = Json::array();
  for (const Work& work : works) {
    for (const std::int64_t batch : a.batches.empty() ? std::vector<std::int64_t>{work.batch} : a.batches) {
      for (const int t : threads) {
        set_threads(t);
        std::vector<bench::Row> alike;
        for (const double sparsity : a.sparsities) {
          auto found = work.rows(batch, sparsity, t);
          for (auto& r : found) {
            r.peak_share = r.sparse_gflops * 1e9 / peak[t];
            if (wants(a, r.pass)) alike.push_back(r);
          }
          if (!a.json) context.console.progress(fmt::format("{} batch {} sparsity {:g}", work.name, batch, sparsity));
        }
        if (a.sparsities.size() > 1 && (a.level == "kernels" || a.level == "layer")) {
          const auto crossing = bench::break_even(alike, "step");
          even.push_back({{"shape", work.name},
                          {"batch", batch},
                          {"threads", t},
                          {"pass", "step"},
                          {"break_even_sparsity", crossing ? Json(*crossing) : Json()}});
        }
        rows.insert(rows.end(), alike.begin(), alike.end());
      }
    }
  }
  ESPALIER_CHECK(!rows.empty(), ErrorKind::usage, "--pass: no such pass at this level");
  if (a.json) {
    Json list = Json::array();
    for (const auto& r : rows) list.push_back(json_of(r));
    Json peaks = Json::object();
    for (const auto& [t, flops] : peak) peaks[std::to_string(t)] = flops * 1e-9;
    const auto environment = espalier::environment();
    context.console.print(
        Json{
            {"schema", 1}, {"cpu", environment.cpu_model}, {"peak_gflops", peaks}, {"rows", list}, {"break_even", even}}
            .dump(2) +
        "\n");
  } else {
    print_table(rows, context);
    for (const auto& e : even) {
      if (e["break_even_sparsity"].is_null()) continue;
      context.console.print(fmt::format("break-even of the step, {} batch {} threads {}: {:.0f} % sparsity\n",
                                        e["shape"].get<std::string>(), e["batch"].get<std::int64_t>(),
                                        e["threads"].get<int>(), 100 * e["break_even_sparsity"].get<double>()));
    }
  }
  for (const auto& r : rows) {
    ESPALIER_CHECK(a.min_speedup == 0 || r.dense_path.empty() || r.speedup() >= a.min_speedup, ErrorKind::check,
                   "--min-speedup {}: {} batch {} sparsity {:g} {}: {:.2f}", a.min_speedup, r.shape, r.batch,
                   r.sparsity, r.pass, r.speedup());
  }
  return 0;
}

}  // namespace

void add_bench_command(CLI::App& app, Context& context) {
  auto a = std::make_shared<BenchArguments>();
  CLI::App* command = app.add_subcommand("bench", "Time sparse layers, training steps and models beside dense ones");
  command
      ->add_option("LEVEL", a->level,
                   "kernels: products alone; layer: as a model calls it; step: whole training steps of an MLP; model: "
                   "training steps and inference of the program's models")
      ->required()
      ->option_text("");
  command->add_option("--what", a->what, "kind of layer: linear (default), conv2d; mlp (step)")->option_text("NAME");
  command->add_option("--model", a->models, "for model: names as in \"espalier list models\" (default wrn-28-2)")
      ->delimiter(',')
      ->option_text("NAME,...");
  command->add_option("--shape", a->shapes, "see below; several: commas")->delimiter(',')->option_text("SHAPE,...");
  command->add_option("--shapes", a->shapes_file, "text file of shapes, one a line, # begins a comment")
      ->option_text("FILE");
  command->add_option("--batch", a->batches, "samples in a batch (default 128; conv2d and model: 64)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->option_text("N,...");
  command->add_option("--sparsity", a->sparsities, "shares of zeros (default 0.8,0.9,0.95,0.98,0.99)")
      ->delimiter(',')
      ->option_text("S,...");
  command->add_option("--threads", a->threads, "compute threads (default: all that the process may use)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->option_text("N,...");
  command->add_option("--pass", a->passes, "rows to show: forward, backward, step, rewire, inference (default: all)")
      ->delimiter(',')
      ->option_text("NAME,...");
  command->add_option("--optimizer", a->optimizer, "for step and model: sgd (momentum 0.9) or adam")
      ->check(CLI::IsMember({"sgd", "adam"}))
      ->option_text("NAME");
  command
      ->add_option("--seconds", a->seconds,
                   "time for each case (default 2); slow ones take longer: three turns each at least")
      ->check(CLI::Range(0.01, 3600.0))
      ->option_text("S");
  command->add_option("--min-speedup", a->min_speedup, "exit with 4 if a row is slower than this many times dense")
      ->check(CLI::NonNegativeNumber)
      ->option_text("X");
  command->add_option("--seed", a->seed, "seed of weights and inputs")->option_text("N");
  command->add_flag("--json", a->json, "one JSON document on standard output");
  command->footer(
      "Shapes:\n"
      "  linear       784x300           inputs x outputs\n"
      "  conv2d       64x128@32         channels in x out @ pixels (or height x width): a 3x3 kernel, stride 1,\n"
      "                                 padding that keeps the size; what differs follows after colons:\n"
      "               64x128@32:k5:s2   k kernel, s stride, p padding, d dilation, g groups\n"
      "  step, mlp    784-300-100-10    inputs-layers-classes\n"
      "  other models 3x32x32           channels x height x width; ten classes\n\n"
      "Every result is verified against a reference before it is timed. Speed-ups are against the fastest dense path "
      "of\n"
      "the same run (step: against LibTorch masked training); conv2d: the fastest direct one, Winograd stands beside. "
      "In\n"
      "models every weight layer has the sparsity, the first and the last one too.\n\n"
      "Examples:\n  espalier bench kernels --shape 1024x1024 --sparsity 0.9,0.95 --threads 1,2\n"
      "  espalier bench layer --what linear --shape 1024x1024 --batch 128 --sparsity 0.9 --threads 1 --json\n"
      "  espalier bench kernels --what conv2d --shape 64x64@16,64x128@16:s2 --sparsity 0.9\n"
      "  espalier bench step --shape 784-1024-1024-10 --sparsity 0.95\n"
      "  espalier bench model --model resnet20 --batch 64 --sparsity 0.9\n"
      "  espalier bench model --model mlp --shape 4096-4096-4096-4096 --batch 1,8,64 --pass inference");
  on_run(*command, context, [a, &context] { return run(*a, context); });
}

}  // namespace espalier::cli
