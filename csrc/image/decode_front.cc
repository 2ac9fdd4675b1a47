#include <algorithm>
#include <bit>
#include <string_view>

#include "base/crc32c.h"
#include "image/checks.h"
#include "image/decode.h"
#include "image/layout.h"
#include "image/utf8.h"

namespace pgalloc::image {
namespace {

constexpr uint32_t kPageSizeMin = 4096;

Status wrong_version(std::string message) {
  return Status::error(ErrorCode::kSnapshotVersion, std::move(message));
}

// The fields that keep their meaning in images this reader cannot check: of a later version, whose
// checksum may be elsewhere, or of a machine with larger pages, whose header is longer.
Status check_identity(Bytes bytes) {
  const Bytes magic = bytes.first(std::min(bytes.size(), sizeof layout::kHeaderMagic));
  if (!std::equal(magic.begin(), magic.end(), layout::kHeaderMagic.bytes)) {
    return corrupt("this is no image: wrong magic");
  }
  const auto has = [&](size_t field) { return bytes.size() >= field + sizeof(uint32_t); };
  const auto number = [&](size_t field) { return load<uint32_t>(bytes.subspan(field)); };
  if (has(offsetof(layout::Header, version))) {
    const uint32_t version = number(offsetof(layout::Header, version));
    if (version < kVersionMin || version > kVersionMax) {
      return wrong_version("the image has version " + std::to_string(version) +
                           ", this reader knows versions " + std::to_string(kVersionMin) + " to " +
                           std::to_string(kVersionMax));
    }
  }
  if (has(offsetof(layout::Header, page_size))) {
    const uint32_t size = number(offsetof(layout::Header, page_size));
    if (!std::has_single_bit(size) || size < kPageSizeMin) {
      return corrupt("the image's header: impossible page size");
    }
    if (size != page_size()) {
      return wrong_version("the image has pages of " + std::to_string(size) +
                           " bytes, this machine of " + std::to_string(page_size()));
    }
  }
  return {};
}

Status check_limits(const Header& header) {
  if (!is_aligned(header.file_size, page_size()) || header.file_size > kMaxOffset) {
    return corrupt("the image's header: impossible file size");
  }
  if (header.restore_id_length > kRestoreIdLengthMax) {
    return corrupt("the image's header: restore_id too long");
  }
  if (header.hook_count > kHookCountMax) return corrupt("the image's header: too many hooks");
  if (header.metadata_length > kMetadataLengthMax) {
    return corrupt("the image's header: metadata too long");
  }
  // Dividing, since the count may be anything.
  if (header.usage_count > header.metadata_length / sizeof(layout::Usage)) {
    return corrupt("the image's header: metadata too short for the usage set");
  }
  const uint64_t hooks_min = header.hook_count * (layout::kHookPrefixSize + 1);
  if (header.usage_count * sizeof(layout::Usage) + header.restore_id_length + hooks_min >
      header.metadata_length) {
    return corrupt("the image's header: metadata too short for its parts");
  }
  return {};
}

// REQUIRES: `bytes` are the entries.
Status read_usage(const Header& header, Bytes bytes, std::vector<Usage>* usage) {
  usage->reserve(header.usage_count);
  uint64_t reached = 0;
  bool any_huge = false;
  for (uint64_t i = 0; i < header.usage_count; ++i) {
    const auto fields = load<layout::Usage>(bytes.subspan(i * sizeof(layout::Usage)));
    const auto mistake = [&](const char* what) {
      return corrupt("usage entry " + std::to_string(i) + " " + what);
    };
    if (!is_aligned(fields.start, page_size())) return mistake("starts within a page");
    if (!is_aligned(fields.end, page_size())) return mistake("ends within a page");
    if (fields.start >= fields.end) return mistake("is empty");
    if (fields.end > header.file_size) return mistake("goes beyond the file");
    if (fields.end <= reached) return mistake("is out of order");
    if (fields.start < reached) return mistake("overlaps the one before it");
    if (fields.refs == 0) return mistake("has no references");
    if (fields.kind >= static_cast<uint8_t>(MemoryKind::kMapped)) {
      return mistake("has an unknown kind");
    }
    if (fields.committed > 1) return mistake("is neither committed nor not");
    if (fields.huge > 1) return mistake("is for pages of an unknown size");
    if (fields.huge > 0 && header.version < kVersionOfHugePages) {
      return mistake("is for huge pages, which the image's version does not know");
    }
    if (!all_zero(fields.zero)) return mistake("has bytes that should be zero");
    usage->push_back({{fields.start, fields.end},
                      fields.refs,
                      fields.memcg_id,
                      static_cast<MemoryKind>(fields.kind),
                      fields.committed != 0,
                      fields.huge != 0});
    reached = fields.end;
    any_huge = any_huge || fields.huge != 0;
  }
  if (header.version == kVersionOfHugePages && !any_huge) {
    return corrupt("the image's metadata: version 2, and no pages for huge pages");
  }
  return {};
}

// Takes the hooks off the beginning of *rest.
Status read_hooks(const Header& header, Bytes* rest, std::vector<Hook>* hooks) {
  hooks->reserve(header.hook_count);
  for (uint32_t i = 0; i < header.hook_count; ++i) {
    const auto mistake = [&](const char* what) {
      return corrupt("hook " + std::to_string(i) + " " + what);
    };
    if (rest->size() < layout::kHookPrefixSize) return mistake("goes beyond the metadata");
    const auto name_length = load<uint32_t>(*rest);
    const auto payload_length = load<uint64_t>(rest->subspan(sizeof name_length));
    *rest = rest->subspan(layout::kHookPrefixSize);
    if (name_length == 0) return mistake("has no name");
    if (name_length > kHookNameLengthMax) return mistake("has too long a name");
    if (rest->size() < name_length || rest->size() - name_length < payload_length) {
      return mistake("goes beyond the metadata");
    }
    const std::string_view name(rest->data(), name_length);
    if (!is_utf8(name)) return mistake("has a name that is not UTF-8");
    hooks->push_back({std::string(name), std::string(rest->data() + name_length, payload_length)});
    *rest = rest->subspan(name_length + payload_length);
  }
  return {};
}

Status check_unique_names(const std::vector<Hook>& hooks) {
  std::vector<std::string_view> names;
  names.reserve(hooks.size());
  for (const Hook& hook : hooks) names.emplace_back(hook.name);
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin == names.end()) return {};
  return corrupt("two hooks have the name '" + std::string(*twin) + "'");
}

}  // namespace

