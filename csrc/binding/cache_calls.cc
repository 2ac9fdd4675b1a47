// Purpose: get, put and increment of a cache. The GIL is kept where the work is small, and let go of where values are long or the
// guard may have to make room.
#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <string>

#include "base/reserve.h"
#include "binding/cache_object.h"
#include "binding/file_handle.h"
#include "binding/patience.h"
#include "binding/without_gil.h"
#include "cache/sizes.h"
#include "guard/commit_gate.h"
#include "sharing/broker.h"

namespace pgalloc::binding {

using cache::Item;
using cache::Store;

namespace {

// A buffer that is read; bytes need none.
class Data {
 public:
  Data() = default;
  ~Data() {
    if (held_) PyBuffer_Release(&buffer_);
  }
  Data(const Data&) = delete;
  Data& operator=(const Data&) = delete;

  // False with an exception set.
  bool get(PyObject* object) {
    if (PyBytes_CheckExact(object)) {
      bytes_ = {PyBytes_AS_STRING(object), static_cast<size_t>(PyBytes_GET_SIZE(object))};
      return true;
    }
    if (PyObject_GetBuffer(object, &buffer_, PyBUF_SIMPLE) != 0) return false;
    held_ = true;
    bytes_ = {static_cast<const char*>(buffer_.buf), static_cast<size_t>(buffer_.len)};
    return true;
  }
  std::string_view bytes() const { return bytes_; }
  // Whether reading them may have to wait for others: they may be any memory.
  bool is_foreign() const { return held_; }

 private:
  Py_buffer buffer_;
  bool held_ = false;
  std::string_view bytes_;
};

// New pages, once there is room for so much. Without the GIL.
Result<FileRange> allocate(MemoryFile& file, const AllocateRequest& request, uint64_t index_bytes) {
  Broker::start_if_it_lacks_its_thread();  // no other call may come
  const WithoutGil release;
  CommitReservation reservation;
  PGALLOC_RETURN_IF_ERROR(commit_gate().reserve(request.length + index_bytes, reservation));
  return file.allocate(request, /*may_wait=*/true);
}

// Pages that are given back unless they become the store's.
class NewPages {
 public:
  NewPages(MemoryFile& file, FileRange range) : file_(file), range_(range) {}
  ~NewPages() {
    if (!owned_) return;
    try {
      (void)with_reserve([&] { return file_.dec_ref(range_); });
    } catch (const std::bad_alloc&) {  // NOLINT: the file has them until it is closed
    }
  }
  NewPages(const NewPages&) = delete;
  NewPages& operator=(const NewPages&) = delete;

  void release() { owned_ = false; }

