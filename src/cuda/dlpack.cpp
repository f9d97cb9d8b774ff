#include "cuda/dlpack.h"

#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/execute.h"

namespace fastconv::cuda::dlpack {
namespace {

std::string dtype_name(const Tensor& t) {
  const char* kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const std::string kind = t.code < 7 ? kinds[t.code] : "code" + std::to_string(t.code) + "_";
  if (t.code == 6 && t.lanes == 1) return kind;
  return kind + std::to_string(t.bits) + (t.lanes == 1 ? "" : "x" + std::to_string(t.lanes));
}

Element element_of(const Tensor& t, const char* name) {
  if (t.lanes == 1) {
    if (t.code == 2 && t.bits == 32) return Element::f32;
    if (t.code == 2 && t.bits == 16) return Element::f16;
    if (t.code == 4 && t.bits == 16) return Element::bf16;
    if (t.code == 0 && t.bits == 64) return Element::i64;
  }
  throw WrongDtype(std::string(name) + " must be float32, float16 or bfloat16, got " + dtype_name(t));
}

void require_cuda(const Tensor& t, const char* name) {
  if (t.device_type == kCuda || t.device_type == kCudaManaged) return;
  throw std::invalid_argument(std::string(name) + " must lie on a CUDA device, got DLPack device type " +
                              std::to_string(t.device_type));
}

struct Context {
  View view;
  Shape shape, strides;
};

void fill(Tensor& t, Context& c) {
  t = {};
  t.data = c.view.data;
  t.device_type = kCuda;
  t.device_id = c.view.device;
  t.ndim = static_cast<int32_t>(c.shape.size());
  t.code = c.view.element == Element::i64 ? 0 : c.view.element == Element::bf16 ? 4 : 2;
  t.bits = static_cast<uint8_t>(8 * bytes_of(c.view.element));
  t.lanes = 1;
  t.shape = c.shape.data();
  t.strides = c.strides.data();
}

template <class M>
M* exported(const View& view) {
  auto context = std::make_unique<Context>(Context{view, view.shape, view.strides});
  auto m = std::make_unique<M>();
  fill(m->tensor, *context);
  m->context = context.release();
  m->deleter = [](M* self) {
    delete static_cast<Context*>(self->context);
    delete self;
  };
  return m.release();
}

}  // namespace

View view_of(const Tensor& t, bool read_only, const char* name) {
  require_cuda(t, name);
  View v;
  v.element = element_of(t, name);
  v.shape.assign(t.shape, t.shape + t.ndim);
  v.strides = t.strides ? Shape(t.strides, t.strides + t.ndim) : contiguous_strides(v.shape);
  v.data = static_cast<std::byte*>(t.data) + t.byte_offset;
  v.device = t.device_id;
  v.read_only = read_only;
  return v;
}

Managed* managed(const View& view) {
  return exported<Managed>(view);
}

Versioned* versioned(const View& view) {
  Versioned* v = exported<Versioned>(view);
  v->major = 1;
  v->minor = 0;
  v->flags = view.read_only ? kReadOnly : 0;
  return v;
}

}  // namespace fastconv::cuda::dlpack
