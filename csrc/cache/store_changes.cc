// Values that change what they are: counters, and how long they last. Each change is a new entry of the index, for those who
// read it meanwhile.
#include <array>
#include <charconv>
#include <new>

#include "cache/sizes.h"
#include "cache/store.h"

namespace pgalloc::cache {
namespace {

// A number in decimal digits that fits 64 bits.
std::optional<int64_t> number_in(std::string_view digits) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

}  // namespace

Result<std::optional<Store::Counter>> Store::counter(std::string_view key) {
  Counter counter;
  Value value;
  {
    Bin bin(leavings_);
    MutexLock lock(mu_);
    PGALLOC_RETURN_IF_ERROR(check_usable());
    catch_up(bin);
    const auto entry = find_living(key, hash(key));
    if (!entry) return std::optional<Counter>();
    const Fields fields = writer_.fields(*entry);
    counter.version = writer_.version(*entry);
    counter.expires_ns = fields.expires_ns;
    if (const Tags::Tag* const tag = tags_.of(*entry)) counter.tag = tag->name;
    value = hold(fields);
  }
  constexpr uint64_t kDigitsMax = 20;
  const Result<char*> address = file_->map(value.pages);
  if (address.ok() && value.length <= kDigitsMax) {
    counter.number = number_in({*address + (value.place - value.pages.start), value.length});
  }
  let_go(value.hold);
  if (!address.ok()) return address.status().clone();
  return std::optional(std::move(counter));
}

Result<Store::Incremented> Store::increment(std::string_view key, int64_t delta,
                                            std::optional<int64_t> initial, const PutDigits& put) {
  while (true) {
    const Result<std::optional<Counter>> found = counter(key);
    if (!found.ok()) return found.status().clone();
    Item item{.key = key};
    int64_t number = 0;
    if (*found) {
      const Counter& old = **found;
      if (!old.number || __builtin_add_overflow(*old.number, delta, &number)) {
        return Incremented{.what = Incremented::kNoNumber};
      }
      item.tag = old.tag;
      item.expires_ns = old.expires_ns;
      item.only_in_place_of = old.version;
    } else {
      if (!initial) return Incremented{.what = Incremented::kNothing};
      if (__builtin_add_overflow(*initial, delta, &number)) {
        return Incremented{.what = Incremented::kNoNumber};
      }
      item.only_if_none = true;
    }
    std::array<char, 24> digits;
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number).ptr;
    const Result<std::optional<Put>> done =
        put(item, {digits.data(), static_cast<size_t>(end - digits.data())});
    if (!done.ok()) return done.status().clone();
    if (!*done) return Incremented{.waits = true};
    if (**done == Put::kDone) return Incremented{.what = Incremented::kDone, .number = number};
  }
}

Result<bool> Store::touch(std::string_view key, uint64_t expires_ns) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_usable());
  catch_up(bin);
  if (!find_living(key, hash(key))) return false;
  // The new entry has a key of its own: the old one's goes with it.
  Draft draft(index_.keys(), tags_);
  PGALLOC_RETURN_IF_ERROR(prepare(draft, {.key = key, .expires_ns = expires_ns}, bin));
  const auto old = find(key, hash(key));
  if (!old) return false;  // it had to make way for its own key
  const Fields before = writer_.fields(*old);
  if (const Tags::Tag* const tag = tags_.of(*old)) {
    draft.tag = &tags_.claim(tag->name, writer_.entries_used() + 1);
  }
  Holder& holder = holders_.at(before.holder);
  const uint32_t slot = holder.slot_of(before.place);
  enter_in_place(draft, holder, slot, *old, before);
  make_way(0, 0, {}, bin);
  return true;
}

}  // namespace pgalloc::cache