 private:
  MemoryFile& file_;
  const FileRange range_;
  bool owned_ = true;
};

// Of a value whose key is not long.
constexpr uint64_t kUsualIndexBytes = 512;

// 1 if it was set, 0 if the item does not allow it; -1 with an exception set.
int put_small(CacheObject* self, const std::shared_ptr<Store>& store, const Item& item,
              std::string_view data) {
  // Room for the index was made for with the slab, but not for a key as long as this.
  CommitReservation reservation;
  if (item.key.size() > page_size()) {
    Status status;
    {
      const WithoutGil release;
      status = commit_gate().reserve(store->index_to_come(item, 1), reservation);
    }
    if (!status.ok()) return set_error(status), -1;
  }
  while (true) {
    const Result<Store::Put> done = store->put_small(item, data);
    if (!done.ok()) return set_error(done.status()), -1;
    if (*done != Store::Put::kWantsSlab) return *done == Store::Put::kDone;
    const uint64_t bytes = cache::slab_bytes_for(data.size());
    const uint32_t slot_bytes = cache::slot_bytes_for(data.size());
    // Committed, so that what is written there cannot fail; with the index of all values to come.
    const Result<FileRange> pages =
        allocate(store->file(), {.length = bytes, .mode = AllocationMode::kAllocateAndCommit},
                 std::min(store->make_index_room(item, bytes / slot_bytes, bytes),
                          bytes / slot_bytes * kUsualIndexBytes));
    if (!pages.ok()) return set_file_error(pages.status(), "allocate", self->memory_file), -1;
    NewPages owned(store->file(), *pages);
    const Result<char*> mapped = store->file().map(*pages);
    const Status status =
        mapped.ok() ? store->add_slab(item, *pages, slot_bytes) : mapped.status().clone();
    if (!status.ok()) return set_error(status), -1;
    owned.release();
  }
}

// Copies the data into new pages, with zeros behind it.
Status write(MemoryFile& file, FileRange pages, std::string_view data) {
  // From here on the kernel copies, without the GIL and without page faults.
  constexpr uint64_t kByKernel = 16384;
  const Result<char*> address = file.map(pages);
  if (!address.ok()) return address.status().clone();
  if (data.size() < kByKernel) {
    std::memcpy(*address, data.data(), data.size());
  } else {
    const WithoutGil release;
    PGALLOC_RETURN_IF_ERROR(file.write(pages.start, data.data(), data.size()));
  }
  std::memset(*address + data.size(), 0, pages.length() - data.size());
  return {};
}

// As put_small().
int put_pages(CacheObject* self, const std::shared_ptr<Store>& store, const Item& item,
              std::string_view data) {
  MemoryFile& file = store->file();
  const Result<FileRange> pages = allocate(file,
                                           {.length = cache::pages_for(data.size()),
                                            .will_be_overwritten = true,
                                            .huge = HugeWish::kIfUseful},
                                           store->index_to_come(item, 1));
  if (!pages.ok()) return set_file_error(pages.status(), "allocate", self->memory_file), -1;
  NewPages owned(file, *pages);
  Status status = write(file, *pages, data);
  if (status.ok()) {
    const Result<bool> done = store->put_pages(item, *pages, data.size());
    if (done.ok()) {
      if (*done) owned.release();
      return *done ? 1 : 0;
    }
    status = done.status().clone();
  }
  return set_file_error(status, "write", self->memory_file), -1;
}

// `foreign`: it may be memory that another thread has to bring, so it is not read under the store's lock.
int put_here(CacheObject* self, const std::shared_ptr<Store>& store, const Item& item,
             std::string_view data, bool foreign) {
  if (!store->shares_pages(data.size())) return put_pages(self, store, item, data);
  if (foreign) {
    const std::string copy(data);
    return put_small(self, store, item, copy);
  }
  return put_small(self, store, item, data);
}

PyObject* look(PyObject* object, PyObject* key, bool counted) {
  CacheObject* const self = cache_of(object);
  KeyBytes bytes;
  const Encoded encoded = encode_key(key, &bytes);
  CacheSide side;
  if (encoded == Encoded::kError || !side_of(self, &side)) return nullptr;
  if (side.own != nullptr) {
    // Of what is no key there is none.
    const auto value = side.own->get(encoded == Encoded::kKey ? bytes.view() : std::string_view(),
                                     counted ? Store::Look::kCounted : Store::Look::kUncounted);
    if (!value) Py_RETURN_NONE;
    return view_on(self, side, *value);
  }
  if (encoded == Encoded::kNoKey) Py_RETURN_NONE;
  const auto value = side.remote->get(bytes.view(), counted);
  if (!value) Py_RETURN_NONE;
  return view_on(self, side, *value);
}

}  // namespace

bool as_lifetime(PyObject* seconds, uint64_t* lasts_ns) {
  *lasts_ns = 0;
  if (seconds == Py_None) return true;
  const double value = PyFloat_AsDouble(seconds);
  if (value == -1.0 && PyErr_Occurred() != nullptr) return false;
  if (value < kForEver) *lasts_ns = static_cast<uint64_t>(std::max(value * 1e9, 1.0));
  return true;
}

PyObject* view_on(CacheObject* self, const CacheSide& side, const cache::HeldValue& value) {
  if (side.remote != nullptr) return view_of(side.remote, side.remote->file(), value);
  MemoryFile& file = side.own->file();
  if (file.incomplete() && !await_pages(self->memory_file, file, value.pages)) {
    side.own->let_go(value.hold);
    return nullptr;
  }
  return view_of(side.own, file, value);
}

PyObject* cache_get(PyObject* object, PyObject* key) { return look(object, key, /*counted=*/true); }

PyObject* cache_look_again(PyObject* object, PyObject* key) {
  return look(object, key, /*counted=*/false);
}

// put(key, data, seconds, tag, only_if_none): None if it was set, False if it was not because there is a value; what it
// would count for if that is too much; NotImplemented for what is no key, or no tag.
PyObject* cache_put(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) {
    PyErr_SetString(PyExc_TypeError, "put() takes key, data, seconds, tag, only_if_none");
    return nullptr;
  }
  KeyBytes key;
  KeyBytes tag;
  Data data;
  uint64_t lasts_ns = 0;
  Encoded encoded = encode_key(args[0], &key);
  if (encoded == Encoded::kKey && args[3] != Py_None) encoded = encode_key(args[3], &tag);
  if (encoded == Encoded::kNoKey) Py_RETURN_NOTIMPLEMENTED;
  if (encoded == Encoded::kError || !as_lifetime(args[2], &lasts_ns) || !data.get(args[1])) {
    return nullptr;
  }
  CacheObject* const self = cache_of(object);
  CacheSide side;
  if (!side_of(self, &side)) return nullptr;
  Item item{.key = key.view(), .tag = {}, .only_if_none = args[4] == Py_True};
  if (args[3] != Py_None) item.tag = tag.view();
  const std::string_view bytes = data.bytes();
  if (side.own != nullptr) {
    // No Python code from here on.
    item.expires_ns = side.own->expiry_in(lasts_ns);
    const uint64_t size = side.own->size_of(bytes.size(), item);
    if (side.own->bytes_max() && size > *side.own->bytes_max()) {
      return PyLong_FromUnsignedLongLong(size);
    }
    const int done = put_here(self, side.own, item, bytes, data.is_foreign());
    if (done < 0) return nullptr;
    if (done > 0) Py_RETURN_NONE;
    Py_RETURN_FALSE;
  }
  item.expires_ns = lasts_ns;
  const auto outcome = patiently(
      side.remote->file().link().usual_patience(),
      [&](const OwnerLink::Patience& patience) { return side.remote->put(item, bytes, patience); });
  if (!outcome.ok()) return set_error(outcome.status());
  if (outcome->counted > 0) return PyLong_FromUnsignedLongLong(outcome->counted);
  if (outcome->done) Py_RETURN_NONE;
  Py_RETURN_FALSE;
}

