// Other programs on all cores.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "espalier/train/environment.h"

namespace espalier::testing {

/// While it lives, two processes a core do nothing but compute.
class BusyCores {
 public:
  BusyCores() {
    for (int p = 0; p < 2 * usable_cores(); ++p) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);  // with the test that was ended
        for (volatile unsigned long n = 0;;) n = n + 1;
      }
      if (child > 0) children_.push_back(child);
    }
  }
  ~BusyCores() {
    for (const pid_t child : children_) kill(child, SIGKILL);
    for (const pid_t child : children_) waitpid(child, nullptr, 0);
  }
  BusyCores(const BusyCores&) = delete;
  BusyCores& operator=(const BusyCores&) = delete;

 private:
  std::vector<pid_t> children_;
};

}  // namespace espalier::testing
