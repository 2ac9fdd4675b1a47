#include "binding/range_type.h"

#include <structmember.h>

#include <cstdint>

#include "binding/arguments.h"
#include "binding/errors.h"

namespace pgalloc::binding {
namespace {

struct RangeObject {
  PyObject_HEAD FileRange range;
};

FileRange& range_in(PyObject* self) { return reinterpret_cast<RangeObject*>(self)->range; }

PyObject* new_range(PyTypeObject* type, FileRange range) {
  auto* self = PyObject_New(RangeObject, type);
  if (self == nullptr) return nullptr;
  self->range = range;
  return reinterpret_cast<PyObject*>(self);
}

PyObject* construct(PyTypeObject* type, PyObject* start, PyObject* end) {
  FileRange range;
  if (!as_u64(start, "start", &range.start) || !as_u64(end, "end", &range.end)) return nullptr;
  if (range.start > range.end) {
    PyErr_Format(error_type(ErrorCode::kRange), "start %R is beyond end %R", start, end);
    return nullptr;
  }
  return new_range(type, range);
}

PyObject* tp_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"start", "end", nullptr};
  PyObject* start = nullptr;
  PyObject* end = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO", const_cast<char**>(names), &start, &end)) {
    return nullptr;
  }
  return construct(type, start, end);
}

PyObject* tp_vectorcall(PyObject* type, PyObject* const* args, size_t nargsf, PyObject* names) {
  auto* range_type = reinterpret_cast<PyTypeObject*>(type);
  const Py_ssize_t count = PyVectorcall_NARGS(nargsf);
  if (names == nullptr && count == 2) return construct(range_type, args[0], args[1]);

  PyObject* positional = PyTuple_New(count);
  PyObject* keywords = names == nullptr ? nullptr : PyDict_New();
  PyObject* result = nullptr;
  if (positional != nullptr && (names == nullptr || keywords != nullptr)) {
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
    }
    bool complete = true;
    for (Py_ssize_t i = 0; names != nullptr && i < PyTuple_GET_SIZE(names); ++i) {
      complete =
          complete && PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, i), args[count + i]) == 0;
    }
    if (complete) result = tp_new(range_type, positional, keywords);
  }
  Py_XDECREF(positional);
  Py_XDECREF(keywords);
  return result;
}

void tp_dealloc(PyObject* self) { PyObject_Free(self); }

PyObject* tp_repr(PyObject* self) {
  const FileRange range = range_in(self);
  char text[96];
  PyOS_snprintf(text, sizeof text, "%s(0x%llx, 0x%llx)", strrchr(Py_TYPE(self)->tp_name, '.') + 1,
                static_cast<unsigned long long>(range.start),
                static_cast<unsigned long long>(range.end));
  return PyUnicode_FromString(text);
}

Py_hash_t tp_hash(PyObject* self) {
  const FileRange range = range_in(self);
  const uint64_t mixed = (range.start * 0x9E3779B97F4A7C15u) ^ (range.end * 0xC2B2AE3D27D4EB4Fu);
  const auto hash = static_cast<Py_hash_t>(mixed ^ (mixed >> 32));
  return hash == -1 ? -2 : hash;
}

PyObject* tp_richcompare(PyObject* left, PyObject* right, int operation) {
  if (Py_TYPE(left) != Py_TYPE(right)) Py_RETURN_NOTIMPLEMENTED;
  const FileRange a = range_in(left);
  const FileRange b = range_in(right);
  // Ordered as the tuples (start, end).
  const int order = a.start != b.start ? (a.start < b.start ? -1 : 1)
                    : a.end != b.end   ? (a.end < b.end ? -1 : 1)
                                       : 0;
  Py_RETURN_RICHCOMPARE(order, 0, operation);
}

PyObject* as_tuple(PyObject* self) {
  const FileRange range = range_in(self);
  return Py_BuildValue("KK", static_cast<unsigned long long>(range.start),
                       static_cast<unsigned long long>(range.end));
}

PyObject* tp_iter(PyObject* self) {
  PyObject* tuple = as_tuple(self);
  if (tuple == nullptr) return nullptr;
  PyObject* iterator = PyObject_GetIter(tuple);
  Py_DECREF(tuple);
  return iterator;
}

int sq_contains(PyObject* self, PyObject* offset) {
  uint64_t value = 0;
  if (!as_u64(offset, "offset", &value)) return -1;
  return range_in(self).contains(value) ? 1 : 0;
}

PyObject* contains(PyObject* self, PyObject* offset) {
  const int result = sq_contains(self, offset);
  return result < 0 ? nullptr : PyBool_FromLong(result);
}

