// The extension module torch_helion._C: its functions and their names.

#include <Python.h>

#include "call.h"
#include "errors.h"
#include "launcher.h"
#include "parallel.h"
#include "pool.h"
#include "python_tensor.h"

namespace torch_helion {
namespace {

template <class Function>
PyCFunction fastcall(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

PyObject* empty_all(PyObject* self, PyObject* unused) {
  drop_scratch();
  return empty_cache(self, unused);
}

PyMethodDef methods[] = {
    {"launch",
     fastcall(&launch),
     METH_FASTCALL,
     "launch(kernel0, *args0, kernel1, *args1, ...): run kernels in order"},
    {"empty_strided",
     fastcall(&empty_strided),
     METH_FASTCALL,
     "empty_strided(size, stride, dtype) -> Tensor, from the pool if large"},
    {"allocate",
     &allocate,
     METH_O,
     "allocate(((size, stride, dtype), ...)) -> tuple of new tensors"},
    {"empty_cache",
     &empty_all,
     METH_NOARGS,
     "empty_cache(): give the pool's free pages back to the system"},
    {"pool_stats",
     &pool_stats,
     METH_NOARGS,
     "pool_stats() -> dict of the pool's counters and sizes"},
    {"set_pool_limit",
     &set_pool_limit,
     METH_O,
     "set_pool_limit(bytes): most bytes that the pool keeps free"},
    {"set_pool_threshold",
     &set_pool_threshold,
     METH_O,
     "set_pool_threshold(bytes): storages from this size on are pooled"},
    {"set_debug_fill",
     &set_debug_fill,
     METH_O,
     "set_debug_fill(on): fill new memory and scratch with 0xff bytes"},
    {"parallel_info",
     &parallel_info,
     METH_NOARGS,
     "parallel_info() -> dict: threads that a launch from here may use"},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    "torch_helion._C",
    "Launching kernels and pooling memory.",
    -1,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr};

bool add_type(const PyRef& module, const char* name, PyObject* type) {
  const PyRef owned(type);
  return owned && PyModule_AddObjectRef(module.get(), name, type) == 0;
}

PyObject* make_module() {
  if (!init_python_tensor()) {
    return nullptr;
  }
  pool_allocator();
  watch_forks();
  PyRef module(PyModule_Create(&module_def));
  const bool complete = module &&
      add_type(module, "Kernel", make_kernel_type()) &&
      add_type(module, "Match", make_match_type()) &&
      add_type(module, "Launch", make_launch_type());
  return complete ? module.release() : nullptr;
}

} // namespace
} // namespace torch_helion

PyMODINIT_FUNC PyInit__C() {
  return torch_helion::guarded(&torch_helion::make_module);
}
