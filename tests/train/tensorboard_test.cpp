#include "espalier/train/tensorboard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;
using espalier::testing::read_bytes;
using espalier::testing::TemporaryDirectory;
using espalier::testing::write_bytes;

// What Google's protobuf and a CRC-32C computed bit by bit say: tests/golden/make_tfevents.py.
const std::string kVersion = "1800000000000000a37f4b22090000000000448f401a0d627261696e2e4576656e743a32aba33345";
const std::string kStart = "100000000000000095fbfe18090000000000448f4010ad023a02080141e2061e";
const std::string kScalars =
    "3200000000000000241956ec090000000000448f4010ac022a240a100a09737465702f6c6f737315cdcccc3d0a100a097374"
    "65702f7a65726f150000000018dcca9b";
const std::string kHistogram =
    "9800000000000000a0e783f5090000000000448f4010002a8a010a87010a12776569676874732f6663312e7765696768742a"
    "7109000000000000e0bf11000000000000d03f190000000000001c4021000000000000f8bf29000000000000f23f32200000"
    "00000000e0bf000000000000d0bf0000000000000000000000000000d03f3a20000000000000000000000000000010400000"
    "00000000f03f0000000000000040afd132c8";
const std::string kText =
    "04010000000000004475e2da090000000000448f40108080808080202af1010aee010a06636f6e66696742d9010807120042"
    "d2012a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a"
    "202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a20"
    "2a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a"
    "2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2ac3a92a2a202a2a"
    "c3a92a2a202a2ac3a92a2a204a080a060a0474657874c3489745";

std::string hex(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) out += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return out;
}

double still() { return 1000.5; }

/// The data of the records of a file; the checksums must hold.
std::vector<std::string> records(const std::string& bytes) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < bytes.size();) {
    std::uint64_t length = 0;
    std::uint32_t crc = 0;
    EXPECT_LE(at + 12, bytes.size());
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&crc, bytes.data() + at + 8, 4);
    EXPECT_EQ(crc, masked_crc32c(bytes.data() + at, 8));
    EXPECT_LE(at + 16 + length, bytes.size());
    if (at + 16 + length > bytes.size()) break;
    out.push_back(bytes.substr(at + 12, length));
    std::memcpy(&crc, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(crc, masked_crc32c(out.back().data(), length));
    at += 16 + length;
  }
  return out;
}

std::vector<fs::path> files_in(const fs::path& directory) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(directory)) out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

// RFC 3720, B.4, and the check value of the polynomial's catalogue.
TEST(Crc32c, KnownValues) {
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  const std::string descending(ascending.rbegin(), ascending.rend());
  EXPECT_EQ(crc32c("123456789", 9), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0').data(), 32), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff').data(), 32), 0x62a8ab43u);
  EXPECT_EQ(crc32c(ascending.data(), 32), 0x46dd794eu);
  EXPECT_EQ(crc32c(descending.data(), 32), 0x113fdb5cu);
  EXPECT_EQ(crc32c("", 0), 0u);
}

TEST(TensorBoard, RecordsAreThoseOfAnotherImplementation) {
  EXPECT_EQ(hex(tf_record(version_event(1000.5))), kVersion);
  EXPECT_EQ(hex(tf_record(session_start_event(1000.5, 301))), kStart);
  EXPECT_EQ(hex(tf_record(scalars_event(1000.5, 300, {{"step/loss", 0.1}, {"step/zero", 0}}))), kScalars);
  HistogramValue h;
  h.min = -0.5, h.max = 0.25, h.num = 7, h.sum = -1.5, h.sum_squares = 1.125;
  h.limits = {-0.5, -0.25, 0, 0.25};
  h.counts = {0, 4, 1, 2};
  EXPECT_EQ(hex(tf_record(histogram_event(1000.5, 0, "weights/fc1.weight", h))), kHistogram);
  std::string text;
  for (int i = 0; i < 30; ++i) text += "**\u00e9** ";
  EXPECT_EQ(hex(tf_record(text_event(1000.5, std::int64_t{1} << 40, "config", text))), kText);
}

