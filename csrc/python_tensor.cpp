#include "python_tensor.h"

#include <ATen/EmptyTensor.h>
#include <torch/csrc/Dtype.h>

#include <cstring>

namespace torch_helion {
namespace {

bool same_torch_as_at_build(PyObject* torch) {
  PyObject* version = PyObject_GetAttrString(torch, "__version__");
  PyObject* text = version == nullptr ? nullptr : PyObject_Str(version);
  Py_XDECREF(version);
  const char* running = text == nullptr ? nullptr : PyUnicode_AsUTF8(text);
  if (running == nullptr) {
    Py_XDECREF(text);
    return false;
  }
  int major = 0;
  int minor = 0;
  const bool same = std::sscanf(running, "%d.%d", &major, &minor) == 2 &&
      major == TORCH_VERSION_MAJOR && minor == TORCH_VERSION_MINOR;
  if (!same) {
    PyErr_Format(
        PyExc_ImportError,
        "torch_helion._C was built for torch %d.%d, but torch %s is "
        "installed: build it again (pip install --no-build-isolation)",
        TORCH_VERSION_MAJOR,
        TORCH_VERSION_MINOR,
        running);
  }
  Py_DECREF(text);
  return same;
}

bool layout_as_declared() {
  at::TensorBase tensor =
      at::detail::empty_strided_cpu({2}, {1}, c10::ScalarType::Float);
  PyObject* object = THPVariable_Wrap(tensor);
  if (object == nullptr) {
    return false;
  }
  const bool right =
      is_tensor(object) && tensor_impl(object) == tensor.unsafeGetTensorImpl();
  Py_DECREF(object);
  if (!right) {
    PyErr_SetString(
        PyExc_ImportError,
        "torch_helion._C does not know the layout of this torch's tensors: "
        "build it again against the torch that is installed");
  }
  return right;
}

} // namespace

bool init_python_tensor() {
  PyObject* torch = PyImport_ImportModule("torch");
  if (torch == nullptr) {
    return false;
  }
  const bool same = same_torch_as_at_build(torch);
  Py_DECREF(torch);
  if (!same) {
    return false;
  }
  if (THPVariableClass == nullptr) {
    PyErr_SetString(
        PyExc_ImportError, "torch_helion._C needs torch fully imported first");
    return false;
  }
  return layout_as_declared();
}

const char* why_not_plain_cpu(PyObject* object) {
  using c10::DispatchKey;
  const c10::TensorImpl* impl = tensor_impl(object);
  const c10::DispatchKeySet keys =
      impl == nullptr ? c10::DispatchKeySet() : impl->key_set();
  const char* type_name = Py_TYPE(object)->tp_name;
  if (std::strstr(type_name, "FakeTensor") != nullptr) {
    return "is a fake tensor (it has no data)";
  }
  if (keys.empty()) {
    return "is an undefined tensor";
  }
  if (keys.has(DispatchKey::Python)) {
    return "is a tensor subclass that wraps other tensors";
  }
  if (keys.has(DispatchKey::Functionalize) ||
      keys.has(DispatchKey::FuncTorchBatched) ||
      keys.has(DispatchKey::FuncTorchGradWrapper)) {
    return "is a wrapper of a functorch transform";
  }
  if (keys.has_backend(c10::BackendComponent::MetaBit)) {
    return "is a meta tensor (it has no data)";
  }
  if (!impl->device().is_cpu()) {
    return "is not on the CPU";
  }
  if (keys.has(DispatchKey::Conjugate) || keys.has(DispatchKey::Negative)) {
    return "is lazily conjugated or negated (call resolve_conj() and "
           "resolve_neg() first)";
  }
  if (keys.has(DispatchKey::ZeroTensor)) {
    return "is a zero tensor without memory";
  }
  if (!keys.has(DispatchKey::CPU)) {
    return "is not a dense (strided) tensor";
  }
  return "is not a plain dense CPU tensor";
}

bool dtype_of(PyObject* object, c10::ScalarType* dtype) {
  if (!THPDtype_Check(object)) {
    return false;
  }
  *dtype = reinterpret_cast<THPDtype*>(object)->scalar_type;
  return true;
}

} // namespace torch_helion
