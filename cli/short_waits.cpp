// Threads that wait at the end of a parallel loop turn 300,000 times (some 4 ms) before they sleep, and keep those off
// a core that they wait for: beside one busy process a small network trained at a fiftieth of its speed
// (docs/adr/0015). libgomp reads GOMP_SPINCOUNT while it is loaded, before main: commands that compute begin once more
// with it set.
#include <unistd.h>

#include <climits>
#include <cstring>

namespace {

constexpr char kShortWaits[] = "GOMP_SPINCOUNT=5000";
// Others are done before a wait would matter. Words anywhere in the command line count: to begin once more does no
// harm.
constexpr const char* kComputing[] = {"train", "continual", "eval",  "init",  "sweep",
                                      "prune", "reproduce", "bench", "doctor"};
constexpr const char* kChosen[] = {"GOMP_SPINCOUNT=", "OMP_WAIT_POLICY="};  // by the user, or by us the first time
constexpr int kMostVariables = 4000;

bool computes(char** argv) {
  for (char** word = argv; *word; ++word) {
    for (const char* command : kComputing) {
      if (std::strcmp(*word, command) == 0) return true;
    }
  }
  return false;
}

bool begins_with(const char* text, const char* start) { return std::strncmp(text, start, std::strlen(start)) == 0; }

// After the dynamic linker and before any library's constructor, LibTorch's of a quarter of a second among them: the
// program is not under way yet, nothing is open, and neither the heap nor `environ` is there.
void begin_with_short_waits(int, char** argv, char** variables) {
  if (!argv || !variables || !computes(argv)) return;
  char* with[kMostVariables + 2];
  int count = 0;
  for (; variables[count]; ++count) {
    if (count == kMostVariables) return;
    for (const char* chosen : kChosen) {
      if (begins_with(variables[count], chosen)) return;
    }
    with[count] = variables[count];
  }
  char added[sizeof kShortWaits];
  std::memcpy(added, kShortWaits, sizeof kShortWaits);
  with[count] = added;
  with[count + 1] = nullptr;
  char program[PATH_MAX];  // its own path: under that of /proc/self/exe it would be called "exe" in lists of processes
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  if (length <= 0) return;
  program[length] = '\0';
  execve(program, argv, with);  // returns only where that is not possible: then waits are long
}

[[gnu::section(".preinit_array"), gnu::used]] void (*const before_everything)(int, char**,
                                                                              char**) = begin_with_short_waits;

}  // namespace