// The other operand of a method, which must be of the same type.
const FileRange* other_range(PyObject* self, PyObject* other) {
  if (Py_TYPE(self) == Py_TYPE(other)) return &range_in(other);
  PyErr_Format(PyExc_TypeError, "expected %s, not %.100s", Py_TYPE(self)->tp_name,
               Py_TYPE(other)->tp_name);
  return nullptr;
}

PyObject* overlaps(PyObject* self, PyObject* other) {
  const FileRange* range = other_range(self, other);
  return range == nullptr ? nullptr : PyBool_FromLong(range_in(self).overlaps(*range));
}

PyObject* is_superset_of(PyObject* self, PyObject* other) {
  const FileRange* range = other_range(self, other);
  return range == nullptr ? nullptr : PyBool_FromLong(range_in(self).is_superset_of(*range));
}

PyObject* intersect(PyObject* self, PyObject* other) {
  const FileRange* range = other_range(self, other);
  return range == nullptr ? nullptr : new_range(Py_TYPE(self), range_in(self).intersect(*range));
}

PyObject* reduce(PyObject* self, PyObject*) {
  PyObject* tuple = as_tuple(self);
  return tuple == nullptr ? nullptr : Py_BuildValue("ON", Py_TYPE(self), tuple);
}

PyObject* get_length(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(range_in(self).length());
}

PyMemberDef members[] = {
    {"start", T_ULONGLONG, offsetof(RangeObject, range.start), READONLY, "First byte."},
    {"end", T_ULONGLONG, offsetof(RangeObject, range.end), READONLY, "One past the last byte."},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef properties[] = {{"length", get_length, nullptr, "end - start, in bytes.", nullptr},
                            {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef methods[] = {
    {"contains", contains, METH_O,
     "contains($self, offset, /)\n--\n\nWhether the offset lies inside."},
    {"overlaps", overlaps, METH_O,
     "overlaps($self, other, /)\n--\n\nWhether the two share a byte."},
    {"intersect", intersect, METH_O,
     "intersect($self, other, /)\n--\n\nThe bytes both share; an empty range when there are none."},
    {"is_superset_of", is_superset_of, METH_O,
     "is_superset_of($self, other, /)\n--\n\nWhether every byte of the other lies inside."},
    {"__reduce__", reduce, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PySequenceMethods sequence_methods{};

PyTypeObject file_range_type = {PyVarObject_HEAD_INIT(nullptr, 0)};
PyTypeObject evictable_range_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

bool add_type(PyObject* module, PyTypeObject& type, const char* name, const char* doc) {
  sequence_methods.sq_contains = sq_contains;
  type.tp_name = name;
  type.tp_doc = doc;
  type.tp_basicsize = sizeof(RangeObject);
  type.tp_flags = Py_TPFLAGS_DEFAULT;
  type.tp_new = tp_new;
  type.tp_vectorcall = tp_vectorcall;
  type.tp_dealloc = tp_dealloc;
  type.tp_repr = tp_repr;
  type.tp_hash = tp_hash;
  type.tp_richcompare = tp_richcompare;
  type.tp_iter = tp_iter;
  type.tp_as_sequence = &sequence_methods;
  type.tp_members = members;
  type.tp_getset = properties;
  type.tp_methods = methods;
  if (PyType_Ready(&type) < 0) return false;
  PyObject* match_args = Py_BuildValue("(ss)", "start", "end");
  if (match_args == nullptr) return false;
  PyDict_SetItemString(type.tp_dict, "__match_args__", match_args);
  Py_DECREF(match_args);
  return PyModule_AddObjectRef(module, strrchr(name, '.') + 1,
                               reinterpret_cast<PyObject*>(&type)) == 0;
}

}  // namespace

bool add_range_types(PyObject* module) {
  return add_type(module, file_range_type, "pgalloc.FileRange",
                  "FileRange(start, end)\n--\n\n"
                  "A half-open range of bytes in a MemoryFile. Immutable, hashable, and unpacks as "
                  "(start, end).\n\nRaises RangeError when start > end or a bound does not fit 64 "
                  "bits.") &&
         add_type(module, evictable_range_type, "pgalloc.EvictableRange",
                  "EvictableRange(start, end)\n--\n\n"
                  "A half-open range in the number space of an evictable user: 64-bit numbers that "
                  "mean\nwhatever the user wants them to mean; not file offsets.");
}

bool is_file_range(PyObject* object) { return Py_TYPE(object) == &file_range_type; }
bool is_evictable_range(PyObject* object) { return Py_TYPE(object) == &evictable_range_type; }
FileRange range_of(PyObject* object) { return range_in(object); }
PyObject* new_file_range(FileRange range) { return new_range(&file_range_type, range); }
PyObject* new_evictable_range(FileRange range) { return new_range(&evictable_range_type, range); }

}  // namespace pgalloc::binding