TEST(TensorBoard, EventsBecomeScalarsTextsAndHistograms) {
  TemporaryDirectory folder;
  {
    TensorBoard tb(folder / "tb", nullptr, 0, still);
    tb.record("step", 5, {{"loss", 0.5}, {"name", "not a number"}});
    tb.record("eval", 6, {{"split", "validation"}, {"accuracy", 0.75}});
    tb.record("warning", 7, {{"text", "beware"}});
    tb.record("topology", 8, {{"nnz", 3}, {"layers", {{{"name", "fc1.weight"}, {"nnz", 2}, {"threshold", nullptr}}}}});
    // Bins of width 2^(1-8) 2 over [-2, 2): 127 begins at -1/64, 128 at 0.
    tb.record(
        "weights", 9,
        {{"layers", {{{"name", "fc1.weight"}, {"mean", 0.5}, {"scale", 1}, {"first", 127}, {"counts", {2, 3}}}}}});
  }
  const auto files = files_in(folder / "tb");
  ASSERT_EQ(files.size(), 1U);
  const auto events = records(read_bytes(files[0]));
  HistogramValue h;
  h.min = -1.0 / 64, h.max = 1.0 / 64, h.num = 5, h.sum = 2.5, h.sum_squares = 5.0 / 128 / 128;
  h.limits = {-1.0 / 64, 0, 1.0 / 64};
  h.counts = {0, 2, 3};
  const std::vector<std::string> expected = {
      version_event(1000.5),
      scalars_event(1000.5, 5, {{"step/loss", 0.5}}),
      scalars_event(1000.5, 6, {{"validation/accuracy", 0.75}}),
      text_event(1000.5, 7, "warning", "beware"),
      scalars_event(1000.5, 8, {{"topology/nnz", 3}, {"topology/fc1.weight/nnz", 2}}),
      histogram_event(1000.5, 9, "weights/fc1.weight", h),
      scalars_event(1000.5, 9, {{"weights/fc1.weight/mean", 0.5}}),
  };
  ASSERT_EQ(events.size(), expected.size());
  for (std::size_t i = 0; i < events.size(); ++i) EXPECT_EQ(hex(events[i]), hex(expected[i])) << i;
}

TEST(TensorBoard, AResumedRunCutsWhatCameAfterTheCheckpointAndBeginsANewFile) {
  TemporaryDirectory folder;
  Json checkpoint;
  {
    TensorBoard tb(folder / "tb", nullptr, 0, still);
    tb.record("step", 1, {{"loss", 1.0}});
    checkpoint = tb.position();
    tb.record("step", 2, {{"loss", 2.0}});
  }
  { TensorBoard lost(folder / "tb", checkpoint, 1, still); }  // killed before it had a checkpoint of its own
  write_bytes(folder / "tb" / fs::path("notes.md"), "not ours");
  {
    TensorBoard tb(folder / "tb", checkpoint, 1, still);
    tb.record("step", 2, {{"loss", 3.0}});
  }
  const auto files = files_in(folder / "tb");
  ASSERT_EQ(files.size(), 3U) << "two event files and a stranger";
  EXPECT_EQ(files[2].filename(), "notes.md");
  const auto first = records(read_bytes(files[0])), second = records(read_bytes(files[1]));
  ASSERT_EQ(first.size(), 2U);
  EXPECT_EQ(first[1], scalars_event(1000.5, 1, {{"step/loss", 1.0}}));
  ASSERT_EQ(second.size(), 3U);
  EXPECT_EQ(second[1], session_start_event(1000.5, 2)) << "events from step 2 on that a reader knows are void";
  EXPECT_EQ(second[2], scalars_event(1000.5, 2, {{"step/loss", 3.0}}));
}

TEST(TensorBoard, ARunThatBeginsAnewHasNoOldEvents) {
  TemporaryDirectory folder;
  { TensorBoard(folder / "tb", nullptr, 0, still).record("step", 1, {{"loss", 1.0}}); }
  { TensorBoard(folder / "tb", nullptr, 0, still); }
  const auto files = files_in(folder / "tb");
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(records(read_bytes(files[0])).size(), 1U);
}

TEST(TensorBoard, ACheckpointThatKnowsOfNoEventsLeavesThoseThere) {
  TemporaryDirectory folder;
  { TensorBoard(folder / "tb", nullptr, 0, still).record("step", 1, {{"loss", 1.0}}); }
  { TensorBoard(folder / "tb", nullptr, 7, still); }
  const auto files = files_in(folder / "tb");
  ASSERT_EQ(files.size(), 2U);
  EXPECT_EQ(records(read_bytes(files[0])).size(), 2U);
  EXPECT_EQ(records(read_bytes(files[1]))[1], session_start_event(1000.5, 8));
}

TEST(TensorBoard, NonFiniteNumbersAndLongSeriesAreWhole) {
  TemporaryDirectory folder;
  {
    TensorBoard tb(folder / "tb", nullptr, 0, still);
    for (int i = 0; i < 5000; ++i) tb.record("step", i, {{"loss", i == 17 ? std::nan("") : 1.0 / (i + 1)}});
  }
  EXPECT_EQ(records(read_bytes(files_in(folder / "tb")[0])).size(), 5001U);
}

}  // namespace
}  // namespace espalier::train
