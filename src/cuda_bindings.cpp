// The border to Python of the CUDA backend: the module `_cuda`, loaded at first use.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/device.h"
#include "cuda/plan.h"

#ifndef FASTCONV_CUDA_MODULE
#define FASTCONV_CUDA_MODULE _cuda
#endif

namespace py = pybind11;
namespace cu = fastconv::cuda;

PYBIND11_MODULE(FASTCONV_CUDA_MODULE, m, py::mod_gil_not_used()) {
  m.doc() = "CUDA backend of fastconv; see _cuda.pyi.";
  m.def("why_unavailable", cu::why_unavailable);
}