Result<Header> decode_header(Bytes bytes) {
  PGALLOC_RETURN_IF_ERROR(check_identity(bytes));
  if (bytes.size() < page_size()) return corrupt("the image is shorter than its header");
  const Bytes page = bytes.first(page_size());
  const auto fields = load<layout::Header>(page);
  if (checksum_without(page, offsetof(layout::Header, crc)) != fields.crc) {
    return corrupt("the image's header: wrong checksum");
  }
  if (!all_zero(page.subspan(sizeof fields))) {
    return corrupt("the image's header: bytes that should be zero");
  }
  const Header header{fields.version,           fields.file_size,  fields.usage_count,
                      fields.restore_id_length, fields.hook_count, fields.metadata_length,
                      fields.metadata_crc,      fields.crc};
  PGALLOC_RETURN_IF_ERROR(check_limits(header));
  return header;
}

Result<Metadata> decode_metadata(const Header& header, Bytes bytes) {
  if (bytes.size() < header.metadata_bytes()) return corrupt("the image ends in its metadata");
  bytes = bytes.first(header.metadata_bytes());
  if (crc32c(bytes.data(), bytes.size()) != header.metadata_crc) {
    return corrupt("the image's metadata: wrong checksum");
  }
  if (!all_zero(bytes.subspan(header.metadata_length))) {
    return corrupt("the image's metadata: padding that should be zero");
  }
  Bytes rest = bytes.first(header.metadata_length);
  Metadata metadata;

  PGALLOC_RETURN_IF_ERROR(read_usage(header, rest, &metadata.usage));
  rest = rest.subspan(header.usage_count * sizeof(layout::Usage));

  metadata.restore_id.assign(rest.data(), header.restore_id_length);
  if (!is_utf8(metadata.restore_id)) return corrupt("the restore_id is not UTF-8");
  rest = rest.subspan(header.restore_id_length);

  PGALLOC_RETURN_IF_ERROR(read_hooks(header, &rest, &metadata.hooks));
  PGALLOC_RETURN_IF_ERROR(check_unique_names(metadata.hooks));
  if (!rest.empty()) return corrupt("the image's metadata: surplus bytes after the last hook");
  return metadata;
}

}  // namespace pgalloc::image
