// The border to Python of the CUDA backend: the module `_cuda`, loaded at first use. This file has the module and its errors;
// cuda_bindings_arrays.cpp the arrays and streams, cuda_bindings_ops.cpp the ops, cuda_bindings_program.cpp weights and programs,
// cuda_bindings_introspection.cpp what tells about kernels and devices.
#include "cuda_bindings.h"

#include "cuda/device.h"

#ifndef FASTCONV_CUDA_MODULE
#define FASTCONV_CUDA_MODULE _cuda
#endif

PYBIND11_MODULE(FASTCONV_CUDA_MODULE, m, py::mod_gil_not_used()) {
  m.doc() = "CUDA backend of fastconv; see _cuda.pyi.";
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const cu::Unsupported& e) {
      py::set_error(PyExc_NotImplementedError, e.what());
    } catch (const cu::WrongDtype& e) {
      py::set_error(PyExc_TypeError, e.what());
    } catch (const cu::OutOfMemory& e) {
      py::set_error(PyExc_MemoryError, e.what());
    } catch (const std::length_error& e) {
      py::set_error(PyExc_MemoryError, e.what());
    }
  });
  cu::bindings::add_arrays(m);
  cu::bindings::add_ops(m);
  cu::bindings::add_introspection(m);
  cu::bindings::add_programs(m);
  cu::bindings::add_hopper(m);
}
