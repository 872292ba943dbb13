// ResNet-50 on a folder in the form of ImageNet: images of many sizes and colours, read when they are needed.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "data/files.h"
#include "espalier/train/experiment.h"
#include "espalier/train/metrics.h"
#include "espalier/train/trainer.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

using data::Bytes;
using espalier::testing::TemporaryDirectory;

/// Reddish or bluish, with some noise.
Bytes picture(int width, int height, bool red, int seed) {
  Bytes pixels;
  for (int i = 0; i < width * height; ++i) {
    const auto noise = static_cast<std::uint8_t>((seed * 7919 + i * 104729) % 60);
    const auto strong = static_cast<std::uint8_t>(190 + noise), weak = noise;
    pixels.insert(pixels.end(), {red ? strong : weak, weak, red ? weak : strong});
  }
  return pixels;
}

void write_folder(const data::Folder& folder) {
  for (const std::string split : {"train", "val"}) {
    for (const bool red : {true, false}) {
      for (int i = 0; i < (split == "train" ? 24 : 8); ++i) {
        const int width = 30 + 7 * i % 41, height = 64 - 5 * i % 30;
        const std::string name = split + "/" + (red ? "n01" : "n02") + "/" + std::to_string(i);
        if (i % 6 == 5) {
          folder.write(name + ".png", data::png_bytes(width, height, PNG_FORMAT_RGB, picture(width, height, red, i)));
        } else {
          folder.write(name + ".JPEG", data::jpeg_bytes(width, height, 3, picture(width, height, red, i)));
        }
      }
    }
  }
}

RunConfig config_of(const data::Folder& folder, const std::string& storage) {
  return parse_config("[run]\nthreads = 1\n[data]\nname = \"image-folder\"\nroot = \"" + folder.path().string() +
                          "\"\nimage_size = 32\naugment = \"imagenet\"\nnormalise = \"imagenet\"\n"
                          "[model]\nname = \"resnet50\"\nmax_weights = 40000\nstorage = \"" +
                          storage +
                          "\"\n[train]\nepochs = 24\nbatch_size = 8\n[optim]\nlr = 0.005\nmomentum = 0.9\n"
                          "[method]\nname = \"dpr\"\nevery = \"5it\"\nstop_after = \"50%\"\n"
                          "[sparsity]\nsparsity = 0.8\ndistribution = \"erk\"\n",
                      "test");
}

class ImageFolderTraining : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Storages, ImageFolderTraining, ::testing::Values("masked", "compressed"));

TEST_P(ImageFolderTraining, ResNet50Learns) {
  const data::Folder folder;
  write_folder(folder);
  const TemporaryDirectory tmp;
  const RunConfig config = config_of(folder, GetParam());
  RunDirectory directory = RunDirectory::create(tmp.path() / "run", {to_toml(config), "", "", Json::object()}, false);
  const TrainResult result = train(config, directory, {});
  ASSERT_EQ(result.outcome, Outcome::done);
  EXPECT_EQ(result.summary["steps"], 144);
  EXPECT_EQ(result.summary["storage"].size(), 54u);
  std::int64_t changes = 0;
  double train_accuracy = 0;  // of the last epoch; so few steps leave the statistics of 53 batch norms behind
  for (const Json& e : read_metrics(tmp.path() / "run" / "metrics.jsonl")) {
    if (e["event"] == "epoch") train_accuracy = e["train_accuracy"].get<double>();
    if (e["event"] != "topology") continue;
    ++changes;
    EXPECT_EQ(e["nnz"], result.summary["nnz"]);
  }
  EXPECT_GE(changes, 2);
  EXPECT_GE(train_accuracy, 0.8);  // 1 with six sets of BLAS and own kernels
}

TEST(ImageFolderBatches, AreTheSameForAnyNumberOfThreads) {
  const data::Folder folder;
  write_folder(folder);
  const RunData data(config_of(folder, "masked"));
  EXPECT_EQ(data.input_shape(), (nn::InputShape{3, 32, 32}));
  EXPECT_EQ(data.train_size(), 48);
  EXPECT_EQ(data.test_batches().size(), 16);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const data::Batch one = data.train_batches().batch(1, 2);
  at::set_num_threads(2);
  const data::Batch two = data.train_batches().batch(1, 2);
  at::set_num_threads(threads);
  EXPECT_TRUE(torch::equal(one.images, two.images));
  EXPECT_TRUE(torch::equal(one.labels, two.labels));
}

}  // namespace
}  // namespace espalier::train
