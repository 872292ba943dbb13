#include "espalier/train/run_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/methods/registry.h"

namespace espalier::train {
namespace {

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage);
    return e.what();
  }
  return "no error";
}

std::string error_in(const std::string& text, const std::string& source = "c.toml") {
  return error_of([&] { parse_config(text, source); });
}

// An empty configuration with --set.
RunConfig with(std::vector<std::string> set, std::optional<std::string> preset = std::nullopt) {
  ConfigSources sources;
  sources.preset = std::move(preset);
  sources.set = std::move(set);
  return load_config(sources);
}
std::string error_with(std::vector<std::string> set, std::optional<std::string> preset = std::nullopt) {
  return error_of([&] { with(std::move(set), std::move(preset)); });
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) {
    std::string pattern = (std::filesystem::temp_directory_path() / "config-XXXXXX").string();
    const int fd = mkstemp(pattern.data());
    close(fd);
    path = pattern;
    std::ofstream(path) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
  std::string path;
};

// ---- files
// -----------------------------------------------------------------------------------------------------------

TEST(RunConfig, ReadsEveryKindOfValue) {
  const RunConfig c = parse_config(R"toml(
schema_version = 1
run.seed = 0x10
[model]
name = "layers"
layers = ["flatten", "linear(10)", "linear(classes)"]
[train]
epochs = 3
eval_every = "25%"
[optim]
lr = 1
momentum = 0.5
nesterov = true
)toml",
                                   "c.toml");
  EXPECT_EQ(c.run.seed, 16);
  EXPECT_EQ(c.model.layers, (std::vector<std::string>{"flatten", "linear(10)", "linear(classes)"}));
  EXPECT_EQ(c.train.epochs, 3.0);  // an integer is a number
  EXPECT_EQ(c.train.eval_every, Duration::percent(25));
  EXPECT_EQ(c.optim.lr, 1.0);
  EXPECT_TRUE(c.optim.nesterov);
  EXPECT_EQ(c.optim.name, "sgd");  // untouched
}

std::string methods() {
  std::string list;
  for (const auto& m : known_methods()) list += (list.empty() ? "" : ", ") + std::string(m.name);
  return list;
}

bool begins_with(const std::string& text, const std::string& beginning) { return text.rfind(beginning, 0) == 0; }

TEST(RunConfig, AllMistakesOfAFileAtOnceInTheirOrderWithTheirPlaces) {
  const std::string text =
      "seed = 3\n"                    // 1
      "[optimizer]\n"                 // 2
      "lr = 0.1\n"                    // 3
      "[sparsity]\n"                  // 4
      "alpha = 2\n"                   // 5
      "distribution   = \"erdos\"\n"  // 6
      "sparsity = 1.5\n"              // 7
      "[train]\n"                     // 8
      "  batchsize = 3\n"             // 9
      "epochs = \"ten\"\n"            // 10
      "steps = 1.0\n"                 // 11
      "eval_every = \"1 epoch\"\n"    // 12
      "[optim]\n"                     // 13
      "nesterov = 1\n"                // 14
      "lr = 1979-05-27\n"             // 15
      "momentum = nan\n"              // 16
      "[method]\n"                    // 17
      "name = \"dens\"\n"             // 18
      "[model]\n"                     // 19
      "widths = [300, \"x\"]\n";      // 20
  EXPECT_EQ(
      error_in(text),
      "c.toml:1:1: seed: unknown key outside the tables; \"seed\" belongs to [run]\n"
      "c.toml:2:2: [optimizer]: unknown table. Known: run, data, model, train, optim, schedule, reparam, method, "
      "sparsity, "
      "continual, checkpoint, log. Did you mean \"optim\"?\n"
      "c.toml:5:1: [sparsity].alpha: unknown key; \"alpha\" belongs to [reparam]\n"
      "c.toml:6:18: [sparsity].distribution = \"erdos\": unknown value. Known: uniform, er, erk, global. Did you mean "
      "\"er\"?\n"
      "c.toml:7:12: [sparsity].sparsity = 1.5 is out of range; expected in [0, 1)\n"
      "c.toml:9:3: [train].batchsize: unknown key. Known: epochs, steps, batch_size, label_smoothing, clip_norm, "
      "eval_every. Did you mean \"batch_size\"?\n"
      "c.toml:10:10: [train].epochs = \"ten\": expected a number, found a string\n"
      "c.toml:11:9: [train].steps = 1.0: expected an integer, found a number\n"
      "c.toml:12:14: [train].eval_every: \"1 epoch\" is not a duration; expected for example \"500it\" (steps), "
      "\"1.5ep\" "
      "(epochs) or \"25%\" (of the run, 0 to 100)\n"
      "c.toml:14:12: [optim].nesterov = 1: expected true or false, found an integer\n"
      "c.toml:15:6: [optim].lr: expected a number, found a date\n"
      "c.toml:16:12: [optim].momentum = nan is not a finite number\n"
      "c.toml:18:8: [method].name = \"dens\": unknown value. Known: " +
          methods() +
          ". Did you mean \"dense\"?\n"
          "c.toml:20:10: [model].widths = [300, \"x\"]: expected a list with an integer in every place, found a list");
}

