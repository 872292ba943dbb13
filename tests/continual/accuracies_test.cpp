#include "espalier/continual/accuracies.h"

#include <gtest/gtest.h>

namespace espalier::continual {
namespace {

Accuracies by_hand() {
  Accuracies a;
  a.add_row({0.10, 0.12, 0.08});
  a.add_row({0.90, 0.32, 0.18});
  a.add_row({0.95, 0.80, 0.28});
  a.add_row({0.70, 0.60, 0.85});
  return a;
}

TEST(Accuracies, MetricsByHand) {
  const Accuracies a = by_hand();
  EXPECT_EQ(a.learnt(), 3);
  EXPECT_EQ(a.tasks(), 3);
  EXPECT_NEAR(*a.average().value, (0.70 + 0.60 + 0.85) / 3, 1e-15);
  EXPECT_NEAR(*a.backward_transfer().value, ((0.70 - 0.90) + (0.60 - 0.80)) / 2, 1e-15);
  EXPECT_NEAR(*a.forward_transfer().value, ((0.32 - 0.12) + (0.28 - 0.08)) / 2, 1e-15);
  // The best before the last task: 0.95 on the first, not the 0.90 of the day that it was learnt.
  EXPECT_NEAR(*a.forgetting().value, ((0.95 - 0.70) + (0.80 - 0.60)) / 2, 1e-15);
}

TEST(Accuracies, AMetricThatIsNotDefinedSaysWhy) {
  Accuracies none;
  EXPECT_FALSE(none.average().value);
  EXPECT_NE(none.average().undefined, "");
  Accuracies one;
  one.add_row({0.1});
  one.add_row({0.9});
  EXPECT_EQ(one.average().value, 0.9);
  for (const Metric& m : {one.backward_transfer(), one.forward_transfer(), one.forgetting()}) {
    EXPECT_FALSE(m.value);
    EXPECT_NE(m.undefined.find("one has been learnt"), std::string::npos) << m.undefined;
  }
  Accuracies holes;
  holes.add_row({0.1, std::nullopt});
  holes.add_row({0.9, 0.2});
  holes.add_row({0.9, 0.8});
  EXPECT_FALSE(holes.forward_transfer().value);
  EXPECT_NE(holes.forward_transfer().undefined.find("task 2 after 0 tasks"), std::string::npos)
      << holes.forward_transfer().undefined;
  EXPECT_TRUE(holes.backward_transfer().value);
}

TEST(Accuracies, ATaskThatComesLaterIsAColumn) {
  Accuracies a = by_hand();
  a.set(0, 3, 0.11);
  a.set(3, 3, 0.21);
  a.add_row({0.70, 0.60, 0.85, 0.90});
  EXPECT_EQ(a.at(1, 3), std::nullopt);
  EXPECT_NEAR(*a.forward_transfer().value, (0.20 + 0.20 + 0.10) / 3, 1e-15);
}

}  // namespace
}  // namespace espalier::continual
