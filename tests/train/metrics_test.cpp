#include "espalier/train/metrics.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

using testing::contains;
using testing::error_of;
using testing::read_bytes;
using testing::TemporaryDirectory;
using testing::write_bytes;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Metrics, OneObjectALineEventThenStep) {
  TemporaryDirectory folder;
  {
    MetricsWriter writer(folder / "metrics.jsonl");
    writer.write("step", 1, {{"loss", 0.1}, {"lr", 1e-7}, {"count", 3}});
    writer.write("eval", 2, {{"split", "validation"}, {"accuracy", 1.0}});
    writer.write("topology", 2, {{"layers", {{{"name", "fc1"}, {"nnz", 10}}}}});
    writer.write("end", 2);
  }
  EXPECT_EQ(read_bytes(folder / "metrics.jsonl"),
            "{\"event\":\"step\",\"step\":1,\"loss\":0.1,\"lr\":1e-07,\"count\":3}\n"
            "{\"event\":\"eval\",\"step\":2,\"split\":\"validation\",\"accuracy\":1.0}\n"
            "{\"event\":\"topology\",\"step\":2,\"layers\":[{\"name\":\"fc1\",\"nnz\":10}]}\n"
            "{\"event\":\"end\",\"step\":2}\n");
}

TEST(Metrics, NonFiniteNumbersAreStrings) {
  TemporaryDirectory folder;
  {
    MetricsWriter writer(folder / "m");
    writer.write("step", 1, {{"a", std::nan("")}, {"b", kInfinity}, {"c", {-kInfinity}}});
  }
  EXPECT_EQ(read_bytes(folder / "m"), "{\"event\":\"step\",\"step\":1,\"a\":\"nan\",\"b\":\"inf\",\"c\":[\"-inf\"]}\n");
  const Json event = read_metrics(folder / "m").at(0);
  EXPECT_TRUE(std::isnan(number_from_json(event["a"])));
  EXPECT_EQ(number_from_json(event["b"]), kInfinity);
  EXPECT_EQ(number_from_json(event["c"][0]), -kInfinity);
}

TEST(Metrics, RefusesAnUnknownEvent) {
  TemporaryDirectory folder;
  MetricsWriter writer(folder / "m");
  const auto message = error_of(ErrorKind::failed, [&] { writer.write("evall", 1); });
  EXPECT_TRUE(contains(message, "Did you mean \"eval\"?")) << message;
  EXPECT_THROW(writer.write("eval", 1, {{"step", 2}}), Error);
}

// The promise: uninterrupted == killed and resumed, byte for byte.
TEST(Metrics, ResumedFileEqualsTheUninterruptedOne) {
  TemporaryDirectory folder;
  const auto write = [](MetricsWriter& writer, int from, int to) {
    for (int i = from; i < to; ++i) writer.write("step", i, {{"loss", 1.0 / (i + 1)}});
  };
  {
    MetricsWriter writer(folder / "whole");
    write(writer, 0, 1000);
  }
  std::int64_t position = 0;
  {
    MetricsWriter writer(folder / "resumed");
    write(writer, 0, 400);
    position = writer.position();
    EXPECT_EQ(position, static_cast<std::int64_t>(std::filesystem::file_size(folder / "resumed")));
    write(writer, 400, 700);
  }
  const std::string killed = read_bytes(folder / "resumed");
  write_bytes(folder / "resumed", killed.substr(0, killed.size() - 7));  // a torn last line
  {
    MetricsWriter writer(folder / "resumed", position);
    EXPECT_EQ(writer.position(), position);
    write(writer, 400, 1000);
  }
  EXPECT_EQ(read_bytes(folder / "resumed"), read_bytes(folder / "whole"));
}

TEST(Metrics, ANewFileReplacesTheOld) {
  TemporaryDirectory folder;
  write_bytes(folder / "m", "old\n");
  { MetricsWriter(folder / "m").write("end", 1); }
  EXPECT_EQ(read_bytes(folder / "m"), "{\"event\":\"end\",\"step\":1}\n");
}

TEST(Metrics, RefusesToResumeInAnotherFile) {
  TemporaryDirectory folder;
  write_bytes(folder / "m", "{\"event\":\"end\",\"step\":1}\n");
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { MetricsWriter(folder / "m", 26); }), "found 25 bytes"));
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { MetricsWriter(folder / "m", 24); }), "no line ends at byte 24"));
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { MetricsWriter(folder / "none", 5); }), "No such file"));
  EXPECT_FALSE(std::filesystem::exists(folder / "none"));
  EXPECT_EQ(std::filesystem::file_size(folder / "m"), 25u);
}

