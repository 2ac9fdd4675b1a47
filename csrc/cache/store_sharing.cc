// A cache for other processes: they look values up in its index by themselves (index_reader.h).
#include <errno.h>

#include <algorithm>
#include <utility>

#include "cache/store.h"
#include "os/syscalls.h"

namespace pgalloc::cache {
namespace {

Result<os::Descriptor> copy_of(int fd) {
  const int own = os::sys().duplicate(fd);
  if (own < 0) return Status::system_error(errno, "fcntl");
  os::Descriptor descriptor(own);
  if (!descriptor.open()) return Status::system_error(errno, "fstat");
  return descriptor;
}

Status unknown_reader() {
  return Status::error(ErrorCode::kSharing, "this process is not attached to the Cache");
}

}  // namespace

Result<os::Descriptor> Store::index_file() const {
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_usable());
  return copy_of(index_.file().fd());
}

Result<uint64_t> Store::attach() {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  auto file = HoldsFile::create(index_.index().entry_count);
  if (!file.ok()) return std::move(file).status();
  MutexLock lock(mu_);
  readers_.reserve(readers_.size() + 1);
  writer_.readers().reserve(readers_.size() + 1);
  readers_.push_back({++last_reader_, std::move(*file)});
  writer_.readers().push_back(readers_.back().file.holds());
  return last_reader_;
}

Result<uint64_t> Store::attach_copy_of(uint64_t reader) {
  auto copy = HoldsFile::create(index_.index().entry_count);
  if (!copy.ok()) return std::move(copy).status();
  MutexLock lock(mu_);
  const auto found =
      std::ranges::find_if(readers_, [&](const Reader& each) { return each.number == reader; });
  if (found == readers_.end()) return unknown_reader();
  copy->copy_from(found->file, holders_.numbers());
  readers_.reserve(readers_.size() + 1);
  writer_.readers().reserve(readers_.size() + 1);
  readers_.push_back({++last_reader_, std::move(*copy)});
  writer_.readers().push_back(readers_.back().file.holds());
  return last_reader_;
}

Result<os::Descriptor> Store::holds_file(uint64_t reader) const {
  MutexLock lock(mu_);
  const auto found =
      std::ranges::find_if(readers_, [&](const Reader& each) { return each.number == reader; });
  if (found == readers_.end()) return unknown_reader();
  return copy_of(found->file.file().fd());
}

void Store::detach(uint64_t reader) noexcept {
  Bin bin(*file_);
  MutexLock lock(mu_);
  const auto found =
      std::ranges::find_if(readers_, [&](const Reader& each) { return each.number == reader; });
  if (found == readers_.end()) return;
  stats_.hits += found->file.hits();
  stats_.misses += found->file.misses();
  writer_.readers().erase(writer_.readers().begin() + (found - readers_.begin()));
  readers_.erase(found);
  look_at_limbo(limbo_size_, bin);
}

}  // namespace pgalloc::cache
