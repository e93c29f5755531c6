#pragma once

// Has the starting of threads fail for a test. Needs glibc.

#include <pthread.h>

#include <cstddef>

/// While it lives, no thread can be started: there is no room for stacks.
class no_threads {
 public:
  no_threads() {
    pthread_getattr_default_np(&before_);
    pthread_attr_t huge;
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, std::size_t{1} << 60);
    pthread_setattr_default_np(&huge);
  }
  no_threads(const no_threads&) = delete;
  no_threads& operator=(const no_threads&) = delete;
  ~no_threads() { pthread_setattr_default_np(&before_); }

 private:
  pthread_attr_t before_;
};
