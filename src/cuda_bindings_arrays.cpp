// The border to Python: device arrays from and to other libraries, streams, and what stays alive until a stream is done with it.
#include <deque>

#include "cuda/copy.h"
#include "cuda/device.h"
#include "cuda/dlpack.h"
#include "cuda_bindings.h"

using namespace py::literals;

namespace fastconv::cuda::bindings {
namespace {

// Released with the GIL held, from whatever thread drops the last view; what is dropped after the interpreter leaks.
std::shared_ptr<void> kept(py::object object) {
  return {new py::object(std::move(object)), [](void* p) {
            if (!Py_IsInitialized()) return;
            const py::gil_scoped_acquire locked;
            delete static_cast<py::object*>(p);
          }};
}

void require_aligned(const View& v, const char* name) {
  if (reinterpret_cast<uintptr_t>(v.data) % static_cast<uintptr_t>(bytes_of(v.element)))
    bad(std::string(name) + " must be aligned to its element's size");
}

template <class M>
View taken(const py::capsule& capsule, const char* used, bool read_only, const char* name) {
  auto* managed = capsule.get_pointer<M>();
  View v = dlpack::view_of(managed->tensor, read_only, name);
  if (PyCapsule_SetName(capsule.ptr(), used)) throw py::error_already_set();
  v.owner = std::shared_ptr<void>(managed, [](void* p) {
    auto* m = static_cast<M*>(p);
    if (m->deleter) m->deleter(m);
  });
  require_aligned(v, name);
  return v;
}

View from_dlpack(const py::capsule& capsule, const char* name) {
  const char* kind = PyCapsule_GetName(capsule.ptr());
  const std::string word = kind ? kind : "";
  if (word == "dltensor") return taken<dlpack::Managed>(capsule, "used_dltensor", false, name);
  if (word != "dltensor_versioned")
    bad(std::string(name) + ": __dlpack__ gave a capsule \"" + word + "\", not an unused \"dltensor\"");
  const auto* managed = capsule.get_pointer<dlpack::Versioned>();
  if (managed->major != 1)
    bad(std::string(name) + ": __dlpack__ gave version " + std::to_string(managed->major) +
        " of the protocol; 1 was asked for");
  return taken<dlpack::Versioned>(capsule, "used_dltensor_versioned", (managed->flags & dlpack::kReadOnly) != 0, name);
}

void delete_unused(PyObject* object) {
  const char* kind = PyCapsule_GetName(object);
  const std::string word = kind ? kind : "";
  if (word == "dltensor") {
    auto* m = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(object, kind));
    m->deleter(m);
  } else if (word == "dltensor_versioned") {
    auto* m = static_cast<dlpack::Versioned*>(PyCapsule_GetPointer(object, kind));
    m->deleter(m);
  }
}

py::capsule to_dlpack(const View& view, bool versioned) {
  void* managed = versioned ? static_cast<void*>(dlpack::versioned(view)) : dlpack::managed(view);
  PyObject* capsule = PyCapsule_New(managed, versioned ? "dltensor_versioned" : "dltensor", delete_unused);
  if (!capsule) throw py::error_already_set();
  return py::reinterpret_steal<py::capsule>(capsule);
}

Element element_named(const std::string& dtype) {
  for (const Element e : {Element::f32, Element::f16, Element::bf16, Element::i64})
    if (dtype == cu::to_string(e)) return e;
  throw WrongDtype("dtype must be float32, float16 or bfloat16, got " + dtype);
}

int device_of_pointer(uintptr_t data, const char* name) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, reinterpret_cast<const void*>(data)), "cudaPointerGetAttributes");
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
    bad(std::string(name) + " does not point to memory of a CUDA device");
  return attributes.device;
}

// Strides in elements.
View from_pointer(uintptr_t data, const Shape& shape, const Shape& strides, const std::string& dtype,
                  std::optional<int> device, bool read_only, py::object owner, const char* name) {
  View v;
  v.data = reinterpret_cast<void*>(data);
  v.element = element_named(dtype);
  if (strides.size() != shape.size())
    bad(std::string(name) + " has " + std::to_string(strides.size()) + " strides for " + std::to_string(shape.size()) +
        " dimensions");
  v.shape = shape;
  v.strides = strides;
  v.read_only = read_only;
  v.device = device ? *device : v.elements() == 0 ? current_device() : device_of_pointer(data, name);
  v.owner = kept(std::move(owner));
  require_aligned(v, name);
  return v;
}

View empty(const Shape& shape, const std::string& dtype, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  device_limits(device);
  return fresh(shape, element_named(dtype), stream_of(stream));
}

void copy_ordered(const View& src, const View& dst, uintptr_t handle) {
  if (src.shape != dst.shape)
    bad("out must have shape " + fc::to_string(src.shape) + ", got " + fc::to_string(dst.shape));
  if (src.device != dst.device) bad("copies are made within one device");
  if (src.elements() == 0) return;
  const py::gil_scoped_release unlocked;
  const cudaStream_t stream = stream_of(handle);
  const DeviceGuard guard(src.device);
  for (const View* v : {&src, &dst})
    if (v->storage) v->storage->acquire(stream);
  copy(src, dst, stream);
  if ((src.storage || dst.storage) && !is_capturing(stream)) {
    const MarkPtr done = Mark::record(src.device, stream);
    for (const View* v : {&src, &dst})
      if (v->storage) v->storage->release(stream, done);
  }
}