TEST(RunConfig, SyntaxErrorsDoNotHideOtherMistakes) {
  EXPECT_EQ(
      error_in("[model]\n"
               "name = mlp\n"
               "width = [3]\n"
               "[optim]\n"
               "lr = 0.1\n"
               "lr = 0.2\n"
               "moment = 0.9\n"),
      "c.toml:2:8: not valid TOML: a string needs quotes: name = \"mlp\"\n"
      "c.toml:3:1: [model].width: unknown key. Known: name, widths, layers, init, dropout, max_weights, storage. Did "
      "you mean "
      "\"widths\"?\n"
      "c.toml:6:1: given twice: lr\n"
      "c.toml:7:1: [optim].moment: unknown key. Known: name, lr, momentum, nesterov, beta1, beta2, eps, weight_decay, "
      "decay_on. Did you mean \"momentum\"?");
  const std::string open = error_in("[model]\nwidths = [1,\n[optim]\nlr = 1\n");
  EXPECT_EQ(open.find("c.toml:"), 0u) << open;
  EXPECT_NE(open.find("not valid TOML"), std::string::npos) << open;
  EXPECT_EQ(error_in("[optim]\nlr = 0.1\n[optim]\nmomentum = 0.5\n"), "c.toml:3:1: given twice: [optim]");
}

TEST(RunConfig, TablesAndKeysAreNotConfused) {
  EXPECT_EQ(error_in("model = \"mlp\"\n"),
            "c.toml:1:1: [model] is a table, found a string; write [model] on a line of its own, its keys below");
  EXPECT_EQ(error_in("[run.seed]\nx = 1\n"), "c.toml:1:1: [run].seed: expected an integer, found a table");
  EXPECT_EQ(error_in("[[run]]\nseed = 1\n").find("c.toml:1:"), 0u);
  EXPECT_EQ(error_in("[fleet]\n").find("c.toml:1:2: [fleet]: unknown table. Known: run, "), 0u);
}

TEST(RunConfig, SchemaVersionIsChecked) {
  EXPECT_EQ(error_in("schema_version = 1\n"), "no error");
  EXPECT_EQ(error_in("schema_version = 2\n"),
            "c.toml:1:18: schema_version = 2: this program reads version 1; a newer Espalier wrote this file");
  EXPECT_EQ(error_in("schema_version = \"1\"\n"),
            "c.toml:1:18: schema_version = \"1\": expected an integer, found a string");
}

