#include "espalier/train/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>

#include "espalier/core/random.h"
#include "espalier/train/json.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;
using testing::contains;
using testing::error_of;
using testing::read_bytes;
using testing::TemporaryDirectory;
using testing::Warnings;
using testing::write_bytes;

// Every part tells its step, so a mixture of two checkpoints shows.
Checkpoint checkpoint_at(std::int64_t step, std::int64_t numel = 4) {
  const auto value = static_cast<double>(step);
  Checkpoint c;
  c.step = step;
  c.model = {{"fc1.weight", torch::full({numel}, value)}, {"fc1.bias", torch::full({2}, value)}};
  c.optimizer = {{"fc1.weight.momentum", torch::full({numel}, value + 0.25)}};
  c.sparsity = {{"fc1.weight.mask", torch::full({numel}, step % 2, torch::kByte)}};
  c.state = {{"epoch", step / 10}, {"best_loss", 1.0 / (value + 3)}};
  return c;
}

void expect_equal(const Checkpoint& found, const Checkpoint& expected) {
  EXPECT_EQ(found.step, expected.step);
  EXPECT_EQ(found.state, expected.state);
  for (const auto part : {&Checkpoint::model, &Checkpoint::optimizer, &Checkpoint::sparsity}) {
    ASSERT_EQ((found.*part).size(), (expected.*part).size());
    for (std::size_t i = 0; i < (found.*part).size(); ++i) {
      EXPECT_EQ((found.*part)[i].first, (expected.*part)[i].first);
      EXPECT_TRUE(torch::equal((found.*part)[i].second, (expected.*part)[i].second));
    }
  }
}

std::vector<std::string> names_in(const fs::path& path) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string link_of(const TemporaryDirectory& run, const char* name) {
  std::error_code error;
  return fs::read_symlink(run / "checkpoints" / fs::path(name), error).string();
}

TEST(Checkpoint, ComesBackAsItWasSaved) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 2);
  EXPECT_FALSE(store.load_latest());
  store.save(checkpoint_at(12000), true);
  expect_equal(store.load_latest().value(), checkpoint_at(12000));
  expect_equal(CheckpointStore::load(run / "checkpoints" / fs::path("best")), checkpoint_at(12000));
  EXPECT_EQ(store.load_latest()->best_step, 12000);
  EXPECT_EQ(names_in(run / "checkpoints"), (std::vector<std::string>{"best", "latest", "step-00012000"}));
  EXPECT_EQ(
      names_in(run / "checkpoints" / fs::path("step-00012000")),
      (std::vector<std::string>{"model.safetensors", "optimizer.safetensors", "sparsity.safetensors", "state.json"}));
}

TEST(Checkpoint, StateKeepsNumbersExactly) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 1);
  Checkpoint c = checkpoint_at(1);
  c.state = {{"third", 1.0 / 3},
             {"tiny", 5e-324},
             {"big", std::numeric_limits<std::uint64_t>::max()},
             {"low", std::numeric_limits<std::int64_t>::min()},
             {"best", -std::numeric_limits<double>::infinity()},
             {"nested", {{"crc32", "00000000"}, {"list", {1, 2.0, "x"}}}}};
  store.save(c, false);
  const nlohmann::json state = store.load_latest()->state;
  EXPECT_EQ(state["third"].get<double>(), 1.0 / 3);
  EXPECT_EQ(state["tiny"].get<double>(), 5e-324);
  EXPECT_EQ(state["big"].get<std::uint64_t>(), std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(state["low"].get<std::int64_t>(), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(number_from_json(state["best"]), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(state["nested"], c.state["nested"]);
}

TEST(Checkpoint, SameContentSameBytes) {
  TemporaryDirectory a;
  TemporaryDirectory b;
  CheckpointStore(a.path(), 1).save(checkpoint_at(7), true);
  CheckpointStore(b.path(), 1).save(checkpoint_at(7), true);
  for (const std::string& name : names_in(a / "checkpoints" / fs::path("latest"))) {
    EXPECT_EQ(read_bytes(a.path() / "checkpoints/latest" / name), read_bytes(b.path() / "checkpoints/latest" / name));
  }
}

TEST(Checkpoint, TheStateFileCarriesItsOwnChecksum) {
  TemporaryDirectory run;
  CheckpointStore(run.path(), 1).save(checkpoint_at(7), false);
  const std::string text = read_bytes(run.path() / "checkpoints/latest/state.json");
  const std::size_t tail = text.rfind(",\n  \"crc32\": \"");
  ASSERT_NE(tail, std::string::npos);
  // Bit by bit from the definition (reflected polynomial 0xedb88320), not through zlib.
  std::uint32_t crc = 0xffffffffu;
  for (std::size_t i = 0; i < tail; ++i) {
    crc ^= static_cast<unsigned char>(text[i]);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) * 0xedb88320u);
  }
  EXPECT_EQ(text.substr(tail), fmt::format(",\n  \"crc32\": \"{:08x}\"\n}}\n", ~crc));
  EXPECT_EQ(Json::parse(text)["step"], 7);
}

