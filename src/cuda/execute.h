// One op, once: plan, contiguous forms of what is not, packed weights, workspace, launch. Everything goes on the caller's stream.
#pragma once

#include "cuda/plan.h"
#include "cuda/view.h"

namespace fastconv::cuda {

// Arrays of one call. Their shapes are the caller's own: only the number of elements must be the problem's. Dtypes and devices are judged here.
struct Call {
  Task task;
  Preference preference = {"auto"};
  const View* src = nullptr;
  const View* weight = nullptr;  // conv2d: either these, in the problem's weight_layout,
  const void* packed = nullptr;  // or what the plan's algorithm made of them
  const float* packed_bias = nullptr;
  const View* bias = nullptr;  // this and the next four: float32 or the task's dtype
  const View *mean = nullptr, *var = nullptr, *gamma = nullptr,
             *beta = nullptr;  // batch_norm; the last two may be null
  double eps = 0;
  const View* residual = nullptr;
  const View* dst = nullptr;
  const View* indices = nullptr;
};

// Returns the plan that ran. Arrays of our own are ordered between streams; no other waits, none of the host.
PlanPtr execute(const Call& call, cudaStream_t stream);
// The same by a plan of call.task that is there already.
void execute(const Plan& plan, const Call& call, cudaStream_t stream);

Dtype dtype_of(const View& view, const char* argument);  // TypeError for one that is no image's
Element element_of(Dtype dtype);
struct WrongDtype : std::runtime_error {  // TypeError
  using std::runtime_error::runtime_error;
};

// Shape of dst: the problem's, or of the max-pool behind it.
Shape result_shape(const Task& task);

}  // namespace fastconv::cuda
