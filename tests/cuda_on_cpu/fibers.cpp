#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHIM_ASAN 1
#endif
#endif
#ifdef SHIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && defined(__linux__) && !defined(SHIM_SWITCH_BY_UCONTEXT)
#define SHIM_SWITCH_BY_HAND 1
#else
#include <ucontext.h>
#endif

namespace shim {
namespace {

#ifdef SHIM_ASAN
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr int kWarp = 32, kBarriers = 16;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kPoison = 0xFF, kGuard = 0xA5;  // of all ones is a NaN in every dtype
constexpr uint32_t kSharedBase = 1024;  // the first address, as where the system keeps the first KB; 0 is nobody's

}  // namespace
}  // namespace shim

// --- switching stacks ---

#ifdef SHIM_SWITCH_BY_HAND
// Saves what a call must preserve on the running stack, leaves its pointer in *save, and returns on the other stack.
extern "C" void fastconv_shim_switch(void** save, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.hidden fastconv_shim_switch
.globl fastconv_shim_switch
.type fastconv_shim_switch, @function
fastconv_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastconv_shim_switch, .-fastconv_shim_switch
)");
#endif

namespace shim {
namespace {

[[noreturn]] void fiber_main();

struct Fiber {
  unsigned char* stack = nullptr;  // null: the host's own
  size_t stack_bytes = 0;
#ifdef SHIM_SWITCH_BY_HAND
  void* sp = nullptr;
#else
  ucontext_t context{};
#endif
#ifdef SHIM_ASAN
  void* fake_stack = nullptr;
#endif
  int start = -1;  // the thread it is to begin with

  // To begin at fiber_main when it runs next, whatever it was doing.
  void reset() {
#ifdef SHIM_ASAN
    ASAN_UNPOISON_MEMORY_REGION(stack, stack_bytes);
    fake_stack = nullptr;
#endif
#ifdef SHIM_SWITCH_BY_HAND
    void** top = reinterpret_cast<void**>(stack + stack_bytes);
    *--top = nullptr;  // the return address of fiber_main, which never does
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    sp = top;
#else
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
#endif
  }
};

Fiber* make_fiber() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);  // a stack that overflows stops the process instead of the stack below
  Fiber* f = new Fiber;
  f->stack = static_cast<unsigned char*>(memory) + page;
  f->stack_bytes = kStackBytes;
  f->reset();
  return f;
}

// --- one launch ---

enum class State : uint8_t { unborn, ready, in_warp, at_barrier, in_cluster, polling, ended };

struct Thread {
  Fiber* fiber = nullptr;
  uint3 index{};
  int block = 0;  // in the cluster
  int lane = 0, warp = 0;
  State state = State::unborn;
  uint32_t mask = 0;
  void* operand = nullptr;
  void (*whole)(void* const*, uint32_t) = nullptr;
  std::shared_ptr<void> belongings;
};

struct Block {
  uint3 index{};
  std::unique_ptr<unsigned char[]> memory;  // guards around, when no sanitizer looks
  unsigned char* shared = nullptr;
  std::vector<int> waiting[kBarriers];
};

struct Random {
  uint64_t state = 1;
  uint32_t next() {  // xorshift64*
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return static_cast<uint32_t>((state * 0x2545F4914F6CDD1Dull) >> 32);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((uint64_t{next()} * n) >> 32); }
  void shuffle(std::vector<int>& v, size_t from = 0) {
    for (size_t i = v.size(); i > from + 1; --i) std::swap(v[i - 1], v[from + below(static_cast<uint32_t>(i - from))]);
  }
};

struct Machine {
  const Launch* launch = nullptr;
  Random random;
  bool depth_first = false;  // who became ready last runs first
  std::vector<Thread> threads;
  std::vector<Block> blocks;
  std::vector<uint32_t> warp_waiting;  // lanes of a warp that wait for the others
  std::vector<int> ready, polling, in_cluster;
  size_t ready_head = 0;  // those before it have had their turn
  int block_threads = 0, block_warps = 0, ended = 0, now = -1;
  bool progress = false;  // something ran, beside conditions that were looked at again and still do not hold
  std::string error;
  Fiber host;
  Fiber* running = &host;
  std::vector<Fiber*> idle, all;
};

Machine& machine() {
  static Machine& instance = *new Machine;
  return instance;
}
Machine& m = machine();