TEST(Checkpoint, KeepsTheNewestAndTheBest) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 2);
  for (std::int64_t step = 1; step <= 6; ++step) store.save(checkpoint_at(step * 10), step == 2);
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{20, 50, 60}));
  EXPECT_EQ(link_of(run, "latest"), "step-00000060");
  EXPECT_EQ(link_of(run, "best"), "step-00000020");
  EXPECT_EQ(store.load_latest()->best_step, 20);
  store.save(checkpoint_at(70), true);
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{60, 70}));
  EXPECT_EQ(link_of(run, "best"), "step-00000070");
}

TEST(Checkpoint, StepsOrderAsNumbers) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 3);
  for (const std::int64_t step : {99'999'999, 100'000'000, 1'000'000'000}) store.save(checkpoint_at(step), false);
  EXPECT_EQ(store.load_latest()->step, 1'000'000'000);
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{99'999'999, 100'000'000, 1'000'000'000}));
}

TEST(Checkpoint, TheSameStepIsReplaced) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 2);
  store.save(checkpoint_at(10), true);
  Checkpoint again = checkpoint_at(10);
  again.state["epoch"] = 99;
  store.save(again, false);
  expect_equal(store.load_latest().value(), again);
  EXPECT_EQ(names_in(run / "checkpoints"), (std::vector<std::string>{"best", "latest", "step-00000010"}));
}

TEST(Checkpoint, ARewoundRunReplacesItsFuture) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 1);
  store.save(checkpoint_at(10), false);
  store.save(checkpoint_at(30), true);
  Warnings warnings;
  store.save(checkpoint_at(20), false);
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{20}));
  EXPECT_EQ(link_of(run, "latest"), "step-00000020");
  EXPECT_EQ(link_of(run, "best"), "");
  EXPECT_TRUE(warnings.mention("step-00000030 is removed"));
}

// One flipped bit in any byte of any file, or a file cut short or gone: the checkpoint before it is used, the damaged
// file named.
TEST(Checkpoint, ADamagedOneIsNamedAndTheOneBeforeUsed) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 2);
  store.save(checkpoint_at(10), true);
  store.save(checkpoint_at(20), false);
  const fs::path newest = run.path() / "checkpoints/step-00000020";
  for (const std::string& name : names_in(newest)) {
    const std::string whole = read_bytes(newest / name);
    const auto damage = [&](const std::string& bytes) {
      write_bytes(newest / name, bytes);
      Warnings warnings;
      const auto found = store.load_latest();
      ASSERT_TRUE(found) << name;
      expect_equal(*found, checkpoint_at(10));
      EXPECT_TRUE(warnings.mention("step-00000020/" + name)) << name;
      EXPECT_EQ(warnings.all.size(), 1u);
    };
    for (std::size_t at = 0; at < whole.size(); ++at) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << (at % 8)));
      damage(bytes);
      if (HasFatalFailure()) FAIL() << "byte " << at;
    }
    damage(whole.substr(0, whole.size() - 1));
    damage(whole + "\n");
    damage("");
    fs::remove(newest / name);
    {
      Warnings warnings;
      EXPECT_EQ(store.load_latest()->step, 10);
      EXPECT_TRUE(warnings.mention(name));
    }
    write_bytes(newest / name, whole);
    Warnings warnings;
    EXPECT_EQ(store.load_latest()->step, 20);
    EXPECT_TRUE(warnings.all.empty());
  }
}

