#include "pages/pending_pages.h"

#include "base/check.h"

namespace pgalloc {

std::optional<FileRange> PendingPages::find(FileRange range, Arrival arrival) const {
  if (bytes(arrival) == 0) return std::nullopt;
  std::optional<FileRange> found;
  set_.visit_range(range, [&](FileRange part, const PendingTraits::Value& value) {
    if (value.arrival != arrival) return true;
    found = part;
    return false;
  });
  return found;
}

std::optional<uint32_t> PendingPages::find_error(FileRange range) const {
  const auto broken = find(range, Arrival::kBroken);
  if (!broken) return std::nullopt;
  return set_.find(broken->start).value().error;
}

std::optional<FileRange> PendingPages::first_at_rest(FileRange range) const {
  uint64_t start = range.start;
  while (start < range.end) {
    const auto arriving = find({start, range.end}, Arrival::kArriving);
    if (!arriving) return FileRange{start, range.end};
    if (arriving->start > start) return FileRange{start, arriving->start};
    start = arriving->end;
  }
  return std::nullopt;
}

void PendingPages::expect(FileRange range) {
  set_.insert(range, {});
  bytes_in(Arrival::kWaiting) += range.length();
  expected_bytes_ += range.length();
}

std::vector<FileRange> PendingPages::start(FileRange range, Arrival to) {
  std::vector<FileRange> started;
  set_.visit_range(range, [&](FileRange part, const PendingTraits::Value& value) {
    if (value.arrival == Arrival::kWaiting) started.push_back(part);
  });
  for (const FileRange& part : started) set_state(part, {to, 0});
  return started;
}

void PendingPages::set_state(FileRange range, PendingTraits::Value value) {
  set_.mutate_range(range, [&](FileRange part, PendingTraits::Value& was) {
    bytes_in(was.arrival) -= part.length();
    bytes_in(value.arrival) += part.length();
    was = value;
  });
}

void PendingPages::arrived(FileRange range) { remove(range, Arrival::kArriving); }

void PendingPages::remove(FileRange range, Arrival from) {
  PGALLOC_CHECK_OP(bytes(from), >=, range.length());
  bytes_in(from) -= range.length();
  set_.remove_range(range);
}

void PendingPages::drop(FileRange range) {
  forgotten_bytes_ += range.length();
  remove(range, Arrival::kLeaving);
}

void PendingPages::put_back(FileRange range) { set_state(range, {Arrival::kWaiting, 0}); }

void PendingPages::broke(FileRange range, uint32_t error) {
  set_state(range, {Arrival::kBroken, error});
}

void PendingPages::forget(FileRange range) {
  for (uint64_t from = range.start; from < range.end;) {
    const auto segment = set_.lower_bound_segment(from);
    if (!segment.ok() || segment.start() >= range.end) return;
    const FileRange part = segment.range().intersect(range);
    const Arrival arrival = segment.value().arrival;
    from = part.end;
    if (arrival == Arrival::kArriving || arrival == Arrival::kLeaving) continue;
    set_.remove_range(part);
    bytes_in(arrival) -= part.length();
    if (arrival == Arrival::kWaiting) forgotten_bytes_ += part.length();
  }
}

void PendingPages::clear() {
  set_.clear();
  bytes_ = {};
  expected_bytes_ = forgotten_bytes_ = 0;
}

std::optional<std::string> PendingPages::verify() const {
  if (auto broken = set_.verify()) return "pending pages: " + *broken;
  std::array<uint64_t, 4> bytes{};
  for (auto segment = set_.first(); segment.ok(); segment = segment.next()) {
    bytes[static_cast<size_t>(segment.value().arrival)] += segment.end() - segment.start();
  }
  if (bytes != bytes_) return "pending pages: the totals differ from the ranges";
  return std::nullopt;
}

}  // namespace pgalloc
