#include "espalier/report/groups.h"

#include <gtest/gtest.h>

namespace espalier::report {
namespace {

report::Run with(const std::string& name, std::map<std::string, std::string> config) {
  report::Run run;
  run.name = name;
  run.config = std::move(config);
  return run;
}

std::vector<std::string> labels(const std::vector<RunGroup>& groups) {
  std::vector<std::string> out;
  for (const RunGroup& g : groups) out.push_back(g.label);
  return out;
}
using Labels = std::vector<std::string>;

TEST(Groups, SeedsOfOneConfigurationAreOne) {
  const std::vector<report::Run> runs = {with("a", {{"run.seed", "1"}, {"run.threads", "1"}, {"reparam.alpha", "1"}}),
                                         with("b", {{"run.seed", "1"}, {"reparam.alpha", "2"}}),
                                         with("c", {{"run.seed", "2"}, {"run.threads", "4"}, {"reparam.alpha", "1"}})};
  const auto groups = group_runs(runs, false);
  EXPECT_EQ(labels(groups), (Labels{"alpha 1", "alpha 2"}));
  EXPECT_EQ(groups[0].runs, (std::vector<std::size_t>{0, 2}));
  EXPECT_EQ(groups[0].settings.at("reparam.alpha"), "1");
  EXPECT_EQ(labels(group_runs(runs, true)), (Labels{"a", "b", "c"}));
}

TEST(Groups, AMethodsNameSaysMoreThanItsOptions) {
  const std::vector<report::Run> runs = {
      with("a", {{"method.name", "rigl"}, {"method.every", "100it"}, {"sparsity.sparsity", "0.9"}}),
      with("b", {{"method.name", "dense"}, {"sparsity.sparsity", "0.9"}}),
      with("c", {{"method.name", "rigl"}, {"method.every", "100it"}, {"sparsity.sparsity", "0.8"}})};
  EXPECT_EQ(labels(group_runs(runs, false)),
            (Labels{"rigl, sparsity 0.9", "dense, sparsity 0.9", "rigl, sparsity 0.8"}));
}

TEST(Groups, WhereNamesDoNotTellThemApartOptionsDo) {
  const std::vector<report::Run> runs = {with("a", {{"method.name", "rigl"}, {"method.every", "100it"}}),
                                         with("b", {{"method.name", "rigl"}, {"method.every", "200it"}}),
                                         with("c", {{"method.name", "dense"}})};
  EXPECT_EQ(labels(group_runs(runs, false)), (Labels{"rigl, every 100it", "rigl, every 200it", "dense"}));
}

TEST(Groups, NetworksToStartFromMayBeSeedsThemselves) {
  const std::vector<report::Run> runs = {
      with("structure-1", {{"method.name", "static-random"}, {"run.structure_from", "runs/dpr-1"}}),
      with("structure-2", {{"method.name", "static-random"}, {"run.structure_from", "runs/dpr-2"}}),
      with("both-1", {{"method.name", "static-random"},
                      {"run.structure_from", "runs/dpr-1"},
                      {"run.values_from", "runs/dpr-1@0"}})};
  const auto groups = group_runs(runs, false);
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].runs, (std::vector<std::size_t>{0, 1}));
  EXPECT_EQ(groups[1].settings.at("run.values_from"), "dpr-*@0");
}

TEST(Groups, OneGroupIsNamedByWhatItsFoldersHaveInCommon) {
  const std::map<std::string, std::string> same = {{"reparam.alpha", "1"}};
  EXPECT_EQ(labels(group_runs({with("rigl-1", same), with("rigl-2", same)}, false)), (Labels{"rigl"}));
  EXPECT_EQ(labels(group_runs({with("a-seed1", same), with("a-seed2", same)}, false)), (Labels{"a"}));
  EXPECT_EQ(labels(group_runs({with("a-1.5,seed=1", same), with("a-1.5,seed=2", same)}, false)), (Labels{"a-1.5"}))
      << "cells of a sweep";
  EXPECT_EQ(labels(group_runs({with("x", same), with("y", same)}, false)), (Labels{"x"}));
  const std::string automatic = "20261120T040507Z-resnet20-set-41df2da2",
                    later = "20261121T220001Z-resnet20-set-00a1b2c3";
  EXPECT_EQ(labels(group_runs({with(automatic, same), with(later, same)}, false)), (Labels{"resnet20-set"}));
  EXPECT_EQ(labels(group_runs({with(automatic, same)}, false)), (Labels{automatic}));
}

TEST(Groups, RunsWithoutAConfigurationStandAlone) {
  EXPECT_EQ(labels(group_runs({with("x", {}), with("x", {}), with("y", {})}, false)), (Labels{"x", "x (2)", "y"}));
  EXPECT_EQ(labels(group_runs({with("only", {{"reparam.alpha", "1"}})}, false)), (Labels{"only"}));
  EXPECT_TRUE(group_runs({}, false).empty());
}

}  // namespace
}  // namespace espalier::report
