#include "espalier/train/storage_choice.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <array>
#include <cstdlib>
#include <filesystem>

#include "espalier/train/durable_file.h"
#include "espalier/train/experiment.h"
#include "espalier/train/json.h"
#include "train/busy_cores.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;

/// The cache in a folder of its own.
class StorageChoice : public ::testing::Test {
 protected:
  StorageChoice() {
    if (const char* old = std::getenv("XDG_CACHE_HOME")) before_ = old;
    setenv("XDG_CACHE_HOME", tmp_.path().c_str(), 1);
  }
  ~StorageChoice() override {
    if (before_)
      setenv("XDG_CACHE_HOME", before_->c_str(), 1);
    else
      unsetenv("XDG_CACHE_HOME");
  }
  fs::path cache() const { return tmp_.path() / "espalier" / "storage.json"; }

  static RunConfig config(const std::string& method, const std::string& more = "") {
    return parse_config("[data]\nname = \"glyphs\"\n[model]\nname = \"lenet-300-100\"\n[method]\nname = \"" + method +
                            "\"\n[sparsity]\nsparsity = 0.9\n" + more,
                        "test");
  }

  /// An entry of the file.
  static Json known(double dense, double compressed, double conversion, bool one_thread = false) {
    return {
        {"dense_us", dense}, {"compressed_us", compressed}, {"conversion_us", conversion}, {"one_thread", one_thread}};
  }

  espalier::testing::TemporaryDirectory tmp_;
  std::optional<std::string> before_;
};

TEST_F(StorageChoice, MeasuresEachLinearLayerOnceAndTakesTheFaster) {
  const auto first = choose_storage(config("static-random"), {1, 28, 28}, 10);
  ASSERT_EQ(first.size(), 3u);
  EXPECT_EQ(first[0].layer, "fc1");
  EXPECT_EQ(first[0].shape, "784x300");
  EXPECT_EQ(first[0].weights, 235200);
  EXPECT_EQ(first[0].nnz, 23520);
  for (const auto& c : first) {
    EXPECT_GT(c.times.dense_us, 0);
    EXPECT_GT(c.times.compressed_us, 0);
    EXPECT_GT(c.times.conversion_us, 0);
  }
  // What the file says is what counts: nothing is measured twice.
  Json entries = read_json(cache());
  ASSERT_EQ(entries.size(), 3u);
  bool slower = false;
  for (auto& entry : entries) {
    entry = known(slower ? 1 : 2, slower ? 2 : 1, 0);
    slower = !slower;
  }
  write_file_atomically(cache(), to_json_text(entries));
  const auto again = choose_storage(config("static-random"), {1, 28, 28}, 10);
  int compressed = 0;
  for (const auto& c : again) {
    EXPECT_EQ(c.times.dense_us + c.times.compressed_us, 3);
    compressed += c.compressed;
  }
  EXPECT_EQ(compressed, 2);
}

