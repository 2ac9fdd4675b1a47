#include "binding/arguments.h"

#include "binding/errors.h"
#include "binding/range_type.h"

namespace pgalloc::binding {
namespace {

bool type_error(PyObject* object, const char* name, const char* wanted) {
  PyErr_Format(PyExc_TypeError, "%s must be %s, not %.100s", name, wanted,
               Py_TYPE(object)->tp_name);
  return false;
}

// An enumeration member by value; plain integers of the right value are fine, as for any IntEnum.
template <class Enum>
bool as_enum(PyObject* object, const char* name, const char* members, Enum last, Enum* out) {
  if (!PyLong_Check(object) || PyBool_Check(object)) return type_error(object, name, members);
  int overflow = 0;
  const long value = PyLong_AsLongAndOverflow(object, &overflow);
  if (value == -1 && PyErr_Occurred()) return false;
  if (overflow != 0 || value < 0 || value > static_cast<long>(last)) {
    PyErr_Format(error_type(ErrorCode::kOption), "unknown %s: %R", name, object);
    return false;
  }
  *out = static_cast<Enum>(value);
  return true;
}

bool out_of_range(PyObject* object, const char* name, const char* wanted) {
  PyErr_Format(error_type(ErrorCode::kRange), "%s must be %s, not %R", name, wanted, object);
  return false;
}

}  // namespace

bool as_u64(PyObject* object, const char* name, uint64_t* out) {
  if (PyBool_Check(object)) return type_error(object, name, "an int");
  PyObject* number = object;
  if (PyLong_Check(object)) {
    Py_INCREF(number);
  } else {
    if (!PyIndex_Check(object)) return type_error(object, name, "an int");
    number = PyNumber_Index(object);
    if (number == nullptr) return false;
  }
  const unsigned long long value = PyLong_AsUnsignedLongLong(number);
  Py_DECREF(number);
  if (value == static_cast<unsigned long long>(-1) && PyErr_Occurred()) {
    PyErr_Clear();
    return out_of_range(object, name, "from 0 to 2^64-1");
  }
  *out = value;
  return true;
}

bool as_u32(PyObject* object, const char* name, uint32_t* out) {
  uint64_t value = 0;
  if (!as_u64(object, name, &value)) return false;
  if (value > UINT32_MAX) return out_of_range(object, name, "from 0 to 2^32-1");
  *out = static_cast<uint32_t>(value);
  return true;
}

bool as_file_range(PyObject* object, FileRange* out) {
  if (!is_file_range(object)) return type_error(object, "range", "a FileRange");
  *out = range_of(object);
  return true;
}

bool as_kind(PyObject* object, MemoryKind* out) {
  if (!as_enum(object, "kind", "a MemoryKind, such as MemoryKind.ANONYMOUS", MemoryKind::kMapped,
               out))
    return false;
  if (*out == MemoryKind::kMapped) {
    PyErr_SetString(error_type(ErrorCode::kOption), "MAPPED memory is not backed by a MemoryFile");
    return false;
  }
  return true;
}

bool as_direction(PyObject* object, Direction* out) {
  return as_enum(object, "direction", "Direction.BOTTOM_UP or TOP_DOWN", Direction::kTopDown, out);
}

bool as_huge(PyObject* object, HugeWish* out) {
  if (object != Py_None && !PyBool_Check(object)) {
    PyErr_Format(PyExc_TypeError, "huge must be a bool or None, not %.100s",
                 Py_TYPE(object)->tp_name);
    return false;
  }
  *out = object == Py_True    ? HugeWish::kAsked
         : object == Py_False ? HugeWish::kNone
                              : HugeWish::kIfUseful;
  return true;
}

bool as_mode(PyObject* object, AllocationMode* out) {
  return as_enum(object, "mode",
                 "AllocationMode.ALLOCATE_ONLY, ALLOCATE_AND_COMMIT or ALLOCATE_AND_WRITE_POPULATE",
                 AllocationMode::kAllocateAndWritePopulate, out);
}

}  // namespace pgalloc::binding
