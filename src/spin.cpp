// How long one turn of GNU's OpenMP runtime takes while it waits: a load, a compare and, on x86, a PAUSE, which takes 40 cycles
// on some processors and 140 on others. A module of its own, without OpenMP: the runtime reads its spin count when it is loaded,
// which is when _core is, and the count that makes a given time must be known by then.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <chrono>

namespace {

double nanoseconds_per_spin() {
  using Clock = std::chrono::steady_clock;
  constexpr int kTurns = 200, kRepeats = 5;
  volatile int never = 0;
  double best = 1e9;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < kTurns && never == 0; ++i) {
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#else
      asm volatile("" ::: "memory");
#endif
    }
    best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - start).count() / kTurns);
  }
  return best;
}

PyObject* nanoseconds(PyObject*, PyObject*) {
  return PyFloat_FromDouble(nanoseconds_per_spin());
}

PyMethodDef methods[] = {{"nanoseconds", nanoseconds, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_spin", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__spin() {
  return PyModuleDef_Init(&module);
}
