// espalier bench: rows, their fields, and what is said of a wrong command line. No time is judged.
#include <nlohmann/json.hpp>

#include "program.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using Bench = Program;

TEST_F(Bench, EachLevelGivesRowsWithEveryField) {
  const std::pair<const char*, std::size_t> levels[] = {
      {"kernels --shape 40x24 --sparsity 0.5,0.9", 6},
      {"layer --what linear --shape 40x24,24x40 --sparsity 0.9", 4},
      {"kernels --what conv2d --shape 4x8@6,4x4@7x5:k5:s2 --sparsity 0.9", 6},
      {"layer --what conv2d --shape 4x8@6 --sparsity 0.5,0.9", 4},
      {"step --shape 20-16-5 --sparsity 0.9 --optimizer adam", 3},
      {"model --model mlp --shape 20-16-5 --sparsity 0.9", 4},
      {"model --model lenet-5 --shape 1x28x28 --sparsity 0.9 --pass inference", 1},
  };
  for (const auto& [arguments, rows] : levels) {
    const Result result = run(std::string("bench ") + arguments + " --batch 17 --threads 1 --seconds 0.02 --json");
    ASSERT_EQ(result.status, 0) << result.err;
    const Json document = Json::parse(result.out);
    ASSERT_EQ(document["rows"].size(), rows) << arguments;
    EXPECT_GT(document["peak_gflops"]["1"].get<double>(), 0.1);
    for (const Json& row : document["rows"]) {
      for (const char* key : {"what", "shape", "batch", "sparsity", "threads", "isa", "pass", "sparse_us", "dense_us",
                              "speedup", "peers_us", "sparse_gflops", "dense_equivalent_gflops", "peak_share"})
        EXPECT_TRUE(row.contains(key)) << key;
      EXPECT_EQ(row["batch"], 17);
      EXPECT_GT(row["sparse_us"].get<double>(), 0);
      EXPECT_LE(row["error_of_bound"].get<double>(), 1);
      if (row["pass"] == "rewire") continue;
      EXPECT_NEAR(row["speedup"].get<double>(), row["dense_us"].get<double>() / row["sparse_us"].get<double>(), 1e-9);
    }
  }
}

TEST_F(Bench, ShapesComeFromAFile) {
  write("shapes.txt", "# inputs x outputs\n 8x16  # small\n\n16x8\n");
  const Result result = run("bench kernels --shapes shapes.txt --sparsity 0.5 --pass step --seconds 0.02 --json");
  ASSERT_EQ(result.status, 0) << result.err;
  const Json rows = Json::parse(result.out)["rows"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["shape"], "8x16");
  EXPECT_EQ(rows[1]["shape"], "16x8");
  write("bad.txt", "8x16\n8x-3\n");
  const Result bad = run("bench kernels --shapes bad.txt");
  EXPECT_EQ(bad.status, 2);
  EXPECT_NE(bad.err.find("bad.txt:2: shape \"8x-3\": expected positive sizes such as 784x300"), std::string::npos);
}

TEST_F(Bench, SaysWhatIsWrong) {
  const std::pair<const char*, const char*> wrong[] = {
      {"bench lier", "\"lier\": unknown. Known: kernels, layer, step, model. Did you mean \"layer\"?"},
      {"bench step --shape 3x4", "expected positive sizes such as 784-300-100-10"},
      {"bench kernels --shape 3x4x5", "expected inputs x outputs"},
      {"bench kernels --sparsity 1", "--sparsity 1: expected a share of zeros in [0, 1)"},
      {"bench kernels --what conv3d",
       "--what conv3d: unknown for \"kernels\". Known: linear, conv2d. Did you mean \"conv2d\"?"},
      {"bench step --what conv2d", "Known: mlp"},
      {"bench model --what mlp", "--what mlp: not for \"model\"; name a --model"},
      {"bench model --model resnet2", "--model resnet2: unknown. Known: mlp"},
      {"bench model --shape 3x32", "expected channels x height x width"},
      {"bench kernels --what conv2d --shape 64x64", "--shape: shape \"64x64\": expected channels in x out @ pixels"},
      {"bench kernels --what conv2d --shape 8x8@9:q3", "expected channels in x out @ pixels"},
      {"bench kernels --what conv2d --shape 8x8@9:k3:k5", "expected channels in x out @ pixels"},
      {"bench kernels --what conv2d --shape 8x8@9:g3", "groups = 3 must divide the channels"},
      {"bench kernels --what conv2d --shape 8x8@2:k5:p0", "images of 2x2 pixels with padding 0 are smaller"},
      {"bench kernels --shapes nowhere.txt", "cannot be read"},
      {"bench step --shape 10 --seconds 0.02", "expected inputs, layers, classes"},
  };
  for (const auto& [arguments, text] : wrong) {
    const Result result = run(arguments);
    EXPECT_EQ(result.status, 2) << arguments;
    EXPECT_NE(result.err.find(text), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }
  EXPECT_EQ(run("bench kernels --shape 8x8 --sparsity 0.5 --seconds 0.02 --min-speedup 1e9").status, 4);
}

}  // namespace
}  // namespace espalier
