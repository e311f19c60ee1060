#pragma once

// Calls of one kernel with the values of a Python function: a check that they
// are what the kernel was made for, then the launch. What does not fit is
// handed to Python.

#include <Python.h>

namespace torch_helion {

// The type Match(specs): match(tuple) -> bool.
PyObject* make_match_type();

// The type Launch(kernel, specs, tensors, ints, ties, written, same, miss,
// apart).
PyObject* make_launch_type();

} // namespace torch_helion
