#include "cuda/execute.h"

#include <vector>

#include "common/log.h"
#include "cuda/copy.h"
#include "cuda/device.h"
#include "cuda/fold.h"

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
  const float* floats(const View* view) {
    return view ? static_cast<const float*>(plain(*view, Element::f32)) : nullptr;
  }

 private:
  cudaStream_t stream_;
  std::vector<Temporary> held_;
};

void require_elements(const Named& array, int64_t elements) {
  if (array.view && array.view->elements() != elements)
    throw std::invalid_argument(std::string(array.name) + " must have " + std::to_string(elements) +
                                " elements, got shape " + fastconv::to_string(array.view->shape));
}

void judge(const Call& call) {
  const int device = call.src->device;
  const Element element = element_of(call.task.dtype);
  const Problem& p = call.task.problem;
  const int64_t out = checked_elements(result_shape(call.task));
  const int64_t in = p.op == Op::relu ? p.ow : p.op == Op::softmax ? p.n * p.ic * p.iw : p.src_elements();
  require_elements({"input", call.src}, in);
  require_elements({"weight", call.weight}, p.weight_elements());
  for (const Named& array : {Named{"residual", call.residual}, Named{"out", call.dst}, Named{"indices", call.indices}})
    require_elements(array, out);
  for (const Named& array : {Named{"weight", call.weight}, Named{"residual", call.residual}, Named{"out", call.dst}})
    require_device(array, device), require_element(array, element);
  for (const Named& array : {Named{"bias", call.bias}, Named{"running_mean", call.mean}, Named{"running_var", call.var},
                             Named{"weight", call.gamma}, Named{"bias", call.beta}}) {
    require_device(array, device), require_elements(array, p.oc);
    if (array.view && array.view->element != Element::f32) require_element(array, element);
  }
  if (!call.indices) return;
  require_device({"indices", call.indices}, device), require_element({"indices", call.indices}, Element::i64);
  if (!call.indices->contiguous()) throw std::invalid_argument("indices must be contiguous here");
}

// batch_norm as a scale and a shift a channel.
void fold(const Call& call, Temporaries& temporaries, Operands& args, cudaStream_t stream) {
  const int64_t channels = call.task.problem.ic;
  float* scale = static_cast<float*>(temporaries.bytes(channels * 4));
  float* shift = static_cast<float*>(temporaries.bytes(channels * 4));
  fold_batch_norm(temporaries.floats(call.mean), temporaries.floats(call.var), temporaries.floats(call.gamma),
                  temporaries.floats(call.beta), call.eps, channels, scale, shift, stream);
  args.scale = scale, args.bias = shift;
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
  judge(call);  // before planning: what is wrong with an array is said first
  const PlanPtr plan = make_plan(call.task, call.preference, device_limits(call.src->device));
  execute(*plan, call, stream);
  return plan;
}

void execute(const Plan& plan, const Call& call, cudaStream_t stream) {
  judge(call);
  if (call.dst->elements() == 0) return;
  const int device = call.src->device;
  const Element element = element_of(call.task.dtype);

  const DeviceGuard guard(device);
  const View* const arrays[] = {call.src,   call.weight, call.bias,     call.mean, call.var,
                                call.gamma, call.beta,   call.residual, call.dst,  call.indices};
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
      const Algorithm& a = *plan.algorithm;
      if (a.pack) {
        const void* wei = temporaries.plain(*call.weight, Element::f32);
        void* packed = temporaries.bytes(plan.packed_bytes);
        a.pack(plan, static_cast<const float*>(wei), packed, stream);
        args.packed = packed;
      } else {
        args.packed = temporaries.plain(*call.weight, element);
      }
    }
    args.bias = call.bias ? temporaries.floats(call.bias) : call.packed_bias;
    if (call.mean) fold(call, temporaries, args, stream);
    if (call.residual) args.residual = temporaries.plain(*call.residual, element);
    const bool direct = call.dst->contiguous();
    const View result = direct ? *call.dst : temporaries.like(*call.dst, element);
    args.dst = result.data;
    if (call.indices) args.indices = static_cast<int64_t*>(call.indices->data);
    args.workspace = temporaries.bytes(plan.workspace_bytes);
    plan.algorithm->run(plan, args, stream);
    if (verbose_level() > 0) log_plan("run", plan, {});
    if (!direct) copy(result, *call.dst, stream);
  }
  if (own && !is_capturing(stream)) {
    const MarkPtr done = Mark::record(device, stream);
    for (const View* a : arrays)
      if (a && a->storage) a->storage->release(stream, done);
  }
}

}  // namespace fastconv::cuda
