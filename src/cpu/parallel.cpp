#include "cpu/parallel.h"

#include <omp.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/stat.h>
#endif
#if defined(FASTCONV_X86)
#include <immintrin.h>
#endif

#include "cpu/machine.h"

namespace fastconv {
namespace {

std::atomic<int> process_threads{0};  // 0: not set
thread_local int override_threads = 0;
std::atomic<bool> runtime_started{false};  // a region of more than one thread has run in this process
std::atomic<bool> threads_at_fork{
    false};  // the process had other threads when it last forked: maybe an OpenMP pool, ours or another library's
std::atomic<bool> orphaned{false};  // this process is a fork of one for which either held

// 100 to 250 microseconds on x86, where a PAUSE takes 40 to 140 cycles: a thread that sleeps at a meeting comes back 50 and
// more microseconds late, makes the others wait at the next one, and a layer of 80 microseconds then takes 180. With more threads
// than processors the one that is waited for may need this processor: 10 to 25 microseconds.
constexpr int kSpins = 5000, kSpinsCrowded = 500;

// More threads than this never pay and may be more than the system grants, which the OpenMP runtime answers by ending the process.
int most_threads() {
  return std::max(64, 4 * machine_info().cpus_affinity);
}

// A second thread pays when each has at least this much to do: waking and meeting cost a few microseconds.
constexpr double kCyclesPerThread = 40000;

class DefaultFloatingPoint {
 public:
#if defined(FASTCONV_X86)
  DefaultFloatingPoint() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatingPoint() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  DefaultFloatingPoint() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
#endif
};

inline void relax() {
#if defined(FASTCONV_X86)
  _mm_pause();
#endif
}

int positive_from_environment(const char* name) {
  const char* text = std::getenv(name);
  if (!text || !*text) return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  const bool list = end && *end == ',';  // OMP_NUM_THREADS may give one number per nesting level; the first counts
  if (end == text || (*end && !list) || value < 1 || value > 4096)
    throw std::invalid_argument(std::string(name) + " must be a whole number from 1 to 4096; got '" + text + "'");
  return static_cast<int>(value);
}

#if defined(__unix__) || defined(__APPLE__)
bool has_other_threads() {
#if defined(__linux__)
  // A folder has a link for itself, one for its parent's entry and one for each folder in it: here, for each thread.
  struct stat tasks;
  return stat("/proc/self/task", &tasks) != 0 || tasks.st_nlink > 3;
#else
  return true;
#endif
}
#endif

}  // namespace

void prepare_threads() {
  (void)omp_get_max_threads();
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork([] { threads_at_fork = has_other_threads(); }, nullptr,
                                               [] {
                                                 if (runtime_started || threads_at_fork) orphaned = true;
                                               });
  (void)registered;
#endif
}

void Barrier::wait() {
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_.load(std::memory_order_relaxed)) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    return;
  }
  const int spins = count_.load(std::memory_order_relaxed) > machine_info().cpus_affinity ? kSpinsCrowded : kSpins;
  for (int i = 0; i < spins; ++i) {
    if (round_.load(std::memory_order_acquire) != round) return;
    relax();
  }
  round_.wait(round, std::memory_order_acquire);
}

int default_num_threads() {
  static const int found = [] {
    if (const int n = positive_from_environment("FASTCONV_NUM_THREADS")) return n;
    const char* omp = std::getenv("OMP_NUM_THREADS");
    if (omp && *omp) {
      // Not ours to judge: a value that OpenMP would refuse too is passed over.
      try {
        return positive_from_environment("OMP_NUM_THREADS");
      } catch (const std::invalid_argument&) {
      }
    }
    const MachineInfo& m = machine_info();
    int n = m.cpus_affinity;
    if (m.cpu_quota > 0) n = std::min(n, std::max(1, static_cast<int>(std::ceil(m.cpu_quota))));
    return n;
  }();
  return found;
}

int num_threads() {
  if (override_threads > 0) return override_threads;
  const int set = process_threads.load(std::memory_order_relaxed);
  return set > 0 ? set : default_num_threads();
}

void set_num_threads(int n) {
  process_threads = n;
}

int set_thread_override(int n) {
  const int before = override_threads;
  override_threads = n;
  return before;
}

int useful_threads(double cycles) {
  const double worth = std::min(cycles / kCyclesPerThread, static_cast<double>(num_threads()));
  return std::max(1, static_cast<int>(worth));
}

void run_region(int nthr, RegionFn fn, void* context) {
  if (nthr <= 1 || orphaned.load(std::memory_order_relaxed)) {
    Barrier alone(1);
    const DefaultFloatingPoint environment;
    fn(context, 0, 1, alone);
    return;
  }
  runtime_started.store(true, std::memory_order_relaxed);
  nthr = std::min(nthr, most_threads());
  Barrier barrier(nthr);
#pragma omp parallel num_threads(nthr)
  {
    const int n = omp_get_num_threads();  // the runtime may grant fewer: a thread limit, or a call from inside a region
    barrier.set_count(n);                 // the same value from every thread, before it first waits
    const DefaultFloatingPoint environment;
    fn(context, omp_get_thread_num(), n, barrier);
    if (n > 1) barrier.wait();  // the runtime's own barrier at the end sleeps as early as an idle worker should
  }
}

}  // namespace fastconv
