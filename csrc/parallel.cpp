#include "parallel.h"

#include "errors.h"

#include <ATen/Parallel.h>

#include <algorithm>

#ifndef _WIN32
#include <dirent.h>
#include <pthread.h>
#endif

// The OpenMP runtime that torch itself brought, found through torch's
// libraries when this one is loaded. Linking a runtime could bring a second
// one with a thread pool of its own (wheels rename theirs), and these four
// functions do not depend on the compiler that builds us.
#if defined(__GNUC__) && !defined(_WIN32)
#define TORCH_HELION_OPENMP 1
extern "C" {
__attribute__((weak)) void GOMP_parallel(
    void (*body)(void*),
    void* data,
    unsigned num_threads,
    unsigned flags);
__attribute__((weak)) int omp_get_thread_num(void);
__attribute__((weak)) int omp_get_num_threads(void);
}
#else
#define TORCH_HELION_OPENMP 0
#endif

namespace torch_helion {
namespace {

// Set in a child of fork() that may not use OpenMP: the runtime would wait
// for threads that exist only in the parent.
bool serial_after_fork = false;
bool single_thread_at_fork = false;

bool have_openmp() {
#if TORCH_HELION_OPENMP
  return GOMP_parallel != nullptr && omp_get_thread_num != nullptr &&
      omp_get_num_threads != nullptr;
#else
  return false;
#endif
}

#ifndef _WIN32
bool has_one_thread() {
  DIR* tasks = opendir("/proc/self/task");
  if (tasks == nullptr) {
    return false;
  }
  int count = 0;
  while (const dirent* entry = readdir(tasks)) {
    count += entry->d_name[0] != '.';
  }
  closedir(tasks);
  return count == 1;
}
#endif

#if TORCH_HELION_OPENMP
struct Split {
  int64_t steps;
  int threads;
  ShareFunction share;
  void* data;
};

void run_thread(void* data) noexcept {
  const auto& split = *static_cast<const Split*>(data);
  // The runtime may give fewer threads than it promised.
  const int64_t threads = std::min(split.threads, omp_get_num_threads());
  const int64_t thread = omp_get_thread_num();
  if (thread >= threads) {
    return;
  }
  const int64_t size = split.steps / threads;
  const int64_t rest = split.steps % threads;
  const int64_t begin = thread * size + std::min(thread, rest);
  const int64_t end = begin + size + (thread < rest ? 1 : 0);
  split.share(split.data, begin, end, thread);
}
#endif

} // namespace

int usable_threads() {
  if (serial_after_fork || !have_openmp() || at::in_parallel_region()) {
    return 1;
  }
  return std::max(at::get_num_threads(), 1);
}

void split_over_threads(
    int64_t steps,
    [[maybe_unused]] int threads,
    ShareFunction share,
    void* data) {
#if TORCH_HELION_OPENMP
  if (threads > 1) {
    // The whole pool is woken and some of it may idle: asking libgomp for
    // fewer threads makes it end the others and start them again later.
    Split split{steps, threads, share, data};
    GOMP_parallel(&run_thread, &split, 0, 0);
    return;
  }
#endif
  share(data, 0, steps, 0);
}

PyObject* parallel_info(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* {
    return Py_BuildValue(
        "{s:i,s:N,s:N}",
        "threads",
        usable_threads(),
        "openmp",
        PyBool_FromLong(have_openmp()),
        "serial_after_fork",
        PyBool_FromLong(serial_after_fork));
  });
}

void watch_forks() {
#ifndef _WIN32
  pthread_atfork(
      [] { single_thread_at_fork = has_one_thread(); },
      nullptr,
      // A process with one thread has no OpenMP threads to lose.
      [] { serial_after_fork = serial_after_fork || !single_thread_at_fork; });
#endif
}

} // namespace torch_helion
