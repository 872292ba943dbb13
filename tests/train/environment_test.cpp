#include "espalier/train/environment.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "train/busy_cores.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

CpuFeatures avx2_cpu() {
  CpuFeatures cpu;
  cpu.avx2 = cpu.fma = true;
  return cpu;
}

CpuFeatures avx512_cpu() {
  CpuFeatures cpu = avx2_cpu();
  cpu.avx512f = cpu.avx512bw = cpu.avx512dq = cpu.avx512vl = cpu.avx512cd = true;
  return cpu;
}

TEST(WantedCore, Avx512CpuWantsSkylakeKernels) {
  EXPECT_EQ(wanted_openblas_core(avx512_cpu(), "Prescott"), "SKYLAKEX");
  EXPECT_EQ(wanted_openblas_core(avx512_cpu(), "Haswell"), "SKYLAKEX");
  EXPECT_EQ(wanted_openblas_core(avx512_cpu(), "ZEN"), "SKYLAKEX");
  EXPECT_EQ(wanted_openblas_core(avx512_cpu(), "SkylakeX"), "");
  EXPECT_EQ(wanted_openblas_core(avx512_cpu(), "Cooperlake"), "");
  EXPECT_EQ(wanted_openblas_core(avx512_cpu(), "SapphireRapids"), "");
}

TEST(WantedCore, EveryPartOfAvx512IsNeeded) {
  for (bool CpuFeatures::*flag : {&CpuFeatures::avx512f, &CpuFeatures::avx512bw, &CpuFeatures::avx512dq,
                                  &CpuFeatures::avx512vl, &CpuFeatures::avx512cd}) {
    CpuFeatures cpu = avx512_cpu();
    cpu.*flag = false;
    EXPECT_EQ(wanted_openblas_core(cpu, "Haswell"), "");
    EXPECT_EQ(wanted_openblas_core(cpu, "Prescott"), "HASWELL");
  }
}

TEST(WantedCore, Avx2CpuWantsHaswellKernels) {
  for (const char* weaker : {"Prescott", "Nehalem", "Sandybridge", "Excavator", "Core2", "Opteron_SSE3"}) {
    EXPECT_EQ(wanted_openblas_core(avx2_cpu(), weaker), "HASWELL") << weaker;
  }
  EXPECT_EQ(wanted_openblas_core(avx2_cpu(), "Haswell"), "");
  EXPECT_EQ(wanted_openblas_core(avx2_cpu(), "Zen"), "");
}

TEST(WantedCore, LeavesOldCpusAndUnknownCoresAlone) {
  EXPECT_EQ(wanted_openblas_core(CpuFeatures{}, "Prescott"), "");
  EXPECT_EQ(wanted_openblas_core(avx512_cpu(), "DiamondRapids"), "");  // of an OpenBLAS newer than this test
  EXPECT_EQ(wanted_openblas_core(avx512_cpu(), ""), "");
  CpuFeatures no_fma = avx2_cpu();
  no_fma.fma = false;
  EXPECT_EQ(wanted_openblas_core(no_fma, "Prescott"), "");
}

// A /proc and a /sys of our own.
class Cgroup : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "espalier-cgroup-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  fs::path root_;
};

TEST_F(Cgroup, NothingMeansNoLimit) {
  EXPECT_EQ(cgroup_cpu_quota(root_), 0);
  EXPECT_EQ(cgroup_memory_limit(root_), 0U);
}