TEST(RunConfig, JsonIsReadWithTheSameStrictness) {
  const RunConfig c =
      parse_config(R"({"schema_version": 1, "optim": {"lr": 0.5}, "model": {"widths": [3, 4]}})", "c.json");
  EXPECT_EQ(c.optim.lr, 0.5);
  EXPECT_EQ(c.model.widths, (std::vector<std::int64_t>{3, 4}));

  EXPECT_EQ(
      error_in("{\n"
               " \"optim\": {\"lr\": -1, \"a\\\"b\": 2,\n"
               "   \"lr\" : 0.1},\n"
               " \"nope\": {\"deep\": {\"er\": [1, {}]}},\n"
               " \"run\": {\"seed\": null, \"name\": {\"x\": 1}}\n"
               "}\n",
               "c.json"),
      "c.json:2:18: [optim].lr = -1 is out of range; expected above 0\n"
      "c.json:2:22: [optim].a\"b: unknown key. Known: name, lr, momentum, nesterov, beta1, beta2, eps, weight_decay, "
      "decay_on.\n"
      "c.json:3:4: given twice: [optim].lr\n"
      "c.json:4:2: [nope]: unknown table. Known: run, data, model, train, optim, schedule, reparam, method, sparsity, "
      "continual, checkpoint, log.\n"
      "c.json:5:18: [run].seed: expected an integer, found null\n"
      "c.json:5:32: [run].name: expected a string, found a table");
  EXPECT_EQ(error_in("{\"optim\": {\"lr\": 0.1,}}", "c.json").find("c.json:1:22: not valid JSON: syntax error"), 0u)
      << error_in("{\"optim\": {\"lr\": 0.1,}}", "c.json");
}

TEST(RunConfig, FilesThatAreNoConfigurationAreNamed) {
  const auto load = [](const std::string& path) {
    return error_of([&] {
      ConfigSources sources;
      sources.file = path;
      load_config(sources);
    });
  };
  EXPECT_EQ(load("/nonexistent/c.toml"), "/nonexistent/c.toml: cannot be read: No such file or directory");
  const auto folder = std::filesystem::temp_directory_path().string();
  EXPECT_EQ(load(folder),
            folder + ": is a directory; expected a configuration file (of a run: " + folder + "/config.toml)");
  const TemporaryFile binary(
      std::string("\x7f"
                  "ELF\0\xff\xfe",
                  7));
  EXPECT_EQ(load(binary.path).find(binary.path + ":1:"), 0u) << load(binary.path);
}

TEST(RunConfig, HostileTextEndsSoon) {
  std::string many, deep = "{\"model\": {\"widths\": ";
  for (int i = 0; i < 20000; ++i) many += "a = b\n";
  const std::string syntax = error_in(many);
  EXPECT_EQ(std::count(syntax.begin(), syntax.end(), '\n'), 19);
  deep += std::string(500000, '[');
  EXPECT_EQ(error_in(deep, "c.json"), "c.json:1:22: not valid here: lists in lists in lists");
  const TemporaryFile large(std::string((1 << 20) + 1, ' '));
  ConfigSources sources;
  sources.file = large.path;
  EXPECT_EQ(error_of([&] { load_config(sources); }), large.path + ": more than 1 MiB; is this a configuration file?");
}

// ---- layers
// ----------------------------------------------------------------------------------------------------------

TEST(RunConfig, LaterLayersWin) {
  const TemporaryFile file("[optim]\nlr = 0.2\nmomentum = 0.2\nweight_decay = 0.2\n[run]\nseed = 2\n");
  ConfigSources sources;
  sources.preset = "mnist-ann";  // momentum 0.9, widths [300]
  sources.file = file.path;
  sources.environment = {{"ESPALIER_OPTIM_MOMENTUM", "0.3"}, {"ESPALIER_OPTIM_WEIGHT_DECAY", "0.3"},
                         {"ESPALIER_RUN_SEED", "3"},         {"ESPALIER_DATA", "/data"},
                         {"ESPALIER_ISA", "avx2"},           {"PATH", "/bin"}};
  sources.set = {"optim.weight_decay=0.4", "run.seed=4", "optim.weight_decay=0.5"};
  sources.flags = {{"--seed", "run.seed", "5"}};
  const RunConfig c = load_config(sources);
  EXPECT_EQ(c.model.widths, (std::vector<std::int64_t>{300}));
  EXPECT_EQ(c.optim.lr, 0.2);
  EXPECT_EQ(c.optim.momentum, 0.3);
  EXPECT_EQ(c.optim.weight_decay, 0.5);
  EXPECT_EQ(c.run.seed, 5);
}

