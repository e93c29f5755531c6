#pragma once

// A bounded queue between threads, what a channel is in Go: a full one holds up who puts into it, an
// empty one who takes, and a context ends both. Built on the wait of std::condition_variable_any that
// takes a stop token, which is all there is to make a blocking class of one's own listen to contexts.

#include <ctx/context.hpp>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

template <class T>
class queue {
 public:
  /// Holds as many values, at least one.
  explicit queue(std::size_t capacity) : capacity_{capacity} {}

  /// Blocks while the queue is full. False where the value was not taken: the context is done, or the
  /// queue closed.
  bool push(const ctx::context& c, T value) {
    std::unique_lock lock{mutex_};
    not_full_.wait(lock, c.stop_token(), [&] { return closed_ || values_.size() < capacity_; });
    if (c.done()) not_full_.notify_one();  // what woke this one may have been meant for another
    if (c.done() || closed_) return false;
    values_.push_back(std::move(value));
    not_empty_.notify_one();
    return true;
  }

  /// Blocks while the queue is empty. Nothing once it is closed and empty, or the context done.
  std::optional<T> pop(const ctx::context& c) {
    std::unique_lock lock{mutex_};
    not_empty_.wait(lock, c.stop_token(), [&] { return closed_ || !values_.empty(); });
    if (c.done()) not_empty_.notify_one();
    if (c.done() || values_.empty()) return {};
    std::optional<T> value{std::move(values_.front())};
    values_.pop_front();
    not_full_.notify_one();
    return value;
  }

  /// Nothing more comes: what is in the queue can still be taken.
  void close() {
    const std::lock_guard lock{mutex_};
    closed_ = true;
    not_empty_.notify_all();
    not_full_.notify_all();
  }

 private:
  const std::size_t capacity_;
  std::mutex mutex_;
  std::condition_variable_any not_full_;
  std::condition_variable_any not_empty_;
  std::deque<T> values_;  // guarded by mutex_
  bool closed_ = false;   // guarded by mutex_
};