void switch_to(Fiber* to) {
  Fiber* from = m.running;
  m.running = to;
#ifdef SHIM_ASAN
  __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef SHIM_SWITCH_BY_HAND
  fastconv_shim_switch(&from->sp, to->sp);
#else
  swapcontext(&from->context, &to->context);
#endif
#ifdef SHIM_ASAN
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

void become(int thread) {
  m.now = thread;
  threadIdx = m.threads[thread].index;
  blockIdx = m.blocks[m.threads[thread].block].index;
}

std::string coordinates(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string stuck() {
  int in_warp = 0, at_barrier = 0, in_cluster = 0, polling = 0, first = -1;
  for (size_t i = 0; i < m.threads.size(); ++i) {
    const State s = m.threads[i].state;
    in_warp += s == State::in_warp, at_barrier += s == State::at_barrier, in_cluster += s == State::in_cluster;
    polling += s == State::polling;
    if (first < 0 && s != State::ended) first = static_cast<int>(i);
  }
  std::string text = "deadlock in block " + coordinates(m.blocks[m.threads[first].block].index) + ": ";
  const auto add = [&text](int count, const char* what) {
    if (count) text += std::to_string(count) + what;
  };
  add(at_barrier, " threads wait at a barrier of the block, ");
  add(in_warp, " for lanes of their warp, ");
  add(in_cluster, " at a barrier of the cluster, ");
  add(polling, " for a condition, ");
  return text + std::to_string(m.ended) + " of " + std::to_string(m.threads.size()) + " have ended; thread " +
         coordinates(m.threads[first].index) + " is one that waits";
}

// The next thread that can run; -1 when none ever will, or all have ended.
int next_ready() {
  if (m.ready_head == m.ready.size()) {
    m.ready.clear();
    m.ready_head = 0;
    if (m.polling.empty() || !m.progress) {
      if (m.ended != static_cast<int>(m.threads.size())) m.error = stuck();
      return -1;
    }
    m.progress = false;
    m.ready.swap(m.polling);
    for (const int t : m.ready) m.threads[t].state = State::ready;
  }
  if (!m.depth_first) return m.ready[m.ready_head++];
  const int last = m.ready.back();
  m.ready.pop_back();
  return last;
}

void make_ready(int thread) {
  if (m.ready_head == m.ready.size()) m.ready.clear(), m.ready_head = 0;
  m.threads[thread].state = State::ready;
  m.ready.push_back(thread);
}

// The running thread has said what it waits for.
void pause() {
  const int me = m.now, next = next_ready();
  if (next == me) {
    become(me);
    return;
  }
  if (next < 0) {
    switch_to(&m.host);
    std::abort();  // a failed launch is not resumed
  }
  Fiber* to = m.threads[next].fiber;
  if (!to) {
    if (m.idle.empty()) {
      m.all.push_back(make_fiber());
      m.idle.push_back(m.all.back());
    }
    to = m.idle.back();
    m.idle.pop_back();
    to->start = next;
  }
  switch_to(to);
  become(me);
}

// Threads one after the other, each from its beginning, for as long as the next one has not begun elsewhere.
[[noreturn]] void fiber_main() {
  Fiber* const self = m.running;
#ifdef SHIM_ASAN
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!m.host.stack) m.host.stack = static_cast<unsigned char*>(const_cast<void*>(bottom)), m.host.stack_bytes = size;
#endif
  int t = std::exchange(self->start, -1);
  for (;;) {
    Thread& thread = m.threads[t];
    thread.fiber = self;
    become(t);
    m.launch->body(m.launch->arguments);
    thread.state = State::ended;
    thread.fiber = nullptr;
    ++m.ended;
    m.progress = true;
    t = next_ready();
    if (t >= 0 && !m.threads[t].fiber) continue;
    m.idle.push_back(self);
    switch_to(t < 0 ? &m.host : m.threads[t].fiber);
    t = std::exchange(self->start, -1);
  }
}

// --- blocks ---

void give_shared(Block& b) {
  const size_t bytes = m.launch->shared_bytes;
#ifdef SHIM_ASAN
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, bytes ? bytes : 1)) throw std::bad_alloc();
  b.shared = static_cast<unsigned char*>(memory);
#else
  const size_t room = bytes + 2 * kGuardBytes + 1024;
  if (!b.memory) b.memory.reset(new unsigned char[room]);
  const uintptr_t base = reinterpret_cast<uintptr_t>(b.memory.get()) + kGuardBytes;
  b.shared = reinterpret_cast<unsigned char*>((base + 1023) / 1024 * 1024);
  std::memset(b.shared - kGuardBytes, kGuard, kGuardBytes);
  std::memset(b.shared + bytes, kGuard, kGuardBytes);
#endif
  std::memset(b.shared, kPoison, bytes);
}

