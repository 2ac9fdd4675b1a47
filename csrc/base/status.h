// Purpose: what a core call returns when the caller or the kernel made it fail. The core throws no
// exceptions of its own; the binding turns a Status into the typed Python exception.
//
// Thread safety: values only.
//
// A successful Status is one null pointer, so hot calls pay nothing for the details of failures.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"

namespace pgalloc {

enum class ErrorCode {
  kRange,        // malformed, misaligned or unallocated range; bad length
  kOption,       // unknown mode, kind, direction, policy; contradictory options
  kRefCount,     // a count below zero, raised from zero, or beyond its maximum
  kOutOfMemory,  // no place, or the maximum would be exceeded
  kAccount,      // a ledger entry would drop below zero
  kClosed,
  kForked,
  kSnapshot,         // a snapshot cannot be taken, or not be restored here
  kSnapshotCorrupt,  // the image is damaged, or no image
  kSnapshotVersion,  // the image is for another version or another page size
  kOwnerGone,        // the process that owns shared pages has ended
  kSharing,          // a peer, or the owner of shared pages, refuses
  kPermission,       // shared for reading only
  kNoMemory,         // memory for the request itself
  kTimedOut,         // no answer in time: it may come later
  kInterrupted,      // the caller did not want to wait any longer
  kSystem,           // a system call failed: `error_number` and `call` are set
};

class [[nodiscard]] Status {
 public:
  Status() = default;

  static Status error(ErrorCode code, std::string message) {
    return Status(std::make_unique<Details>(Details{code, 0, "", std::move(message)}));
  }
  // `advice`: what the caller can do about it, in a sentence.
  static Status system_error(int error_number, const char* call, std::string advice = {}) {
    return Status(std::make_unique<Details>(
        Details{ErrorCode::kSystem, error_number, call, std::move(advice)}));
  }

  // A failure that several are told of.
  Status clone() const { return ok() ? Status() : Status(std::make_unique<Details>(*details_)); }

  bool ok() const { return details_ == nullptr; }
  // REQUIRES (all below): !ok().
  ErrorCode code() const { return details_->code; }
  int error_number() const { return details_->error_number; }
  const char* call() const { return details_->call; }
  const std::string& message() const { return details_->message; }
  // In words: the message, or the call, what its errno means, and the advice.
  std::string describe() const {
    if (code() != ErrorCode::kSystem) return message();
    std::string text = std::string(call()) + ": " + std::strerror(error_number());
    return message().empty() ? text : text + "; " + message();
  }

 private:
  struct Details {
    ErrorCode code;
    int error_number;
    const char* call;
    std::string message;
  };
  explicit Status(std::unique_ptr<Details> details) : details_(std::move(details)) {}

  std::unique_ptr<Details> details_;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    PGALLOC_CHECK(!status_.ok());
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const& { return status_; }
  Status status() && { return std::move(status_); }
  // REQUIRES (all below): ok().
  const T& operator*() const { return *value_; }
  T& operator*() { return *value_; }
  const T* operator->() const { return &*value_; }
  T* operator->() { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace pgalloc

// Leaves the function with the Status of `expression` unless it is ok.
#define PGALLOC_RETURN_IF_ERROR(expression)            \
  do {                                                 \
    ::pgalloc::Status pgalloc_status_ = (expression);  \
    if (!pgalloc_status_.ok()) return pgalloc_status_; \
  } while (false)
