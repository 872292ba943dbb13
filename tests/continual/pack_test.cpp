#include "espalier/continual/pack.h"

#include "continual/sequences.h"

namespace espalier::continual {
namespace {

namespace fs = std::filesystem;
using namespace testing;

class PackFile : public ::testing::Test {
 protected:
  void SetUp() override {
    const train::RunConfig config = small({"continual.keep_rates=[0.2]", "train.steps=2", "continual.retrain=1it"});
    pack = empty_pack(config);
    TaskData data;
    for (int t = 0; t < 2; ++t) add_task(pack, config, next_source(pack, config, data), {});
    save_pack(file, pack);
  }
  TemporaryDirectory folder;
  fs::path file = folder / "pack.safetensors";
  Pack pack;
};

TEST_F(PackFile, ComesBackWhole) {
  const Pack again = load_pack(file);
  ASSERT_EQ(again.tasks.size(), 2u);
  for (std::size_t t = 0; t < 2; ++t) {
    EXPECT_EQ(again.tasks[t].masks.size(), 2u);
    for (std::size_t w = 0; w < 2; ++w) EXPECT_TRUE(again.tasks[t].masks[w] == pack.tasks[t].masks[w]);
    EXPECT_EQ(again.tasks[t].digest, pack.tasks[t].digest);
    EXPECT_EQ(again.tasks[t].source.to_json(), pack.tasks[t].source.to_json());
    EXPECT_EQ(again.tasks[t].record, pack.tasks[t].record);
  }
  EXPECT_EQ(again.accuracies.rows(), pack.accuracies.rows());
  EXPECT_EQ(train::to_toml(again.config), train::to_toml(pack.config));
  save_pack(folder / "again.safetensors", again);
  EXPECT_EQ(read_bytes(folder / "again.safetensors"), read_bytes(file));
}

TEST_F(PackFile, AMaskIsABitAPosition) {
  const auto tensors = train::load_safetensors(file).tensors;
  const std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
  const at::Tensor bits = by_name.at("task.1.fc1.weight.mask");
  EXPECT_EQ(bits.numel(), 784 * 24 / 8);
  const auto* byte = bits.data_ptr<std::uint8_t>();
  for (std::int64_t i = 0; i < 784 * 24; ++i) {
    ASSERT_EQ((byte[i / 8] >> (i % 8)) & 1, pack.tasks[0].masks[0].test(i)) << i;
  }
}

TEST_F(PackFile, EveryFlippedBitIsFound) {
  const std::string good = read_bytes(file);
  std::size_t found = 0, tried = 0;
  for (std::size_t at = 8; at < good.size(); at += 1 + good.size() / 60) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    write_bytes(folder / "bad.safetensors", bad);
    ++tried;
    const std::string text = error_of(ErrorKind::data, [&] { load_pack(folder / "bad.safetensors"); });
    found += contains(text, "bad.safetensors");
  }
  EXPECT_EQ(found, tried);
  for (const std::size_t length :
       {std::size_t{0}, std::size_t{7}, std::size_t{100}, good.size() / 2, good.size() - 1}) {
    write_bytes(folder / "bad.safetensors", good.substr(0, length));
    error_of(ErrorKind::data, [&] { load_pack(folder / "bad.safetensors"); });
  }
}

TEST_F(PackFile, SaysWhatItIsNot) {
  const std::string missing = error_of(ErrorKind::usage, [&] { load_pack(folder / "none.safetensors"); });
  EXPECT_TRUE(contains(missing, "no such file")) << missing;
  train::save_safetensors(folder / "other.safetensors", {{"w", torch::zeros({2})}});
  const std::string other = error_of(ErrorKind::data, [&] { load_pack(folder / "other.safetensors"); });
  EXPECT_TRUE(contains(other, "is not a packed network")) << other;
}

TEST_F(PackFile, ATaskThatDoesNotExistNamesThoseThatDo) {
  for (const std::int64_t number : {0, 3, -1}) {
    const std::string text = error_of(ErrorKind::usage, [&] { task_network(pack, number); });
    EXPECT_TRUE(contains(text, "tasks 1 to 2")) << text;
  }
}

TEST(Pack, CapacityByHand) {
  Pack pack;
  pack.config = small();
  pack.weights.push_back({"a.weight", {2, 5}, 0, torch::zeros({2, 5})});
  const auto task = [&](const std::vector<std::int64_t>& ones) {
    PackedTask t;
    BitMask mask(10);
    for (const auto i : ones) mask.set(i, true);
    t.masks = {mask};
    pack.tasks.push_back(t);
  };
  task({0, 1, 2, 3});
  task({2, 3, 4});
  task({3, 9});
  const auto layers = capacity(pack);
  ASSERT_EQ(layers.size(), 1u);
  EXPECT_EQ(layers[0].used, 6);
  EXPECT_EQ(layers[0].free, 4);
  EXPECT_EQ(layers[0].shared, 2);
  EXPECT_EQ(layers[0].tasks[1].kept, 3);
  EXPECT_EQ(layers[0].tasks[1].fresh, 1);
  EXPECT_EQ(layers[0].tasks[1].reused, 2);
  EXPECT_EQ(layers[0].tasks[2].fresh, 1);
  EXPECT_DOUBLE_EQ(capacity_used(pack), 0.6);
  EXPECT_EQ(used(pack, 0).positions(), (std::vector<std::int64_t>{0, 1, 2, 3, 4, 9}));
}

}  // namespace
}  // namespace espalier::continual
