#pragma once

// Python tensors and dtypes seen from C++: the one place that knows torch's
// object layout. Nothing here creates memory or runs kernels.

#include <Python.h>

#include <ATen/core/TensorBase.h>
#include <c10/core/ScalarType.h>
#include <c10/core/TensorImpl.h>
#include <torch/headeronly/version.h>

// torch/csrc/autograd/python_variable.h costs 16 s of compilation for four
// declarations. For the releases whose header was read they are repeated
// here, and init_python_tensor() checks them against a live tensor when the
// module is imported; any other release gets the header itself.
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11 && \
    TORCH_VERSION_MINOR <= 14
struct THPVariable {
  PyObject_HEAD
  at::TensorBase cdata;
};
extern PyObject* THPVariableClass;
PyObject* THPVariable_Wrap(const at::TensorBase& var);
PyObject* THPVariable_Wrap(at::TensorBase&& var);
#else
#include <torch/csrc/autograd/python_variable.h>
#endif

namespace torch_helion {

// Imports torch and checks that it is the torch of the build and that its
// objects look as declared above. False with an ImportError set otherwise.
bool init_python_tensor();

inline bool is_tensor(PyObject* object) {
  auto* tensor_class = reinterpret_cast<PyTypeObject*>(THPVariableClass);
  return Py_TYPE(object) == tensor_class ||
      PyType_IsSubtype(Py_TYPE(object), tensor_class);
}

// Of an object for which is_tensor() holds; may be an undefined tensor.
inline c10::TensorImpl* tensor_impl(PyObject* object) {
  return reinterpret_cast<THPVariable*>(object)->cdata.unsafeGetTensorImpl();
}

inline PyObject* wrap_tensor(at::TensorBase&& tensor) {
  return THPVariable_Wrap(std::move(tensor));
}

// Nothing but a strided CPU tensor with memory of its own: no wrapper of any
// kind, no lazy conjugation or negation, no meta, sparse or quantised tensor.
inline bool is_plain_cpu(const c10::TensorImpl& impl) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet required(DispatchKey::CPU);
  constexpr c10::DispatchKeySet allowed(
      {DispatchKey::CPU,
       DispatchKey::AutogradCPU,
       DispatchKey::ADInplaceOrView,
       DispatchKey::AutocastCPU});
  const uint64_t keys = impl.key_set().raw_repr();
  return (keys & ~allowed.raw_repr()) == 0 &&
      (keys & required.raw_repr()) == required.raw_repr();
}

// Why is_plain_cpu() refused, as the end of "argument 3 ...".
const char* why_not_plain_cpu(PyObject* object);

// False if the object is no torch.dtype; no error is set.
bool dtype_of(PyObject* object, c10::ScalarType* dtype);

} // namespace torch_helion
