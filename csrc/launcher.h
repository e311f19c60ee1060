#pragma once

// Runs generated kernels. A kernel is three kinds of addresses in a plain C
// ABI (a plan and its phases); the launcher checks arguments, finds scratch
// memory and splits the grid over threads. It knows nothing of what a kernel
// computes.

#include <Python.h>

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace torch_helion {

// args: 8-byte slots, the data pointers of the tensors, then the ints.
// out[0] = bytes of the workspace that all phases of one call share; then per
// phase k: out[1 + 3k] = grid steps, out[2 + 3k] = estimated cost of one step
// in picoseconds, out[3 + 3k] = bytes of scratch per thread.
using PlanFunction = void (*)(const int64_t* args, int64_t* out);

// Runs the steps [begin, end) and returns a Status.
using PhaseFunction = int64_t (*)(
    const int64_t* args,
    int64_t begin,
    int64_t end,
    void* scratch,
    void* workspace);

enum Status : int64_t {
  kOk = 0,
  kIndexOutOfRange = 1,
  kIntegerDivisionByZero = 2,
};

// The type Kernel(name, plan, phases, dtypes, n_ints, keepalive).
// A new reference, or nullptr with an error set.
PyObject* make_kernel_type();

// What a Kernel object takes, and a run of it on packed arguments (its slots,
// all checked by the caller): false with a Python error set.
struct KernelArity {
  Py_ssize_t tensors;
  Py_ssize_t ints;
};
bool is_kernel_object(PyObject* object);
KernelArity kernel_arity(PyObject* kernel);
const c10::ScalarType* tensor_dtypes(PyObject* kernel);
bool run_packed(PyObject* kernel, const int64_t* slots);

// launch(kernel0, *args0, kernel1, *args1, ...): METH_FASTCALL.
PyObject* launch(PyObject*, PyObject* const* args, Py_ssize_t n);

// The memory that this thread keeps for the next launch.
void drop_scratch() noexcept;

} // namespace torch_helion