// increment(key, delta, initial): the number; None if there is none; False if it is no number, or too large; NotImplemented
// for what is no key.
PyObject* cache_increment(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "increment() takes key, delta, initial");
    return nullptr;
  }
  KeyBytes key;
  const Encoded encoded = encode_key(args[0], &key);
  if (encoded == Encoded::kNoKey) Py_RETURN_NOTIMPLEMENTED;
  if (encoded == Encoded::kError) return nullptr;
  const int64_t delta = PyLong_AsLongLong(args[1]);
  if (delta == -1 && PyErr_Occurred() != nullptr) return nullptr;
  std::optional<int64_t> initial;
  if (args[2] != Py_None) {
    initial = PyLong_AsLongLong(args[2]);
    if (*initial == -1 && PyErr_Occurred() != nullptr) return nullptr;
  }
  CacheObject* const self = cache_of(object);
  CacheSide side;
  if (!side_of(self, &side)) return nullptr;
  Store::Incremented done;
  if (side.own != nullptr) {
    bool failed = false;
    const auto result = side.own->increment(
        key.view(), delta, initial,
        [&](const Item& item, std::string_view digits) -> Result<std::optional<Store::Put>> {
          const int put = put_here(self, side.own, item, digits, /*foreign=*/false);
          failed = put < 0;
          if (failed) return std::optional<Store::Put>();
          return std::optional(put > 0 ? Store::Put::kDone : Store::Put::kRefused);
        });
    if (failed) return nullptr;
    if (!result.ok()) return set_error(result.status());
    done = *result;
  } else {
    const auto result = patiently(
        side.remote->file().link().usual_patience(), [&](const OwnerLink::Patience& patience) {
          return side.remote->increment(key.view(), delta, initial, patience);
        });
    if (!result.ok()) return set_error(result.status());
    done = *result;
  }
  if (done.what == Store::Incremented::kNothing) Py_RETURN_NONE;
  if (done.what == Store::Incremented::kNoNumber) Py_RETURN_FALSE;
  return PyLong_FromLongLong(done.number);
}

}  // namespace pgalloc::binding
