// Purpose: what is left of a file in a forked child that could not be connected to its owner: the views
// that were made before the fork, if it has leases on their pages. Everything else is refused.
//
// Thread safety: any thread. No lock of the file is taken: a thread of the parent may have held it.
#pragma once

#include "file/pages.h"

namespace pgalloc {

class OrphanedPages final : public Pages {
 public:
  explicit OrphanedPages(const Pages& file) : file_(&file) {}
  void follow(const Pages& file) { file_ = &file; }

  static Status refuse() {
    return Status::error(ErrorCode::kForked,
                         "these pages are the parent's: this forked child could get no leases on "
                         "them, or no connection to their owner");
  }

  Status inc_ref(FileRange, uint32_t) override { return refuse(); }
  Status dec_ref(FileRange) override { return refuse(); }
  Result<bool> has_unique_ref(FileRange) const override { return refuse(); }
  Result<char*> map(FileRange range) override {
    if (file_->incomplete()) return refuse();
    Result<char*> address = file_->find_mapped(range);
    if (address.ok() && *address == nullptr) return refuse();
    return address;
  }
  Result<char*> find_mapped(FileRange range) const override { return file_->find_mapped(range); }
  std::shared_ptr<ChunkMap> chunks() const override { return file_->chunks(); }
  bool readonly() const override { return file_->readonly(); }
  Status write(uint64_t, const char*, uint64_t) override { return refuse(); }
  bool incomplete() const override { return false; }
  bool is_remote() const override { return false; }
  Status unpin(Discardable&) override { return refuse(); }
  void pin(Discardable&, bool) override {}
  void forget(Discardable&) override {}
  bool discarding() const override { return false; }
  Status end_handle(Discardable&) override { return refuse(); }
  Status check_usable() const override { return refuse(); }

 private:
  const Pages* file_;
};

}  // namespace pgalloc