TEST(RunConfig, MistakesOfAllLayersAreReportedTogether) {
  const TemporaryFile file("[optim]\nlr = 0\n");
  ConfigSources sources;
  sources.file = file.path;
  sources.environment = {{"ESPALIER_REPARAM_ALPA", "2"}, {"ESPALIER_TRAIN_STEPS", "many"}};
  sources.set = {"run.seed=-1", "sparsity=0.9", "seed=1", "nonsense", "optm.lr=1", "model.widths=3,x"};
  sources.flags = {{"--threads", "run.threads", "all"}};
  EXPECT_EQ(
      error_of([&] { load_config(sources); }),
      file.path +
          ":2:6: [optim].lr = 0 is out of range; expected above 0\n"
          "ESPALIER_REPARAM_ALPA: [reparam].alpa: unknown key. Known: name, alpha, update, interval, signal, epsilon, "
          "cr, "
          "cd, loss_tolerance, alpha_min, alpha_max, per. Did you mean \"alpha\"?\n"
          "ESPALIER_TRAIN_STEPS: [train].steps = \"many\": expected an integer, found a string\n"
          "--set: \"sparsity=0.9\" is not table.key=value; did you mean sparsity.sparsity=0.9?\n"
          "--set: \"seed=1\" is not table.key=value; did you mean run.seed=1?\n"
          "--set: \"nonsense\" is not table.key=value\n"
          "--set: [optm]: unknown table. Known: run, data, model, train, optim, schedule, reparam, method, sparsity, "
          "continual, checkpoint, log. Did you mean \"optim\"?\n"
          "--set: [run].seed = -1 is out of range; expected at least 0\n"
          "--set: [model].widths = [3, \"x\"]: expected a list with an integer in every place, found a list\n"
          "--threads: [run].threads = \"all\": expected an integer, found a string");
}

TEST(RunConfig, TextsTakeTheTypeOfTheirKey) {
  const RunConfig c = with({"run.name=7", "model.name=layers", "model.layers=flatten, conv(3, kernel=5),relu",
                            "optim.lr=.5", "optim.nesterov=true", "optim.momentum=9e-1", "log.every=10it",
                            "train.epochs=2", "sparsity.dense_layers=[\"a,b\", 'c']", "data.root=\"/with space\""});
  EXPECT_EQ(c.run.name, "7");
  EXPECT_EQ(c.model.layers, (std::vector<std::string>{"flatten", "conv(3, kernel=5)", "relu"}));
  EXPECT_EQ(c.optim.lr, 0.5);
  EXPECT_TRUE(c.optim.nesterov);
  EXPECT_EQ(c.optim.momentum, 0.9);
  EXPECT_EQ(c.log.every, Duration::steps(10));
  EXPECT_EQ(c.train.epochs, 2.0);
  EXPECT_EQ(c.sparsity.dense_layers, (std::vector<std::string>{"a,b", "c"}));
  EXPECT_EQ(c.data.root, "/with space");
  EXPECT_EQ(with({"model.widths=300,100"}).model.widths, (std::vector<std::int64_t>{300, 100}));
  EXPECT_EQ(with({"model.widths=[30,10]"}).model.widths, (std::vector<std::int64_t>{30, 10}));
  EXPECT_EQ(with({"model.widths=7"}).model.widths, (std::vector<std::int64_t>{7}));
  EXPECT_TRUE(with({"model.widths=[]"}).model.widths.empty());
  EXPECT_TRUE(with({"model.widths="}).model.widths.empty());
  EXPECT_EQ(error_with({"train.steps=1.0"}), "--set: [train].steps = 1.0: expected an integer, found a number");
  EXPECT_EQ(error_with({"optim.nesterov=yes"}),
            "--set: [optim].nesterov = \"yes\": expected true or false, found a string");
  EXPECT_EQ(error_with({"run.seed=99999999999999999999"}).find("--set: [run].seed"), 0u);
  EXPECT_EQ(error_with({"run.seed=3\nx=4"}).find("--set: [run].seed"), 0u);  // no way to smuggle a second key in
  EXPECT_EQ(error_with({std::string("run.name=\xff")}), "--set: [run].name: not valid UTF-8");
}

