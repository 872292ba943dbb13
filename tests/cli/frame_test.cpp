// What every command shares: global flags, streams, exit statuses, messages about a wrong command line.
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "program.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using Frame = Program;

TEST_F(Frame, VersionGoesToStandardOutput) {
  const Result text = run("--version");
  EXPECT_EQ(text.status, 0);
  EXPECT_EQ(text.out.rfind("espalier 0.", 0), 0u) << text.out;
  EXPECT_EQ(text.err, "");
  const Result json = run("--version --json");
  EXPECT_EQ(json.status, 0);
  const Json document = Json::parse(json.out);
  EXPECT_EQ(document["name"], "espalier");
  EXPECT_EQ(text.out.rfind("espalier " + document["version"].get<std::string>(), 0), 0u);
  EXPECT_TRUE(document.contains("torch"));
  EXPECT_EQ(run("--json").status, 2);
}

TEST_F(Frame, HelpGoesToStandardOutputWithExamples) {
  for (const char* arguments : {"--help", "config --help", "list -h"}) {
    const Result help = run(arguments);
    EXPECT_EQ(help.status, 0) << arguments;
    EXPECT_NE(help.out.find("Examples:\n  espalier "), std::string::npos) << help.out;
    EXPECT_EQ(help.err, "");
  }
  EXPECT_NE(run("config --help").out.find("--set TABLE.KEY=VALUE ..."), std::string::npos);
}

TEST_F(Frame, AWrongCommandLineIsOneLineAndStatus2) {
  const auto error = [&](const std::string& arguments) {
    const Result result = run(arguments);
    EXPECT_EQ(result.status, 2) << arguments;
    EXPECT_EQ(result.out, "") << arguments;
    return result.err;
  };
  const std::string unknown = error("lisst --json");
  EXPECT_EQ(unknown.rfind("error: unknown command \"lisst\". Known: ", 0), 0u) << unknown;
  EXPECT_NE(unknown.find("config, list"), std::string::npos) << unknown;
  EXPECT_NE(unknown.find(". Did you mean \"list\"?\n"), std::string::npos) << unknown;
  EXPECT_EQ(error("list --jsn"),
            "error: espalier list: unknown option \"--jsn\". Did you mean \"--json\"? (espalier list --help)\n");
  EXPECT_EQ(error("config --sett=a.b=c"),
            "error: espalier config: unknown option \"--sett\". Did you mean \"--set\"? (espalier config --help)\n");
  EXPECT_EQ(error("--quite"),
            "error: espalier: unknown option \"--quite\". Did you mean \"--quiet\"? (espalier --help)\n");
  EXPECT_EQ(error("list methods models"),
            "error: espalier list: unexpected argument \"models\" (espalier list --help)\n");
  EXPECT_EQ(error("").rfind("error: no command given. Known: ", 0), 0u) << error("");
  EXPECT_EQ(error("config --preset").rfind("error: espalier config: --preset: ", 0), 0u) << error("config --preset");
  EXPECT_EQ(error("--color blue list").rfind("error: espalier list: --color: blue not in ", 0), 0u);
  EXPECT_EQ(error("list elephants"),
            "error: espalier list: \"elephants\": unknown. Known: methods, models, datasets, presets.\n");
  EXPECT_EQ(error("list model"),
            "error: espalier list: \"model\": unknown. Known: methods, models, datasets, presets. Did you mean "
            "\"models\"?\n");
}

TEST_F(Frame, GlobalFlagsStandBeforeOrAfterTheCommand) {
  write("c.toml", "");
  EXPECT_EQ(run("config c.toml").err, "c.toml: no mistakes\n");
  EXPECT_EQ(run("--quiet config c.toml").err, "");
  EXPECT_EQ(run("config c.toml -q").err, "");
  const Json line = Json::parse(run("config c.toml --log-format json").err);
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["message"], "c.toml: no mistakes");
  EXPECT_EQ(line["t"].get<std::string>().size(), std::string("2022-01-01T00:00:00.000Z").size());
  write("bad.toml", "x = \"\xc3\xa4\\n\"\ny = 1\n");
  const Result bad = run("--log-format json config bad.toml");
  EXPECT_EQ(bad.status, 2);
  EXPECT_EQ(Json::parse(bad.err)["level"], "error");
}

TEST_F(Frame, ColourOnlyWhereItIsWanted) {
  EXPECT_EQ(run("list x").err.find('\x1b'), std::string::npos);
  EXPECT_NE(run("--color always list x").err.find("\x1b["), std::string::npos);
  EXPECT_NE(run("--color always list x", "NO_COLOR=1").err.find("\x1b["), std::string::npos);  // asked for
  EXPECT_EQ(run("--color never list x").err.find('\x1b'), std::string::npos);
}

