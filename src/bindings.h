// Shared by the binding files, which are the only ones that include pybind11: arrays and words at the border.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <optional>

#include "common/plan.h"
#include "common/validate.h"

namespace py = pybind11;
namespace fc = fastconv;

namespace fastconv::bindings {
using F32 = py::array_t<float, py::array::c_style>;

[[noreturn]] inline void bad(const std::string& message) {
  throw std::invalid_argument(message);
}

inline fc::Shape shape_of(const py::array& a) {
  return fc::Shape(a.shape(), a.shape() + a.ndim());
}

// The Python layer hands over C-contiguous, aligned float32 arrays. These checks keep a caller who reaches past it from
// a crash.
template <class T>
void require_plain(const py::array& a, const char* name) {
  if (!py::dtype::of<T>().is(a.dtype()) && !a.dtype().equal(py::dtype::of<T>()))
    throw py::type_error(std::string(name) + " must be an array of " + std::string(py::str(py::dtype::of<T>())) +
                         ", got " + std::string(py::str(a.dtype())));
  if (!(a.flags() & py::array::c_style)) bad(std::string(name) + " must be C-contiguous here");
  if (reinterpret_cast<uintptr_t>(a.data()) % alignof(T)) bad(std::string(name) + " must be aligned here");
}

inline const float* in(const py::array& a, const char* name) {
  require_plain<float>(a, name);
  return static_cast<const float*>(a.data());
}

template <class T = float>
T* out(py::array& a, const fc::Shape& shape, const char* name) {
  require_plain<T>(a, name);
  if (!a.writeable()) bad(std::string(name) + " is read-only");
  if (shape_of(a) != shape)
    bad(std::string(name) + " must have shape " + fc::to_string(shape) + ", got " + fc::to_string(shape_of(a)));
  return static_cast<T*>(a.mutable_data());
}

// Whether x is a NumPy array, not of a subclass, of C-contiguous, aligned, native float32.
inline bool is_plain(const py::handle& x) {
  if (Py_TYPE(x.ptr()) != py::detail::npy_api::get().PyArray_Type_) return false;
  const auto a = py::reinterpret_borrow<py::array>(x);
  constexpr int kPlain = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  return (a.flags() & kPlain) == kPlain && a.dtype().is(py::dtype::of<float>());
}

inline bool has_shape(const py::array& a, const fc::Shape& shape) {
  return std::equal(shape.begin(), shape.end(), a.shape(), a.shape() + a.ndim());
}

// Whether x can be read and y be written as they are: both plain, y writeable, no memory shared.
inline bool plain_and_apart(const py::handle& x, const py::handle& y) {
  if (!is_plain(x) || !is_plain(y)) return false;
  const auto a = py::reinterpret_borrow<py::array>(x), b = py::reinterpret_borrow<py::array>(y);
  const auto* p = static_cast<const std::byte*>(a.data());
  const auto* q = static_cast<const std::byte*>(b.data());
  return b.writeable() && (p >= q + b.nbytes() || q >= p + a.nbytes());
}

inline void require_size(const py::array& a, int64_t size, const char* name) {
  if (a.ndim() != 1 || a.size() != size)
    bad(std::string(name) + " must have shape (" + std::to_string(size) + ",), got " + fc::to_string(shape_of(a)));
}

inline fc::Activation activation_of(const std::optional<std::string>& text) {
  return text ? fc::parse_activation(*text) : fc::Activation::none;
}

inline py::tuple tuple_of(const fc::Shape& shape) {
  py::tuple t(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) t[i] = shape[i];
  return t;
}

// A plan in its own words, for `explain` and `Program.steps`.
py::dict describe(const fc::Plan& plan);

inline void require_threads(int threads, const char* name = "threads") {
  if (threads < 1 || threads > 4096) bad(std::string(name) + " must be from 1 to 4096, got " + std::to_string(threads));
}

// What each file adds to the module.
void add_introspection(py::module_& m);
void add_programs(py::module_& m);

}  // namespace fastconv::bindings
