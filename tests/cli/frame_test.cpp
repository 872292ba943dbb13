// What every command shares: global flags, streams, exit statuses, messages about a wrong command line.
#include <nlohmann/json.hpp>

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

}  // namespace
}  // namespace espalier
