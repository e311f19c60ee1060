#pragma once

// Tensors whose pages are kept. A fresh large tensor costs more in page faults
// than in arithmetic: storages above a threshold therefore come from a bounded
// pool of mapped blocks and go back to it, whoever drops the tensor last.

#include <Python.h>

#include <c10/core/Allocator.h>

#include <cstddef>

namespace torch_helion {

// Memory below the pool's threshold comes from torch's CPU allocator.
c10::Allocator* pool_allocator();

// Memory for a kernel's own use, at least 64-byte aligned; throws when there
// is none. Goes back with pool_release().
void* pool_acquire(std::size_t bytes);
void pool_release(void* data) noexcept;

// Whether fresh memory is filled with 0xff bytes (NaN, -1): tests find reads
// of memory that nobody wrote.
bool debug_fill();

// The functions of the module; METH_FASTCALL unless said otherwise.
PyObject* empty_strided(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* allocate(PyObject*, PyObject* specs); // METH_O
PyObject* empty_cache(PyObject*, PyObject*); // METH_NOARGS
PyObject* pool_stats(PyObject*, PyObject*); // METH_NOARGS
PyObject* set_pool_limit(PyObject*, PyObject* bytes); // METH_O
PyObject* set_pool_threshold(PyObject*, PyObject* bytes); // METH_O
PyObject* set_debug_fill(PyObject*, PyObject* on); // METH_O

} // namespace torch_helion