TEST(Metrics, ARareEventIsInTheFileAtOnce) {
  TemporaryDirectory folder;
  MetricsWriter writer(folder / "m");
  writer.write("epoch", 1);
  EXPECT_EQ(read_metrics(folder / "m").size(), 1u);
}

TEST(Metrics, ReaderLeavesOutATornLastLineOnly) {
  TemporaryDirectory folder;
  const std::string line = "{\"event\":\"step\",\"step\":1}\n";
  const std::string torn = "{\"event\":\"step\",\"step\":12}";
  for (std::size_t length = 0; length < torn.size(); ++length) {
    write_bytes(folder / "m", line + torn.substr(0, length));
    EXPECT_EQ(read_metrics(folder / "m").size(), 1u) << length;
  }
  write_bytes(folder / "m", line + torn);
  EXPECT_EQ(read_metrics(folder / "m").at(1)["step"], 12);
  write_bytes(folder / "m", "");
  EXPECT_TRUE(read_metrics(folder / "m").empty());
  for (const std::string bad : {"{\"event\":\"st\n", "\n", "{\"step\":1}\n", "{\"event\":1,\"step\":1}\n", "[]\n"}) {
    write_bytes(folder / "m", line + bad + line);
    const auto message = error_of(ErrorKind::data, [&] { read_metrics(folder / "m"); });
    EXPECT_TRUE(contains(message, "m:2: expected a JSON object")) << message;
  }
}

TEST(Metrics, ADiskThatIsFullIsAnErrorThatNamesTheFile) {
  TemporaryDirectory folder;
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100, 100};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int result = 1;
    {
      MetricsWriter writer(folder / "m");
      try {
        for (int i = 0; i < 10; ++i) writer.write("step", i);
        writer.flush();
      } catch (const Error& e) {
        result = e.kind() == ErrorKind::failed && contains(e.what(), "m: cannot write: File too large") ? 0 : 2;
      }
    }
    ::_exit(result);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Json, NumbersReadBackExactlyAndShortest) {
  EXPECT_EQ(to_json_line(Json(0.1)), "0.1");
  EXPECT_EQ(to_json_line(Json(1.0)), "1.0");
  EXPECT_EQ(to_json_line(Json(-0.0)), "-0.0");
  EXPECT_EQ(to_json_line(Json(1e22)), "1e+22");
  EXPECT_EQ(to_json_line(Json(5e-324)), "5e-324");
  EXPECT_EQ(to_json_line(Json(9007199254740993)), "9007199254740993");
  EXPECT_EQ(to_json_line(Json(std::numeric_limits<std::uint64_t>::max())), "18446744073709551615");
  for (const double x : {1.0 / 3, 2.0 / 3, 1e300, 123456789.123, 9.5367431640625e-07, 5e-324, 1.7976931348623157e308}) {
    EXPECT_EQ(Json::parse(to_json_line(Json(x))).get<double>(), x);
    EXPECT_TRUE(Json::parse(to_json_line(Json(x))).is_number_float());
  }
}

TEST(Json, TextKeepsTheOrderAndPutsListsOfValuesOnOneLine) {
  const Json json{
      {"z", 1}, {"a", {1.5, "x", nullptr, true}}, {"m", {{1, 2}, {3}}}, {"e", Json::object()}, {"l", Json::array()}};
  EXPECT_EQ(to_json_text(json),
            "{\n  \"z\": 1,\n  \"a\": [1.5, \"x\", null, true],\n  \"m\": [\n    [1, 2],\n    [3]\n  ],\n"
            "  \"e\": {},\n  \"l\": []\n}\n");
  EXPECT_EQ(Json::parse(to_json_text(json)), json);
}

TEST(Json, StringsAreAlwaysValid) {
  EXPECT_EQ(to_json_line(Json("a\n\"\x01")), "\"a\\n\\\"\\u0001\"");
  EXPECT_EQ(to_json_line(Json("\xff")), "\"\xef\xbf\xbd\"");
  EXPECT_EQ(to_json_line(Json{{"\n", 1}}), "{\"\\n\":1}");
}

TEST(Json, ErrorsNameTheFile) {
  TemporaryDirectory folder;
  write_bytes(folder / "a.json", "{\"a\":");
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { read_json(folder / "a.json"); }), "a.json: is not JSON"));
  EXPECT_THROW(number_from_json(Json("0.5")), Error);
}

}  // namespace
}  // namespace espalier::train
