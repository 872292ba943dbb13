#include "espalier/train/structure.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>

#include "espalier/core/error.h"
#include "espalier/methods/allocate.h"
#include "espalier/train/init_report.h"
#include "espalier/train/trainer.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

using espalier::testing::TemporaryDirectory;

const char* const kSmall = R"(
[data]
name = "glyphs"
train_size = 200
test_size = 50
[model]
name = "mlp"
widths = [20]
storage = "masked"
[train]
epochs = 0
steps = 8
batch_size = 20
[optim]
lr = 0.05
[sparsity]
distribution = "global"
)";

RunConfig small(const std::string& more) { return parse_config(kSmall + more, "test"); }

template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

SparseModel made(const RunConfig& config, const ModelStart& start = {}) {
  return make_sparse_model(config, {1, 28, 28}, 10, {0, 8, 10}, {}, start);
}

/// The structure of a PHEW network in a file, and the model it came from.
SparseModel saved(const std::filesystem::path& file, const std::string& storage = "masked") {
  RunConfig config = small("sparsity = 0.9\n[method]\nname = \"phew\"\n");
  config.model.storage = storage;
  config.run.seed = 7;
  SparseModel model = made(config);
  save_safetensors(file, state_dict(model), state_metadata(model));
  return model;
}

void expect_same(const SparseModel& a, const SparseModel& b) {
  for (std::size_t l = 0; l < 2; ++l) {
    EXPECT_TRUE(torch::equal(a.sparsifier->weights()[l]->active(), b.sparsifier->weights()[l]->active()));
    EXPECT_TRUE(torch::equal(a.sparsifier->weights()[l]->weights(), b.sparsifier->weights()[l]->weights()));
  }
}

TEST(Structure, MasksAndWeightsComeBackInEitherStorage) {
  TemporaryDirectory tmp;
  for (const char* from : {"masked", "compressed"}) {
    const SparseModel phew = saved(tmp / "m.safetensors", from);
    for (const char* to : {"masked", "compressed"}) {
      if (from == std::string("compressed") && to == std::string("masked")) continue;  // entries stay entries
      RunConfig config =
          small("[method]\nname = \"given\"\nstructure = \"" + (tmp / "m.safetensors").string() + "\"\n");
      config.model.storage = to;
      expect_same(made(config), phew);  // though the seed is another
    }
  }
}

TEST(Structure, MasksAloneLeaveTheValuesToTheSeed) {
  TemporaryDirectory tmp;
  const SparseModel phew = saved(tmp / "m.safetensors");
  NamedTensors masks;
  for (const auto& [name, tensor] : load_safetensors(tmp / "m.safetensors").tensors) {
    if (name.find(".mask") != std::string::npos) masks.emplace_back(name, tensor);
  }
  ASSERT_EQ(masks.size(), 2u);
  save_safetensors(tmp / "masks.safetensors", masks);
  const std::string given =
      "[method]\nname = \"given\"\nstructure = \"" + (tmp / "masks.safetensors").string() + "\"\n";
  const SparseModel model = made(small(given));
  const SparseModel dense = made(small(""));
  for (std::size_t l = 0; l < 2; ++l) {
    const auto& w = model.sparsifier->weights()[l];
    EXPECT_TRUE(torch::equal(w->active(), phew.sparsifier->weights()[l]->active()));
    EXPECT_TRUE(torch::equal(w->weights(), dense.sparsifier->weights()[l]->weights().index_select(0, w->active())));
  }
  EXPECT_NE(message_of([&] { made(small("sparsity = 0.5\n" + given)); }).find("the given structure keeps"),
            std::string::npos);
  EXPECT_EQ(message_of([&] {
              auto config = small(given);
              config.sparsity.sparsity = model.sparsifier->sparsity();
              made(config);
            }),
            "");
}

TEST(Structure, SaysWhatIsWrongWithAFile) {
  TemporaryDirectory tmp;
  const auto with = [&](const NamedTensors& tensors) {
    save_safetensors(tmp / "x.safetensors", tensors);
    return message_of(
        [&] { made(small("[method]\nname = \"given\"\nstructure = \"" + (tmp / "x.safetensors").string() + "\"\n")); });
  };
  const at::Tensor mask = torch::ones({20, 784}, torch::kByte);
  EXPECT_NE(with({{"fc1.weight", torch::ones({20, 784})}}).find("no mask in it"), std::string::npos);
  EXPECT_NE(with({{"fc1.weight.mask", mask}}).find("no mask for fc2.weight"), std::string::npos);
  EXPECT_NE(with({{"fc1.weight.mask", torch::ones({20, 785}, torch::kByte)}, {"fc2.weight.mask", mask}})
                .find("larger than the weight"),
            std::string::npos);
  EXPECT_NE(with({{"fc1.weight.mask", torch::ones({20, 784})}}).find("a mask is uint8"), std::string::npos);
  EXPECT_NE(with({{"fc1.weight.mask", mask}, {"fc1.weight", torch::ones({20, 784})}}).find("\"fc1.bias\""),
            std::string::npos);
  EXPECT_NE(with({{"fc1.weight.mask", torch::zeros({20, 784}, torch::kByte)},
                  {"fc2.weight.mask", torch::ones({10, 20}, torch::kByte)}})
                .find("the network is cut"),
            std::string::npos);
  EXPECT_NE(message_of([&] { made(small("[method]\nname = \"given\"\nstructure = \"/nowhere\"\n")); }).find("/nowhere"),
            std::string::npos);
  EXPECT_NE(message_of([&] { made(small("[method]\nname = \"given\"\n")); }).find("--structure-from"),
            std::string::npos);
}

