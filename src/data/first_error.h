// Private to data/.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <utility>

namespace espalier::data {

/// The first error in order, whichever thread meets it.
class FirstError {
 public:
  bool before(std::int64_t i) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return error_ && index_ < i;
  }
  void add(std::int64_t i, std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_ && index_ < i) return;
    index_ = i;
    error_ = std::move(error);
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::int64_t index_ = 0;
  std::exception_ptr error_;
};

}  // namespace espalier::data