TEST(Checkpoint, FilesOfTwoCheckpointsDoNotMix) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 2);
  store.save(checkpoint_at(10), true);
  store.save(checkpoint_at(20), false);
  fs::copy_file(run.path() / "checkpoints/step-00000010/optimizer.safetensors",
                run.path() / "checkpoints/step-00000020/optimizer.safetensors", fs::copy_options::overwrite_existing);
  Warnings warnings;
  EXPECT_EQ(store.load_latest()->step, 10);
  EXPECT_TRUE(warnings.mention("optimizer.safetensors: is damaged: its CRC-32"));
  // A whole one under another's name.
  fs::remove_all(run.path() / "checkpoints/step-00000020");
  fs::rename(run.path() / "checkpoints/step-00000010", run.path() / "checkpoints/step-00000020");
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { store.load_latest(); }), "all 1 checkpoints are damaged"));
  EXPECT_TRUE(warnings.mention("was it renamed?"));
}

TEST(Checkpoint, AllDamagedIsAnErrorAndNoneIsNot) {
  TemporaryDirectory run;
  EXPECT_FALSE(load_latest_checkpoint(run.path()));
  CheckpointStore store(run.path(), 5);
  for (const std::int64_t step : {1, 2, 3}) {
    store.save(checkpoint_at(step), false);
    write_bytes(run.path() / "checkpoints" / fmt::format("step-{:08}", step) / "model.safetensors", "x");
  }
  Warnings warnings;
  const auto message = error_of(ErrorKind::data, [&] { store.load_latest(); });
  EXPECT_TRUE(contains(message, "all 3 checkpoints are damaged")) << message;
  EXPECT_EQ(warnings.all.size(), 3u);
}

TEST(Checkpoint, ANewerFormatIsNotGuessedAt) {
  TemporaryDirectory run;
  CheckpointStore(run.path(), 1).save(checkpoint_at(1), false);
  const fs::path file = run.path() / "checkpoints/latest/state.json";
  std::string text = read_bytes(file);
  text = text.substr(0, text.rfind(",\n  \"crc32\""));
  const std::string version = "\"format_version\": 1";
  text.replace(text.find(version), version.size(), "\"format_version\": 2");
  write_bytes(file, text + fmt::format(",\n  \"crc32\": \"{:08x}\"\n}}\n", digest_of(text).crc32));
  const auto message = error_of(ErrorKind::data, [&] { load_checkpoint(run.path() / "checkpoints/latest"); });
  EXPECT_TRUE(contains(message, "format_version is 2, expected 1")) << message;
  EXPECT_TRUE(contains(error_of(ErrorKind::data, [&] { load_checkpoint(run.path()); }), "not a checkpoint"));
}

TEST(Checkpoint, WorksWithoutOrWithBrokenLinks) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 2);
  store.save(checkpoint_at(10), true);
  store.save(checkpoint_at(20), false);
  const fs::path root = run / "checkpoints";
  fs::remove(root / "latest");
  fs::remove(root / "best");
  fs::create_symlink("step-00000099", root / "latest");
  EXPECT_EQ(load_latest_checkpoint(run.path())->step, 20);
  EXPECT_EQ(link_of(run, "latest"), "step-00000099");  // reading changes nothing
  CheckpointStore again(run.path(), 2);
  EXPECT_EQ(again.load_latest()->step, 20);
  EXPECT_EQ(link_of(run, "latest"), "step-00000020");
  EXPECT_EQ(link_of(run, "best"), "step-00000010");
  again.save(checkpoint_at(30), false);
  EXPECT_EQ(again.steps(), (std::vector<std::int64_t>{10, 20, 30}));  // the best is still known
}

TEST(Checkpoint, LinksAreAConvenience) {
  TemporaryDirectory run;
  fs::create_directories(run / "checkpoints" / fs::path("latest/x"));  // somebody copied the run without links
  CheckpointStore store(run.path(), 2);
  Warnings warnings;
  store.save(checkpoint_at(10), false);
  EXPECT_TRUE(warnings.mention("the checkpoint itself is safe"));
  EXPECT_EQ(store.load_latest()->step, 10);
  EXPECT_EQ(names_in(run / "checkpoints"), (std::vector<std::string>{"latest", "step-00000010"}));
}