TEST(RunConfig, AnEnvironmentVariableForATableThatNearlyExistsIsAWarning) {
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel, const std::string& text) { warnings.push_back(text); });
  ConfigSources sources;
  sources.environment = {{"ESPALIER_REPRAM_ALPHA", "2"}, {"ESPALIER_VERBOSE", "1"}};
  load_config(sources);
  set_log_sink({});
  EXPECT_EQ(warnings,
            std::vector<std::string>{"the environment variable ESPALIER_REPRAM_ALPHA is ignored: there is no table "
                                     "[repram]; did you mean [reparam]?"});
}

TEST(RunConfig, EpochsAndStepsReplaceEachOtherAcrossLayersAndContradictInOne) {
  EXPECT_EQ(with({"train.steps=7"}).train.epochs, 0.0);
  EXPECT_EQ(with({"train.steps=7"}).train.steps, 7);
  const RunConfig c = with({"train.epochs=0.5"}, "mnist-lenet300");  // 50,000 steps
  EXPECT_EQ(c.train.epochs, 0.5);
  EXPECT_EQ(c.train.steps, 0);
  EXPECT_EQ(error_in("[train]\nsteps = 500\nepochs = 3\n"),
            "c.toml:3:10: [train].epochs = 3.0: [train].steps = 500 is given too; a run has one length: leave one of "
            "them out, or "
            "set it to 0");
  EXPECT_EQ(error_in("[train]\nepochs = 0\n"),
            "c.toml:2:10: [train].epochs = 0.0: [train].steps is 0 too; one of them must be above 0");
  EXPECT_EQ(parse_config("[train]\nepochs = 0\nsteps = 5\n", "").train.steps, 5);
  EXPECT_EQ(parse_config("[train]\nsteps = 0\n", "").train.epochs, 10.0);
}

// ---- values that contradict each other
// --------------------------------------------------------------------------------

TEST(RunConfig, KeysThatDoNothingAreMistakes) {
  EXPECT_EQ(error_in("[reparam]\nalpha = 2\n"),
            "c.toml:2:9: [reparam].alpha = 2.0: does nothing with [reparam].name = \"identity\"; set [reparam].name to "
            "powerprop or adaptive-powerprop, or leave alpha out");
  EXPECT_EQ(error_in("[reparam]\nname = \"identity\"\nupdate = \"target\"\nalpha = 1\n")
                .find("c.toml:3:10: [reparam].update"),
            0u);
  EXPECT_EQ(error_with({"optim.name=adam", "optim.momentum=0.9"}),
            "--set: [optim].momentum = 0.9: does nothing with [optim].name = \"adam\"; set [optim].name to sgd, or "
            "leave momentum "
            "out");
  EXPECT_EQ(error_with({"schedule.milestones=50%"}).find("--set: [schedule].milestones = [\"50%\"]: does nothing"), 0u);
  EXPECT_EQ(
      error_with({"model.name=lenet-300-100", "model.widths=3"}).find("--set: [model].widths = [3]: does nothing"), 0u);
}

TEST(RunConfig, AdaptiveAlphaBeginsAboveOneAndWithinItsBounds) {
  const std::string adaptive = "reparam.name=adaptive-powerprop";
  EXPECT_EQ(error_with({adaptive}),
            "--set: [reparam].alpha = 1.0: alpha - 1 is what the control loop multiplies, so 1 would stay 1; begin "
            "above it, e.g. 1.2");
  EXPECT_EQ(error_with({adaptive, "reparam.alpha=3", "reparam.alpha_max=2"}),
            "--set: [reparam].alpha = 3.0: is not between [reparam].alpha_min = 1.01 and alpha_max = 2; move alpha or "
            "the bounds");
  EXPECT_EQ(error_with({"reparam.name=powerprop", "reparam.cr=2"}),
            "--set: [reparam].cr = 2.0: does nothing with [reparam].name = \"powerprop\"; set [reparam].name to "
            "adaptive-powerprop, or leave cr out");
  for (const char* wrong : {"reparam.cr=1", "reparam.cd=0", "reparam.epsilon=0", "reparam.alpha_min=1",
                            "reparam.loss_tolerance=-1", "reparam.per=weight", "reparam.signal=loss"})
    EXPECT_NE(error_with({adaptive, "reparam.alpha=1.2", wrong}), "") << wrong;
  const RunConfig c = with({adaptive, "reparam.alpha=1.2", "reparam.interval=100it", "reparam.per=layer"});
  EXPECT_EQ(c.reparam.adaptive.interval, Duration::steps(100));
  EXPECT_EQ(to_toml(parse_config(to_toml(c), "")), to_toml(c));
  // A preset of powerprop makes room for it.
  EXPECT_EQ(with({adaptive, "reparam.alpha=1.5"}, "mnist-ann").reparam.alpha, 1.5);
}