TEST_F(Cgroup, Version2TakesTheTightestOfGroupAndParents) {
  write("proc/self/cgroup", "0::/user.slice/job\n");
  write("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
  write("sys/fs/cgroup/user.slice/job/cpu.max", "400000 100000\n");
  write("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n");
  write("sys/fs/cgroup/user.slice/other/cpu.max", "1000 100000\n");  // not ours
  write("sys/fs/cgroup/user.slice/job/memory.max", "3000000\n");
  write("sys/fs/cgroup/user.slice/memory.max", "max\n");
  EXPECT_EQ(cgroup_cpu_quota(root_), 1.5);
  EXPECT_EQ(cgroup_memory_limit(root_), 3000000U);
}

TEST_F(Cgroup, Version1ReadsTheTreeOfItsController) {
  write("proc/self/cgroup", "4:memory:/lxc/a\n3:cpu,cpuacct:/lxc/b\n0::/\n");
  write("proc/self/mountinfo",
        "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  write("sys/fs/cgroup/cpu,cpuacct/lxc/b/cpu.cfs_quota_us", "300000\n");
  write("sys/fs/cgroup/cpu,cpuacct/lxc/b/cpu.cfs_period_us", "100000\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  write("sys/fs/cgroup/memory/lxc/a/memory.limit_in_bytes", "9223372036854771712\n");  // the kernel's "unlimited"
  write("sys/fs/cgroup/memory/lxc/memory.limit_in_bytes", "2147483648\n");
  EXPECT_EQ(cgroup_cpu_quota(root_), 3);
  EXPECT_EQ(cgroup_memory_limit(root_), 2147483648U);
}

TEST_F(Cgroup, ContainerSeesItsGroupAsTheRootOfTheMount) {
  write("proc/self/cgroup", "3:cpu,cpuacct:/docker/4f2a/job\n");
  write("proc/self/mountinfo", "31 23 0:27 /docker/4f2a /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n");
  write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n");
  write("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_cpu_quota(root_), 0.5);
}

TEST(Threads, UsableCoresFollowTheAffinity) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &before)) {
      CPU_SET(i, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  const int restricted = usable_cores();
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
  EXPECT_EQ(restricted, 1);
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), CPU_COUNT(&before));
}

TEST(Threads, SetThreadsReachesTorchAndOpenMp) {
  std::string warning;
  set_log_sink([&](LogLevel level, const std::string& text) {
    if (level == LogLevel::warning) warning = text;
  });
  unsetenv("OMP_NUM_THREADS");
  set_threads(0);
  EXPECT_EQ(environment().threads, usable_cores());
  EXPECT_EQ(environment().openmp_threads, usable_cores());
  EXPECT_EQ(warning, "");

  const int many = usable_cores() + 3;
  set_threads(many);
  EXPECT_EQ(environment().threads, many);
  EXPECT_EQ(environment().openmp_threads, many);
  EXPECT_NE(warning.find(std::to_string(many) + " threads"), std::string::npos) << warning;

  setenv("OMP_NUM_THREADS", "1,4", 1);  // a list: one number for each level of nesting
  set_threads(0);
  EXPECT_EQ(environment().threads, 1);
  setenv("OMP_NUM_THREADS", "all", 1);  // not a number: as if not set
  set_threads(0);
  EXPECT_EQ(environment().threads, usable_cores());
  unsetenv("OMP_NUM_THREADS");
  set_log_sink({});

  try {
    set_threads(-1);
    FAIL() << "accepted -1 threads";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
  }
}

TEST(Blas, CureLeavesNoWeakCoreUnlessTheUserAsksForIt) {
  const std::string core = environment().blas.core;
  if (core.empty()) GTEST_SKIP() << "the BLAS here is not OpenBLAS";
  const char* value = std::getenv("OPENBLAS_CORETYPE");
  const std::string before = value == nullptr ? "" : value;

  setenv("OPENBLAS_CORETYPE", "Haswell", 1);
  cure_blas();
  EXPECT_EQ(environment().blas.core, core) << "the choice of the user was overruled";
  EXPECT_EQ(environment().blas.forced_core, "Haswell");

  setenv("OPENBLAS_CORETYPE", "", 1);  // empty counts as not set
  cure_blas();
  EXPECT_EQ(wanted_openblas_core(cpu_features(), environment().blas.core), "") << environment().blas.cure;
  EXPECT_GT(sgemm_gflops(1, 64), 0);

  if (before.empty())
    unsetenv("OPENBLAS_CORETYPE");
  else
    setenv("OPENBLAS_CORETYPE", before.c_str(), 1);
}

bool finds(const std::vector<Finding>& list, const std::string& what, const std::string& mend, bool must_mend) {
  for (const Finding& f : list) {
    if (f.what.find(what) != std::string::npos && f.mend.find(mend) != std::string::npos && f.must_mend == must_mend)
      return true;
  }
  return false;
}

Environment healthy() {
  Environment e;
  e.cpu = avx512_cpu();
  e.kernel_isa = "avx512";
  e.cores = e.usable = e.threads = e.openmp_threads = 4;
  e.onednn = true;
  e.blas.provider = "OpenBLAS";
  e.blas.core = "SkylakeX";
  e.blas.config = "OpenBLAS 0.3.21 DYNAMIC_ARCH USE_OPENMP SkylakeX MAX_THREADS=64";
  e.memory_bytes = std::uint64_t{16} << 30;
  return e;
}

TEST(Findings, NothingToMendOnAHealthyMachine) { EXPECT_TRUE(findings(healthy()).empty()); }

TEST(Findings, EachFaultComesWithItsRemedy) {
  Environment e = healthy();
  e.blas.provider = "reference";
  e.blas.core = e.blas.config = "";
  EXPECT_TRUE(finds(findings(e), "reference BLAS", "apt-get install libopenblas0-openmp", true));

  e = healthy();
  e.blas.core = "Prescott";
  EXPECT_TRUE(finds(findings(e), "Prescott", "export OPENBLAS_CORETYPE=SKYLAKEX", true));
  e.blas.forced_core = "PRESCOTT";
  EXPECT_TRUE(finds(findings(e), "OPENBLAS_CORETYPE is set to PRESCOTT", "unset OPENBLAS_CORETYPE", true));

  e = healthy();
  e.blas.config = "OpenBLAS 0.3.21 DYNAMIC_ARCH SkylakeX";
  EXPECT_TRUE(finds(findings(e), "threads of its own", "libopenblas0-openmp", false));

  e = healthy();
  e.kernel_isa = "scalar";
  EXPECT_TRUE(finds(findings(e), "scalar", "ESPALIER_ISA", true));

  e = healthy();
  e.threads = 8;
  EXPECT_TRUE(finds(findings(e), "8 threads on 4", "--threads 4", true));
  e.threads = 2;
  EXPECT_TRUE(finds(findings(e), "2 of 4", "--threads 0", false));

  e = healthy();
  e.memory_limit_bytes = std::uint64_t{1} << 30;
  EXPECT_TRUE(finds(findings(e), "1.0 GiB", "", false));
}

TEST(EnvironmentJson, HoldsWhatWasFound) {
  Environment e = healthy();
  e.version = "1.2.3";
  e.cpu.avx512bw = false;
  e.waits = "GOMP_SPINCOUNT=5000";
  e.blas.cure = "none needed";
  const auto json = to_json(e);
  EXPECT_EQ(json["schema"], 1);
  EXPECT_EQ(json["espalier"]["version"], "1.2.3");
  EXPECT_EQ(json["cpu"]["flags"],
            (std::vector<std::string>{"avx2", "fma", "avx512f", "avx512dq", "avx512vl", "avx512cd"}));
  EXPECT_EQ(json["cpu"]["usable_cores"], 4);
  EXPECT_EQ(json["threads"]["torch"], 4);
  EXPECT_EQ(json["threads"]["waits"], "GOMP_SPINCOUNT=5000");
  EXPECT_EQ(json["blas"]["core"], "SkylakeX");
  EXPECT_EQ(json["blas"]["cure"], "none needed");
  EXPECT_EQ(json["memory"]["bytes"], std::uint64_t{16} << 30);
}

TEST(EnvironmentJson, ThisMachineIsFilledIn) {
  const auto e = environment();
  EXPECT_FALSE(e.version.empty());
  EXPECT_FALSE(e.torch.empty());
  EXPECT_FALSE(e.compiler.empty());
  EXPECT_FALSE(e.kernel_isa.empty());
  EXPECT_GE(e.cores, e.usable);
  EXPECT_GT(e.memory_bytes, std::uint64_t{1} << 20);
  EXPECT_EQ(e.allocator, "the C library's");  // tests are not linked with another
  EXPECT_TRUE(fs::path(e.blas.library).is_absolute()) << e.blas.library;
  EXPECT_NE(e.blas.provider, "");
}

TEST(CoreWaits, GrowWhileOthersHaveTheCores) {
  if (!fs::exists("/proc/self/schedstat")) GTEST_SKIP() << "the system does not say how long threads wait";
  const CoreWaits before;
  double within = 0;
  {
    const testing::BusyCores others;
    const CoreWaits waits;
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(300)) {
    }
    within = waits.longest_microseconds();
  }
  EXPECT_GT(within, 10'000);   // a third of the time, if cores are shared fairly
  EXPECT_LT(within, 400'000);  // of one thread, in microseconds
  EXPECT_GE(before.longest_microseconds(), within);
}

TEST(OneThread, ComputesAloneWhileItLives) {
  const int threads = at::get_num_threads();
  set_threads(usable_cores());
  {
    const OneThread alone;
    EXPECT_EQ(at::get_num_threads(), 1);
    EXPECT_EQ(omp_get_max_threads(), 1);
  }
  EXPECT_EQ(at::get_num_threads(), usable_cores());
  EXPECT_EQ(omp_get_max_threads(), usable_cores());
  set_threads(threads);
}

}  // namespace
}  // namespace espalier
