// Purpose: what is asked of a cache as a whole: its figures, what an image says of it, its invariants.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "binding/bind.h"
#include "binding/cache_object.h"
#include "binding/patience.h"

namespace pgalloc::binding {

namespace py = pybind11;

using cache::Store;

namespace {

std::shared_ptr<Store> store_of(const py::object& object) {
  auto store = own_store_of(object.ptr());
  if (store == nullptr) throw py::error_already_set();
  return store;
}

cache::StoreStats counted(const py::object& object) {
  CacheSide side;
  if (!side_of(cache_of(object.ptr()), &side)) throw py::error_already_set();
  if (side.own != nullptr) return side.own->stats();
  return value_or_throw(
      patiently(side.remote->file().link().usual_patience(),
                [&](const OwnerLink::Patience& patience) { return side.remote->stats(patience); }));
}

py::dict stats(const py::object& object) {
  if (!is_cache(object.ptr())) throw py::type_error("expected a CacheStore");
  const cache::StoreStats stats = counted(object);
  py::dict all;
  all["hits"] = stats.hits;
  all["misses"] = stats.misses;
  all["sets"] = stats.sets;
  all["evictions"] = stats.evictions;
  all["discards"] = stats.discards;
  all["expirations"] = stats.expirations;
  all["entries"] = stats.entries;
  all["value_bytes"] = stats.value_bytes;
  all["bytes"] = stats.size;
  all["page_bytes"] = stats.page_bytes;
  all["index_bytes"] = stats.index_bytes;
  return all;
}

// Times are in seconds from now, keys and tags encoded.
using SavedValue =
    std::tuple<uint64_t, uint64_t, std::optional<double>, std::optional<py::bytes>, py::bytes>;
using SavedHolder = std::tuple<uint64_t, uint64_t, uint32_t, std::vector<SavedValue>>;

std::vector<SavedHolder> save(const py::object& object) {
  const std::shared_ptr<Store> own = store_of(object);
  Store& store = *own;
  const auto now_ns = static_cast<double>(store.file().clock().now().count());
  std::vector<SavedHolder> all;
  for (const Store::SavedHolder& holder : store.save()) {
    std::vector<SavedValue> values;
    for (const Store::SavedValue& value : holder.values) {
      std::optional<double> seconds;
      if (value.expires_ns != 0) seconds = (static_cast<double>(value.expires_ns) - now_ns) / 1e9;
      std::optional<py::bytes> tag;
      if (value.tag) tag = py::bytes(*value.tag);
      values.emplace_back(value.offset, value.length, seconds, std::move(tag),
                          py::bytes(value.key));
    }
    all.emplace_back(holder.pages.start, holder.pages.length(), holder.slot_bytes,
                     std::move(values));
  }
  return all;
}

// A holder of an image: what save() gave, but with keys and tags as they are.
using RestoredValue =
    std::tuple<uint64_t, uint64_t, std::optional<double>, std::optional<py::object>, py::object>;

std::string encoded(const py::object& key) {
  KeyBytes bytes;
  const Encoded done = encode_key(key.ptr(), &bytes);
  if (done == Encoded::kNoKey) throw py::type_error("not a key");
  if (done == Encoded::kError) throw py::error_already_set();
  return std::string(bytes.view());
}

void restore(const py::object& object, uint64_t start, uint64_t length, uint32_t slot_bytes,
             const std::vector<RestoredValue>& values) {
  const std::shared_ptr<Store> own = store_of(object);
  Store& store = *own;
  const auto now_ns = static_cast<double>(store.file().clock().now().count());
  Store::SavedHolder holder{
      .pages = {start, start + length}, .slot_bytes = slot_bytes, .values = {}};
  for (const auto& [offset, size, seconds, tag, key] : values) {
    Store::SavedValue& value = holder.values.emplace_back();
    value.offset = offset;
    value.length = size;
    // What has expired since, too: so it is counted.
    if (seconds && *seconds < kForEver)
      value.expires_ns = static_cast<uint64_t>(std::max(now_ns + *seconds * 1e9, 1.0));
    value.key = encoded(key);
    if (tag) value.tag = encoded(*tag);
  }
  throw_if_error(store.restore(holder));
}

}  // namespace

void bind_cache(py::module_& module) {
  module.def("cache_stats", &stats);
  module.def("cache_save", &save);
  module.def("cache_restore", &restore);
  module.def("cache_verify", [](const py::object& object) { return store_of(object)->verify(); });
}

}  // namespace pgalloc::binding