void take_shared(Block& b) {
#ifdef SHIM_ASAN
  std::free(b.shared);
#else
  for (size_t i = 0; i < kGuardBytes; ++i) {
    const bool before = b.shared[-1 - static_cast<std::ptrdiff_t>(i)] != kGuard;
    if (!before && b.shared[m.launch->shared_bytes + i] == kGuard) continue;
    if (m.error.empty())
      m.error = "block " + coordinates(b.index) + " wrote " + std::to_string(i) +
                (before ? " bytes before its shared memory" : " bytes behind its shared memory of ") +
                (before ? "" : std::to_string(m.launch->shared_bytes) + " bytes");
    break;
  }
#endif
  b.shared = nullptr;
}

// Blocks first, first + 1, ... of a cluster.
void run_cluster(int64_t first) {
  const Launch& l = *m.launch;
  const int count = static_cast<int>(m.threads.size());
  for (int c = 0; c < l.cluster; ++c) {
    Block& b = m.blocks[c];
    const int64_t id = first + c;
    b.index = {static_cast<unsigned>(id % l.grid.x), static_cast<unsigned>(id / l.grid.x % l.grid.y),
               static_cast<unsigned>(id / l.grid.x / l.grid.y)};
    for (std::vector<int>& w : b.waiting) w.clear();
    give_shared(b);
  }
  for (Thread& t : m.threads) t.state = State::unborn, t.fiber = nullptr, t.belongings = nullptr;
  std::fill(m.warp_waiting.begin(), m.warp_waiting.end(), 0u);
  m.polling.clear(), m.in_cluster.clear();
  m.ready.resize(static_cast<size_t>(count));
  std::iota(m.ready.begin(), m.ready.end(), 0);
  m.ready_head = 0, m.ended = 0, m.progress = false;
  m.depth_first = m.random.next() & 1;
  m.random.shuffle(m.ready);
  if (m.idle.empty()) {
    m.all.push_back(make_fiber());
    m.idle.push_back(m.all.back());
  }
  Fiber* fiber = m.idle.back();
  m.idle.pop_back();
  fiber->start = next_ready();
  switch_to(fiber);
  if (!m.error.empty()) {  // what still waits is dropped where it stands
    m.idle = m.all;
    for (Fiber* f : m.idle) f->reset();
  }
  for (int c = 0; c < l.cluster; ++c) take_shared(m.blocks[c]);
}

uint64_t seed() {
  static const uint64_t value = [] {
    const char* text = std::getenv("FASTCONV_SHIM_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 1;
  }();
  return value;
}

}  // namespace

void run(const Launch& launch) {
  static std::mutex& one_at_a_time = *new std::mutex;
  const std::lock_guard lock(one_at_a_time);
  m.launch = &launch;
  const int64_t blocks = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  m.random.state = (seed() + 1) * 0x9E3779B97F4A7C15ull ^ static_cast<uint64_t>(blocks);
  m.random.next();
  m.block_threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  m.block_warps = (m.block_threads + kWarp - 1) / kWarp;
  m.threads.assign(static_cast<size_t>(m.block_threads) * launch.cluster, Thread{});
  m.warp_waiting.assign(static_cast<size_t>(m.block_warps) * launch.cluster, 0u);
  m.blocks.clear();
  m.blocks.resize(static_cast<size_t>(launch.cluster));
  for (size_t i = 0; i < m.threads.size(); ++i) {
    Thread& t = m.threads[i];
    t.block = static_cast<int>(i) / m.block_threads;
    const unsigned in_block = static_cast<unsigned>(static_cast<int>(i) % m.block_threads);
    t.index = {in_block % launch.block.x, in_block / launch.block.x % launch.block.y,
               in_block / launch.block.x / launch.block.y};
    t.lane = static_cast<int>(in_block) % kWarp;
    t.warp = t.block * m.block_warps + static_cast<int>(in_block) / kWarp;
  }
  m.error.clear();
  m.running = &m.host;
#ifdef SHIM_ASAN
  m.host.stack = nullptr;
  m.host.stack_bytes = 0;
  // The host's stack is whichever thread's this call is on; the first fiber learns it.
  for (Fiber* f : m.all) f->reset();
#endif
  ::blockDim = launch.block;
  ::gridDim = launch.grid;
  // Clusters in an order of steps that share no divisor with their number: each once.
  const int64_t clusters = blocks / launch.cluster;
  int64_t step = clusters > 1 ? 1 + m.random.below(static_cast<uint32_t>(std::min<int64_t>(clusters - 1, 1 << 20))) : 1;
  while (std::gcd(step, clusters) != 1) ++step;
  int64_t at = clusters > 1 ? m.random.below(static_cast<uint32_t>(std::min<int64_t>(clusters, INT32_MAX))) : 0;
  for (int64_t i = 0; i < clusters && m.error.empty(); ++i) {
    run_cluster(at * launch.cluster);
    at = (at + step) % clusters;
  }
  m.launch = nullptr;
  if (!m.error.empty()) throw std::runtime_error("kernel " + launch.name + ": " + m.error);
}

