// Purpose: how a MemoryFile is made, and what an allocation asks for.
//
// Thread safety: values only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "pages/page_use.h"
#include "pages/placement.h"

namespace pgalloc {

enum class AllocationMode : uint8_t {
  kAllocateOnly = 0,
  kAllocateAndCommit = 1,
  kAllocateAndWritePopulate = 2,
};

// Whether huge allocations, which ask for huge pages, get them; kAlways: each that can hold one asks.
enum class HugePages : uint8_t { kAuto = 0, kNever = 1, kAlways = 2 };

// kIfUseful: all of it will be written, so that huge pages gain where the kernel gives them. kAsked: lay it
// out for huge pages, whatever the kernel says now.
enum class HugeWish : uint8_t { kNone = 0, kIfUseful = 1, kAsked = 2 };

enum class DelayedEviction : uint8_t { kDefault = 0, kDisabled = 1, kEnabled = 2, kManual = 3 };

struct AdoptedDescriptor {
  int fd;
  bool duplicate = false;  // leave `fd` to the caller and work on a copy of it
};
struct BackingPath {
  std::string path;
};
using Backing = std::variant<std::monostate, BackingPath, AdoptedDescriptor>;  // first: a memfd

struct MemoryFileOptions {
  std::optional<uint64_t> capacity;
  DelayedEviction delayed_eviction = DelayedEviction::kDefault;
  bool use_host_memcg_pressure = false;
  bool decommit_on_destroy = false;
  bool manual_zeroing = false;
  bool disable_ima_workaround = false;
  std::optional<uint64_t> max_allocatable_bytes;
  HugePages huge_pages = HugePages::kAuto;
  bool accounting = true;  // whether what is committed is found out and booked
  std::string label;       // its user's own, and told to peers
};

struct AllocateRequest {
  uint64_t length = 0;
  MemoryKind kind = MemoryKind::kAnonymous;
  Direction direction = Direction::kBottomUp;
  AllocationMode mode = AllocationMode::kAllocateOnly;
  uint32_t memcg_id = 0;
  // The caller writes every byte before any is read: pages may come with what was there.
  bool will_be_overwritten = false;
  HugeWish huge = HugeWish::kNone;
};

}  // namespace pgalloc