TEST(RunConfig, ContradictionsAreMistakes) {
  EXPECT_EQ(error_with({"optim.nesterov=true"}),
            "--set: [optim].nesterov = true: needs [optim].momentum above 0, e.g. 0.9");
  EXPECT_EQ(error_in("[sparsity]\nsparsity = 0.9\n"),
            "c.toml:2:12: [sparsity].sparsity = 0.9: the method is \"dense\", which keeps every weight; choose another "
            "[method].name (espalier list methods), or leave sparsity out");
  EXPECT_EQ(error_with({"schedule.name=multi-step"}),
            "--set: [schedule].milestones = []: multi-step needs at least one milestone, e.g. [\"50%\", \"75%\"]");
  EXPECT_EQ(error_with({"schedule.name=multi-step", "schedule.milestones=75%,50%"}),
            "--set: [schedule].milestones = [\"75%\", \"50%\"]: 50% does not come after 75%; milestones are in "
            "ascending order");
  EXPECT_EQ(error_with({"schedule.name=multi-step", "schedule.milestones=soon"})
                .find("--set: [schedule].milestones = [\"soon\"]: \"soon\" is not a duration"),
            0u);
  EXPECT_EQ(error_with({"model.name=layers"}).find("--set: [model].layers = []: the model \"layers\" needs its layers"),
            0u);
  EXPECT_EQ(error_with({"run.name=a/b"}),
            "--set: [run].name = \"a/b\": names one directory, without \"/\"; --run-dir takes a path");
  // A refused value says nothing about the others.
  EXPECT_EQ(
      error_in("[reparam]\nname = \"powerpop\"\nalpha = 2\n"),
      "c.toml:2:8: [reparam].name = \"powerpop\": unknown value. Known: identity, powerprop, adaptive-powerprop. Did "
      "you mean \"powerprop\"?");
}

TEST(RunConfig, ValidateChecksWhatCodeHasSet) {
  RunConfig c;
  c.validate();
  c.optim.lr = -1;
  c.optim.nesterov = true;
  EXPECT_EQ(error_of([&] { c.validate(); }),
            "[optim].lr = -1 is out of range; expected above 0\n"
            "[optim].nesterov = true: needs [optim].momentum above 0, e.g. 0.9");
}

// ---- methods
// ---------------------------------------------------------------------------------------------------------

std::string method_value(const RunConfig& config, const std::string& key) {
  RunConfig copy = config;
  for (const auto& option : describe(copy.method)) {
    if (option.name == key) return option.value_text();
  }
  return "none";
}

TEST(RunConfig, TheMethodDecidesWhatItsTableMayHold) {
  const RunConfig c =
      parse_config("[method]\nrounds = 3\nname = \"iterative-magnitude\"\n[sparsity]\nsparsity = 0.5\n", "");
  EXPECT_EQ(c.method.name(), "iterative-magnitude");
  EXPECT_EQ(method_value(c, "rounds"), "3");
  EXPECT_TRUE(begins_with(
      error_in("[method]\nname = \"magnitude\"\nrounds = 3\n"),
      "c.toml:3:1: [method].rounds: unknown key for the method \"magnitude\"; it belongs to \"iterative-magnitude\""));
  const std::string close = error_in("[method]\nrouns = 3\nname = \"iterative-magnitude\"\n");
  EXPECT_TRUE(begins_with(close, "c.toml:2:1: [method].rouns: unknown key. Known: name, rounds, start, end")) << close;
  EXPECT_NE(close.find("Did you mean \"rounds\"?"), std::string::npos) << close;
}

