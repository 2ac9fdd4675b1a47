#include "binding/cache_keys.h"

#include <bit>
#include <cstdint>

namespace pgalloc::binding {
namespace {

constexpr int kDepthMax = 32;  // as in keys.py

// False with an exception set.
bool add_head(char kind, size_t length, KeyBytes* bytes) {
  if (length > UINT32_MAX) {
    PyErr_SetString(PyExc_OverflowError, "the key is too long");
    return false;
  }
  char head[5] = {kind};
  const auto number = static_cast<uint32_t>(length);
  std::memcpy(head + 1, &number, sizeof number);
  bytes->append(head, sizeof head);
  return true;
}

bool add(char kind, const char* data, size_t length, KeyBytes* bytes) {
  if (!add_head(kind, length, bytes)) return false;
  bytes->append(data, length);
  return true;
}

// With one bit more than it needs: so it has a sign.
bool add_int(PyObject* number, KeyBytes* bytes) {
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
  if (overflow == 0) {
    const auto magnitude =
        value < 0 ? uint64_t{0} - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
    const size_t length = std::bit_width(magnitude) / 8 + 1;
    char content[9];
    std::memcpy(content, &value, sizeof value);
    content[8] = value < 0 ? '\xff' : '\0';
    return add('i', content, length, bytes);
  }
  PyObject* const bits = PyObject_CallMethod(number, "bit_length", nullptr);
  const Py_ssize_t length = bits == nullptr ? -1 : PyLong_AsSsize_t(bits) / 8 + 1;
  Py_XDECREF(bits);
  if (length < 0) return false;
  PyObject* const arguments = Py_BuildValue("(ns)", length, "little");
  PyObject* const names = Py_BuildValue("{sO}", "signed", Py_True);
  PyObject* const method = PyObject_GetAttrString(number, "to_bytes");
  PyObject* written = nullptr;
  if (arguments != nullptr && names != nullptr && method != nullptr) {
    written = PyObject_Call(method, arguments, names);
  }
  Py_XDECREF(method);
  Py_XDECREF(names);
  Py_XDECREF(arguments);
  const bool done = written != nullptr &&
                    add('i', PyBytes_AS_STRING(written), static_cast<size_t>(length), bytes);
  Py_XDECREF(written);
  return done;
}

bool add_str(PyObject* text, KeyBytes* bytes) {
  if (PyUnicode_IS_COMPACT_ASCII(text)) {
    return add('s', static_cast<const char*>(PyUnicode_DATA(text)),
               static_cast<size_t>(PyUnicode_GET_LENGTH(text)), bytes);
  }
  PyObject* const encoded = PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass");
  if (encoded == nullptr) return false;
  const bool done =
      add('s', PyBytes_AS_STRING(encoded), static_cast<size_t>(PyBytes_GET_SIZE(encoded)), bytes);
  Py_DECREF(encoded);
  return done;
}

Encoded add_key(PyObject* key, int depth, KeyBytes* bytes) {
  bool done = false;
  if (PyUnicode_CheckExact(key)) {
    done = add_str(key, bytes);
  } else if (PyBytes_CheckExact(key)) {
    done = add('b', PyBytes_AS_STRING(key), static_cast<size_t>(PyBytes_GET_SIZE(key)), bytes);
  } else if (PyLong_CheckExact(key)) {
    done = add_int(key, bytes);
  } else if (!PyTuple_CheckExact(key) || depth == 0) {
    return Encoded::kNoKey;
  } else {
    done = add_head('t', static_cast<size_t>(PyTuple_GET_SIZE(key)), bytes);
    for (Py_ssize_t i = 0; done && i < PyTuple_GET_SIZE(key); ++i) {
      const Encoded part = add_key(PyTuple_GET_ITEM(key, i), depth - 1, bytes);
      if (part != Encoded::kKey) return part;
    }
  }
  return done ? Encoded::kKey : Encoded::kError;
}

PyObject* decode_int(std::string_view content) {
  if (content.size() <= sizeof(int64_t)) {
    int64_t value = content.back() < 0 ? -1 : 0;
    std::memcpy(&value, content.data(), content.size());
    return PyLong_FromLongLong(value);
  }
  PyObject* const method =
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(&PyLong_Type), "from_bytes");
  // "N" takes over the reference, also if it is nullptr.
  PyObject* const arguments = Py_BuildValue(
      "(Ns)", PyBytes_FromStringAndSize(content.data(), static_cast<Py_ssize_t>(content.size())),
      "little");
  PyObject* const names = Py_BuildValue("{sO}", "signed", Py_True);
  PyObject* value = nullptr;
  if (method != nullptr && arguments != nullptr && names != nullptr) {
    value = PyObject_Call(method, arguments, names);
  }
  Py_XDECREF(names);
  Py_XDECREF(arguments);
  Py_XDECREF(method);
  return value;
}

// The key at the front, which it takes off.
PyObject* take_key(std::string_view* bytes) {
  const char kind = bytes->front();
  uint32_t length = 0;
  std::memcpy(&length, bytes->data() + 1, sizeof length);
  bytes->remove_prefix(1 + sizeof length);
  if (kind == 't') {
    PyObject* const parts = PyTuple_New(length);
    for (uint32_t i = 0; parts != nullptr && i < length; ++i) {
      PyObject* const part = take_key(bytes);
      if (part == nullptr) {
        Py_DECREF(parts);
        return nullptr;
      }
      PyTuple_SET_ITEM(parts, i, part);
    }
    return parts;
  }
  const std::string_view content = bytes->substr(0, length);
  bytes->remove_prefix(length);
  const auto size = static_cast<Py_ssize_t>(length);
  if (kind == 'i') return decode_int(content);
  const char* const start = content.data();
  if (kind == 'b') return PyBytes_FromStringAndSize(start, size);
  return PyUnicode_DecodeUTF8(start, size, "surrogatepass");
}

}  // namespace

Encoded encode_key(PyObject* key, KeyBytes* bytes) { return add_key(key, kDepthMax, bytes); }

PyObject* decode_key(std::string_view bytes) { return take_key(&bytes); }

}  // namespace pgalloc::binding
