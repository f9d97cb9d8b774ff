#include "cuda/execute.h"

#include <vector>

#include "cuda/copy.h"
#include "cuda/device.h"

namespace fastconv::cuda {
namespace {

struct Named {
  const char* name;
  const View* view;
};

void require_device(const Named& array, int device) {
  if (array.view && array.view->device != device)
    throw std::invalid_argument(std::string(array.name) + " lies on CUDA device " + std::to_string(array.view->device) +
                                ", but input on CUDA device " + std::to_string(device) +
                                "; all arguments must be on one device");
}

void require_element(const Named& array, Element element) {
  if (array.view && array.view->element != element)
    throw WrongDtype(std::string(array.name) + " must be " + to_string(element) + " here, got " +
                     to_string(array.view->element));
}

// What a call needs beside its arrays. Freed in stream order behind the launch.
class Temporaries {
 public:
  explicit Temporaries(cudaStream_t stream) : stream_(stream) {}

  void* bytes(int64_t count) {
    held_.emplace_back(count, stream_);
    return held_.back().data();
  }
  View like(const View& view, Element element) {
    View v;
    v.element = element;
    v.shape = view.shape;
    v.strides = contiguous_strides(view.shape);
    v.device = view.device;
    v.data = bytes(view.elements() * bytes_of(element));
    return v;
  }
  // The array itself where it is contiguous and of that dtype, else such a copy.
  const void* plain(const View& view, Element element) {
    if (view.element == element && view.contiguous()) return view.data;
    const View copied = like(view, element);
    copy(view, copied, stream_);
    return copied.data;
  }

 private:
  cudaStream_t stream_;
  std::vector<Temporary> held_;
};

void judge(const Call& call, Element element, int device) {
  const Named same_dtype[] = {{"weight", call.weight}, {"residual", call.residual}, {"out", call.dst}};
  for (const Named& array : same_dtype) require_device(array, device), require_element(array, element);
  const Named any[] = {{"bias", call.bias}, {"scale", call.scale}, {"indices", call.indices}};
  for (const Named& array : any) require_device(array, device);
  if (call.bias && call.bias->element != Element::f32) require_element({"bias", call.bias}, element);
  if (call.scale) require_element({"scale", call.scale}, Element::f32);
  if (call.indices) require_element({"indices", call.indices}, Element::i64);
}

}  // namespace

Dtype dtype_of(const View& view, const char* argument) {
  switch (view.element) {
    case Element::f32:
      return Dtype::f32;
    case Element::f16:
      return Dtype::f16;
    case Element::bf16:
      return Dtype::bf16;
    default:
      throw WrongDtype(std::string(argument) + " must be float32, float16 or bfloat16, got " + to_string(view.element));
  }
}

Element element_of(Dtype dtype) {
  return dtype == Dtype::f32 ? Element::f32 : dtype == Dtype::f16 ? Element::f16 : Element::bf16;
}

Shape result_shape(const Task& task) {
  Problem p = task.problem;
  if (task.then_max_pool) {
    p.oh = (p.oh - 1) / 2 + 1;
    p.ow = (p.ow - 1) / 2 + 1;
  }
  return output_shape(p);
}

PlanPtr execute(const Call& call, cudaStream_t stream) {
  const int device = call.src->device;
  const Element element = element_of(call.task.dtype);
  judge(call, element, device);
  const PlanPtr plan = make_plan(call.task, call.preference, device_limits(device));
  if (call.dst->elements() == 0) return plan;

  const DeviceGuard guard(device);
  const View* const arrays[] = {call.src, call.weight, call.bias, call.scale, call.residual, call.dst, call.indices};
  bool own = false;
  for (const View* a : arrays) {
    if (!a || !a->storage) continue;
    own = true;
    a->storage->acquire(stream);
  }
  {
    Temporaries temporaries(stream);
    Operands args;
    args.src = temporaries.plain(*call.src, element);
    args.packed = call.packed;
    if (call.weight) {
      const Algorithm& a = *plan->algorithm;
      if (a.pack) {
        const void* wei = temporaries.plain(*call.weight, Element::f32);
        void* packed = temporaries.bytes(plan->packed_bytes);
        a.pack(*plan, static_cast<const float*>(wei), packed, stream);
        args.packed = packed;
      } else {
        args.packed = temporaries.plain(*call.weight, element);
      }
    }
    args.bias = call.bias ? static_cast<const float*>(temporaries.plain(*call.bias, Element::f32)) : call.packed_bias;
    if (call.scale) args.scale = static_cast<const float*>(temporaries.plain(*call.scale, Element::f32));
    if (call.residual) args.residual = temporaries.plain(*call.residual, element);
    const bool direct = call.dst->contiguous();
    const View result = direct ? *call.dst : temporaries.like(*call.dst, element);
    args.dst = result.data;
    if (call.indices) args.indices = static_cast<int64_t*>(call.indices->data);
    args.workspace = temporaries.bytes(plan->workspace_bytes);
    plan->algorithm->run(*plan, args, stream);
    if (!direct) copy(result, *call.dst, stream);
  }
  if (own && !is_capturing(stream)) {
    const MarkPtr done = Mark::record(device, stream);
    for (const View* a : arrays)
      if (a && a->storage) a->storage->release(stream, done);
  }
  return plan;
}

}  // namespace fastconv::cuda