TEST(RunConfig, AnotherMethodDropsWhatAPresetSaidAboutTheFirst) {
  const RunConfig demo = with({}, "glyphs-demo");
  EXPECT_EQ(demo.method.name(), "gradual-magnitude");
  EXPECT_GT(demo.sparsity.sparsity, 0);
  const RunConfig dense = with({"method.name=dense"}, "glyphs-demo");
  EXPECT_EQ(dense.method.name(), "dense");
  EXPECT_EQ(dense.sparsity.sparsity, 0);
  EXPECT_EQ(dense.train.epochs, demo.train.epochs);
  const RunConfig iterative = with({"method.name=iterative-magnitude"}, "glyphs-demo");
  EXPECT_EQ(iterative.sparsity.sparsity, demo.sparsity.sparsity);
  EXPECT_EQ(method_value(iterative, "start"),
            method_value(with({"method.name=iterative-magnitude"}), "start"));  // not the preset's
  const RunConfig plain = with({"reparam.name=identity"}, "mnist-lenet300-powerprop");
  EXPECT_EQ(plain.reparam.alpha, 1);
  EXPECT_EQ(with({"optim.name=adam"}, "mnist-ann").optim.momentum, 0);
  // From a file it is a mistake: the user wrote both.
  const TemporaryFile file("[method]\nname = \"gradual-magnitude\"\nschedule = \"linear\"\n");
  ConfigSources sources;
  sources.file = file.path;
  sources.set = {"method.name=magnitude"};
  EXPECT_TRUE(begins_with(
      error_of([&] { load_config(sources); }),
      file.path +
          ":3:1: [method].schedule: unknown key for the method \"magnitude\"; it belongs to \"gradual-magnitude\""));
}

TEST(RunConfig, CopiesOwnTheirMethod) {
  RunConfig a = parse_config("[method]\nname = \"iterative-magnitude\"\nrounds = 3\n[sparsity]\nsparsity = 0.5\n", "");
  RunConfig b = a;
  *std::get<std::int64_t*>(describe(b.method)[1].value) = 9;
  EXPECT_EQ(method_value(a, "rounds"), "3");
  EXPECT_EQ(method_value(b, "rounds"), "9");
  a = b;
  EXPECT_EQ(method_value(a, "rounds"), "9");
  const auto made = a.method.make();
  EXPECT_EQ(describe(*made)[0].value_text(), "9");
  const RunConfig moved = std::move(b);
  EXPECT_EQ(method_value(moved, "rounds"), "9");
}

// ---- writing
// ---------------------------------------------------------------------------------------------------------

// A value of every type that is not its default, and characters that need care.
RunConfig unusual() {
  return with({"run.name=a \"b\" \\c\t\x7f # d", "optim.lr=0.1234567890123456789", "optim.weight_decay=1e-300",
               "run.seed=9223372036854775807", "optim.momentum=0.9", "optim.nesterov=true", "train.steps=123456789",
               "train.eval_every=0.1ep", "log.every=33.3%", "schedule.name=multi-step",
               "schedule.milestones=10%,0.1ep,7it", "sparsity.dense_layers=conv*", "reparam.name=powerprop",
               "reparam.alpha=1.1", "method.name=gradual-magnitude", "method.every=7it", "sparsity.sparsity=0.95"});
}

TEST(RunConfig, TheResolvedFileReadsBackExactly) {
  for (const RunConfig& c : {RunConfig(), unusual()}) {
    EXPECT_EQ(diff(c, parse_config(to_toml(c), "")), std::vector<std::string>());
    EXPECT_EQ(to_toml(parse_config(to_toml(c), "")), to_toml(c));
    EXPECT_EQ(diff(c, parse_config(to_json(c), "")), std::vector<std::string>());
  }
}

TEST(RunConfig, TheResolvedFileExplainsEveryKey) {
  const std::string text = to_toml(with({"sparsity.sparsity=0.5", "method.name=magnitude"}));
  EXPECT_NE(text.find("\n[sparsity]\n# share of zeros among the sparsified weights (in [0, 1))\nsparsity = 0.5\n"),
            std::string::npos)
      << text;
  std::istringstream lines(text);
  std::string before, line;
  while (std::getline(lines, line)) {
    if (line.find(" = ") != std::string::npos && line[0] != '#' && line.rfind("schema_version", 0) != 0) {
      EXPECT_EQ(before.substr(0, 2), "# ") << line;
    }
    before = line;
  }
}

