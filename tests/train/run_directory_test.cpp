#include "espalier/train/run_directory.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "espalier/train/durable_file.h"
#include "train/temporary_directory.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;
using testing::contains;
using testing::error_of;
using testing::read_bytes;
using testing::TemporaryDirectory;
using testing::write_bytes;

const RunRecord kRecord{"[run]\nseed = 1\n", "seed = 1\n", "espalier train\n", {{"threads", 2}, {"isa", "avx2"}}};

std::vector<std::string> names_in(const fs::path& path) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(RunDirectory, CreateWritesTheRecord) {
  TemporaryDirectory folder;
  const fs::path path = folder / "runs" / fs::path("a");
  const RunDirectory run = RunDirectory::create(path, kRecord, false);
  EXPECT_EQ(read_bytes(path / "config.toml"), "[run]\nseed = 1\n");
  EXPECT_EQ(read_bytes(path / "config.input.toml"), "seed = 1\n");
  EXPECT_EQ(read_bytes(path / "command.txt"), "espalier train\n");
  EXPECT_EQ(read_bytes(path / "env.json"), "{\n  \"threads\": 2,\n  \"isa\": \"avx2\"\n}\n");
  EXPECT_EQ(names_in(path), (std::vector<std::string>{".espalier.lock", "command.txt", "config.input.toml",
                                                      "config.toml", "env.json"}));
  run.write_summary({{"status", "done"}, {"test_loss", std::nan("")}});
  EXPECT_EQ(read_bytes(run.summary()), "{\n  \"status\": \"done\",\n  \"test_loss\": \"nan\"\n}\n");
}

TEST(RunDirectory, AnEmptyDirectoryWillDo) {
  TemporaryDirectory folder;
  EXPECT_EQ(RunDirectory::create(folder.path(), kRecord, false).path(), folder.path());
}

TEST(RunDirectory, RefusesADirectoryThatHoldsARun) {
  TemporaryDirectory folder;
  { RunDirectory::create(folder / "a", kRecord, false); }
  const auto message = error_of(ErrorKind::usage, [&] { RunDirectory::create(folder / "a", kRecord, false); });
  EXPECT_TRUE(contains(message, "--resume " + (folder / "a").string())) << message;
  EXPECT_TRUE(contains(message, "--overwrite")) << message;
}

TEST(RunDirectory, OverwriteRemovesTheRunAndNothingElse) {
  TemporaryDirectory folder;
  { RunDirectory::create(folder / "a", kRecord, false); }
  const fs::path run = folder / "a";
  for (const char* name :
       {"metrics.jsonl", "timing.jsonl", "summary.json", "log.txt", ".summary.json.tmp", "notes.md"}) {
    write_bytes(run / name, "old");
  }
  fs::create_directories(run / "checkpoints" / "step-00000001");
  RunRecord other = kRecord;
  other.config = "new";
  const RunDirectory again = RunDirectory::create(run, other, true);
  EXPECT_EQ(read_bytes(run / "config.toml"), "new");
  EXPECT_EQ(names_in(run), (std::vector<std::string>{".espalier.lock", "command.txt", "config.input.toml",
                                                     "config.toml", "env.json", "notes.md"}));
}

TEST(RunDirectory, NeverTouchesADirectoryThatIsNotARun) {
  TemporaryDirectory folder;
  write_bytes(folder / "thesis.tex", "years of work");
  write_bytes(folder / "log.txt", "not ours");
  for (const bool overwrite : {false, true}) {
    const auto message = error_of(ErrorKind::usage, [&] { RunDirectory::create(folder.path(), kRecord, overwrite); });
    EXPECT_TRUE(contains(message, "not a run of Espalier's")) << message;
  }
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"log.txt", "thesis.tex"}));
}

TEST(RunDirectory, ACreationThatWasKilledCanBeRepeated) {
  TemporaryDirectory folder;
  write_bytes(folder / ".espalier.lock", "1 on x\n");
  { RunDirectory::create(folder.path(), kRecord, false); }
  fs::remove(folder / "config.toml");  // killed just before the last file
  write_bytes(folder / ".config.toml.tmp", "half");
  EXPECT_NO_THROW(RunDirectory::create(folder.path(), kRecord, false));
  EXPECT_EQ(read_bytes(folder / "config.toml"), kRecord.config);
  fs::remove(folder / "config.toml");  // somebody else: a run has files of its training too
  write_bytes(folder / "metrics.jsonl", "{}\n");
  const auto message = error_of(ErrorKind::usage, [&] { RunDirectory::create(folder.path(), kRecord, false); });
  EXPECT_TRUE(contains(message, "--overwrite")) << message;
  EXPECT_NO_THROW(RunDirectory::create(folder.path(), kRecord, true));
}