// Two threads, each of which waits for a core at every parallel loop, would make of a millisecond what the others
// leave.
TEST_F(StorageChoice, IsTimedOnOneThreadBesideOtherPrograms) {
  if (!fs::exists("/proc/self/schedstat")) GTEST_SKIP() << "the system does not say how long threads wait";
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  std::vector<LayerChoice> first, again;
  Json entries;
  {
    const espalier::testing::BusyCores others;
    first = choose_storage(config("static-random"), {1, 28, 28}, 10);
    entries = read_json(cache());
    for (auto& entry : entries) entry = known(1.5, 2.5, 0.5, /*one_thread=*/true);
    write_file_atomically(cache(), to_json_text(entries));
    again = choose_storage(config("static-random"), {1, 28, 28}, 10);
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(first[0].times.one_thread);  // the other layers may be too short for two threads
  EXPECT_GT(first[0].times.dense_us, 0);
  EXPECT_NE(to_text(first).find("between plain tensors and tiles, on one thread"), std::string::npos) << to_text(first);
  EXPECT_NE(to_text(first).find("the next run tries again"), std::string::npos);
  // The others are still there: what was found on one thread is as good as what would be found now.
  EXPECT_TRUE(again[0].times.one_thread);
  EXPECT_EQ(again[0].times.dense_us, 1.5);
}

// Worked by hand: times of three layers in the cache, dense / compressed / conversion of what goes in.
TEST_F(StorageChoice, CountsConversionsBetweenLayers) {
  const auto c = config("static-random");
  choose_storage(c, {1, 28, 28}, 10);
  const Json entries = read_json(cache());
  const auto chosen = [&](const std::array<std::array<double, 3>, 3>& times) {
    Json changed = entries;
    for (auto& [key, value] : changed.items()) {
      const std::size_t layer = key.find(" 784x300 ") != std::string::npos   ? 0
                                : key.find(" 300x100 ") != std::string::npos ? 1
                                                                             : 2;
      value = known(times[layer][0], times[layer][1], times[layer][2]);
    }
    write_file_atomically(cache(), to_json_text(changed));
    std::string text;
    for (const auto& choice : choose_storage(c, {1, 28, 28}, 10)) text += choice.compressed ? 'c' : 'd';
    return text;
  };
  EXPECT_EQ(chosen({{{10, 5, 4}, {10, 12, 3}, {10, 5, 3}}}), "ccc");  // 4 + 5 + 12 + 5 = 26; 30 dense; c-d-c 35
  EXPECT_EQ(chosen({{{10, 5, 6}, {10, 12, 3}, {10, 9, 3}}}), "ddd");  // 30 against 6 + 5 + 12 + 9 = 32
  EXPECT_EQ(chosen({{{10, 5, 2}, {10, 30, 1}, {10, 2, 1}}}), "cdc");  // 2 + 5 + 1 + 10 + 1 + 2 = 21
  EXPECT_EQ(chosen({{{10, 50, 2}, {10, 5, 1}, {10, 2, 1}}}), "dcc");  // 10 + 1 + 5 + 2 = 18
}

TEST_F(StorageChoice, MeasuresConvolutions) {
  RunConfig c = config("static-random");
  c.model.name = "layers";
  c.model.layers = {"conv(4, 3)", "relu", "conv(6, 3, stride=2, padding=1, groups=2)", "globalavgpool",
                    "linear(classes)"};
  c.sparsity.dense_layers = {"0"};
  const auto choices = choose_storage(c, {1, 28, 28}, 10);
  ASSERT_EQ(choices.size(), 2u);
  EXPECT_EQ(choices[0].layer, "2");
  EXPECT_EQ(choices[0].shape, "4x6x3x3 @ 13x13, stride 2x2, padding 1x1, dilation 1x1, groups 2");
  EXPECT_EQ(choices[0].weights, 108);
  EXPECT_GT(choices[0].times.dense_us, 0);
  EXPECT_GT(choices[0].times.compressed_us, 0);
  EXPECT_GT(choices[0].times.conversion_us, 0);
}

TEST_F(StorageChoice, ADamagedCacheIsMeasuredAgain) {
  fs::create_directories(cache().parent_path());
  for (const char* content : {"not json", "[1]", "{}"}) {
    write_file_atomically(cache(), content);
    EXPECT_EQ(choose_storage(config("static-random"), {1, 28, 28}, 10).size(), 3u) << content;
  }
  EXPECT_EQ(read_json(cache()).size(), 3u);
}

TEST_F(StorageChoice, LeavesOutWhatIsOrStartsDense) {
  EXPECT_TRUE(choose_storage(config("gradual-magnitude"), {1, 28, 28}, 10).empty());
  const auto choices = choose_storage(config("static-random", "dense_layers = [\"fc3\"]\n"), {1, 28, 28}, 10);
  ASSERT_EQ(choices.size(), 2u);
  EXPECT_EQ(choices[1].layer, "fc2");
}

// Its explorers are stored, too: 10 % of the positions on top of the 10 % that compute.
TEST_F(StorageChoice, CountsWhatAMethodStoresBesides) {
  const auto choices = choose_storage(config("top-kast"), {1, 28, 28}, 10);
  ASSERT_EQ(choices.size(), 3u);
  EXPECT_EQ(choices[0].nnz, 47040);
  const auto none = parse_config(
      "[data]\nname = \"glyphs\"\n[model]\nname = \"lenet-300-100\"\n[method]\nname = \"top-kast\"\nexploration = 0.9\n"
      "[sparsity]\nsparsity = 0.9\n",
      "test");
  EXPECT_TRUE(choose_storage(none, {1, 28, 28}, 10).empty());
}

TEST_F(StorageChoice, DoesNotBuildADenseWeightThatWouldFillTheMemory) {
  RunConfig wide = config("static-random");
  wide.model.name = "mlp";
  wide.model.widths = {400000, 400000};
  wide.sparsity.sparsity = 0.999999;
  const auto choices = choose_storage(wide, {1, 28, 28}, 10);
  ASSERT_EQ(choices.size(), 3u);
  EXPECT_TRUE(choices[0].compressed && choices[1].compressed);
  EXPECT_EQ(choices[1].times.dense_us, 0);
  EXPECT_GT(choices[2].times.dense_us, 0);
  EXPECT_NE(to_text(choices).find("a dense weight would take 640.0 GB"), std::string::npos) << to_text(choices);
}

TEST_F(StorageChoice, DrawsFromNoGeneratorOfTheRun) {
  torch::manual_seed(5);
  const auto expected = torch::rand({4});
  torch::manual_seed(5);
  choose_storage(config("static-random"), {1, 28, 28}, 10);
  EXPECT_TRUE(torch::equal(torch::rand({4}), expected));
}

TEST_F(StorageChoice, ACheckpointDecidesOverTheCache) {
  const auto c = config("static-random");
  const auto all = [](const std::string&) { return true; };
  SparseModel model = make_sparse_model(c, {1, 28, 28}, 10, {0, 100, 10}, all);
  for (const auto& w : model.sparsifier->weights()) EXPECT_STREQ(w->storage(), "compressed");
  const auto stored = stored_compressed(model.sparsifier->archive());
  EXPECT_TRUE(stored("fc1") && stored("fc3"));
  EXPECT_FALSE(stored("fc4"));
  SparseModel none = make_sparse_model(c, {1, 28, 28}, 10, {0, 100, 10}, [](const std::string&) { return false; });
  EXPECT_FALSE(stored_compressed(none.sparsifier->archive())("fc1"));
  for (const auto& w : none.sparsifier->weights()) EXPECT_STREQ(w->storage(), "masked");
}

}  // namespace
}  // namespace espalier::train