TEST_F(Frame, AReaderThatLeavesIsNoError) {
  const Result result = shell("(sleep 0.2; \"$ESPALIER\" config --schema; echo \"status $?\" >&2) | true\n");
  EXPECT_EQ(result.err, "status 0\n");
}

TEST_F(Frame, ResultsThatCannotBeWrittenAreAnError) {
  EXPECT_EQ(shell("\"$ESPALIER\" list >/dev/full").err,
            "error: cannot write to standard output: No space left on device\n");
  EXPECT_EQ(shell("\"$ESPALIER\" list >/dev/full").status, 1);
  const Result closed = shell("\"$ESPALIER\" list >&-");
  EXPECT_EQ(closed.status, 1);
  EXPECT_EQ(closed.err, "error: cannot write to standard output: Bad file descriptor\n");
}

// What libgomp itself says of its turns, as often as it is loaded into a process: begun once more, a command loads it
// once.
constexpr const char* kNoChoice = "-u OMP_WAIT_POLICY -u GOMP_SPINCOUNT OMP_DISPLAY_ENV=verbose";

std::vector<std::string> turns(const Result& result) {
  std::vector<std::string> found;
  const std::regex line("GOMP_SPINCOUNT = '([0-9]+)'");
  for (std::sregex_iterator at(result.err.begin(), result.err.end(), line), end; at != end; ++at)
    found.push_back((*at)[1]);
  return found;
}

TEST_F(Frame, CommandsThatComputeKeepWaitsShort) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "built without it under sanitizers";
#endif
  const auto by_itself = turns(run("--version", kNoChoice));
  if (by_itself.empty()) GTEST_SKIP() << "this OpenMP is not GNU's";
  ASSERT_NE(by_itself, std::vector<std::string>{"5000"});
  const std::set<std::string> computing = {"train", "continual", "eval",  "init",  "sweep",
                                           "prune", "reproduce", "bench", "doctor"};
  const std::set<std::string> others = {"compare", "watch", "report", "inspect", "data", "config", "list"};
  std::set<std::string> both = others;
  both.insert(computing.begin(), computing.end());
  std::istringstream known(std::regex_replace(run("").err, std::regex(".*Known: (.*)\\. \\(.*\n"), "$1"));
  std::set<std::string> all;
  for (std::string name; std::getline(known >> std::ws, name, ',');) all.insert(name);
  EXPECT_EQ(all, both) << "does the new command compute for long? cli/short_waits.cpp and this test want to know";
  for (const auto& name : all) {
    const Result help = run(name + " --help", kNoChoice);
    EXPECT_EQ(help.status, 0) << name;
    EXPECT_EQ(turns(help), computing.count(name) ? std::vector<std::string>{"5000"} : by_itself) << name;
  }
}

TEST_F(Frame, WaitsAreAsLongAsTheUserWantsThem) {
  const auto waits = [](const Result& result) { return Json::parse(result.out)["threads"]["waits"]; };
  const Result chosen = run("doctor --json", std::string(kNoChoice) + " GOMP_SPINCOUNT=7");
  EXPECT_EQ(waits(chosen), "GOMP_SPINCOUNT=7");
  const Result passive = run("doctor --json", std::string(kNoChoice) + " OMP_WAIT_POLICY=passive");
  EXPECT_EQ(waits(passive), "OMP_WAIT_POLICY=passive");
  for (const auto& [result, expected] : {std::pair{chosen, "7"}, {passive, "0"}}) {
    if (const auto found = turns(result); !found.empty()) EXPECT_EQ(found, std::vector<std::string>{expected});
  }
}

TEST_F(Frame, ACommandThatBeginsOnceMoreHasTheArgumentsVariablesAndNameOfTheFirst) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "built without it under sanitizers";
#endif
  // Its own line and name, as the kernel knows them, while it waits for the other end of a pipe to be opened.
  const Result result = shell(
      "mkfifo config.toml\n"
      "env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT MINE='a b' \"$ESPALIER\" train config.toml --set 'method.name= set' '' "
      "&\n"
      "while ! tr '\\0' '\\n' < /proc/$!/environ | grep -q GOMP_SPINCOUNT || ! grep -q espalier /proc/$!/comm; do\n"
      "  [ $((++turns)) -lt 3000 ] && kill -0 $! || break\n"
      "  sleep 0.01\n"
      "done\n"
      "cat /proc/$!/comm\n"
      "tr '\\0' '|' < /proc/$!/cmdline\n"
      "tr '\\0' '\\n' < /proc/$!/environ | grep -E '^(MINE|GOMP)'\n"
      "kill -9 $!\n");
  EXPECT_EQ(result.out,
            "espalier\n" ESPALIER_PROGRAM "|train|config.toml|--set|method.name= set||MINE=a b\nGOMP_SPINCOUNT=5000\n");
}

}  // namespace
}  // namespace espalier
