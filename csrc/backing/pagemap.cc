#include "backing/pagemap.h"

#include <fcntl.h>

namespace pgalloc {

using os::sys;

Pagemap::~Pagemap() {
  if (fd_ >= 0) sys().close(fd_);
}

bool Pagemap::open() {
  if (unusable_) return false;
  if (fd_ < 0) fd_ = sys().open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0);
  unusable_ = fd_ < 0;
  return !unusable_;
}

int Pagemap::scan(uint64_t start, uint64_t end, uint64_t categories,
                  std::span<os::PageRegion> buffer, uint64_t* walked) {
  os::PagemapScan request{.start = start,
                          .end = end,
                          .regions = reinterpret_cast<uint64_t>(buffer.data()),
                          .region_count = buffer.size(),
                          .required_categories = categories,
                          .returned_categories = categories};
  const int count = sys().pagemap_scan(fd_, &request);
  unusable_ = count < 0 || request.walk_end <= start;
  if (unusable_) return -1;
  *walked = request.walk_end;
  return count;
}

}  // namespace pgalloc