TEST(Structure, ARunIsEvaluatedAndResumedWithoutItsFile) {
  TemporaryDirectory tmp;
  const SparseModel phew = saved(tmp / "m.safetensors");
  const RunConfig config =
      small("[method]\nname = \"given\"\nstructure = \"" + (tmp / "m.safetensors").string() + "\"\n");
  {
    RunDirectory directory = RunDirectory::create(tmp / "run", {to_toml(config), "", "", Json::object()}, false);
    const TrainResult result = train(config, directory, {});
    EXPECT_EQ(result.summary.at("nnz").get<std::int64_t>(), phew.sparsifier->nnz());
    EXPECT_EQ(result.summary.at("method"), "given");
  }
  std::filesystem::remove(tmp / "m.safetensors");
  const SparseModel trained = restore_model(load_run(tmp / "run"), {1, 28, 28}, 10, {0, 8, 10});
  EXPECT_TRUE(torch::equal(trained.sparsifier->weights()[0]->active(), phew.sparsifier->weights()[0]->active()));
}

TEST(Structure, SnipRunsAreEvaluatedWithoutData) {
  TemporaryDirectory tmp;
  const RunConfig config = small("sparsity = 0.9\n[method]\nname = \"snip\"\nbatches = 2\n");
  RunDirectory directory = RunDirectory::create(tmp / "run", {to_toml(config), "", "", Json::object()}, false);
  const TrainResult result = train(config, directory, {});
  EXPECT_EQ(result.summary.at("nnz").get<std::int64_t>(), kept_count(784 * 20 + 200, 0.9));
  const SparseModel trained = restore_model(load_run(tmp / "run"), {1, 28, 28}, 10, {0, 8, 10});
  EXPECT_EQ(trained.sparsifier->nnz(), kept_count(784 * 20 + 200, 0.9));
}

TEST(ProbeBatches, AreTheSameForTheSameSeedAndBalancedWhereAskedFor) {
  const RunConfig config = small("");
  const RunData data(config), again(config);
  const ProbeBatch first = data.probe_batch(0, 0);
  EXPECT_EQ(first.inputs.size(0), 20);
  EXPECT_TRUE(torch::equal(first.inputs, again.probe_batch(0, 0).inputs));
  EXPECT_FALSE(torch::equal(first.inputs, data.probe_batch(0, 1).inputs));
  EXPECT_TRUE(torch::equal(first.labels, data.train_batches().batch(0, 0).labels));  // training's own first batch
  const ProbeBatch balanced = data.probe_batch(3, 1);
  EXPECT_TRUE(torch::equal(torch::bincount(balanced.labels), torch::full({10}, 3, torch::kInt64)));
  EXPECT_FALSE(torch::equal(balanced.inputs, data.probe_batch(3, 0).inputs));
}

TEST(InitReport, CountsAndTraceOfAPhewNetwork) {
  RunConfig config = small("sparsity = 0.9\n[method]\nname = \"phew\"\n");
  const SparseModel model = made(config);
  const InitReport report = init_report(config, model);
  EXPECT_EQ(report.nnz, model.sparsifier->nnz());
  EXPECT_EQ(report.layers.size(), 2u);
  EXPECT_EQ(report.layers[0].nnz + report.layers[1].nnz, report.nnz);
  EXPECT_EQ(report.layers[0].units, 20);
  EXPECT_EQ(*report.layers[0].width, 20);
  ASSERT_TRUE(report.has_flow);
  EXPECT_NEAR(report.layers[0].flow, report.flow, 1e-9 * report.flow);  // conserved
  EXPECT_NEAR(report.layers[0].trace + report.layers[1].trace, report.trace, 1e-9 * report.trace);
  EXPECT_NEAR(report.layers[0].visits->mean * 20, static_cast<double>(*report.walks), 1e-6);
  // A path of weights a and b has trace a^2 + b^2, so the trace is that of the masks' matrices.
  const auto dense = [&](std::size_t l) {
    const auto& w = *model.sparsifier->weights()[l];
    return torch::zeros({w.numel()}, torch::kDouble)
        .index_copy_(0, w.active(), w.weights().to(torch::kDouble))
        .view(w.shape());
  };
  const at::Tensor a = dense(0).square(), b = dense(1).square();
  const at::Tensor in = dense(0).ne(0).to(torch::kDouble).sum(1), out = dense(1).ne(0).to(torch::kDouble).sum(0);
  const double expected = (a.sum(1) * out + b.sum(0) * in).sum().item<double>();
  EXPECT_NEAR(report.trace, expected, 1e-9 * expected);
  const Json json = to_json(report);
  EXPECT_EQ(json.at("nnz"), report.nnz);
  EXPECT_EQ(json.at("layers").size(), 2u);
}

}  // namespace
}  // namespace espalier::train
