// Shared by the binding files of the CUDA module: arrays, streams and words at the border.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "cuda/execute.h"
#include "cuda/plan.h"
#include "cuda/view.h"

namespace py = pybind11;
namespace fc = fastconv;
namespace cu = fastconv::cuda;

namespace fastconv::cuda::bindings {

[[noreturn]] inline void bad(const std::string& message) {
  throw std::invalid_argument(message);
}

// A stream's handle as Python has it: 0 and 1 are the legacy default stream, 2 that of each thread.
inline cudaStream_t stream_of(uintptr_t handle) {
  return reinterpret_cast<cudaStream_t>(handle == 1 ? 0 : handle);
}

inline py::tuple tuple_of(const Shape& shape) {
  py::tuple t(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) t[i] = shape[i];
  return t;
}

inline Activation activation_of(const std::optional<std::string>& text) {
  return text ? parse_activation(*text) : Activation::none;
}

inline void require_shape(const View& view, const Shape& shape, const char* name) {
  if (view.shape != shape)
    bad(std::string(name) + " must have shape " + fc::to_string(shape) + ", got " + fc::to_string(view.shape));
}

inline void require_writable(const View& view, const char* name) {
  if (view.read_only) bad(std::string(name) + " is read-only");
}

// A plan in its own words, for `explain` and `Program.steps`.
py::dict describe(const Plan& plan);

// What each file adds to the module.
void add_arrays(py::module_& m);
void add_ops(py::module_& m);
void add_introspection(py::module_& m);
void add_programs(py::module_& m);
void add_hopper(py::module_& m);

}  // namespace fastconv::cuda::bindings