void fail(const std::string& message) {
  m.error = "block " + coordinates(blockIdx) + ", thread " + coordinates(threadIdx) + ": " + message;
  switch_to(&m.host);
  std::abort();
}

std::shared_ptr<void>& belongings() {
  return m.threads[m.now].belongings;
}
int lane() {
  return m.threads[m.now].lane;
}
int rank() {
  return m.threads[m.now].block;
}
int cluster_size() {
  return m.launch->cluster;
}
unsigned char* dynamic_shared() {
  return m.blocks[m.threads[m.now].block].shared;
}

uint32_t shared_address(const void* pointer) {
  for (int c = 0; c < m.launch->cluster; ++c) {
    const auto offset = static_cast<const unsigned char*>(pointer) - m.blocks[c].shared;
    if (offset >= 0 && offset <= static_cast<std::ptrdiff_t>(m.launch->shared_bytes))
      return static_cast<uint32_t>(c) << 24 | (kSharedBase + static_cast<uint32_t>(offset));
  }
  fail("the address of something that is not dynamic shared memory was asked for");
}

void* shared_pointer(uint32_t address, size_t bytes, size_t alignment) {
  const int block = static_cast<int>(address >> 24);
  const int64_t offset = static_cast<int64_t>(address & 0xFFFFFF) - kSharedBase;
  if (block >= m.launch->cluster || offset < 0 || offset + bytes > m.launch->shared_bytes)
    fail(std::to_string(bytes) + " bytes at byte " + std::to_string(offset) + " of shared memory, which has " +
         std::to_string(m.launch->shared_bytes));
  if (static_cast<size_t>(offset) % alignment != 0)
    fail("byte " + std::to_string(offset) + " of shared memory is not aligned to " + std::to_string(alignment));
  return m.blocks[block].shared + offset;
}

void sync_block(int number, int threads) {
  if (threads == 0) threads = m.block_threads;
  Thread& me = m.threads[m.now];
  std::vector<int>& waiting = m.blocks[me.block].waiting[number];
  waiting.push_back(m.now);
  me.state = State::at_barrier;
  m.progress = true;
  if (static_cast<int>(waiting.size()) == threads) {
    m.random.shuffle(waiting);
    for (const int t : waiting) make_ready(t);
    waiting.clear();
  }
  pause();
}

void sync_cluster() {
  m.in_cluster.push_back(m.now);
  m.threads[m.now].state = State::in_cluster;
  m.progress = true;
  if (m.in_cluster.size() == m.threads.size()) {
    m.random.shuffle(m.in_cluster);
    for (const int t : m.in_cluster) make_ready(t);
    m.in_cluster.clear();
  }
  pause();
}

void give_way() {
  make_ready(m.now);
  m.progress = true;
  pause();
}

void poll() {
  m.threads[m.now].state = State::polling;
  m.polling.push_back(m.now);
  pause();
}

void made_progress() {
  m.progress = true;
}

void meet(uint32_t mask, void* operand, void (*whole)(void* const* operands, uint32_t mask)) {
  Thread& me = m.threads[m.now];
  if (!(mask >> me.lane & 1)) fail("a lane's mask does not name the lane itself");
  me.mask = mask, me.operand = operand, me.whole = whole;
  uint32_t& waiting = m.warp_waiting[me.warp];
  waiting |= 1u << me.lane;
  m.progress = true;
  if ((waiting & mask) != mask) {
    me.state = State::in_warp;
    pause();
    return;
  }
  Thread* const lanes = &me - me.lane;
  void* operands[kWarp] = {};
  for (int l = 0; l < kWarp; ++l) {
    if (!(mask >> l & 1)) continue;
    if (lanes[l].mask != mask) fail("lanes of a warp meet under different masks");
    if (lanes[l].whole != whole) fail("lanes of a warp meet at different instructions");
    operands[l] = lanes[l].operand;
  }
  whole(operands, mask);
  waiting &= ~mask;
  for (int l = 0; l < kWarp; ++l)
    if ((mask >> l & 1) && l != me.lane) make_ready(static_cast<int>(&lanes[l] - m.threads.data()));
}

}  // namespace shim
