#include "espalier/core/options.h"

#include <gtest/gtest.h>

#include <functional>

#include "espalier/core/error.h"

namespace espalier {
namespace {

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage);
    return e.what();
  }
  return "no error";
}

struct Sample {
  double rate = 0.5;
  std::int64_t count = 3;
  std::string kind = "er";
  std::vector<double> list = {1, 0.25};
  Duration every = Duration::epochs(1.5);
  bool on = true;
  void describe(Describe& d) {
    d("rate", rate, "a rate", from_up_to(0, 1));
    d("count", count, "a count", at_least(1));
    d("kind", kind, "a kind", {"uniform", "er", "erk"});
    d("list", list, "a list", above(0));
    d("every", every, "a duration");
    d("on", on, "a switch");
  }
};

TEST(Options, WriteTheirValuesAsToml) {
  Sample s;
  const auto list = describe(s);
  EXPECT_EQ(list[0].value_text(), "0.5");
  EXPECT_EQ(list[1].value_text(), "3");
  EXPECT_EQ(list[2].value_text(), "\"er\"");
  EXPECT_EQ(list[3].value_text(), "[1.0, 0.25]");
  EXPECT_EQ(list[4].value_text(), "\"1.5ep\"");
  EXPECT_EQ(list[5].value_text(), "true");
}

TEST(Options, OutOfRangeNamesTheValueAndTheRange) {
  Sample s;
  const auto list = describe(s);
  for (const auto& o : list) o.validate("");
  s.rate = 1;
  EXPECT_EQ(message_of([&] { list[0].validate("rate = "); }), "rate = 1 is out of range; expected in [0, 1)");
  s.list[1] = 0;
  EXPECT_EQ(message_of([&] { list[3].validate("list: "); }), "list: 0 is out of range; expected above 0");
  s.kind = "erdos";
  EXPECT_EQ(message_of([&] { list[2].validate("kind = "); }),
            "kind = \"erdos\": unknown value. Known: uniform, er, erk. Did you mean \"er\"?");
  s.rate = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(message_of([&] { list[0].validate("rate = "); }), "rate = nan is not a finite number");
}

TEST(Duration, ReadsStepsEpochsAndPercent) {
  const Clock clock{0, 2000, 100};
  EXPECT_EQ(Duration::parse("500it").in_steps(clock), 500);
  EXPECT_EQ(Duration::parse("1.5ep").in_steps(clock), 150);
  EXPECT_EQ(Duration::parse("25%").in_steps(clock), 500);
  for (const char* text : {"500it", "1.5ep", "25%", "2ep"}) EXPECT_EQ(Duration::parse(text).text(), text);
  for (const char* text : {"", "5", "it", "-1it", "+1it", " 1it", "nanit", "infep", "1.5it", "101%", "5 it", "5its"})
    EXPECT_THROW(Duration::parse(text), Error) << text;
}

TEST(Duration, NeedsTheClockItsUnitRefersTo) {
  EXPECT_EQ(Duration::steps(5).in_steps({}), 5);
  EXPECT_THROW(Duration::epochs(5).in_steps({}), Error);
  EXPECT_THROW(Duration::percent(5).in_steps({}), Error);
}

TEST(Nearest, FindsTypingErrorsAndNothingFarAway) {
  const std::vector<std::string> known = {"sparsity", "distribution", "alpha"};
  EXPECT_EQ(nearest("sparsty", known), "sparsity");
  EXPECT_EQ(nearest("aplha", known), "alpha");
  EXPECT_EQ(nearest("momentum", known), "");
  EXPECT_EQ(edit_distance("abcd", "acbd"), 1u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
}

}  // namespace
}  // namespace espalier