TEST(RunDirectory, RefusesAFileInItsPlace) {
  TemporaryDirectory folder;
  write_bytes(folder / "a", "x");
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { RunDirectory::create(folder / "a", kRecord, true); }),
                       "a: cannot create"));
  EXPECT_EQ(read_bytes(folder / "a"), "x");
}

TEST(RunDirectory, OpenNeedsARun) {
  TemporaryDirectory folder;
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { RunDirectory::open(folder / "no"); }), "no such directory"));
  EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { RunDirectory::open(folder.path()); }), "has no config.toml"));
  EXPECT_TRUE(names_in(folder.path()).empty());
}

TEST(RunDirectory, OneProcessAtATime) {
  TemporaryDirectory folder;
  int ready[2];
  int done[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(done), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(done[1]);
    const RunDirectory run = RunDirectory::create(folder / "a", kRecord, false);
    char c = 'x';
    if (::write(ready[1], &c, 1) == 1 && ::read(done[0], &c, 1) >= 0) ::_exit(0);
    ::_exit(1);
  }
  char c = 0;
  ASSERT_EQ(::read(ready[0], &c, 1), 1);
  for (const bool create : {false, true}) {
    const auto message = error_of(ErrorKind::usage, [&] {
      create ? RunDirectory::create(folder / "a", kRecord, true) : RunDirectory::open(folder / "a");
    });
    EXPECT_TRUE(contains(message, "process " + std::to_string(child) + " on ")) << message;
    EXPECT_TRUE(contains(message, "is training into it")) << message;
  }
  EXPECT_TRUE(is_held(folder / "a"));
  EXPECT_EQ(read_bytes(folder / "a" / fs::path("config.toml")), kRecord.config);
  ::close(done[1]);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_FALSE(is_held(folder / "a"));
  EXPECT_NO_THROW(RunDirectory::open(folder / "a"));  // the lock goes with its process, however that ends
  for (const int fd : {ready[0], ready[1], done[0]}) ::close(fd);
}

TEST(RunDirectory, TheLockMovesWithTheObject) {
  TemporaryDirectory folder;
  std::optional<RunDirectory> kept;
  {
    RunDirectory run = RunDirectory::create(folder.path(), kRecord, false);
    kept.emplace(std::move(run));
  }
  EXPECT_THROW(RunDirectory::open(folder.path()), Error);
  kept.reset();
  EXPECT_NO_THROW(RunDirectory::open(folder.path()));
}

TEST(RunDirectory, DefaultPathNamesTimeModelMethodAndConfiguration) {
  TemporaryDirectory folder;
  // CRC-32 of "123456789" is cbf43926, the check value of every catalogue of CRCs; 86400 s = the second day of 1970.
  const fs::path expected = folder / "19700102T000001Z-mlp-dpr-cbf43926";
  const auto path = [&](const std::string& name) {
    return default_run_path(folder.path(), name, "mlp", "dpr", "123456789", 86401);
  };
  EXPECT_EQ(path(""), expected);
  fs::create_directory(expected);
  EXPECT_EQ(path(""), expected.string() + "-2");
  fs::create_directory(expected.string() + "-2");
  EXPECT_EQ(path(""), expected.string() + "-3");
  EXPECT_EQ(path("first"), folder / "first");
  for (const char* bad : {"..", ".", "a/b", "/etc"}) {
    EXPECT_TRUE(contains(error_of(ErrorKind::usage, [&] { path(bad); }), "[run].name")) << bad;
  }
}

TEST(DurableFile, AtomicWriteLeavesTheOldContentWhenItFails) {
  TemporaryDirectory folder;
  write_file_atomically(folder / "a", "old");
  fs::create_directory(folder / ".a.tmp");  // makes the temporary file impossible
  const auto message = error_of(ErrorKind::failed, [&] { write_file_atomically(folder / "a", "new"); });
  EXPECT_TRUE(contains(message, "Is a directory")) << message;
  EXPECT_EQ(read_bytes(folder / "a"), "old");
  fs::remove(folder / ".a.tmp");
  write_file_atomically(folder / "a", "new");
  EXPECT_EQ(read_bytes(folder / "a"), "new");
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"a"}));
  fs::create_directory(folder / "d");  // can be written beside, but not replaced
  EXPECT_TRUE(
      contains(error_of(ErrorKind::failed, [&] { write_file_atomically(folder / "d", "new"); }), "d: cannot replace"));
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"a", "d"}));
}

}  // namespace
}  // namespace espalier::train