TEST(Checkpoint, ForeignNamesAreLeftAlone) {
  TemporaryDirectory run;
  CheckpointStore store(run.path(), 1);
  const fs::path root = run / "checkpoints";
  for (const char* name : {"step-1", "step-00000009.bak", "step--0000001", "keep-this"})
    fs::create_directories(root / name);
  store.save(checkpoint_at(10), false);
  store.save(checkpoint_at(11), false);
  EXPECT_EQ(names_in(root), (std::vector<std::string>{"keep-this", "latest", "step--0000001", "step-00000009.bak",
                                                      "step-00000011", "step-1"}));
}

TEST(Checkpoint, LeftoversOfKilledProcessesAreRemoved) {
  TemporaryDirectory run;
  { CheckpointStore(run.path(), 1).save(checkpoint_at(10), false); }
  const pid_t dead = ::fork();
  if (dead == 0) ::_exit(0);
  ::waitpid(dead, nullptr, 0);
  const fs::path root = run / "checkpoints";
  const std::string alive = fmt::format(".tmp-{}-0", ::getppid());
  fs::create_directories(root / fmt::format(".tmp-{}-0", dead));
  write_bytes(root / fmt::format(".tmp-{}-0", dead) / fs::path("model.safetensors"), "half");
  fs::create_directories(root / fmt::format(".tmp-{}-3", ::getpid()));
  fs::create_directories(root / alive);
  CheckpointStore store(run.path(), 1);
  EXPECT_EQ(names_in(root), (std::vector<std::string>{alive, "latest", "step-00000010"}));
}

// Whoever looks while an old checkpoint is removed sees all of it or nothing. Many files beside ours make the removal
// slow.
TEST(Checkpoint, ARemovalIsNeverSeenHalfDone) {
  TemporaryDirectory run;
  { CheckpointStore(run.path(), 1).save(checkpoint_at(10), false); }
  const fs::path old = run.path() / "checkpoints/step-00000010";
  const std::vector<std::string> names = names_in(old);
  for (int i = 0; i < 3000; ++i) write_bytes(old / std::to_string(i), "");
  const pid_t child = ::fork();
  if (child == 0) {
    torch::set_num_threads(1);
    CheckpointStore(run.path(), 1).save(checkpoint_at(20), false);
    ::_exit(0);
  }
  int status = -1;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    for (const std::string& name : names) {
      const bool missing = !fs::exists(old / name);
      EXPECT_FALSE(missing && fs::exists(old)) << name;
    }
    if (HasFailure()) break;
  }
  if (status == -1) ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(names_in(run / "checkpoints"), (std::vector<std::string>{"latest", "step-00000020"}));
}

TEST(Checkpoint, AReplacementThatWasCutShortIsUndone) {
  TemporaryDirectory run;
  { CheckpointStore(run.path(), 1).save(checkpoint_at(10), true); }
  const fs::path root = run / "checkpoints";
  fs::rename(root / "step-00000010", root / ".replaced-step-00000010");  // killed between the two renames
  { EXPECT_EQ(CheckpointStore(run.path(), 1).load_latest()->step, 10); }
  fs::copy(root / "step-00000010", root / ".replaced-step-00000010");  // killed after them
  { EXPECT_EQ(CheckpointStore(run.path(), 1).load_latest()->step, 10); }
  EXPECT_EQ(names_in(root), (std::vector<std::string>{"best", "latest", "step-00000010"}));
}

TEST(Checkpoint, KeepIsAtLeastOne) {
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [] { CheckpointStore("x", 0); }), "checkpoint.keep = 0"));
}

