// Purpose: the first argument of a method that pybind11 binds, when the object may not be
// constructed: T.__new__(T) without __init__, or an __init__ that raised. pybind11's own caster
// makes up uninitialised memory for such an object; this one refuses it with a TypeError.
#pragma once

#include <pybind11/pybind11.h>

#include <typeinfo>

namespace pgalloc::binding {

// The C++ object inside `self`, which must be an instance of a class bound for T; nullptr if its
// constructor never ran.
template <class T>
T* constructed(PyObject* self) {
  auto* const instance = reinterpret_cast<pybind11::detail::instance*>(self);
  if (instance->simple_layout) return static_cast<T*>(instance->simple_value_holder[0]);
  // A Python class may derive from several bound ones.
  const auto* const type = pybind11::detail::get_type_info(typeid(T));
  return static_cast<T*>(instance->get_value_and_holder(type).value_ptr());
}

// Whether `object` is of a class bound for T, or derived from one. By its type: `__class__` is code of
// the object's, which may raise, or lie.
template <class T>
bool is_bound(PyObject* object) {
  static const auto* const type = pybind11::detail::get_type_info(typeid(T));
  return type != nullptr && PyObject_TypeCheck(object, type->type) != 0;
}

template <class T>
class Self {
 public:
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }

 private:
  friend struct pybind11::detail::type_caster<Self<T>>;
  T* object_ = nullptr;
};

}  // namespace pgalloc::binding

namespace pybind11::detail {

template <class T>
struct type_caster<pgalloc::binding::Self<T>> {
  PYBIND11_TYPE_CASTER(pgalloc::binding::Self<T>, make_caster<T>::name);

  bool load(handle source, bool) {
    if (!pgalloc::binding::is_bound<T>(source.ptr())) return false;
    value.object_ = pgalloc::binding::constructed<T>(source.ptr());
    return value.object_ != nullptr;
  }
};

}  // namespace pybind11::detail
