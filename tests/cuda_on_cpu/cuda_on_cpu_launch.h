// launch and FASTCONV_SHARED of cuda/launch.cuh, for the host.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "runtime.h"

#define FASTCONV_SHARED(name) unsigned char* const name = shim::dynamic_shared()

namespace shim {

// A dim3 that knows where it was written: the launch it belongs to.
struct Grid : dim3 {
  std::source_location where;
  Grid(dim3 size, std::source_location where_ = std::source_location::current()) : dim3(size), where(where_) {}
};

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<std::remove_cv_t<Parameters>...> arguments;
  Launch launch;

  static void body(const void* call) {
    const Call& c = *static_cast<const Call*>(call);
    std::apply(c.kernel, c.arguments);
  }
  void operator()() const {
    Launch l = launch;
    l.body = body;
    l.arguments = this;
    run(l);
  }
};

inline std::string place(const std::source_location& where) {
  const std::string file = where.file_name();
  return "launched at " + file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

}  // namespace shim

namespace fastconv::cuda {

struct LaunchOptions {
  int cluster = 1;
  bool programmatic = false;  // grids run one after the other here
};

template <class... Parameters, class... Arguments>
void launch(const LaunchOptions& options, void (*kernel)(Parameters...), shim::Grid grid, dim3 block,
            size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  shim::Call<Parameters...> call{kernel, {static_cast<Parameters>(arguments)...}, {}};
  call.launch.grid = grid, call.launch.block = block, call.launch.shared_bytes = shared_bytes;
  call.launch.cluster = options.cluster;
  call.launch.name = shim::place(grid.where);
  const std::string reason = shim::refuses(call.launch);
  if (!reason.empty()) throw std::runtime_error("launch of kernel " + call.launch.name + ": " + reason);
  shim::enqueue(stream, "kernel", std::move(call));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), shim::Grid grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  launch(LaunchOptions{}, kernel, grid, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

}  // namespace fastconv::cuda
