#include <algorithm>

#include "base/crc32c.h"
#include "image/checks.h"
#include "image/decode.h"
#include "image/layout.h"

namespace pgalloc::image {
namespace {

Status head_error(uint64_t offset, const std::string& what) {
  return corrupt("the extent at byte " + std::to_string(offset) + " of the image " + what);
}

}  // namespace

Result<ExtentHead> decode_extent_head(const Header& header, Bytes page, uint64_t offset) {
  const auto mistake = [&](const char* what) { return head_error(offset, what); };
  if (page.size() < page_size()) return mistake("has no whole head");
  page = page.first(page_size());
  const auto fields = load<layout::ExtentHead>(page);
  if (fields.magic != layout::kExtentMagic) return mistake("has a wrong magic");
  if (checksum_without(page, offsetof(layout::ExtentHead, crc)) != fields.crc) {
    return mistake("has a head with a wrong checksum");
  }
  if (!all_zero(fields.zero) || !all_zero(page.subspan(sizeof fields))) {
    return mistake("has a head with bytes that should be zero");
  }
  if (fields.offset != offset) return mistake("belongs elsewhere");
  if (const char* what = extent_mistake(header, fields)) return mistake(what);
  if (fields.map.next_set(fields.page_count) != PageMap::kPages) {
    return mistake("stores pages beyond its end");
  }
  if (fields.map.count() != fields.stored_pages) {
    return mistake("does not store the pages it counts");
  }
  return ExtentHead{{fields.start, fields.start + fields.page_count * page_size()},
                    fields.offset,
                    static_cast<Encoding>(fields.encoding),
                    fields.stored_length,
                    fields.data_crc,
                    fields.map,
                    fields.crc};
}

Status check_extent_data(const ExtentHead& head, Bytes data) {
  if (data.size() != head.stored_bytes()) return head_error(head.offset, "has no whole data");
  if (crc32c(data.data(), data.size()) != head.data_crc) {
    return head_error(head.offset, "has data with a wrong checksum");
  }
  if (!all_zero(data.subspan(head.stored_length))) {
    return head_error(head.offset, "has data with padding that should be zero");
  }
  return {};
}

Status check_extent_usage(const ExtentHead& head, const std::vector<Usage>& usage) {
  Status status;
  head.map.visit_runs([&](size_t first, size_t pages) {
    uint64_t reached = head.range.start + first * page_size();
    const uint64_t end = reached + pages * page_size();
    auto part = std::partition_point(usage.begin(), usage.end(),
                                     [&](const Usage& u) { return u.range.end <= reached; });
    while (reached < end && part != usage.end() && part->range.contains(reached)) {
      reached = part->range.end;
      ++part;
    }
    if (reached < end) status = head_error(head.offset, "stores a page that is not in use");
  });
  return status;
}

}  // namespace pgalloc::image
