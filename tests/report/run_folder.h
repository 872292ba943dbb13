/// A folder in which tests write what a run would have left.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "espalier/core/error.h"
#include "espalier/report/run.h"

namespace espalier::report {

class RunFolder : public ::testing::Test {
 protected:
  RunFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "espalier-report-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("no temporary directory");
    folder = pattern;
  }
  ~RunFolder() override { std::filesystem::remove_all(folder); }

  std::filesystem::path at(const std::string& name) const { return folder / name; }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(at(name).parent_path());
    std::ofstream(at(name), std::ios::binary) << text;
  }
  /// A small finished run of that name: a line of loss, two epochs, one layer of 10 weights of which 4 are kept.
  void write_run(const std::string& name, int seed, double accuracy, const std::string& config = "") const {
    const std::string nnz = "4";
    write(name + "/config.toml",
          "[run]\nseed = " + std::to_string(seed) + "\nname = \"" + std::to_string(seed) + "\"\n" + config);
    std::string metrics;
    metrics += R"({"event":"topology","step":0,"nnz":10,"dropped":0,"grown":0,"layers":[{"name":"fc.weight","nnz":10,)";
    metrics += R"("dropped":0,"grown":0,"threshold":null,"dead_outputs":0,"dead_inputs":0}]})"
               "\n";
    for (int step = 1; step <= 4; ++step) {
      metrics += R"({"event":"step","step":)" + std::to_string(step) + R"(,"loss":)" + std::to_string(2.0 / step) +
                 R"(,"lr":0.1,"sparsity":0.0})"
                 "\n";
      if (step % 2 != 0) continue;
      metrics += R"({"event":"epoch","step":)" + std::to_string(step) + R"(,"epoch":)" + std::to_string(step / 2) +
                 R"(.0,"train_loss":)" + std::to_string(3.0 / step) +
                 R"(,"train_accuracy":0.5,"nnz":4,"sparsity":0.6})"
                 "\n";
      metrics += R"({"event":"eval","step":)" + std::to_string(step) +
                 R"(,"split":"validation","loss":0.5,"accuracy":)" + std::to_string(accuracy - 0.01) + "}\n";
    }
    metrics += R"({"event":"topology","step":3,"nnz":4,"dropped":6,"grown":0,"layers":[{"name":"fc.weight","nnz":4,)";
    metrics += R"("dropped":6,"grown":0,"threshold":0.25,"dead_outputs":1,"dead_inputs":0}]})"
               "\n";
    metrics += R"({"event":"end","step":4,"status":"done"})"
               "\n";
    write(name + "/metrics.jsonl", metrics);
    std::string weights;
    for (const int step : {0, 4}) {
      weights += R"({"event":"weights","step":)" + std::to_string(step) +
                 R"(,"layers":[{"name":"fc.weight","shape":[5,2],"nnz":4,"mean":0.25,"mean_abs":0.5,"near_zero":1,)"
                 R"("scale":0,"first":64,"counts":[1,0,0,3]}]})"
                 "\n";
    }
    write(name + "/weights.jsonl", weights);
    write(name + "/summary.json",
          R"({"schema":1,"status":"done","method":"magnitude","seed":)" + std::to_string(seed) +
              R"(,"test_accuracy":)" + std::to_string(accuracy) +
              R"(,"test_loss":0.4,"sparsity":0.6,"nnz":4,"weights":10,"flops_forward":8,"train_seconds":1.5,)"
              R"("storage":[{"name":"fc.weight","path":"masked","shape":[5,2],"nnz":4,"macs":4}]})");
    write(name + "/env.json", R"({"cpu":"a & b","threads":2})");
  }

  std::filesystem::path folder;
};

inline std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace espalier::report