TEST(RunConfig, DiffNamesWhatChanged) {
  const RunConfig a = with({"method.name=iterative-magnitude", "sparsity.sparsity=0.5"});
  const RunConfig b = with({"method.name=magnitude", "sparsity.sparsity=0.5", "optim.lr=0.05", "run.name=x"});
  EXPECT_EQ(
      diff(a, b),
      (std::vector<std::string>{
          "run.name: \"\" -> \"x\"", "optim.lr: 0.1 -> 0.05", "method.name: \"iterative-magnitude\" -> \"magnitude\"",
          "method.at: (none) -> \"50%\"", "method.rounds: 5 -> (none)", "method.start: \"20%\" -> (none)",
          "method.end: \"80%\" -> (none)", "method.rewind: false -> (none)", "method.rewind_to: \"0it\" -> (none)"}));
  EXPECT_TRUE(diff(a, a).empty());
}

// ---- presets and documentation
// -----------------------------------------------------------------------------------------

TEST(Presets, AreTheFilesOfTheFolder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(ESPALIER_SOURCE_DIR "/presets")) {
    if (entry.path().extension() == ".toml") files.push_back(entry.path().stem().string());
  }
  std::sort(files.begin(), files.end());
  std::vector<std::string> names;
  for (const auto& preset : known_presets()) names.push_back(preset.name);
  EXPECT_EQ(names, files);
  for (const auto& preset : known_presets()) {
    SCOPED_TRACE(preset.name);
    std::ifstream file(ESPALIER_SOURCE_DIR "/presets/" + preset.name + ".toml");
    const std::string text(std::istreambuf_iterator<char>(file), {});
    EXPECT_EQ(preset_text(preset.name), text);
    EXPECT_EQ("# " + preset.description, text.substr(0, text.find('\n')));
    EXPECT_GT(preset.description.size(), 20u);
    EXPECT_EQ(error_in(text), "no error");  // also as a file, where nothing is dropped
  }
  EXPECT_EQ(error_of([] { preset_text("mnist-an"); }).find("--preset mnist-an: unknown preset. Known: cifar10-cnn, "),
            0u);
}

TEST(Presets, TheIssuesVariantsWork) {
  for (const char* name : {"mnist-ann", "mnist-cnn", "cifar10-cnn", "mnist-lenet300", "mnist-lenet300-powerprop"}) {
    EXPECT_EQ(with({"reparam.alpha=1.5"}, name).reparam.alpha, 1.5) << name;
    EXPECT_EQ(with({"method.name=dense"}, name).method.name(), "dense") << name;
  }
  const RunConfig notebook = with({}, "mnist-lenet300");  // methods of the official notebook
  EXPECT_EQ(notebook.train.steps, 50000);
  EXPECT_EQ(notebook.train.batch_size, 60);
  EXPECT_EQ(notebook.optim.lr, 0.1);
  EXPECT_EQ(notebook.optim.momentum, 0);
  EXPECT_EQ(notebook.data.validation, 5000);
  EXPECT_EQ(notebook.data.normalise, "unit");
  EXPECT_EQ(notebook.model.init, "truncated-normal");
}

TEST(Documentation, NamesEveryKey) {
  std::ifstream file(ESPALIER_SOURCE_DIR "/docs/configuration.md");
  const std::string page(std::istreambuf_iterator<char>(file), {});
  RunConfig defaults;
  for (const auto& table : defaults.tables()) {
    EXPECT_NE(page.find("### [" + table.name + "]"), std::string::npos) << table.name;
    const auto begin = page.find("### [" + table.name + "]");
    const std::string section = page.substr(begin, page.find("\n##", begin + 1) - begin);
    for (const auto& option : table.options) {
      EXPECT_NE(section.find(fmt::format("| `{}` | {} | `{}` |", option.name, option.type(), option.value_text())),
                std::string::npos)
          << fmt::format("| `{}` | {} | `{}` | in docs/configuration.md, [{}]", option.name, option.type(),
                         option.value_text(), table.name);
    }
  }
}

}  // namespace
}  // namespace espalier::train