// The disk fills up while a large checkpoint is written: a limit on the size of files stands in for the disk.
TEST(Checkpoint, ADiskThatIsFullLeavesTheOldCheckpointsUntouched) {
  TemporaryDirectory run;
  { CheckpointStore(run.path(), 1).save(checkpoint_at(10), true); }
  const auto before = read_bytes(run.path() / "checkpoints/latest/state.json");
  const pid_t child = ::fork();
  if (child == 0) {
    torch::set_num_threads(1);  // OpenMP's threads do not survive a fork
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100'000, 100'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    CheckpointStore store(run.path(), 1);
    int failures = 0;
    for (const std::int64_t step : {10, 20}) {  // replacing the old one, and a new one
      try {
        store.save(checkpoint_at(step, 30'000), true);
      } catch (const Error& e) {
        failures +=
            e.kind() == ErrorKind::failed && contains(e.what(), "model.safetensors: cannot write: File too large");
      }
    }
    ::_exit(failures == 2 ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(names_in(run / "checkpoints"), (std::vector<std::string>{"best", "latest", "step-00000010"}));
  EXPECT_EQ(read_bytes(run.path() / "checkpoints/latest/state.json"), before);
  expect_equal(load_latest_checkpoint(run.path()).value(), checkpoint_at(10));
}

TEST(Checkpoint, AFolderThatCannotBeMadeIsNamed) {
  TemporaryDirectory run;
  write_bytes(run / "checkpoints", "a file");
  CheckpointStore store(run.path(), 1);
  const auto message = error_of(ErrorKind::failed, [&] { store.save(checkpoint_at(1), false); });
  EXPECT_TRUE(contains(message, "checkpoints: cannot create: ")) << message;
  EXPECT_EQ(read_bytes(run / "checkpoints"), "a file");
}

// ---- killed for real -----------------------------------------------------------------------------

constexpr std::int64_t kNumel = 20'000;

// Resumes and saves step after step until it is killed; tells the pipe each step that save has returned from.
[[noreturn]] void save_until_killed(const fs::path& run, int pipe) {
  torch::set_num_threads(1);
  CheckpointStore store(run, 2);
  const auto latest = store.load_latest();
  // The step it resumed from once more: a run that was stopped by a signal does the same.
  for (std::int64_t step = latest ? latest->step : 1;; ++step) {
    store.save(checkpoint_at(step, kNumel), step % 3 == 0);
    if (::write(pipe, &step, sizeof step) != sizeof step) ::_exit(1);
  }
}

TEST(Checkpoint, SurvivesFiftyKills) {
  TemporaryDirectory run;
  RandomStream random(11, Purpose::test);
  std::int64_t reached = 0;
  std::int64_t leftovers = 0;
  for (int kill = 0; kill < 50; ++kill) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) save_until_killed(run.path(), ends[1]);
    ::close(ends[1]);
    std::int64_t step = 0;
    // A few saves, so that the run moves on, then any moment of one.
    for (std::uint64_t n = random.below(4); n > 0 && ::read(ends[0], &step, sizeof step) == sizeof step; --n) {
      reached = std::max(reached, step);
    }
    ::usleep(static_cast<useconds_t>(random.below(8000)));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself: " << status;
    while (::read(ends[0], &step, sizeof step) == sizeof step) reached = std::max(reached, step);
    ::close(ends[0]);

    const fs::path root = run / "checkpoints";
    if (!fs::exists(root)) continue;
    for (const std::string& name : names_in(root)) leftovers += name[0] == '.';
    Warnings warnings;
    CheckpointStore store(run.path(), 2);
    const auto latest = store.load_latest();
    EXPECT_TRUE(warnings.all.empty()) << warnings.all.front();
    ASSERT_EQ(latest.has_value(), reached > 0 || !store.steps().empty());
    if (!latest) continue;
    EXPECT_GE(latest->step, reached) << "kill " << kill;
    EXPECT_LE(latest->step, reached + 1) << "kill " << kill;  // saved, but killed before it could tell
    reached = latest->step;
    expect_equal(*latest, checkpoint_at(latest->step, kNumel));
    // Not only the newest: whatever has the name of a checkpoint is one.
    for (const std::int64_t kept : store.steps()) {
      expect_equal(load_checkpoint(root / fmt::format("step-{:08}", kept)), checkpoint_at(kept, kNumel));
    }
    const std::int64_t best = latest->step / 3 * 3;
    EXPECT_EQ(latest->best_step, best > 0 ? std::optional(best) : std::nullopt);
    EXPECT_EQ(link_of(run, "latest"), fmt::format("step-{:08}", latest->step));
    EXPECT_EQ(link_of(run, "best"), best > 0 ? fmt::format("step-{:08}", best) : "");
    for (const std::string& name : names_in(root)) EXPECT_NE(name[0], '.') << name;
  }
  EXPECT_GT(reached, 10);
  EXPECT_GT(leftovers, 5) << "no kill hit a save: the test tests nothing";
}

}  // namespace
}  // namespace espalier::train