// Contiguous arrays to and from host memory of the same bytes, waited for.
void copy_host(const View& view, const py::buffer& host, bool to_device, uintptr_t handle) {
  const py::buffer_info info = host.request(!to_device);
  const int64_t bytes = view.elements() * bytes_of(view.element);
  if (!view.contiguous() || info.size * info.itemsize != bytes)
    bad("host copies are of contiguous arrays of the same size");
  if (bytes == 0) return;
  const py::gil_scoped_release unlocked;
  const cudaStream_t stream = stream_of(handle);
  const DeviceGuard guard(view.device);
  if (is_capturing(stream))
    throw std::runtime_error(
        "copies between host and device wait for the device: they cannot be part of a CUDA graph that is being "
        "captured");
  const RelaxedCapture relaxed;  // another stream may be captured
  if (view.storage) view.storage->acquire(stream);
  if (to_device) {
    check(cudaMemcpyAsync(view.data, info.ptr, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream),
          "cudaMemcpyAsync");
  } else {
    check(cudaMemcpyAsync(info.ptr, view.data, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream),
          "cudaMemcpyAsync");
  }
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  if (view.storage) view.storage->release(stream, Mark::record(view.device, stream));
}

// `stream` waits for what `producer` has in its queue now.
void wait(int device, uintptr_t stream, uintptr_t producer) {
  const cudaStream_t consumer = stream_of(stream), source = stream_of(producer);
  if (consumer == source || is_capturing(consumer)) return;
  const DeviceGuard guard(device);
  const MarkPtr point = Mark::record(device, source);
  check(cudaStreamWaitEvent(consumer, point->handle(), 0), "cudaStreamWaitEvent");
}

// Another library takes an array of our own: its stream waits for the work on the array. `known`: that stream is never destroyed.
void hand_over(const View& view, uintptr_t handle, bool known) {
  if (!view.storage) return;
  const DeviceGuard guard(view.device);
  const cudaStream_t stream = stream_of(handle);
  view.storage->acquire(stream);
  view.storage->hand_over(stream, known || !stream);
}

// Objects whose memory a stream still reads, with the point where it is done.
struct Held {
  std::mutex mutex;
  std::deque<std::pair<MarkPtr, py::object>> queue;
};
Held& held() {
  static Held& instance = *new Held;  // never destroyed: its objects may outlive the interpreter
  return instance;
}

// Keeps `objects` until `stream` has done all that it has in its queue now; nothing while it is being captured, when lifetimes are the
// business of whoever owns the graph.
void hold(int device, uintptr_t handle, py::object objects) {
  const cudaStream_t stream = stream_of(handle);
  if (is_capturing(stream)) return;
  std::vector<std::pair<MarkPtr, py::object>> done;  // dropped behind the lock
  const DeviceGuard guard(device);
  MarkPtr now = Mark::record(device, stream);
  const std::lock_guard lock(held().mutex);
  auto& queue = held().queue;
  queue.emplace_back(std::move(now), std::move(objects));
  for (size_t i = queue.size(); i-- > 0;) {
    if (!queue[i].first->done()) continue;
    done.push_back(std::move(queue[i]));
    queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

class OwnStream {
 public:
  explicit OwnStream(int device) : device_(device), handle_(borrow_stream(device)) {}
  ~OwnStream() { return_stream(device_, handle_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  int device() const { return device_; }
  uintptr_t handle() const { return reinterpret_cast<uintptr_t>(handle_); }
  void synchronize() const {
    const py::gil_scoped_release unlocked;
    check(cudaStreamSynchronize(handle_), "cudaStreamSynchronize");
  }

 private:
  int device_;
  cudaStream_t handle_;
};

void synchronize(int device) {
  const py::gil_scoped_release unlocked;
  const DeviceGuard guard(device);
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

}  // namespace

void add_arrays(py::module_& m) {
  // Before the handlers of libraries that were loaded earlier, which destroy their streams.
  py::module_::import("atexit").attr("register")(py::cpp_function(abandon));
  // Local to the module, here and in the other files: the tests load this module and its build for the host side by side.
  py::class_<View>(m, "View", py::module_local())
      .def_property_readonly("shape", [](const View& v) { return tuple_of(v.shape); })
      .def_property_readonly("strides", [](const View& v) { return tuple_of(v.strides); })
      .def_property_readonly("dtype", [](const View& v) { return cu::to_string(v.element); })
      .def_property_readonly("itemsize", [](const View& v) { return bytes_of(v.element); })
      .def_property_readonly("pointer", [](const View& v) { return reinterpret_cast<uintptr_t>(v.data); })
      .def_readonly("device", &View::device)
      .def_readonly("read_only", &View::read_only)
      .def_property_readonly("contiguous", &View::contiguous)
      .def("reshaped", &View::reshaped, "shape"_a)
      .def("dlpack", to_dlpack, "versioned"_a);
  py::class_<OwnStream>(m, "Stream", py::module_local())
      .def(py::init<int>(), "device"_a)
      .def_property_readonly("device", &OwnStream::device)
      .def_property_readonly("handle", &OwnStream::handle)
      .def("synchronize", &OwnStream::synchronize);
  m.def("from_dlpack", from_dlpack, "capsule"_a, "name"_a);
  m.def("from_pointer", from_pointer, "data"_a, "shape"_a, "strides"_a, "dtype"_a, "device"_a, "read_only"_a, "owner"_a,
        "name"_a);
  m.def("empty", empty, "shape"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def("copy", copy_ordered, "src"_a, "dst"_a, "stream"_a);
  m.def("copy_host", copy_host, "view"_a, "host"_a, "to_device"_a, "stream"_a);
  m.def("wait", wait, "device"_a, "stream"_a, "producer"_a);
  m.def("hand_over", hand_over, "view"_a, "stream"_a, "known"_a);
  m.def("hold", hold, "device"_a, "stream"_a, "objects"_a);
  m.def("is_capturing", [](uintptr_t stream) { return is_capturing(stream_of(stream)); }, "stream"_a);
  m.def("synchronize", synchronize, "device"_a);
}

}  // namespace fastconv::cuda::bindings
