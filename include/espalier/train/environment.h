/// What a run computes on: processor, instruction set, BLAS, threads, memory, versions. Written to env.json and shown
/// by `espalier doctor`; and the two things that a program should put right before it computes: BLAS and threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace espalier {

/// The instruction sets that matter here, as this CPU *and* the operating system support them.
struct CpuFeatures {
  bool avx2 = false, fma = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false, avx512cd = false;
  bool neon = false;
};
CpuFeatures cpu_features();

/// What OPENBLAS_CORETYPE ought to be ("SKYLAKEX", "HASWELL") for an OpenBLAS that has chosen the kernels named
/// `current_core` on this CPU; "" if that choice is good enough or unknown to us (a newer OpenBLAS knows better).
/// OpenBLAS before 0.3.25 does not know Intel's models from Sapphire Rapids on and takes them for a Prescott of 2004.
std::string wanted_openblas_core(const CpuFeatures& cpu, const std::string& current_core);

/// If the OpenBLAS in this process has chosen kernels far below this CPU, makes it choose again (docs/adr/0005). An
/// OPENBLAS_CORETYPE that the user has set, and is not empty, is left alone. Call it first thing in main(): not while
/// another thread computes with BLAS. What was done stands in `Environment::Blas::cure`; costs microseconds.
void cure_blas();

/// Lets the allocator keep what is freed: the tensors of one training step are as large as those of the next, and
/// memory that goes back to the system in between comes again page by page. A step of an MLP of 4096-wide layers took
/// 24 % less at 99 % sparsity, and 17 % less masked. Of effect with glibc's allocator alone: the program is linked with
/// tcmalloc where that is installed (docs/adr/0011), which keeps freed memory by itself and in less space.
void keep_freed_memory();

/// Cores that this process may use: its CPU affinity, bounded by the CPU quota of its cgroups (rounded up). At least 1.
int usable_cores();

/// Threads for LibTorch, OpenMP and BLAS in this thread and those to come. 0 = $OMP_NUM_THREADS if set, else all usable
/// cores (LibTorch's own default can be half of them). More than usable: a warning. Throws Error(usage) if n < 0.
void set_threads(int n);

/// While it lives, what this thread computes is computed by it alone.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_;
};

/// How long threads of this process have been ready to compute while others had the cores: what is timed meanwhile was
/// not alone. Always 0 where the system does not say (schedstat of Linux).
class CoreWaits {
 public:
  CoreWaits() : before_(now()) {}
  double longest_microseconds() const;  ///< of one thread, since this was made

 private:
  static std::map<std::string, double> now();  // by thread, since it began
  std::map<std::string, double> before_;
};

struct Environment {
  struct Blas {
    std::string provider;     ///< "OpenBLAS", "BLIS", "MKL", "reference", "unknown", or "" if no BLAS is visible
    std::string library;      ///< the shared object that provides sgemm_
    std::string core;         ///< OpenBLAS: the kernels in use, e.g. "SkylakeX"
    std::string config;       ///< OpenBLAS: version and build options
    std::string cure;         ///< what `cure_blas` did, for people
    std::string forced_core;  ///< the OPENBLAS_CORETYPE of the environment; "" if not set
  };
  std::string version, commit, compiler, torch, system;
  std::string cpu_model;
  CpuFeatures cpu;
  std::string kernel_isa;  ///< the instruction set of our kernels
  int cores = 0;           ///< online in this machine
  int usable = 0;          ///< see usable_cores()
  double cpu_quota = 0;    ///< in cores; 0 = none
  int threads = 0;         ///< LibTorch's (this starts LibTorch's own default if set_threads was not called)
  int openmp_threads = 0;
  std::string waits;  ///< how long threads that wait keep their core: the variable that says so, or "OpenMP's default"
  bool onednn = false;  ///< LibTorch has oneDNN (convolutions)
  Blas blas;
  std::string allocator;                 ///< of memory in this process: "tcmalloc (gperftools 2.10)", "the C library's"
  std::uint64_t memory_bytes = 0;        ///< of the machine
  std::uint64_t memory_limit_bytes = 0;  ///< of the cgroup; 0 = none
};
Environment environment();
nlohmann::ordered_json to_json(const Environment& environment);

/// Something that makes runs slow or wrong, and the command that mends it.
struct Finding {
  bool must_mend = false;  ///< false: worth knowing
  std::string what, mend;
};
std::vector<Finding> findings(const Environment& environment);

/// Speed of the dense product that LibTorch uses (float, n x n x n), in GFLOP/s: best of several, about 0.1 s.
double sgemm_gflops(int threads, std::int64_t n = 1024);

/// Limits of this process's control groups, version 1 or 2, the tightest of the group and its parents; 0 = none.
/// `root` stands before /proc and /sys (tests).
double cgroup_cpu_quota(const std::filesystem::path& root = "/");
std::uint64_t cgroup_memory_limit(const std::filesystem::path& root = "/");

}  // namespace espalier
