#pragma once

// torch's own threads: how many there are, and a range split over them.

#include <Python.h>

#include <cstdint>

namespace torch_helion {

// How many threads work started here may use; 1 inside a parallel region, and
// in a child of fork() whose parent had threads.
int usable_threads();

// Runs the share [begin, end) of one thread; must not throw.
using ShareFunction =
    void (*)(void* data, int64_t begin, int64_t end, int64_t thread);

// Gives each of the threads, at most usable_threads(), a contiguous share of
// the steps (equal but for one step), and waits until all are done.
void split_over_threads(
    int64_t steps,
    int threads,
    ShareFunction share,
    void* data);

// parallel_info() -> dict: what a launch from this thread would use.
PyObject* parallel_info(PyObject*, PyObject*); // METH_NOARGS

// Must run once, at import: after a fork() the child has no OpenMP threads.
void watch_forks();

} // namespace torch_helion
