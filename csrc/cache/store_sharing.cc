// A cache for other processes: they look values up in its index by themselves (index_reader.h).
#include <errno.h>

#include <algorithm>
#include <new>
#include <utility>

#include "base/reserve.h"
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
  readers_.push_back({++last_reader_, std::move(*file), std::nullopt});
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
  readers_.push_back({++last_reader_, std::move(*copy), std::nullopt});
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
  if (generation_ != process_generation()) return;  // a forked child ends its parent's sessions
  Bin bin(leavings_);
  MutexLock lock(mu_);
  const auto found =
      std::ranges::find_if(readers_, [&](const Reader& each) { return each.number == reader; });
  if (found == readers_.end()) return;
  stats_.hits += found->file.hits();
  stats_.misses += found->file.misses();
  const std::optional<Pending> pending = found->pending;
  writer_.readers().erase(writer_.readers().begin() + (found - readers_.begin()));
  readers_.erase(found);
  look_at_limbo(limbo_size_, bin);
  lock.unlock();
  if (pending) give_back(pending->pages);
}

// Pages that no value has.
void Store::give_back(FileRange pages) noexcept try {
  (void)with_reserve([&] { return file_->references().dec_ref(pages); });
} catch (const std::bad_alloc&) {
  file_->warn("pages for a value of a Cache could not be given back: no memory is left");
}

Store::Reader* Store::find_reader(uint64_t number) {
  const auto found =
      std::ranges::find_if(readers_, [&](const Reader& each) { return each.number == number; });
  return found == readers_.end() ? nullptr : &*found;
}

std::string Store::described() const {
  std::string text;
  wire::append(text, bytes_max_.value_or(UINT64_MAX), static_cast<uint8_t>(policy_), id_);
  return text;
}

}  // namespace pgalloc::cache
